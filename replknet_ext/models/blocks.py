"""The blocks of RepLKNet (https://arxiv.org/abs/2203.06717), with the parameter names of the official code.

Module names and the order in which they are registered are a file format: they decide the keys of a checkpoint and
their order. Maps are (N, C, H, W) and keep their H and W through every block.

Annotations here are types, not strings: torch.fx copies those of a traced `forward` into the code that it writes.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..modules import DepthwiseConv2dLarge
from ..operator import checks
from .reparam import LEVELS, Reparameterizable, affine, merge_branches

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "ConvFFN",
    "DropPath",
    "RepLKBlock",
    "RepLKNetStage",
    "ReparamLargeKernelConv",
    "ScriptTracer",
    "conv_bn",
    "conv_bn_relu",
    "run_checkpointed",
]


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, padded by K // 2, then BatchNorm, named `conv` and `bn`.

    Depthwise convolutions with stride 1 run on this package's kernels.
    """
    padding = kernel_size // 2
    conv: nn.Conv2d
    if in_channels == out_channels == groups and stride == 1:
        conv = DepthwiseConv2dLarge(in_channels, kernel_size, padding=padding, bias=False)
    else:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    layers = nn.Sequential()
    layers.add_module("conv", conv)
    layers.add_module("bn", nn.BatchNorm2d(out_channels))
    return layers


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """`conv_bn` followed by a ReLU named `nonlinear`."""
    layers = conv_bn(in_channels, out_channels, kernel_size, stride, groups)
    layers.add_module("nonlinear", nn.ReLU())
    return layers


