"""Backends: each one file and one line in `registry`."""

from ..operator.problem import PASSES, Problem
from .base import Backend, Candidate
from .registry import BACKENDS, by_pass, candidates, names, reasons, select, tunable

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
    "tunable",
]
