"""From a problem to its measured choice: asks the backends, measures, keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import Candidate, Problem, candidates, configs
from ..backends.configs import Entry
from . import measure as measuring
from . import store
from .measure import Measured

__all__ = ["allowed", "entry_of", "first_use", "shortlist"]

#: Candidates of each backend that are measured: the best by its model.
MOST = 12
#: Seconds for one pass of one problem on first use.
FIRST_USE_SECONDS = 3.0


def shortlist(problem: Problem, backend: str = "auto", most: int = MOST) -> list[Candidate]:
    """The candidates to measure, what runs untuned first: of each backend the best by its model."""
    counts: dict[str, int] = {}
    chosen = []
    for candidate in candidates(problem, backend):
        counts[candidate.backend] = counts.get(candidate.backend, 0) + 1
        if counts[candidate.backend] <= most:
            chosen.append(candidate)
    return chosen


def entry_of(measured: Sequence[Measured]) -> Entry | None:
    """What to keep of a measurement; None if nothing ran."""
    first = measuring.winner(measured)
    if first is None:
        return None
    others = []
    for backend in dict.fromkeys(m.candidate.backend for m in measured):
        best = measuring.winner([m for m in measured if m.candidate.backend == backend])
        if best is not None and backend != first.candidate.backend:
            others.append(best)
    ranking = [first, *sorted(others, key=lambda m: m.us)]
    untuned = measured[0].us if measured[0].failed is None else None
    return Entry(tuple((m.candidate.backend, m.candidate.name, _digits(m.us)) for m in ranking), _digits(untuned))


def _digits(us: Any) -> Any:
    return None if us is None else float(f"{us:.4g}")


# ---- on first use ----

_given_up: set[str] = set()


def allowed(*tensors: Tensor | None) -> bool:
    """Whether something may be measured now, beside a call on these tensors."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if not all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors):  # fake tensors, other subclasses
        return False
    on_gpu = any(t is not None and t.is_cuda for t in tensors)
    return not (on_gpu and torch.cuda.is_current_stream_capturing())


def first_use(problem: Problem, passes: Sequence[str], backend: str, device: torch.device) -> bool:
    """Measures the passes that nobody has measured; whether there are choices now that were not there before."""
    found: dict[str, Entry] = {}
    for pass_ in passes:
        one = replace(problem, pass_=pass_)
        key = configs.key_of(one, backend)
        if key in _given_up or configs.tuned(one, backend, device):
            continue
        _given_up.add(key)  # if it comes to nothing, once is enough
        listed = shortlist(one, backend)
        if len(listed) < 2:
            continue
        entry = entry_of(measuring.measure(one, listed, device, budget_seconds=FIRST_USE_SECONDS))
        if entry is not None:
            found[key] = entry
    if found:
        store.save(device, found, replace=False)
    return bool(found)
