"""The 1x1 convolution of the fully folded form, a plain matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PointwiseConv2d"]


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 `nn.Conv2d` of stride 1 without padding or groups that runs as the faster product for the layout.

    A channels_last map is a matrix of pixels by channels as it lies in memory, so `F.linear` takes it without a copy
    and returns channels_last; it beats the convolution there. For NCHW the convolution wins over `torch.matmul`.
    benchmarks/pointwise.py has the figures. Exported and traced graphs always hold the convolution.
    """

    @classmethod
    def adopt(cls, conv: nn.Module) -> None:
        """Makes `conv` one of these where it is an exact `nn.Conv2d` of that kind; nothing else of it changes."""
        if (
            type(conv) is nn.Conv2d
            and conv.kernel_size == conv.stride == conv.dilation == (1, 1)
            and conv.padding == (0, 0)
            and conv.groups == 1
        ):
            conv.__class__ = cls

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if _is_channels_last(input):
            return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        out: Tensor = super()._conv_forward(input, weight, bias)
        return out


def _is_channels_last(x: Tensor) -> bool:
    """Whether x lies in channels_last and in nothing else; False for whatever cannot or should not be asked."""
    graph = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined]
    if graph or not isinstance(x, Tensor) or x.dim() != 4:  # fx traces with proxies
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
