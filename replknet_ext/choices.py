"""Measured choices for the raw ops, looked up when an op runs: in eager, compiled and exported code alike.

The ops' argument ``variant`` is a number, `PLANNED`, or asks for a measured choice by `MEASURED` and `MEASURED_OWN`.
The compiled extension asks here (csrc/choices.h), once for each problem and thread until choices change; so do the
kernels that are Python functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from . import _ext
from .backends import Problem, configs
from .checks import Geometry

__all__ = ["MEASURED", "MEASURED_OWN", "PLANNED", "of_derivative", "problem_of", "register", "triton_variant"]

PLANNED = -1  # the cost model's choice
MEASURED = -2  # what was measured to be best, of any backend, else the cost model's choice
MEASURED_OWN = -3  # the same of the op's own kernels


def of_derivative(variant: int) -> int:
    """The argument ``variant`` of the ops that a derivative of a call consists of: each numbers its own variants."""
    return min(variant, PLANNED)


def problem_of(
    pass_: str, first: Tensor, second: Tensor, bias: Tensor | None, padding: Sequence[int],
    activation: str, precision: str, algorithm: str,
) -> Problem:  # fmt: skip
    """What a raw op computes, from its arguments; ``pass_`` may be "bwd_weight_bias"."""
    top, bottom, left, right = padding
    height, width = first.shape[2:]
    kernel = (second.shape[2], second.shape[3])
    x_shape = tuple(first.shape)
    x = first
    if pass_ == "bwd_input":
        x_shape = (*first.shape[:2], height + kernel[0] - 1 - top - bottom, width + kernel[1] - 1 - left - right)
    elif pass_ != "fwd":
        x, x_shape = second, tuple(second.shape)
        kernel = (kernel[0] + top + bottom - height + 1, kernel[1] + left + right - width + 1)
    return Problem(
        x_shape, (x_shape[1], 1, *kernel), bias is not None or pass_ == "bwd_weight_bias",
        Geometry((1, 1), (top, bottom, left, right), (1, 1)), first.dtype, first.device.type, activation, algorithm,
        precision, pass_.removesuffix("_bias"), suggest_memory_format(x) == torch.channels_last,
    )  # fmt: skip


def choice(backend: str, pass_: str, first: Tensor, *rest: Any) -> tuple[bool, int]:
    """Whether a Triton op is to run, and the variant.

    Args:
        backend: "auto", or the one whose choices count.
        pass_, first, rest: as in `problem_of`.
    """
    found = configs.lookup(problem_of(pass_, first, *rest), backend, first.device)
    return (False, PLANNED) if found is None else (found.backend == "triton", found.variant)


def _answer(pass_: str, first: Tensor, *rest: Any) -> tuple[bool, int]:
    """The op ``_choice``; the last argument says whether only the op's own kernels count."""
    return choice(first.device.type if rest[-1] else "auto", pass_, first, *rest[:-1])


_known: dict[tuple[Any, ...], int] = {}  # of kernels that are Python functions
_MOST = 4096


def triton_variant(variant: int, pass_: str, first: Tensor, second: Tensor, bias: Tensor | None, *rest: Any) -> int:
    """What the Triton kernels run for the argument ``variant`` of an op; the others as in `problem_of`."""
    if variant >= PLANNED:
        return variant
    about = ((t.shape, t.dtype, t.device, suggest_memory_format(t)) for t in (first, second))
    key = (pass_, *about, bias is None, *map(str, rest))
    known = _known.get(key)
    if known is None:
        known = choice("triton", pass_, first, second, bias, *rest)[1]
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = known
    return known


def register(library: torch.library.Library) -> None:
    """Makes the extension ask from now on."""
    configs.on_change.append(_known.clear)
    if _ext.HAS_EXT:
        library.impl("_choice", _answer, "CompositeExplicitAutograd")
        forget = torch.ops.replknet_ext._forget_choices.default
        configs.on_change.append(forget)
        forget()  # the first time says that somebody answers
