"""From a problem to its measured choice: asks the backends, measures, keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backends import Candidate, Problem, candidates
from ..choices.table import Entry
from . import measure as measuring
from .measure import Measured

__all__ = ["entry_of", "shortlist"]

#: Candidates of each backend that are measured: the best by its model.
MOST = 12


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
