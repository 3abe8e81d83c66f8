"""Structural re-parameterization: parallel convolution-BatchNorm branches become one convolution.

In eval mode a BatchNorm is the map y -> y * s + (beta - mean * s) with s = gamma / sqrt(var + eps), so a convolution
before it can absorb it; a small kernel is a large one with a rim of zeros, so parallel branches add up to one kernel.
The sums are formed in float64 and rounded once.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modules import DepthwiseConv2dLarge

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Reparameterizable", "fold_conv_bn", "merge_branches", "reparameterize"]

_Model = TypeVar("_Model", bound=nn.Module)


class Reparameterizable:
    """Mixin for modules that have a train-time and a merged form.

    `reparameterize` changes the module in place, keeps its device, dtype, memory format and training flag, does
    nothing the second time, and returns the module. `switch_to_deploy` is its name in the OpenMMLab family.
    """

    def reparameterize(self) -> Self:
        raise NotImplementedError

    def switch_to_deploy(self) -> Self:
        """The same as `reparameterize`."""
        return self.reparameterize()


def reparameterize(model: _Model, inplace: bool = True) -> _Model:
    """Merges every re-parameterizable block inside `model`, in place or in a deep copy, and returns the model.

    Merging uses the running statistics: outputs stay the same in eval mode. A merged model still has gradients, but
    its BatchNorms and small branches are gone, so train first and merge afterwards.

    Raises:
        TypeError: `model` is not a module, or a block has a normalisation other than BatchNorm.
        ValueError: `model` holds no block that can be merged, or a BatchNorm keeps no running statistics.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    if not any(isinstance(module, Reparameterizable) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} holds no re-parameterizable block")
    if not inplace:
        model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, Reparameterizable):
            module.reparameterize()
    return model


def fold_conv_bn(conv: nn.Conv2d, bn: nn.Module) -> tuple[Tensor, Tensor]:
    """The float64 weight and bias of the one convolution that equals `bn(conv(x))` in eval mode.

    Raises:
        TypeError: `bn` is not a BatchNorm (SyncBatchNorm is one).
        ValueError: `bn` keeps no running statistics.
    """
    if not isinstance(bn, _BatchNorm):
        raise TypeError(f"only a BatchNorm can be folded into a convolution; got {type(bn).__name__}")
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded: it is not a fixed map")
    mean, var = _wide(bn.running_mean), _wide(bn.running_var)
    scale = (var + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * _wide(bn.weight)
    shift = -mean * scale if conv.bias is None else (_wide(conv.bias) - mean) * scale
    if bn.bias is not None:
        shift = shift + _wide(bn.bias)
    return _wide(conv.weight) * scale.reshape(-1, 1, 1, 1), shift


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
        merged.weight = nn.Parameter(torch.empty_like(conv.weight).copy_(weight), requires_grad=learn)
        bias = bias.to(device=conv.weight.device, dtype=conv.weight.dtype)
        merged.bias = nn.Parameter(bias, requires_grad=learn)
    if isinstance(conv, DepthwiseConv2dLarge):
        merged.algorithm, merged.backend = conv.algorithm, conv.backend
    return merged.train(conv.training)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, on a device that has it."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device=device, dtype=torch.float64)
