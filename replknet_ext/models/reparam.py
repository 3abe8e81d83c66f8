"""Structural re-parameterization: parallel convolution-BatchNorm branches become one convolution.

In eval mode a BatchNorm is the map y -> y * s + (beta - mean * s) with s = gamma / sqrt(var + eps), so a convolution
before it can absorb it; a small kernel is a large one with a rim of zeros, so parallel branches add up to one kernel.
A convolution after a BatchNorm can absorb it only where it pads nothing: the zeros of the padding are zeros behind the
BatchNorm, not before it. The sums are formed in float64 and rounded once.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modules import DepthwiseConv2dLarge
from ..operator import checks
from .pointwise import PointwiseConv2d

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LEVELS", "Reparameterizable", "fold_conv_bn", "fold_norm_linear", "merge_branches", "reparameterize"]

#: How far `reparameterize` goes.
LEVELS = ("merge", "full")

_Model = TypeVar("_Model", bound=nn.Module)


class Reparameterizable:
    """Mixin for modules that have a train-time and a merged form.

    `reparameterize` changes the module in place, keeps its device, dtype, memory format, training flag and the hooks
    of every module that stays, does nothing the second time, and returns the module. `switch_to_deploy` is its name in
    the OpenMMLab family. Levels: see `reparameterize` below.
    """

    def reparameterize(self, level: str = "merge") -> Self:
        raise NotImplementedError

    def switch_to_deploy(self, level: str = "merge") -> Self:
        """The same as `reparameterize`."""
        return self.reparameterize(level)

    def _pairs(self) -> list[tuple[nn.Module, str | None]]:
        """What level "full" folds: modules with `conv` and `bn`, and the name of the BatchNorm before each, if any."""
        return []

    def _check(self) -> None:
        """Raises what `reparameterize("full")` would raise, before anything is changed."""
        for layers, before in self._pairs():
            if "bn" in layers._modules:
                _check_pair(layers, getattr(self, before) if before is not None else None)

    def _fold_pairs(self) -> None:
        for layers, before in self._pairs():
            if "bn" not in layers._modules:
                continue
            fold_pair(layers, getattr(self, before) if before is not None else None)
            if before is not None:
                setattr(self, before, nn.Identity().train(getattr(self, before).training))


def reparameterize(model: _Model, inplace: bool = True, level: str = "merge") -> _Model:
    """Merges every re-parameterizable block inside `model`, in place or in a deep copy, and returns the model.

    Args:
        model: a RepLKNet, or any module that holds one or some of its blocks.
        inplace: False leaves `model` alone.
        level: "merge" makes one large kernel of each pair of kernels and their BatchNorms: the form of the official
            and of mmpretrain's merged checkpoints. "full" also folds every other BatchNorm that can be folded exactly:
            into the convolution before it, and those at the entry of a block into the 1x1 convolution after them. A
            classifier has no BatchNorm left then; in a backbone only those on the maps it returns stay. A block is
            1x1 + bias + ReLU, one large kernel + bias + ReLU, 1x1 + bias, add.

    Merging uses the running statistics: outputs stay the same in eval mode. A merged model still has gradients and may
    be fine-tuned, but it is another network to train: its BatchNorms and small branches are gone for good, and with
    them what the published training recipes rely on. Train first and merge afterwards.

    Raises:
        TypeError: `model` is not a module, or a block has a normalisation other than BatchNorm.
        ValueError: `model` holds no block that can be merged, a BatchNorm keeps no running statistics, a weight is
            parametrized, or an unknown level.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    checks.name("level", level, LEVELS)
    if not any(isinstance(module, Reparameterizable) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} holds no re-parameterizable block")
    if not inplace:
        model = copy.deepcopy(model)
    blocks = [module for module in model.modules() if isinstance(module, Reparameterizable)]
    if level == "full":
        for block in blocks:
            block._check()
    for block in blocks:
        block.reparameterize(level)
    return model


