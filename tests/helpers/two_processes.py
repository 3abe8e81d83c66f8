"""Runs functions on two processes that talk by gloo, as `torchrun --nproc-per-node 2` would start them."""

from __future__ import annotations

import datetime
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES = 2


def run_on_two(checks: dict[str, Callable[[], None]], folder: Path) -> dict[str, list[str]]:
    """What went wrong in each of the checks, which run one after the other in the same two processes.

    Args:
        checks: functions of a module, by names; each runs in both processes.
        folder: for files of this run, empty.

    Returns:
        For each name the tracebacks of the processes in which it failed. Warnings are errors.
    """
    mp.spawn(_work, (checks, folder), nprocs=PROCESSES)
    found = [torch.load(folder / f"rank{rank}") for rank in range(PROCESSES)]
    return {name: [of_rank[name] for of_rank in found if of_rank[name]] for name in checks}


def _work(rank: int, checks: dict[str, Callable[[], None]], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES, timeout=datetime.timedelta(seconds=120)
    )
    failures: dict[str, Any] = {}
    for name, check in checks.items():
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                check()
            failures[name] = ""
        except Exception:
            failures[name] = f"on rank {rank}: {traceback.format_exc()}"
    torch.save(failures, folder / f"rank{rank}")
    dist.destroy_process_group()
