"""The command line in processes that start at once: forked from a server that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["training_processes", "training_imports"])


def run(arguments: list[str], log: str, folder: str, environment: dict[str, str]) -> None:
    """In the child, which is the leader of a process group of its own: ends with the command's exit status."""
    import torch

    os.environ |= environment
    os.setsid()
    os.chdir(folder)
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from replknet_ext.cli import main

    sys.argv = ["replknet-ext", *arguments]
    sys.exit(main())


def start(*arguments: object, log: Path, folder: Path, environment: dict[str, str] | None = None) -> ForkServerProcess:
    """Starts `replknet-ext ...` in a folder; what it says is added to `log`."""
    helpers = Path(__file__).resolve().parent
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(helpers.parents[1]), str(helpers), before or ""])
    try:  # the server takes it from here
        words = [str(each) for each in arguments]
        process = _CONTEXT.Process(target=run, args=(words, str(log), str(folder), environment or {}))
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return process


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