class DropPath(nn.Module):
    """Stochastic depth: in training drops a residual branch for whole images and scales up the others.

    Args:
        rate: probability of dropping, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1); got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)
        return x * mask

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class ReparamLargeKernelConv(nn.Module, Reparameterizable):
    """K x K depthwise convolution with a parallel small one, each with its BatchNorm; merged, one convolution.

    Args:
        channels: number of channels.
        kernel_size: odd K.
        small_kernel: odd size of the parallel kernel, at most K; None for no small branch.
        small_kernel_merged: builds the merged form.
    """

    def __init__(
        self, channels: int, kernel_size: int, small_kernel: int | None, small_kernel_merged: bool = False
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd; got {kernel_size}")
        if small_kernel is not None and not (small_kernel % 2 == 1 and 1 <= small_kernel <= kernel_size):
            raise ValueError(f"small_kernel must be odd and at most kernel_size={kernel_size}; got {small_kernel}")
        self.kernel_size = kernel_size
        self.small_kernel = small_kernel
        if small_kernel_merged:
            self.lkb_reparam = DepthwiseConv2dLarge(channels, kernel_size, padding=kernel_size // 2)
        else:
            self.lkb_origin = conv_bn(channels, channels, kernel_size, groups=channels)
            if small_kernel is not None:
                self.small_conv = conv_bn(channels, channels, small_kernel, groups=channels)

    @property
    def merged(self) -> bool:
        """Whether the branches have been merged into `lkb_reparam`."""
        return "lkb_reparam" in self._modules

    @property
    def activation(self) -> str:
        """The activation that the merged convolution applies itself; "none" in the train-time form."""
        return getattr(self._modules.get("lkb_reparam"), "activation", "none")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lkb_reparam(x) if self.merged else self.lkb_origin(x)
        return out + self.small_conv(x) if "small_conv" in self._modules else out

    def reparameterize(self, level: str = "merge") -> "Self":
        """Merges both branches and their BatchNorms into `lkb_reparam`, at every level; a no-op when merged."""
        if not self.merged:
            small = self.small_conv if "small_conv" in self._modules else None
            self.lkb_reparam = merge_branches(self.lkb_origin, small)
            del self.lkb_origin
            if small is not None:
                del self.small_conv
        return self

    def _check(self) -> None:
        for branch in (self._modules.get("lkb_origin"), self._modules.get("small_conv")):
            if branch is not None:
                affine(branch.bn)  # type: ignore[arg-type]


class RepLKBlock(nn.Module, Reparameterizable):
    """x + drop_path(pw2(relu(large_kernel(pw1(bn(x)))))): 1x1, large depthwise kernel, 1x1.

    Merged, `large_kernel` is one convolution that adds the bias and applies the ReLU itself. `lk_nonlinear` stays in
    place for its hooks; without hooks it is skipped, as its input is already rectified.

    Args:
        channels: channels of the residual stream.
        dw_channels: channels of the depthwise convolution.
        kernel_size, small_kernel, small_kernel_merged: see `ReparamLargeKernelConv`.
        drop_path: stochastic depth rate of the branch.
    """

    def __init__(
        self,
        channels: int,
        dw_channels: int,
        kernel_size: int,
        small_kernel: int | None,
        drop_path: float = 0.0,
        small_kernel_merged: bool = False,
    ) -> None:
        super().__init__()
        self.pw1 = conv_bn_relu(channels, dw_channels, 1)
        self.pw2 = conv_bn(dw_channels, channels, 1)
        self.large_kernel = ReparamLargeKernelConv(dw_channels, kernel_size, small_kernel, small_kernel_merged)
        self.lk_nonlinear = nn.ReLU()
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        if small_kernel_merged:
            self._fuse_activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.prelkb_bn(x)
        out = self.pw1(out)
        out = self.large_kernel(out)
        # A ReLU of rectified values changes nothing, so calling it anyway is right for whoever hooked it.
        if self.large_kernel.activation != "relu" or _is_observed(self.lk_nonlinear):
            out = self.lk_nonlinear(out)
        out = self.pw2(out)
        out = x + self.drop_path(out)
        return out

    def reparameterize(self, level: str = "merge") -> "Self":
        """Merges `large_kernel` and lets it apply the ReLU; "full" also folds all other BatchNorms of the block."""
        checks.name("level", level, LEVELS)
        if level == "full":
            self._check()
        self.large_kernel.reparameterize()
        self._fuse_activation()
        if level == "full":
            self._fold_pairs()
        return self

    def _pairs(self) -> list[tuple[nn.Module, str | None]]:
        return [(self.pw1, "prelkb_bn"), (self.pw2, None)]

    def _fuse_activation(self) -> None:
        # Someone may have put another activation here: only a plain ReLU is what the kernel does.
        if type(self.lk_nonlinear) is nn.ReLU and isinstance(self.large_kernel.lkb_reparam, DepthwiseConv2dLarge):
            self.large_kernel.lkb_reparam.activation = "relu"


class ConvFFN(nn.Module, Reparameterizable):
    """x + drop_path(pw2(gelu(pw1(bn(x))))): the feed-forward part, two 1x1 convolutions.

    Args:
        channels: channels of the residual stream.
        hidden_channels: channels between the convolutions.
        drop_path: stochastic depth rate of the branch.
    """

    def __init__(self, channels: int, hidden_channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1 = conv_bn(channels, hidden_channels, 1)
        self.pw2 = conv_bn(hidden_channels, channels, 1)
        self.nonlinear = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.preffn_bn(x)
        out = self.pw1(out)
        out = self.nonlinear(out)
        out = self.pw2(out)
        out = x + self.drop_path(out)
        return out

    def reparameterize(self, level: str = "merge") -> "Self":
        """ "full" folds the BatchNorms into the convolutions; "merge" has nothing to do here."""
        checks.name("level", level, LEVELS)
        if level == "full":
            self._check()
            self._fold_pairs()
        return self

    def _pairs(self) -> list[tuple[nn.Module, str | None]]:
        return [(self.pw1, "preffn_bn"), (self.pw2, None)]


class RepLKNetStage(nn.Module):
    """Pairs of RepLKBlock and ConvFFN at one resolution; `blocks` holds them alternating.

    `norm` is not part of the forward pass: the network applies it to a feature map that it hands out.

    Args:
        channels: channels of the stage.
        kernel_size: K of its large kernels.
        drop_path: one rate a pair; its length is the number of pairs.
        small_kernel, small_kernel_merged: see `ReparamLargeKernelConv`.
        dw_channels, ffn_channels: channels of the depthwise convolutions, and inside the feed-forward blocks.
        use_checkpoint: in training recompute each block in the backward pass instead of keeping its activations.
        norm: makes `norm` a BatchNorm instead of the identity.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        drop_path: Sequence[float],
        small_kernel: int | None,
        *,
        dw_channels: int,
        ffn_channels: int,
        use_checkpoint: bool = False,
        small_kernel_merged: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList()
        for rate in drop_path:
            self.blocks.append(RepLKBlock(channels, dw_channels, kernel_size, small_kernel, rate, small_kernel_merged))
            self.blocks.append(ConvFFN(channels, ffn_channels, rate))
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = run_checkpointed(block, x) if self.use_checkpoint else block(x)
        return x


class ScriptTracer(fx.Tracer):
    """Traces a network for `torch.jit.script`, which compiles these layers itself."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, (DepthwiseConv2dLarge, DropPath))
        return own or super().is_leaf_module(m, module_qualified_name)


def run_checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`; when it trains, activations inside are recomputed in the backward pass instead of kept.

    The recomputation leaves BatchNorm's running statistics alone, so they move once per step, as without it.
    """
    if not (module.training and torch.is_grad_enabled()):
        return cast(Tensor, module(x))
    if torch.compiler.is_compiling():  # the compiler recomputes a traced graph, which updates no statistics
        return cast(Tensor, checkpoint(module, x, use_reentrant=False))

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(module)

    return cast(Tensor, checkpoint(module, x, use_reentrant=False, context_fn=contexts))


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorms inside normalise by the batch as before, but what they update is a copy that is thrown away."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    buffers = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, original in zip(norms, buffers, strict=True):
            norm._buffers = original


def _is_observed(module: nn.Module) -> bool:
    """Whether a hook is registered on this very module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
