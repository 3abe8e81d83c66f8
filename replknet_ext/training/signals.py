"""SIGTERM and SIGUSR1 ask a run to save and end; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import ToolError

__all__ = ["STOPPED", "Stopped", "reading_process", "stop_requests"]

#: Exit status of a run that a signal ended and `--resume` continues (EX_TEMPFAIL of sysexits.h).
STOPPED = 75

#: Seconds in which signals count as one: Slurm signals all processes of a step, and torchrun passes its own on to them.
TOGETHER = 1.0


class Stopped(ToolError):  # noqa: N818  # it is no failure
    """A signal ended the run after its last checkpoint was written; resuming continues it."""


class Request:
    """Whether a signal has asked for the end, and which."""

    name = ""
    arrived = 0.0

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
        now = time.monotonic()
        if not request:
            request.name, request.arrived = signal.Signals(number).name, now
        elif now - request.arrived > TOGETHER:
            os._exit(128 + number)

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reading_process(number: int) -> None:
    """`worker_init_fn` of a DataLoader: a signal to all processes of the run does not end those that read images.

    The step that runs needs their next images. They end with the loader; a second SIGTERM, as multiprocessing sends to
    processes that are left over, ends them, too.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
