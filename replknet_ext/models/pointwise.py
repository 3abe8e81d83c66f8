"""The 1x1 convolution of the fully folded form, a plain matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _env

__all__ = ["PointwiseConv2d"]

#: Devices on which NCHW maps are multiplied, too. Off until it is measured on a GPU, where cuDNN may convert the map to
#: channels_last and back. On the CPU the convolution is faster.
NCHW_GEMM_ON: tuple[str, ...] = ("cuda",) if _env.flag("NCHW_GEMM") else ()


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 `nn.Conv2d` of stride 1 without padding or groups that runs as the faster product for the layout.

    A channels_last map is a matrix of pixels by channels as it lies in memory, so `F.linear` takes it without a copy
    and returns channels_last; it beats the convolution there. For NCHW the convolution wins over `torch.matmul` on the
    CPU; with ``REPLKNET_EXT_NCHW_GEMM=1`` it is a batched product on a GPU, which is not measured yet.
    benchmarks/pointwise.py measures both. Exported and traced graphs always hold the convolution.
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
        graph = torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined]
        if not graph and isinstance(input, Tensor) and input.dim() == 4:  # fx traces with proxies
            if input.is_contiguous():
                if input.device.type in NCHW_GEMM_ON:
                    return _gemm(input, weight.flatten(1), bias)
            elif input.is_contiguous(memory_format=torch.channels_last):
                return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        out: Tensor = super()._conv_forward(input, weight, bias)
        return out


def _gemm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, C, H, W) by (C out, C), image by image; not `matmul`, which may copy the map to make it one matrix."""
    maps, filters = x.flatten(2), weight.expand(len(x), -1, -1)
    out = torch.bmm(filters, maps) if bias is None else torch.baddbmm(bias[:, None], filters, maps)
    return out.view(*out.shape[:2], *x.shape[2:])
