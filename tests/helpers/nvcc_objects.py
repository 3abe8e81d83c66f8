"""CUDA files that nvcc compiles once for all tests: ptx_run executes their PTX, the budgets read their machine code.

Kept by content, so an unchanged file is not compiled again; a second process waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import compile_cache

ARCH = "90"  # the architecture whose code every test shares
#: As setup.py builds, but PTX is kept as text. -lineinfo: faults in PTX name the source line.
PTX_FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--no-compress", "-lineinfo")
#: PTX and machine code of `ARCH`; spills are errors.
FLAGS = (
    *PTX_FLAGS,
    f"-gencode=arch=compute_{ARCH},code=[compute_{ARCH},sm_{ARCH}]",
    "-Xptxas",
    "-v,-warn-spills,-Werror",
)


@dataclass(frozen=True)
class Compiled:
    """What nvcc made of a file."""

    object: Path  # with the launch code, and PTX and machine code in its fat binary
    cubin: Path  # the machine code, or empty where the file has none
    log: Path  # what ptxas said: registers and spills


def sources_of(path: Path, seen: dict[Path, bytes]) -> dict[Path, bytes]:
    """A file and what it includes from the project, in the order in which they are included."""
    if path not in seen and path.exists():
        seen[path] = path.read_bytes()
        for name in re.findall(rb'^#include "([^"]+)"', seen[path], re.M):
            sources_of((path.parent / name.decode()).resolve(), seen)
    return seen


def nvcc_version(nvcc: str) -> str:
    """ "13.0" """
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else "unknown"


def compiled(source: Path, nvcc: str, flags: tuple[str, ...] = FLAGS) -> Compiled:
    """Compiles a file for `ARCH`, unless it has been.

    Raises:
        RuntimeError: with the compiler's output.
    """
    digest = hashlib.sha256(f"{nvcc_version(nvcc)} {flags}".encode())
    for text in sources_of(source, {}).values():
        digest.update(b"\0" + text)
    folder = compile_cache.OBJECTS / digest.hexdigest()[:2]
    folder.mkdir(parents=True, exist_ok=True)
    name = digest.hexdigest()[2:32]
    result = Compiled(folder / f"{name}.o", folder / f"{name}.cubin", folder / f"{name}.log")
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.object.exists():
            _compile(source, nvcc, flags, result)
    return result


def _compile(source: Path, nvcc: str, flags: tuple[str, ...], result: Compiled) -> None:
    with tempfile.TemporaryDirectory(dir=result.object.parent) as kept:
        out = Path(kept) / "out.o"
        command = [nvcc, *flags, "--keep", "--keep-dir", kept, "-c", str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(" ".join(command) + "\n" + done.stdout + done.stderr)
        result.log.write_text(done.stdout + done.stderr)
        cubins = list(Path(kept).glob("*.cubin"))
        result.cubin.write_bytes(cubins[0].read_bytes() if cubins else b"")
        out.replace(result.object)  # last: its presence says that all is there
