"""Builds the driver: csrc/cpu without torch, for sanitizers, callgrind and qemu, into `_build`."""

from __future__ import annotations

import fcntl
import importlib.util
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
COMPILER = ROOT / "tests" / "helpers" / "compile_cache.py"
BUILD = HERE / "_build"
ISAS = ("base", "avx2", "avx512")
#: setup.py's, less what only a Python extension needs. No -fwrapv: a signed overflow is a bug here.
FLAGS = f"-std=c++17 -I{CSRC} -Wall -Wno-psabi -ffp-contract=fast -fno-math-errno"


@dataclass(frozen=True)
class Kind:
    """How the driver is compiled."""

    name: str
    flags: str
    compiler: str = "g++"


FAST = Kind("fast", "-O3 -g1")
#: Checks as calls: inline, the unrolled kernels take ten times as long to compile. Arrays on the stack are registers.
SANITIZED = Kind(
    "sanitized",
    "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address --param asan-instrumentation-with-call-threshold=0 "
    "--param asan-stack=0 -fsanitize=signed-integer-overflow,shift,bounds,integer-divide-by-zero,float-cast-overflow,"
    "unreachable,return -fno-sanitize-recover=all",
)
#: For qemu. Static, so that no library of that machine is needed; -O3 takes minutes more to compile.
AARCH64 = Kind("aarch64", "-O1 -static", "aarch64-linux-gnu-g++")


def missing(kind: Kind = FAST) -> str | None:
    """Why a driver can't be built here, or None."""
    if sys.platform != "linux" or (kind != AARCH64 and platform.machine() not in ("x86_64", "AMD64")):
        return "the driver's instruction sets are those of Linux on x86-64"
    if shutil.which(kind.compiler) is None:
        return f"{kind.compiler} is not installed"
    if importlib.util.find_spec("ninja") is None:
        return "the Python package ninja is not installed"
    return None


def compiler() -> str:
    """The major version of g++."""
    done = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True)
    return done.stdout.strip().split(".")[0]


def ninja_text(kind: Kind, isas: tuple[str, ...], source: Path = CSRC) -> str:
    """The ninja file of a driver with the kernels of some instruction sets."""
    left_out = {f"isa_{isa}" for isa in ISAS if isa not in isas}
    without = " ".join(f"-DDRIVER_WITHOUT_{isa.upper()}" for isa in ISAS if isa not in isas)
    folder = BUILD / kind.name if source == CSRC else source.parent / "_build"
    flags = f"{FLAGS.replace(str(CSRC), str(source))} -ffile-prefix-map={source}=csrc"
    lines = [
        f"builddir = {folder}",
        "rule cxx",
        f"  command = {sys.executable} {COMPILER} $in $out {kind.compiler} {flags} {kind.flags} $more",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {kind.compiler} {kind.flags} -o $out $in -lpthread",
    ]
    objects = []
    for path in [*sorted((source / "cpu").glob("*.cpp")), HERE / "driver.cpp"]:
        if path.stem in left_out:
            continue
        name = f"{path.stem}-{'-'.join(isas)}" if path.parent == HERE else path.stem
        lines += [f"build {folder / name}.o: cxx {path}"]
        lines += [f"  more = {without}"] if path.parent == HERE else []
        objects.append(f"{folder / name}.o")
    target = folder / f"driver-{'-'.join(isas)}"
    return "\n".join([*lines, f"build {target}: link {' '.join(objects)}", ""])


def build(kind: Kind, isas: tuple[str, ...], source: Path = CSRC) -> Path:
    """Builds a driver if its sources changed.

    Args:
        kind: compiler flags.
        isas: instruction sets to compile; each takes its time.
        source: a copy of csrc, for planted bugs; it is built beside itself.

    Returns:
        The program.

    Raises:
        RuntimeError: it does not compile.
    """
    folder = BUILD / kind.name if source == CSRC else source.parent / "_build"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may want it at once
        file = folder / f"{'-'.join(isas)}.ninja"
        file.write_text(ninja_text(kind, isas, source))
        command = [sys.executable, "-m", "ninja", "-f", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the driver does not compile:\n{done.stdout[-4000:]}")
    return folder / f"driver-{'-'.join(isas)}"
