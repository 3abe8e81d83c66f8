"""Builds the program that launches on the stand-in CUDA runtime, from csrc/cuda's launch code as nvcc compiles it."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from pathlib import Path

from cuda_budgets import find_nvcc

HERE = Path(__file__).resolve().parent
CUDA = HERE.parents[1] / "csrc" / "cuda"
BUILD = HERE / "_build"
SOURCES = (CUDA / "launch.cu", CUDA / "weight_sum.cu", HERE / "driver.cu", HERE / "runtime.cpp")
#: PTX alone, as nothing assembles it; the stand-in takes the place of the runtime.
FLAGS = ("-std=c++17", "-O1", "-gencode=arch=compute_90,code=compute_90", "-cudart=none", f"-I{CUDA}", f"-I{HERE}")


def missing() -> str | None:
    """Why the program can't be built here, or None."""
    return None if find_nvcc() else "nvcc was not found"


def build() -> Path:
    """The program, made again if a source has changed.

    Raises:
        RuntimeError: it does not compile.
    """
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted({*SOURCES, *HERE.glob("*.h"), *CUDA.glob("*.h"), *CUDA.glob("*.cuh")}):
        digest.update(source.read_bytes())
    program = BUILD / f"launch-{digest.hexdigest()[:16]}"
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may want it at once
        if not program.exists():
            partial = program.with_suffix(".tmp")
            command = [str(find_nvcc()), *FLAGS, *map(str, SOURCES), "-lpthread", "-o", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the program does not compile:\n{(done.stdout + done.stderr)[-4000:]}")
            partial.replace(program)
    return program
