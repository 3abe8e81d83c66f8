"""The measuring tools that every benchmark here shares.

* `interleave` times candidates A/B/A/B in one process, so that a slow minute of the machine hits all of them.
* `trace` and `require_ops` prove from torch's own profiler which operators a call ran: a baseline that silently
  runs our kernel, or the other way round, is refused.
* `relative_error` with `require_close` refuses to time an output that is wrong.
* `evict`, as `interleave`'s `before`, makes caches cold, as they are for a layer inside a network.
* `metadata` and `write_json` record where and how a number was measured; ratios mean something only within one file.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replknet_ext.choices.device import cpu_name
from replknet_ext.tools.timing import Candidate, Timing, interleave

__all__ = ["Candidate", "Timing", "interleave"]  # of the package, which times users' models by them, too

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
EVICTED_BYTES = 256 << 20
_others: Tensor | None = None


class BenchmarkError(RuntimeError):
    """A measurement that must not be published: a wrong result, or not the operator it claims to be."""


@dataclass
class Trace:
    """One call under torch's profiler: result, seconds, how often it ran each operator (`namespace::op`), and the
    seconds that each spent in itself."""

    result: Any
    seconds: float
    ops: Counter[str]
    op_seconds: dict[str, float]


def trace(run: Callable[[], Any]) -> Trace:
    """Calls `run` once and records what torch's dispatcher ran."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler else reports its own start and stop on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
    events = [event for event in profile.key_averages() if re.fullmatch(r"\w+::\w+", event.key)]
    ops = Counter({event.key: event.count for event in events})
    return Trace(result, seconds, ops, {event.key: event.self_cpu_time_total * 1e-6 for event in events})


def require_ops(ops: Iterable[str], *, name: str, need: str, forbid: str) -> None:
    """Raises BenchmarkError unless an operator matches `need` and none matches `forbid` (regular expressions)."""
    seen = sorted(ops)
    if not any(re.search(need, op) for op in seen):
        raise BenchmarkError(f"{name} did not run {need!r}; it ran {seen}")
    wrong = [op for op in seen if re.search(forbid, op)]
    if wrong:
        raise BenchmarkError(f"{name} also ran {wrong}")


def evict() -> None:
    """Reads and writes more memory than the caches of a core keep, so that a call's tensors come from memory."""
    global _others
    if _others is None:
        _others = torch.zeros(EVICTED_BYTES // 4)
    _others.add_(1)


def keep_memory(keep: bool = True) -> bool:
    """Has glibc keep freed memory for the next call, which asks for the same sizes; False undoes it. Whether it can.

    Else large tensors go back to the system and are mapped anew in every call. Where a page fault is dear (virtual
    machines), that took a third of an inference of convnext_atto, and varied more than the kernels do.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_max = -1, -4
        settings = (
            ((m_mmap_max, 0), (m_trim_threshold, -1)) if keep else ((m_mmap_max, 65536), (m_trim_threshold, 128 << 10))
        )
        return all(mallopt(*setting) for setting in settings)
    return False


def peak_memory(run: Callable[[], Any]) -> int | None:
    """Bytes by which a call raises the process's resident memory at most; None where the system does not tell.

    Freed memory is given back before, so call it before `keep_memory`.
    """

    def status(key: str) -> int:
        return int(re.findall(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[0]) << 10

    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        before = status("VmRSS")
        run()
        return max(0, status("VmHWM") - before)
    except (AttributeError, OSError, IndexError):
        return None


def relative_error(output: Tensor, reference: Tensor) -> float:
    """The larger of ||output - reference|| / ||reference|| and the same with the maximum norm, in float64.

    The first sees a small error everywhere, the second a large one in a single place; infinite if a value is NaN.
    """
    difference, exact = output.double() - reference.double(), reference.double()
    errors = [float(difference.norm(p=p) / exact.norm(p=p)) for p in (2, float("inf"))]
    return max(errors) if all(error == error for error in errors) else float("inf")


def require_close(output: Tensor, reference: Tensor, *, name: str, limit: float) -> float:
    """The relative error, or BenchmarkError if shape or values disagree with the reference."""
    if output.shape != reference.shape:
        raise BenchmarkError(f"{name}: shape {tuple(output.shape)} instead of {tuple(reference.shape)}")
    error = relative_error(output, reference)
    if not error <= limit:
        raise BenchmarkError(f"{name}: relative error {error:.1e} is over {limit:.1e}; a wrong result is not timed")
    return error


def _commit() -> str:
    """Short hash of the checkout, with "+changes" if files differ from it; "unknown" outside of git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        # Result files and the tables made from them change in the very run that writes them.
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ".",
            ":!benchmarks/results",
            ":!README.md",
            ":!docs/benchmarks.md",
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + ("+changes" if changed else "")


def metadata() -> dict[str, Any]:
    """Machine, versions, commit and command of this run."""
    import replknet_ext

    module = sys.modules["__main__"].__spec__
    program = f"python -m {module.name}" if module is not None else f"python {Path(sys.argv[0]).name}"
    isa = torch.ops.replknet_ext._cpu_isa() if replknet_ext.HAS_EXT else "no extension"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": " ".join([program, *sys.argv[1:]]),
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernel_isa": isa,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "replknet_ext": replknet_ext.__version__,
    }


def describe(meta: dict[str, Any]) -> str:
    """One line for captions and tables: machine, threads, versions."""
    return (
        f"{meta['cpu']}, {meta['threads']} threads, kernels: {meta['kernel_isa']}; "
        f"torch {meta['torch']}, replknet_ext {meta['replknet_ext']}, {meta['date']}, commit {meta['commit']}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A file of results."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, payload: dict[str, Any]) -> None:
    """Writes all or nothing: a reader never sees half a file, and an interrupted run leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(payload, file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