def affine(bn: nn.Module) -> tuple[Tensor, Tensor]:
    """The float64 scale and shift (C,) of a BatchNorm in eval mode.

    Raises:
        TypeError: `bn` is not a BatchNorm (SyncBatchNorm is one).
        ValueError: `bn` keeps no running statistics.
    """
    if not isinstance(bn, _BatchNorm):
        raise TypeError(f"only a BatchNorm can be folded into a convolution; got {type(bn).__name__}")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded: it is not a fixed map")
    scale = (_wide(bn.running_var) + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * _wide(bn.weight)
    shift = -_wide(bn.running_mean) * scale
    return scale, shift if bn.bias is None else shift + _wide(bn.bias)


def fold_conv_bn(conv: nn.Conv2d, bn: nn.Module) -> tuple[Tensor, Tensor]:
    """The float64 weight and bias of the one convolution that equals `bn(conv(x))` in eval mode.

    Raises:
        TypeError, ValueError: as `affine`.
    """
    scale, shift = affine(bn)
    bias = shift if conv.bias is None else shift + _wide(conv.bias) * scale
    return _wide(conv.weight) * scale.reshape(-1, 1, 1, 1), bias


def fold_pair(layers: nn.Module, before: nn.Module | None = None) -> None:
    """Folds `layers.bn`, and the BatchNorm `before` the convolution, into `layers.conv`, in place.

    The convolution stays the same object, with its hooks, device, dtype and weight memory format; a 1x1 one becomes a
    `PointwiseConv2d`. `bn` is removed from `layers`.
    """
    conv: Any = layers.conv
    with torch.inference_mode(False), torch.no_grad():
        weight, bias = fold_conv_bn(conv, layers.bn)  # type: ignore[arg-type]
        parameters = [*layers.parameters()]
        if before is not None:
            scale, shift = affine(before)
            bias = bias + weight.flatten(1) @ shift
            weight = weight * scale.reshape(1, -1, 1, 1)
            parameters += before.parameters()
        replace_parameters(conv, weight, bias, any(parameter.requires_grad for parameter in parameters))
    del layers.bn
    PointwiseConv2d.adopt(conv)


def fold_norm_linear(norm: nn.Module, linear: nn.Linear) -> None:
    """Folds a BatchNorm into the linear layer after it (averaging pixels in between changes nothing), in place."""
    with torch.inference_mode(False), torch.no_grad():
        scale, shift = affine(norm)
        weight = _wide(linear.weight)
        bias = weight @ shift
        if linear.bias is not None:
            bias = bias + _wide(linear.bias)
        learn = any(parameter.requires_grad for parameter in (*norm.parameters(), *linear.parameters()))
        replace_parameters(linear, weight * scale, bias, learn)


def _check_pair(layers: nn.Module, before: nn.Module | None) -> None:
    """Raises what `fold_pair` would raise or silently do wrong."""
    conv: Any = layers.conv
    affine(layers.bn)  # type: ignore[arg-type]
    if "weight" not in conv._parameters:
        raise ValueError("a convolution with a parametrized weight cannot be folded; remove the parametrization")
    if before is not None:
        affine(before)
        if conv.kernel_size != (1, 1) or conv.padding != (0, 0):
            raise ValueError(f"a BatchNorm cannot be folded into a convolution after it that pads; got {conv}")


def replace_parameters(layer: nn.Module, weight: Tensor, bias: Tensor, learn: bool) -> None:
    """Gives `layer` new parameters with these values, on the device, in the dtype and layout of its old weight."""
    old: Any = layer.weight
    layer.weight = nn.Parameter(torch.empty_like(old).copy_(weight), requires_grad=learn)
    layer.bias = nn.Parameter(bias.to(device=old.device, dtype=old.dtype), requires_grad=learn)


def merge_branches(large: nn.Sequential, small: nn.Sequential | None) -> DepthwiseConv2dLarge:
    """One biased depthwise convolution that equals `large(x) + small(x)` in eval mode.

    Args:
        large, small: modules with a depthwise `conv`, centred on the same pixel, and its `bn`; `small` may be None.

    Returns:
        A module like `large.conv` plus bias: its padding, device, dtype, weight memory format and training flag.
        Its parameters need gradients if any parameter that went in does.
    """
    conv: Any = large.conv
    # Outside of inference mode: the result must be usable as a parameter of a model that is trained later.
    with torch.inference_mode(False), torch.no_grad():
        weight, bias = fold_conv_bn(conv, large.bn)  # type: ignore[arg-type]
        if small is not None:
            small_weight, small_bias = fold_conv_bn(small.conv, small.bn)  # type: ignore[arg-type]
            (kh, kw), (sh, sw) = weight.shape[-2:], small_weight.shape[-2:]
            top, left = (kh - sh) // 2, (kw - sw) // 2
            weight[..., top : top + sh, left : left + sw] += small_weight
            bias = bias + small_bias
        parameters = [*large.parameters(), *(small.parameters() if small is not None else ())]
        learn = any(parameter.requires_grad for parameter in parameters)
        # Made on the meta device: no initialisation, hence no draw from the random generator.
        merged = DepthwiseConv2dLarge(
            conv.in_channels, conv.kernel_size, padding=conv.padding, device="meta", dtype=conv.weight.dtype
        )
        merged.weight = conv.weight
        replace_parameters(merged, weight, bias, learn)
    if isinstance(conv, DepthwiseConv2dLarge):
        merged.algorithm, merged.backend = conv.algorithm, conv.backend
    return merged.train(conv.training)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, on a device that has it."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device=device, dtype=torch.float64)
