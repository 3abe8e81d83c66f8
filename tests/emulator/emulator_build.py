"""Builds the emulator's Python modules with ninja and pybind11, into `_build` beside this file.

Two modules: `plain` for values, and `race`, whose kernel files are compiled with ``-fsanitize=thread`` and linked
without its runtime: the emulator supplies the ``__tsan_*`` functions and so sees every load and store of a kernel.
"""

from __future__ import annotations

import fcntl
import importlib.util
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc" / "cuda"
COMPILER = ROOT / "tests" / "helpers" / "compile_cache.py"
BUILD = HERE / "_build"
RUNTIME = ("scheduler.cpp", "fragments.cpp", "checks.cpp")
INSTRUMENT = "-fsanitize=thread --param tsan-instrument-func-entry-exit=0"


def missing() -> str | None:
    """Returns why the emulator can't be built here, or None."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        return "the emulator's fiber switch is written for Linux on x86-64"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    for name in ("pybind11", "ninja"):
        if importlib.util.find_spec(name) is None:
            return f"the Python package {name} is not installed"
    return None


def ninja_text(build: Path, cuda: Path = CUDA) -> str:
    """Returns the ninja file of both modules for the kernel sources in `cuda`."""
    import pybind11

    flags = (
        "-std=c++17 -g1 -fPIC -fvisibility=hidden -Wall -Wno-unknown-pragmas -fno-strict-aliasing "
        f"-I{HERE} -I{cuda} -ffile-prefix-map={cuda.parent}=csrc"
    )
    python = f"-I{pybind11.get_include()} -I{sysconfig.get_paths()['include']}"
    lines = [
        f"builddir = {build}",
        f"flags = {flags} -mavx2 -mfma -mf16c -ffp-contract=off",
        "rule cxx",
        f"  command = {sys.executable} {COMPILER} $in $out g++ $flags $more",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = g++ -shared -o $out $in",
    ]

    def compile_(source: Path, tag: str, more: str, folder: Path = BUILD) -> str:
        inside = source.relative_to(cuda if source.is_relative_to(cuda) else HERE)  # stems repeat between folders
        out = folder / inside.with_suffix(f".{tag}.o")
        if folder == build:  # else an object that the usual build has made
            lines.extend([f"build {out}: cxx {source}", f"  more = {more}"])
        return str(out)

    # only what comes from `cuda` differs between build folders
    shared = [compile_(HERE / name, "host", "-O2") for name in RUNTIME]
    host = [*sorted(cuda.rglob("*.cpp")), HERE / "families.cpp"]
    shared.extend(compile_(path, "host", "-O2", build) for path in host)
    for module, more in (("plain", "-O1"), ("race", f"-O1 {INSTRUMENT}")):
        objects = [compile_(path, module, more, build) for path in sorted(cuda.rglob("*.cu"))]
        objects.append(compile_(HERE / "planted.cu", module, more))
        name = f"emulator_{module}"
        objects.append(compile_(HERE / "bindings.cpp", module, f"-O1 {python} -DEMULATOR_MODULE={name}"))
        lines.append(f"build {build / name}.so: link {' '.join(objects + shared)}")
    return "\n".join(lines) + "\n"


def build_module(module: str, build: Path = BUILD, cuda: Path = CUDA) -> Path:
    """Builds one module ("plain" or "race") if its sources changed.

    Args:
        module: "plain" or "race".
        build: folder of objects and modules; ignored by git.
        cuda: folder of the kernel sources, for tests that plant bugs into copies of them.

    Returns:
        Path of the shared library.

    Raises:
        RuntimeError: with the compiler's output.
    """
    build.mkdir(parents=True, exist_ok=True)
    (build / ".gitignore").write_text("*\n")
    target = build / f"emulator_{module}.so"
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # pytest-xdist workers build one after the other
        fcntl.flock(lock, fcntl.LOCK_EX)
        (build / "build.ninja").write_text(ninja_text(build, cuda))
        done = subprocess.run(
            [sys.executable, "-m", "ninja", "-f", str(build / "build.ninja"), str(target)],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return target


def load(module: str, build: Path = BUILD, cuda: Path = CUDA) -> ModuleType:
    """Builds and imports one module."""
    path = build_module(module, build, cuda)
    # pybind11 keeps one module per full name; Python takes the name of the init function from behind the last dot
    spec = importlib.util.spec_from_file_location(f"{build}.emulator_{module}", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ("plain", "race"):
        print(build_module(wanted))
