"""The command line in processes that start at once: forked from a server that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TextIO

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["processes", "processes_imports"])


@dataclass(frozen=True)
class Done:
    """What a command that has ended wrote."""

    stdout: bytes
    stderr: bytes


def _stream(descriptor: int, path: str) -> TextIO:
    """Puts a file or terminal in the place of stdout or stderr; the stream that an interpreter makes of it at start."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, descriptor)
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    errors = (errors or "strict") if descriptor == 1 else "backslashreplace"
    return open(descriptor, "w", encoding=encoding, errors=errors, closefd=False)


def _main(arguments: list[str], streams: tuple[str, str], folder: str, environment: dict[str, str]) -> None:
    """In the child, which is the leader of a process group of its own: ends with the command's exit status."""
    import torch

    os.environ.pop("COLUMNS", None)  # pytest-xdist has set it
    os.environ |= environment
    os.setsid()
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.stdout, sys.stderr = (_stream(descriptor, path) for descriptor, path in zip((1, 2), streams, strict=True))
    from replknet_ext.cli import main

    sys.argv = ["replknet-ext", *arguments]
    sys.exit(main())


def _start(
    arguments: tuple[object, ...], streams: tuple[str, str], folder: Path, environment: dict[str, str]
) -> ForkServerProcess:
    helpers = Path(__file__).resolve().parent
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(helpers.parents[1]), str(helpers), before or ""])
    try:  # the server takes it from here
        words = [str(each) for each in arguments]
        process = _CONTEXT.Process(target=_main, args=(words, streams, str(folder), environment))
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return process


def start(*arguments: object, log: Path, folder: Path, environment: dict[str, str] | None = None) -> ForkServerProcess:
    """Starts `replknet-ext ...` in a folder; what it says is added to `log`."""
    return _start(arguments, (str(log), str(log)), folder, environment or {})


def run(
    *arguments: object, code: int = 0, folder: Path | None = None, terminal: str | None = None, **environment: str
) -> Done:
    """Runs `replknet-ext ...` to its end, its output off a terminal.

    Args:
        arguments: of the command.
        code: the exit status that is expected.
        folder: to run in; the present one by default.
        terminal: path of one that gets stderr, which then is not in the result.
        environment: variables, beside those of this process.
    """
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        out.touch()
        err.touch()
        process = _start(arguments, (str(out), terminal or str(err)), folder or Path.cwd(), environment)
        process.join(120)
        if process.is_alive():
            process.kill()
        done = Done(out.read_bytes(), err.read_bytes())
    assert process.exitcode == code, (process.exitcode, done)
    assert b"Traceback" not in done.stderr
    return done


def start_two(*arguments: object, log: Path, folder: Path) -> list[ForkServerProcess]:
    """Two processes of one run, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [
        start(*arguments, log=log, folder=folder, environment={**common, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]


def until(condition: Callable[[], object], process: ForkServerProcess, log: Path, seconds: float = 60.0) -> None:
    """Waits for a condition; fails where the process ends before, or takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.002)
