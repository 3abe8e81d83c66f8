"""Backends: each one file and one line in `registry`."""

from .base import PASSES, Backend, Problem
from .registry import BACKENDS, NAMES, reasons, select

__all__ = ["BACKENDS", "NAMES", "PASSES", "Backend", "Problem", "reasons", "select"]
