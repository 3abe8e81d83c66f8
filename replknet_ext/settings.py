"""Algorithm, float32 precision, tuning on first use: process-wide defaults, and context managers for a block.

A value is looked up in this order: the argument of the call, the innermost context manager of the running context
(`contextvars`: every thread and every asyncio task has its own), the process-wide default. What was looked up in the
forward pass is kept for its backward pass, whichever thread runs that.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from . import _env
from .operator import checks
from .operator.problem import ALGORITHMS, PRECISIONS

T = TypeVar("T")


class _Mirror(threading.local):
    """A thread's copy of the context value: Dynamo cannot trace a ContextVar but guards on thread-local attributes.

    So compiled code sees the override that its thread entered or left last. That differs from the context only while
    asyncio tasks of one thread overlap inside their ``with`` blocks.
    """

    def __init__(self) -> None:
        self.value: Any = None


class _Setting(Generic[T]):
    """One named choice with a process-wide default and context overrides; ``check`` returns a value or raises."""

    def __init__(self, argument: str, check: Callable[[Any], T], default: T) -> None:
        self.check = check
        self.default = default
        self.context: contextvars.ContextVar[T | None] = contextvars.ContextVar(f"replknet_ext.{argument}")
        self.context_get = self.context.get
        self.mirror = _Mirror()

    def get(self) -> T:
        """The value in force in this context."""
        value = self.mirror.value if torch.compiler.is_compiling() else self.context_get(None)
        return self.default if value is None else value

    def set(self, value: T) -> None:
        """Change the process-wide default."""
        self.default = self.check(value)
        _touch()

    def override(self, value: T) -> AbstractContextManager[None]:
        """A context manager that uses ``value``, which is checked now, inside its block."""
        value = self.check(value)
        _touch()
        return self._override(value)

    @contextmanager
    def _override(self, value: T) -> Iterator[None]:
        token = self.context.set(value)
        self.mirror.value = value
        try:
            yield
        finally:
            self.context.reset(token)
            # From the context, not what the mirror held before: tasks of one thread may leave in any order.
            self.mirror.value = self.context_get(None)


#: Whether any setting was changed in this process: until then nobody has to look them up.
touched = _env.flag("AUTOTUNE")


def _touch() -> None:
    global touched
    touched = True


_algorithm = _Setting("algorithm", partial(checks.name, "algorithm", allowed=ALGORITHMS), "auto")
_precision = _Setting("precision", partial(checks.name, "precision", allowed=PRECISIONS), "ieee")
_autotune = _Setting("autotune", partial(checks.flag, "autotune"), _env.flag("AUTOTUNE"))


def get_algorithm() -> str:
    """The algorithm that calls with ``algorithm=None`` use here and now."""
    return _algorithm.get()


def set_algorithm(name: str) -> None:
    """Set the process-wide default algorithm.

    Args:
        name: ``"auto"``, the fastest one, ``"direct"``: every output sums only its own taps, or ``"fft"``: by fast
            Fourier transforms in float32 (CPU and CUDA, not float64; elsewhere an error).

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


def get_autotune() -> bool:
    """Whether problems are tuned on first use here and now."""
    return _autotune.get()


def set_autotune(enabled: bool) -> None:
    """Set whether `depthwise_conv2d` measures the kernels of each new problem on its first call, process-wide.

    As cudnn.benchmark does: the first call of a shape takes seconds, and the fastest kernel runs from then on, also in
    later processes (`replknet_ext.tune` says where that is kept). ``REPLKNET_EXT_AUTOTUNE=1`` is the same. Nothing is
    measured in compiled, exported or traced code, under `torch.func` transforms and fake tensors, or while a CUDA graph
    is captured.

    Raises:
        TypeError: not a bool.
    """
    _autotune.set(enabled)


def autotune(enabled: bool) -> AbstractContextManager[None]:
    """Context manager form of `set_autotune` (this thread or task only)."""
    return _autotune.override(enabled)
