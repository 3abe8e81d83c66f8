"""The module that UniRepLKNet, SLaK, OverLoCK and their kin import, running on replknet_ext.

Those projects do `from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM`. After
`import replknet_ext.integrations.depthwise_conv2d_implicit_gemm` that name is this module, in this process: on CPU and
GPU, in every floating dtype and memory format. An installed module of that name stays what it is elsewhere.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ..modules import DepthwiseConv2dLarge

__all__ = ["DepthWiseConv2dImplicitGEMM"]


class DepthWiseConv2dImplicitGEMM(DepthwiseConv2dLarge):
    """Depthwise convolution with stride 1 and padding K // 2, so that H and W stay.

    `padding`, `stride`, `dilation` and `groups` say what the layer does: code that merges branches by reading them
    off the layer gets an equivalent layer.

    Args:
        channels: number of input and of output channels.
        kernel: odd K or (Kh, Kw).
        bias: adds a learnable bias of shape (channels,).
        device, dtype: where and as what the parameters are made.

    Raises:
        ValueError: an even kernel: K // 2 on each side would make the output one larger than the input.
    """

    def __init__(
        self,
        channels: int,
        kernel: int | tuple[int, int],
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, kernel, bias=bias, device=device, dtype=dtype)
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(
                f"kernel must be odd; got {kernel}: padding kernel // 2 keeps the size of the map only for odd "
                "kernels; use replknet_ext.DepthwiseConv2dLarge for even ones"
            )
        self.padding = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)  # in numbers, for whoever reads them off

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "backend" not in state:
            # A whole module pickled from the original class, which recorded padding 0 while it padded by K // 2.
            (kh, kw) = self.kernel_size
            self.padding = (kh // 2, kw // 2)
            self._reversed_padding_repeated_twice = [kw // 2, kw // 2, kh // 2, kh // 2]


sys.modules["depthwise_conv2d_implicit_gemm"] = sys.modules[__name__]
