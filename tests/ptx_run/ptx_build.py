"""Builds ptx_run: the kernels as PTX by nvcc, the project's host code, and a CUDA runtime that interprets PTX.

    python tests/ptx_run/ptx_build.py [ARCH]    # prints the program's path

Objects are kept by content (tests/_build/objects), so an unchanged kernel is not compiled again.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "helpers"))  # pytest has it; a person who calls this file has not

import compile_cache  # noqa: E402
import cuda_budgets  # noqa: E402
import nvcc_objects  # noqa: E402

HERE = Path(__file__).resolve().parent
CUDA = TESTS.parent / "csrc" / "cuda"
BUILD = TESTS / "_build" / "ptx_run"  # ignored by git
JOBS = 2  # compilers at a time
#: Of what runs the PTX. No fused multiply-adds but those that the PTX has.
OWN_FLAGS = ("-std=c++17", "-O3", "-mavx2", "-mfma", "-mf16c", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi")


def missing() -> str | None:
    """Returns why ptx_run can't be built here, or None."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        return "ptx_run is written for Linux on x86-64"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    nvcc = cuda_budgets.find_nvcc()
    if nvcc is None:
        return "nvcc was not found: it makes the PTX that is run"
    if int(nvcc_objects.nvcc_version(nvcc).split(".")[0]) < 13:
        return "ptx_run needs nvcc 13: it links to that version's entry points of the runtime"
    return None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(" ".join(command) + "\n" + done.stdout + done.stderr)


def _host_object(source: Path, out: Path, flags: tuple[str, ...]) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    command = ["g++", *flags, f"-I{CUDA.parent}", f"-ffile-prefix-map={TESTS.parent}=."]
    if compile_cache.compile_source(source, out, command):
        raise RuntimeError(f"{source} does not compile")
    return out


def _nvcc_objects(pool: ThreadPoolExecutor, kernels: Iterable[tuple[Path, tuple[str, ...]]]) -> list[Path]:
    nvcc = cuda_budgets.find_nvcc()
    assert nvcc is not None
    jobs = [*kernels, (HERE / "runtime.cpp", ("-std=c++17", "-O2"))]
    running = [pool.submit(nvcc_objects.compiled, path, nvcc, flags) for path, flags in jobs]
    return [one.result().object for one in running]


def _flags(source: Path, arch: str) -> tuple[str, ...]:
    return nvcc_objects.flags(nvcc_objects.arch_of(source, arch))


def _host_sources(folder: Path) -> list[tuple[Path, Path, tuple[str, ...]]]:
    """Source, object and flags of what g++ compiles: the planners, and all of this folder but the runtime."""
    planners = [(path, path.relative_to(CUDA), ("-std=c++17", "-O2")) for path in sorted(CUDA.rglob("*.cpp"))]
    own = [(path, Path(path.name), OWN_FLAGS) for path in sorted(HERE.glob("*.cpp")) if path.stem != "runtime"]
    return [(path, folder / inside.with_suffix(".o"), flags) for path, inside, flags in planners + own]


def _link(objects: Iterable[Path], target: Path) -> Path:
    partial = target.with_suffix(f".{os.getpid()}")  # renamed when whole
    _run(["g++", "-o", str(partial), *map(str, objects)])
    partial.replace(target)
    return target


def build(arch: str = nvcc_objects.ARCH) -> Path:
    """Builds the program if its sources changed.

    Args:
        arch: the architecture whose PTX is run, as nvcc names it; the first of its generation.

    Returns:
        Path of the program.

    Raises:
        RuntimeError: with the compiler's output.
    """
    folder = BUILD / arch
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock, ThreadPoolExecutor(JOBS) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist workers build one after the other
        hosts = [pool.submit(_host_object, *one) for one in _host_sources(folder)]
        kernels = _nvcc_objects(pool, [(path, _flags(path, arch)) for path in sorted(CUDA.rglob("*.cu"))])
        return _link([*kernels, *(one.result() for one in hosts)], folder / "ptx_run")


def build_with_bug(folder: Path, cuda: Path, source: str) -> Path:
    """Builds a program with one changed kernel file; all else is that of `build`, which has been called before.

    Args:
        folder: of the program.
        cuda: a copy of csrc/cuda with a planted bug.
        source: the .cu file that is compiled there, as a path in it; other files do not see the bug.

    Returns, raises: as `build`.
    """
    arch = nvcc_objects.ARCH
    others = [(path, _flags(path, arch)) for path in sorted(CUDA.rglob("*.cu")) if path != CUDA / source]
    with ThreadPoolExecutor(JOBS) as pool:
        objects = _nvcc_objects(
            pool, [*others, (cuda / source, nvcc_objects.ptx_flags(nvcc_objects.arch_of(cuda / source, arch)))]
        )
    return _link([*objects, *(out for _, out, _ in _host_sources(BUILD / arch))], folder / "ptx_run")


def build_planted() -> Path:
    """Builds the kernels of Hopper's instructions with planted bugs (hopper/planted.cu) if their sources changed.

    Returns, raises: as `build`.
    """
    folder = BUILD / nvcc_objects.ARCH  # its objects of the interpreter
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock, ThreadPoolExecutor(JOBS) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machine = ("decode", "hopper", "machine", "ops", "order")
        hosts = [pool.submit(_host_object, *one) for one in _host_sources(folder) if one[1].stem in machine]
        kernels = _nvcc_objects(pool, [(HERE / "hopper" / "planted.cu", nvcc_objects.ptx_flags("90a"))])
        return _link([*kernels, *(one.result() for one in hosts)], folder / "planted")


if __name__ == "__main__":
    print(build(*sys.argv[1:2]))
