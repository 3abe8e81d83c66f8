"""torch's own convolution: the fallback for what our kernels do not cover, and the oracle beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operator.problem import Geometry, Problem, output_format
from .base import Backend


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply ``activation`` ("none", "relu" or "gelu", the erf form)."""
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x) if activation == "gelu" else x


def padded(x: Tensor, padding: Sequence[int]) -> Tensor:
    """``x`` with zeros around its planes: (top, bottom, left, right), of which negative ones crop."""
    top, bottom, left, right = padding
    if min(padding) < 0:  # pad first: a crop may take more than the plane has
        x = F.pad(x, (max(left, 0), max(right, 0), max(top, 0), max(bottom, 0)))
        left, right, top, bottom = min(left, 0), min(right, 0), min(top, 0), min(bottom, 0)
    return F.pad(x, (left, right, top, bottom))


def _symmetric(x: Tensor, padding: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
    """Split (top, bottom, left, right) into explicit padding and what conv2d itself can take."""
    top, bottom, left, right = padding
    if top == bottom and left == right and top >= 0 and left >= 0:
        return x, (top, left)
    return padded(x, padding), (0, 0)


def in_format(out: Tensor, layout: torch.memory_format) -> Tensor:
    """``out`` with the strides that the raw ops give; `Tensor.contiguous` keeps others where a size is 1."""
    wanted = torch.empty_like(out, memory_format=layout)
    return out if out.stride() == wanted.stride() else wanted.copy_(out)


class TorchBackend(Backend):
    """``torch.conv2d(groups=C)``: any device, stride, dilation and channel multiplier, by torch's own algorithm."""

    name = "torch"
    devices = None
    differentiable = True

    def supports(self, problem: Problem) -> str | None:
        """See `Backend.supports`: torch takes everything that passed the argument checks."""
        return "torch's convolution has no FFT to ask for" if problem.algorithm == "fft" else None

    def fwd(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int],
        activation: str, precision: str, algorithm: str, variant: int,
    ) -> Tensor:  # fmt: skip
        """See `Backend.fwd`."""
        x, pad = _symmetric(input, padding)
        out = activate(torch.conv2d(x, weight, bias, 1, pad, 1, weight.shape[0]), activation)
        return in_format(out, output_format(input, weight))

    def bwd_weight(
        self, grad_output: Tensor, input: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
    ) -> Tensor:
        """See `Backend.bwd_weight`: torch's convolution_backward; (C, 1, Kh, Kw) contiguous."""
        top, bottom, left, right = padding
        channels = input.shape[1]
        kh = input.shape[2] + top + bottom - grad_output.shape[2] + 1
        kw = input.shape[3] + left + right - grad_output.shape[3] + 1
        shape = grad_output.new_zeros((channels, 1, kh, kw))
        if input.shape[0] == 0:
            return shape
        x, pad = _symmetric(input, padding)
        _, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad_output, x, shape, None, [1, 1], list(pad), [1, 1], False, [0, 0], channels, [False, True, False]
        )
        return in_format(grad_weight, torch.contiguous_format)

    def run(self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str) -> Tensor:
        """See `Backend.run`."""
        x, padding = _symmetric(input, geometry.padding)
        groups = input.shape[1]
        # not F.conv2d: programs that patch it with depthwise_conv2d must not come back here
        return activate(torch.conv2d(x, weight, bias, geometry.stride, padding, geometry.dilation, groups), activation)
