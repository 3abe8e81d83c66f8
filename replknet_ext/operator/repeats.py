"""Calls like an earlier one go straight to the raw op.

Checking arguments and choosing a backend takes Python longer than a small convolution takes the kernel: 0.02 ms in a
loop, 0.1 ms in a network, whose other layers have evicted that code from the caches. Where nothing but the arguments
matters (no gradient, transform, trace, autocast or changed setting), the arguments of the raw op are looked up.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .. import settings
from .ops import RAW

#: What the raw op takes after its tensors, and the objects whose ids are in the key: while they live, no other has one.
_known: dict[tuple[Any, ...], tuple[tuple[Any, ...], tuple[Any, ...]]] = {}
_MOST = 4096


def _key(input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], backend: str) -> tuple[Any, ...]:
    """By identity where equal values may differ in type (1 == 1.0 == True)."""
    stride, padding, dilation, *names = options
    return (
        input.shape, weight.shape, input.dtype, input.device, bias is None,
        id(stride), id(padding), id(dilation), *names, backend,
    )  # fmt: skip


def run(input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], backend: str) -> Tensor | None:
    """The result, or None where the long way must be taken: for a new call, and for its errors.

    Args:
        input, weight, bias, backend: as in `depthwise_conv2d`.
        options: stride, padding, dilation, activation, algorithm, precision, as given there, and what else tells calls
            apart: how many backends there are.
    """
    if (
        type(input) is not Tensor
        or type(weight) not in (Parameter, Tensor)
        or settings.touched
        or forward_ad._current_level >= 0
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or (torch.is_grad_enabled() and torch._C._any_requires_grad(input, weight, bias))
    ):
        return None
    try:
        known = _known.get(_key(input, weight, bias, options, backend))
        if known is None:
            return None
        with torch._C._AutoDispatchBelowAutograd():
            return RAW.fwd(input, weight, bias, *known[0])  # type: ignore[no-any-return]
    except (TypeError, RuntimeError):  # the long way names the argument
        return None


def remember(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], backend: str, raw: tuple[Any, ...]
) -> None:
    """Keep ``raw``, which the raw op takes after its tensors, for calls like this one."""
    if len(_known) >= _MOST:
        _known.clear()
    with suppress(TypeError):  # symbolic sizes have no hash
        _known[_key(input, weight, bias, options, backend)] = raw, options[:3]
