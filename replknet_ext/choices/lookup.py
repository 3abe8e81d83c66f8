"""Finds the measured choice for one pass of a problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from ..backends import BACKENDS, Problem
from .table import Entry, entries, key_of, shipped

__all__ = ["Choice", "entry", "lookup", "tuned"]


class Choice(NamedTuple):
    """What runs one pass of a problem: see `Candidate` for name and variant. ``source``: "tuned" or "shipped"."""

    backend: str
    name: str
    variant: int
    us: float
    source: str


def _found(problem: Problem, backend: str, device: torch.device) -> Iterator[tuple[str, Entry]]:
    """The entries for a problem and where they are from: those to prefer come first."""
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        return
    for source, table in (("tuned", entries(device)), ("shipped", shipped(device))):
        if table:
            entry = table.get(key_of(problem, backend)) or table.get(key_of(problem))
            if entry is not None:
                yield source, entry


def entry(problem: Problem, backend: str, device: torch.device) -> Entry | None:
    """What was measured of one pass of a problem, whether or not it can be used here."""
    return next((entry for _, entry in _found(problem, backend, device)), None)


def tuned(problem: Problem, backend: str, device: torch.device) -> bool:
    """Whether there is a choice that was measured here: shipped ones are no reason not to measure."""
    found = lookup(problem, backend, device)
    return found is not None and found.source == "tuned"


def lookup(problem: Problem, backend: str, device: torch.device) -> Choice | None:
    """The measured choice for one pass of a problem, or None: then the cost model chooses.

    Args:
        problem: with its pass and memory format.
        backend: as in `depthwise_conv2d`; with a name only that one's choices count.
        device: where it runs.
    """
    for source, entry in _found(problem, backend, device):
        for name, variant, us in entry.best:
            if backend not in ("auto", name):
                continue
            number = BACKENDS[name].variant(replace(problem, device_index=device.index), variant)
            if number is not None:
                return Choice(name, variant, number, us, source)
    return None
