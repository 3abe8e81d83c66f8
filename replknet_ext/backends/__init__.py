"""Backends: each one file and one line in `registry`."""

from .base import PASSES, Backend, Problem
from .registry import BACKENDS, NAMES, by_pass, reasons, select

__all__ = ["BACKENDS", "NAMES", "PASSES", "Backend", "Problem", "by_pass", "reasons", "select"]
