"""What a backend is: it says why it can't run a problem, and runs the ones it can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..checks import DTYPES, Geometry

#: The passes, by their names everywhere; each is one raw op.
PASSES = ("fwd", "bwd_input", "bwd_weight")
OP_OF_PASS = {"fwd": "dwconv2d", "bwd_input": "dwconv2d_backward_input", "bwd_weight": "dwconv2d_backward_weight"}


@dataclass(frozen=True)
class Problem:
    """Everything that a backend's answer may depend on. Shapes are those of the forward pass, whatever the pass.

    Attributes:
        input_shape: (N, C, H, W).
        weight_shape: (C * multiplier, 1, Kh, Kw).
        has_bias: whether a bias is added.
        geometry: stride, padding (top, bottom, left, right) and dilation.
        dtype: of all operands.
        device_type: ``"cpu"``, ``"cuda"``, ...
        activation, algorithm, precision: as in the public function.
        pass_: one of `PASSES`.
        channels_last: memory format of the input; decides which kernel runs, never whether the backend can.
    """

    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    has_bias: bool
    geometry: Geometry
    dtype: torch.dtype
    device_type: str
    activation: str = "none"
    algorithm: str = "auto"
    precision: str = "ieee"
    pass_: str = "fwd"
    channels_last: bool = False


def sizes_of(problem: Problem) -> list[int]:
    """n, c, h, w, kh, kw, ho, wo, pad_top, pad_left of the convolution that runs a pass of stride and dilation 1.

    bwd_input is the forward convolution of the gradient, filter rotated and pads mirrored.
    """
    n, c, h, w = problem.input_shape
    kh, kw = problem.weight_shape[2:]
    top, bottom, left, right = problem.geometry.padding
    ho, wo = h + top + bottom - kh + 1, w + left + right - kw + 1
    if problem.pass_ == "bwd_input":
        return [n, c, ho, wo, kh, kw, h, w, kh - 1 - top, kw - 1 - left]
    return [n, c, h, w, kh, kw, ho, wo, top, left]


class Backend(Protocol):
    """A way to run the convolution.

    ``dispatched`` backends are kernels of the raw ops, reached through torch's dispatcher by device; callers that need
    gradients call them through `replknet_ext.autograd`. The others are built of differentiable torch functions.
    """

    name: str
    dispatched: bool

    def supports(self, problem: Problem) -> str | None:
        """None if this backend can run ``problem``, else the reason why not (a clause without a full stop)."""
        ...

    def kernel(self, problem: Problem) -> str | None:
        """What runs a problem that `supports` accepted, for `replknet_ext.explain`; None if nobody can know."""
        ...

    def run(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry,
        activation: str, precision: str, algorithm: str,
    ) -> Tensor:  # fmt: skip
        """Forward pass of a problem that `supports` accepted."""
        ...


def outside_raw_ops(problem: Problem) -> str | None:
    """Why the raw ops, which have stride 1, dilation 1 and one filter a channel, do not cover ``problem``."""
    if problem.geometry.stride != (1, 1):
        return f"only stride 1, not {problem.geometry.stride}"
    if problem.geometry.dilation != (1, 1):
        return f"only dilation 1, not {problem.geometry.dilation}"
    if problem.weight_shape[0] != problem.input_shape[1]:
        return f"only one filter a channel, not {problem.weight_shape[0]} filters for {problem.input_shape[1]} channels"
    if problem.dtype not in DTYPES:
        return f"no kernels for {problem.dtype}"
    return None
