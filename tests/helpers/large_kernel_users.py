"""Networks that use large kernels the way UniRepLKNet, SLaK and OverLoCK do, written from their descriptions.

They are no copies: only what a replacement of their convolutions meets is here. That is how they ask for a layer, in
which form they pass its arguments, and what they read off it when branches are merged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def unireplknet_conv(
    channels: int, kernel_size: int, padding: int, dilation: int, bias: bool, attempt_use_lk_impl: bool
) -> nn.Conv2d:
    """UniRepLKNet's rule: a square above 5x5, padded by half, not dilated, is the extension's, called with a tuple."""
    size, pad = (kernel_size, kernel_size), (padding, padding)
    if attempt_use_lk_impl and kernel_size > 5 and pad == (kernel_size // 2, kernel_size // 2) and dilation == 1:
        try:
            from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM
        except ImportError:  # without the extension they go on with nn.Conv2d
            pass
        else:
            return DepthWiseConv2dImplicitGEMM(channels, size, bias=bias)
    return nn.Conv2d(channels, channels, size, padding=pad, dilation=dilation, groups=channels, bias=bias)


class DilatedReparamBlock(nn.Module):
    """A large kernel beside dilated small ones, each with a BatchNorm; merged, one large kernel.

    Args:
        branches: (kernel size, dilation) of the small ones.
    """

    def __init__(
        self, channels: int, kernel_size: int, branches: Sequence[tuple[int, int]], attempt_use_lk_impl: bool
    ) -> None:
        super().__init__()
        self.attempt, self.branches = attempt_use_lk_impl, branches
        self.lk_origin = unireplknet_conv(channels, kernel_size, kernel_size // 2, 1, False, attempt_use_lk_impl)
        self.origin_bn = nn.BatchNorm2d(channels)
        self.small = nn.ModuleList()
        for size, dilation in branches:
            pad = dilation * (size - 1) // 2
            conv = unireplknet_conv(channels, size, pad, dilation, False, attempt_use_lk_impl)
            self.small.append(nn.Sequential(conv, nn.BatchNorm2d(channels)))

    def forward(self, x: Tensor) -> Tensor:
        out = self.origin_bn(self.lk_origin(x)) if self.origin_bn is not None else self.lk_origin(x)
        return out + sum(branch(x) for branch in self.small)

    @torch.no_grad()
    def merge(self) -> None:
        """One kernel with a bias, from what the layers say of themselves."""
        weight, bias = _fold(self.lk_origin, self.origin_bn)
        for branch, (_, dilation) in zip(self.small, self.branches, strict=True):
            kernel, shift = _fold(*branch)
            spread = nn.functional.conv_transpose2d(kernel, torch.ones(1, 1, 1, 1), stride=dilation)
            rim = (weight.shape[-1] - spread.shape[-1]) // 2
            weight = weight + nn.functional.pad(spread, [rim] * 4)
            bias = bias + shift
        channels, size = weight.shape[0], weight.shape[-1]
        merged = unireplknet_conv(channels, size, self.lk_origin.padding[0], 1, True, self.attempt)
        merged.weight.copy_(weight)
        merged.bias.copy_(bias)
        self.lk_origin, self.origin_bn, self.small = merged, None, nn.ModuleList()


def _fold(conv: nn.Module, bn: nn.Module) -> tuple[Tensor, Tensor]:
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return conv.weight * scale.reshape(-1, 1, 1, 1), bn.bias - bn.running_mean * scale


class SLaKKernel(nn.Module):
    """SLaK's decomposed kernel: K x 5 and 5 x K stripes and a small square, each with a BatchNorm, added up."""

    def __init__(self, channels: int, kernel_size: int, small: int, conv: type | None = None) -> None:
        super().__init__()
        if conv is None:  # SLaK has no other way
            from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM

            conv = DepthWiseConv2dImplicitGEMM
        self.stripes = nn.ModuleList()
        for size in ((kernel_size, small), (small, kernel_size), (small, small)):
            self.stripes.append(nn.Sequential(conv(channels, size, bias=False), nn.BatchNorm2d(channels)))

    def forward(self, x: Tensor) -> Tensor:
        return sum(stripe(x) for stripe in self.stripes)


