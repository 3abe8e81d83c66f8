"""The FMA peak of this CPU, measured: what shares of the peak in the CPU benchmarks refer to.

Method: `cpu_peak.cpp` runs independent chains of vector multiply-adds that never leave the registers, on as many
threads as torch has, in the vector width of the kernels measured: an AVX2 build is held to the AVX2 peak. It takes its
turn among the contenders, so that clock and neighbours are theirs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from benchmarks.harness import BenchmarkError

SOURCE = Path(__file__).with_name("cpu_peak.cpp")
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "base": 16}
SECONDS = 0.01  # of one call


@cache
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BenchmarkError("the FMA peak needs a C++ compiler: set CXX")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "libpeak.so"
        # Contracted to FMAs where the instruction set has them.
        options = ["-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", "-Wno-psabi"]
        done = subprocess.run([compiler, *options, SOURCE, "-o", target], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{compiler} could not compile {SOURCE.name}:\n{done.stderr[-2000:]}")
        library = ctypes.CDLL(str(target))
    library.fma_peak.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    library.fma_peak.restype = ctypes.c_double
    return library


def job(isa: str) -> tuple[Callable[[], None], float]:
    """A call that keeps every thread busy with multiply-adds for about 10 ms, and its GFLOP.

    Raises:
        BenchmarkError: no C++ compiler, or none that compiles the source.
    """
    run, threads, width = _library().fma_peak, torch.get_num_threads(), VECTOR_BYTES[isa]
    steps = 100_000
    run(width, threads, steps)
    start = time.perf_counter()
    run(width, threads, steps)
    steps = max(steps, int(steps * SECONDS / (time.perf_counter() - start)))
    flop = run(width, threads, steps)
    return lambda: run(width, threads, steps), flop / 1e9
