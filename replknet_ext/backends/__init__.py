"""Backends: each one file and one line in `registry`."""

from .base import PASSES, Backend, Candidate, Problem
from .registry import BACKENDS, by_pass, candidates, names, reasons, select

__all__ = [
    "BACKENDS",
    "PASSES",
    "Backend",
    "Candidate",
    "Problem",
    "by_pass",
    "candidates",
    "names",
    "reasons",
    "select",
]