def plain_conv(channels: int, kernel: tuple[int, int], bias: bool = False) -> nn.Conv2d:
    """What `DepthWiseConv2dImplicitGEMM` stands for."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=bias)


#: (size, dilation) of the branches beside a 13x13 of UniRepLKNet.
UNIREPLKNET_BRANCHES = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
#: Kernel size of each of OverLoCK's stages, and (size, dilation) of the branches beside it.
OVERLOCK_BRANCHES = {
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
}


class OverLoCKBlock(nn.Module):
    """A 3x3, a `DilatedReparamBlock`, and an MLP with another 3x3 inside; residuals around the 3x3 and the whole."""

    def __init__(self, channels: int, kernel_size: int, ratio: int = 4) -> None:
        super().__init__()
        wide = channels * ratio
        self.before = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mixer = DilatedReparamBlock(channels, kernel_size, OVERLOCK_BRANCHES[kernel_size], False)
        self.norm = nn.BatchNorm2d(channels)
        self.expand, self.project = nn.Conv2d(channels, wide, 1), nn.Conv2d(wide, channels, 1)
        self.inside = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.before(x)
        wide = nn.functional.gelu(self.expand(self.norm(self.mixer(x))))
        return x + self.project(wide + self.inside(wide))


def pyramid(stages: Sequence[tuple[int, Sequence[nn.Module]]], num_classes: int) -> nn.Module:
    """A classifier of stages (channels, blocks): the first at 1/4 of the resolution, each next at half of that."""
    layers: list[nn.Module] = []
    before = 3
    for channels, blocks in stages:
        stride = 4 if before == 3 else 2
        layers += [nn.Conv2d(before, channels, stride + 1, stride, padding=1, bias=False), nn.BatchNorm2d(channels)]
        layers += blocks
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))


def overlock_xt(num_classes: int = 1000) -> nn.Module:
    """The convolutions of OverLoCK-XT at their sizes, 17 large ones in four stages.

    The dynamic kernels of its last two stages, which are attention, are left out.
    """
    sizes = ((56, 2, 17), (112, 2, 15), (256, 9, 13), (336, 4, 7))
    return pyramid([(c, [OverLoCKBlock(c, kernel) for _ in range(depth)]) for c, depth, kernel in sizes], num_classes)


class MixerBlock(nn.Module):
    """What UniRepLKNet and SLaK have around a depthwise `mixer`: a norm, an MLP of 1x1 convolutions, a residual."""

    def __init__(self, channels: int, mixer: nn.Module, ratio: int = 4) -> None:
        super().__init__()
        self.mixer, self.norm = mixer, nn.BatchNorm2d(channels)
        self.expand, self.project = nn.Conv2d(channels, channels * ratio, 1), nn.Conv2d(channels * ratio, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(nn.functional.gelu(self.expand(self.norm(self.mixer(x)))))


def unireplknet_t(num_classes: int = 1000) -> nn.Module:
    """The convolutions of UniRepLKNet-T at their sizes: 13x13 in stages 2 to 4, every other block of stage 3 a 3x3.

    Its squeeze-and-excitation and response normalisation are left out.
    """

    def block(channels: int, kernel: int) -> nn.Module:
        if kernel == 3:
            return MixerBlock(channels, plain_conv(channels, (3, 3)))
        return MixerBlock(channels, DilatedReparamBlock(channels, kernel, UNIREPLKNET_BRANCHES, False))

    kernels = ([3] * 3, [13] * 3, [13, 3] * 9, [13] * 3)
    channels = (80, 160, 320, 640)
    return pyramid(
        [(c, [block(c, kernel) for kernel in stage]) for c, stage in zip(channels, kernels, strict=True)], num_classes
    )


def slak_t(num_classes: int = 1000) -> nn.Module:
    """The convolutions of SLaK-T at their sizes: stripes of 51x5 to 13x5. BatchNorm stands where it has LayerNorm."""
    sizes = ((124, 3, 51), (249, 3, 49), (499, 9, 47), (998, 3, 13))
    return pyramid(
        [(c, [MixerBlock(c, SLaKKernel(c, kernel, 5, plain_conv)) for _ in range(n)]) for c, n, kernel in sizes],
        num_classes,
    )
