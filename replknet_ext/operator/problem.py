"""What is computed: `Problem`, by which backends, planners and measured choices know a call, and its options' names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

ACTIVATIONS = ("none", "relu", "gelu")
ALGORITHMS = ("auto", "direct", "fft")
PRECISIONS = ("ieee", "tf32", "bf16x3")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Geometry(NamedTuple):
    """Where the taps lie. ``padding`` is (top, bottom, left, right)."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]


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
        channels_last: memory format of input and output; decides which kernel runs, never whether the backend can.
        device_index: which device of that type; None: the current one.
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
    device_index: int | None = None

    @property
    def device(self) -> torch.device:
        """Type and index, as far as it is known."""
        return torch.device(self.device_type, self.device_index)  # type: ignore[arg-type]  # it takes None

    @property
    def dtype_name(self) -> str:
        """``"float32"`` and so on."""
        return str(self.dtype).removeprefix("torch.")


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


def mirrored(padding: Sequence[int], kernel: Sequence[int]) -> tuple[int, int, int, int]:
    """Padding (top, bottom, left, right) of the convolution that bwd_input is: of the gradient, filter rotated."""
    top, bottom, left, right = padding
    return kernel[0] - 1 - top, kernel[0] - 1 - bottom, kernel[1] - 1 - left, kernel[1] - 1 - right


def outside_raw_ops(problem: Problem) -> str | None:
    """Why the raw ops, which have stride 1, dilation 1 and one filter per channel, do not cover ``problem``."""
    if problem.geometry.stride != (1, 1):
        return f"only stride 1, not {problem.geometry.stride}"
    if problem.geometry.dilation != (1, 1):
        return f"only dilation 1, not {problem.geometry.dilation}"
    if problem.weight_shape[0] != problem.input_shape[1]:
        return (
            f"only one filter per channel, not {problem.weight_shape[0]} filters for {problem.input_shape[1]} channels"
        )
    if problem.dtype not in DTYPES:
        return f"no kernels for {problem.dtype}"
    return None


def output_format(first: Tensor, second: Tensor) -> torch.memory_format:
    """Memory format of what fwd and bwd_input make: channels_last if either operand is, as conv2d has it."""
    either = suggest_memory_format(first) == torch.channels_last or suggest_memory_format(second) == torch.channels_last
    return torch.channels_last if either else torch.contiguous_format


def problem_of(
    pass_: str, first: Tensor, second: Tensor, bias: Tensor | None, padding: Sequence[int],
    activation: str, precision: str, algorithm: str,
) -> Problem:  # fmt: skip
    """What a raw op computes, from its arguments; ``pass_`` may be "bwd_weight_bias"."""
    top, bottom, left, right = padding
    height, width = first.shape[2:]
    kernel = (second.shape[2], second.shape[3])
    x_shape = tuple(first.shape)
    layout = output_format(first, second)
    if pass_ == "bwd_input":
        x_shape = (*first.shape[:2], height + kernel[0] - 1 - top - bottom, width + kernel[1] - 1 - left - right)
    elif pass_ != "fwd":
        layout, x_shape = suggest_memory_format(second), tuple(second.shape)
        kernel = (kernel[0] + top + bottom - height + 1, kernel[1] + left + right - width + 1)
    return Problem(
        x_shape, (x_shape[1], 1, *kernel), bias is not None or pass_ == "bwd_weight_bias",
        Geometry((1, 1), (top, bottom, left, right), (1, 1)), first.dtype, first.device.type, activation, algorithm,
        precision, pass_.removesuffix("_bias"), layout == torch.channels_last, first.device.index,
    )  # fmt: skip
