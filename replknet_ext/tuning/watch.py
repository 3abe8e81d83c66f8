"""Which problems a piece of code has: `functional` notes its calls here while somebody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..backends import Problem

#: Where calls are noted; None while nobody watches.
calls: list[Problem] | None = None


@contextmanager
def watching() -> Iterator[list[Problem]]:
    """The problems of all calls in the block, forward passes, in order."""
    global calls
    before, calls = calls, []
    try:
        yield calls
    finally:
        calls = before
