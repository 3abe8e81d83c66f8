"""Which backend and variant run a call of a raw op, found when the op runs: in eager, compiled and exported code alike.

An op's argument ``backend`` is "auto" or a name, and ``variant`` the number of a variant of the named backend, or -1:
then what was measured to be fastest (of any backend, or of the named one), else what the planner chooses. The compiled
extension asks here (csrc/bindings/choices.h), once per problem until choices change; so do the ops that are written in
Python.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from .. import _ext
from ..backends import BACKENDS, Backend, names, select
from ..operator.derivatives import AUTO
from ..operator.problem import Problem, problem_of
from . import lookup, table

__all__ = ["AUTO", "register", "resolve"]


def measured(backend: str, problem: Problem, device: torch.device) -> tuple[str, int]:
    """The measured choice, or (backend, `AUTO`). A look-up never breaks an op: what goes wrong in it is one warning."""
    try:
        found = lookup.lookup(problem, backend, device)
    except Exception as error:
        return _planned(backend, error)
    return (backend, AUTO) if found is None else (found.backend, found.variant)


def _planned(backend: str, error: Exception) -> tuple[str, int]:
    with suppress(Warning):  # where warnings are errors, too
        table.warn_once(f"measured choices are not used: looking them up failed ({type(error).__name__}: {error})")
    return backend, AUTO


def _answer(pass_: str, first: Tensor, *rest: Any) -> str:
    """Implements the op ``_choice``: backend, blank, variant."""
    try:
        backend, variant = measured(rest[-1], problem_of(pass_, first, *rest[:-1]), first.device)
    except KeyboardInterrupt:  # the extension is between here and the caller, and raises it there
        return "interrupted -1"
    except Exception as error:  # torch imports some of what describes a problem at its first use
        backend, variant = _planned(rest[-1], error)
    return f"{backend} {variant}"


_known: dict[tuple[Any, ...], tuple[Backend, int]] = {}
_MOST = 4096


def resolve(
    pass_: str, first: Tensor, second: Tensor, bias: Tensor | None, padding: Sequence[int], activation: str,
    precision: str, algorithm: str, backend: str, variant: int,
) -> tuple[Backend, int]:  # fmt: skip
    """The backend written in Python that runs a call of an op, and the variant.

    Args:
        pass_: "fwd", "bwd_input", "bwd_weight" or "bwd_weight_bias".
        first, second, bias, padding, activation, precision, algorithm, backend, variant: of the op; bias None and
            activation "none" where it has none.

    Raises:
        ValueError: an unknown backend or one that can't run the problem; a variant without a backend's name.
    """
    about = ((t.shape, t.dtype, t.device, suggest_memory_format(t)) for t in (first, second))
    key = (
        pass_, *about, bias is None, *padding, activation, precision, algorithm, backend, variant, table.generation(),
        len(BACKENDS),
    )  # fmt: skip
    known = _known.get(key)
    if known is None:
        problem = problem_of(pass_, first, second, bias, padding, activation, precision, algorithm)
        known = _resolve(problem, backend, variant, first.device)
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = known
    return known


def _resolve(problem: Problem, backend: str, variant: int, device: torch.device) -> tuple[Backend, int]:
    if backend not in names():
        raise ValueError(f"backend must be one of {', '.join(map(repr, names()))}; got {backend!r}")
    if not AUTO <= variant < 1 << 31:
        raise ValueError(f"variant must be the number of a variant of the backend, or -1; got {variant}")
    if variant != AUTO:
        if backend == "auto":
            raise ValueError(f"variant {variant} is one of a backend: name it by the argument backend")
        return select(problem, backend), variant
    name, number = measured(backend, problem, device)
    if name != "auto":
        return select(problem, name), number
    for known in BACKENDS.values():  # a compiled one would have been asked before
        if not known.compiled and known.supports(problem) is None:
            return known, AUTO
    return select(problem), AUTO  # which says why nothing can run it


class _Failure(threading.local):
    why = ""


_failure = _Failure()


def note_failure(error: BaseException) -> None:
    """Keeps why an op written in Python failed: the extension that called it sees only that it did."""
    _failure.why = f"{type(error).__name__}: {error}"


def _last_failure() -> str:
    """Implements the op ``_failure``: what `note_failure` kept on this thread, once."""
    why, _failure.why = _failure.why, ""
    return why


def register(library: torch.library.Library) -> None:
    """Makes the extension ask from now on."""
    if _ext.HAS_EXT:
        library.impl("_choice", _answer, "CompositeExplicitAutograd")
        library.impl("_failure", _last_failure, "CompositeExplicitAutograd")
        _ext.forget_choices()  # the first time says that somebody answers
