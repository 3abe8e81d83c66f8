"""CUDA files that nvcc compiles once for all tests: ptx_run executes their PTX, the budgets read their machine code.

Kept by content, so an unchanged file is not compiled again; a second process waits for the first. The architectures of
one generation are compiled together, as in the product.
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
import setup_file

ARCH = "90"  # the architecture whose PTX is run unless another one is asked for
ARCHS = ("80", "86", "89", "90", "100", "120")
_SETUP = setup_file.functions()
#: PTX is kept as text, and faults in it name the source line.
_MORE = ("--no-compress", "-lineinfo")


def generation(arch: str) -> tuple[str, ...]:
    """The architectures that `arch` shares its PTX with; the PTX is made for the first."""
    return tuple(other for other in ARCHS if _SETUP["generation"](other) == _SETUP["generation"](arch)) or (arch,)


def arch_of(source: Path, arch: str) -> str:
    """The architecture that setup.py compiles a file for where it compiles the others for `arch`."""
    number = _number(arch)
    own: str = _SETUP["archs_of"](source, [number])[0]
    return own.replace(".", "")


def _number(arch: str) -> str:
    digits = arch.rstrip("a")
    return f"{digits[:-1]}.{digits[-1]}{arch[len(digits) :]}"


def flags(arch: str) -> tuple[str, ...]:
    """As setup.py builds for the generation of `arch`: its PTX and the machine code of each; spills are errors."""
    first, *others = map(_number, generation(arch))
    return (*_SETUP["nvcc_options"]([f"{first}+PTX", *others]), *_MORE, "-Xptxas", "-v,-warn-spills,-Werror")


def ptx_flags(arch: str) -> tuple[str, ...]:
    """Of PTX alone: it may spill."""
    return (*_SETUP["nvcc_options"]([]), f"-gencode=arch=compute_{arch},code=compute_{arch}", *_MORE)


@dataclass(frozen=True)
class Compiled:
    """What nvcc made of a file."""

    object: Path  # with the launch code, and PTX and machine code in its fat binary
    log: Path  # what ptxas said: registers and spills

    def cubin(self, arch: str) -> Path:
        """The machine code of an architecture."""
        return self.object.with_suffix(f".sm_{arch}.cubin")


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


def compiled(source: Path, nvcc: str, flags: tuple[str, ...]) -> Compiled:
    """Compiles a file, unless it has been.

    Args:
        source: the .cu file.
        nvcc: the compiler.
        flags: those of `flags` or `ptx_flags`.

    Raises:
        RuntimeError: with the compiler's output.
    """
    digest = hashlib.sha256(f"{nvcc_version(nvcc)} {flags}".encode())
    for text in sources_of(source, {}).values():
        digest.update(b"\0" + text)
    folder = compile_cache.OBJECTS / digest.hexdigest()[:2]
    folder.mkdir(parents=True, exist_ok=True)
    name = digest.hexdigest()[2:32]
    result = Compiled(folder / f"{name}.o", folder / f"{name}.log")
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
        for cubin in Path(kept).glob("*.cubin"):  # NAME.sm_90.cubin, or NAME.compute_80.sm_86.cubin
            cubin.replace(result.cubin(cubin.stem.rsplit("sm_")[-1]))
        out.replace(result.object)  # last: its presence says that all is there
