"""SIGTERM and SIGUSR1 ask a run to save and end; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import ToolError

__all__ = ["STOPPED", "Stopped", "stop_requests"]

#: Exit status of a run that a signal ended and `--resume` continues (EX_TEMPFAIL of sysexits.h).
STOPPED = 75


class Stopped(ToolError):  # noqa: N818  # it is no failure
    """A signal ended the run after its last checkpoint was written; resuming continues it."""


class Request:
    """Whether a signal has asked for the end, and which."""

    name = ""

    def __bool__(self) -> bool:
        return bool(self.name)


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Notes SIGTERM and SIGUSR1 inside the block; outside of the main thread signals keep their meaning."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def asked(number: int, frame: FrameType | None) -> None:
        if request:
            os._exit(128 + number)
        request.name = signal.Signals(number).name

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
