"""Algorithm and float32 precision: process-wide defaults, and context managers that hold for a block.

A value is looked up in this order: the argument of the call, the innermost context manager of the running context
(`contextvars`: every thread and every asyncio task has its own), the process-wide default. What was looked up in the
forward pass is kept for its backward pass, whichever thread runs that.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from . import checks


class _Mirror(threading.local):
    """A thread's copy of the context value: Dynamo cannot trace a ContextVar but guards on thread-local attributes.

    So compiled code sees the override that its thread entered or left last. That differs from the context only while
    asyncio tasks of one thread overlap inside their ``with`` blocks.
    """

    def __init__(self) -> None:
        self.value: str | None = None


class _Setting:
    """One named choice with a process-wide default and context overrides."""

    def __init__(self, argument: str, allowed: tuple[str, ...], default: str) -> None:
        self.argument = argument
        self.allowed = allowed
        self.default = default
        self.context: contextvars.ContextVar[str | None] = contextvars.ContextVar(f"replknet_ext.{argument}")
        self.context_get = self.context.get
        self.mirror = _Mirror()

    def get(self) -> str:
        """The value in force in this context."""
        value = self.mirror.value if torch.compiler.is_compiling() else self.context_get(None)
        return self.default if value is None else value

    def set(self, value: str) -> None:
        """Change the process-wide default."""
        self.default = checks.name(self.argument, value, self.allowed)

    def override(self, value: str) -> AbstractContextManager[None]:
        """A context manager that uses ``value``, which is checked now, inside its block."""
        return self._override(checks.name(self.argument, value, self.allowed))

    @contextmanager
    def _override(self, value: str) -> Iterator[None]:
        token = self.context.set(value)
        self.mirror.value = value
        try:
            yield
        finally:
            self.context.reset(token)
            # From the context, not what the mirror held before: tasks of one thread may leave in any order.
            self.mirror.value = self.context_get(None)


_algorithm = _Setting("algorithm", checks.ALGORITHMS, "auto")
_precision = _Setting("precision", checks.PRECISIONS, "ieee")


def get_algorithm() -> str:
    """The algorithm that calls with ``algorithm=None`` use here and now."""
    return _algorithm.get()


def set_algorithm(name: str) -> None:
    """Set the process-wide default algorithm.

    Args:
        name: ``"auto"``, the fastest one, ``"direct"``: every output sums only its own taps, or ``"fft"``: by fast
            Fourier transforms in float32 (CUDA, not float64; elsewhere an error).

    Raises:
        TypeError, ValueError: not one of these names.
    """
    _algorithm.set(name)


def algorithm(name: str) -> AbstractContextManager[None]:
    """Context manager: calls with ``algorithm=None`` use ``name`` inside the block (this thread or task only).

    Raises:
        TypeError, ValueError: see `set_algorithm`.
    """
    return _algorithm.override(name)


def get_float32_precision() -> str:
    """The float32 precision in force here and now."""
    return _precision.get()


def set_float32_precision(name: str) -> None:
    """Set the process-wide precision of float32 kernels that have a choice (CUDA tensor cores).

    Args:
        name: ``"ieee"`` (default): operands are used as they are. ``"tf32"``: they may be rounded to TF32 (relative
            error about 1e-3). ``"bf16x3"``: three bfloat16 products stand for one (about 1e-5). A permission, not an
            order: a kernel that is more exact runs where it is faster. CPU kernels always compute in ieee float32.

    Raises:
        TypeError, ValueError: not one of these names.
    """
    _precision.set(name)


def float32_precision(name: str) -> AbstractContextManager[None]:
    """Context manager form of `set_float32_precision` (this thread or task only)."""
    return _precision.override(name)
