"""Backends: each one file and one line in `registry`."""

from .base import PASSES, Backend, Candidate, Problem
from .registry import BACKENDS, NAMES, by_pass, candidates, reasons, select

__all__ = [
    "BACKENDS",
    "NAMES",
    "PASSES",
    "Backend",
    "Candidate",
    "Problem",
    "by_pass",
    "candidates",
    "reasons",
    "select",
]
