"""Builds the one extension, ``replknet_ext._C``: LibTorch stable ABI, abi3, CUDA objects where a toolkit is found.

Environment: ``CUDA_HOME``, ``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS`` as everywhere in the torch world;
``REPLKNET_EXT_SKIP_CUDA=1`` builds CPU kernels only, ``REPLKNET_EXT_FORCE_CUDA=1`` fails where no toolkit is found,
``REPLKNET_EXT_SKIP_EXT=1`` builds a pure Python wheel.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11
LIMITED_API = "0x030A0000"  # CPython 3.10
#: The PTX of 9.0a would serve no later GPU. Of HOPPER_FAMILY alone there is machine code for it, beside 9.0.
DEFAULT_CUDA_ARCHS = "8.0;8.6;8.9;9.0;10.0+PTX;12.0"
#: The names of GPU generations in TORCH_CUDA_ARCH_LIST, with torch's meaning (torch.utils.cpp_extension).
NAMED_CUDA_ARCHS = {
    "ampere+tegra": "8.7",
    "ampere": "8.0;8.6+PTX",
    "ada": "8.9+PTX",
    "hopper": "9.0+PTX",
    "blackwell+tegra": "11.0",
    "blackwell": "10.0;10.3;12.0;12.1+PTX",
}
HOPPER_FAMILY = "toeplitz_wgmma"
WITHOUT = "REPLKNET_EXT_SKIP_EXT=1 installs the package without compiled kernels"


def flag(name: str) -> bool:
    return os.environ.get(f"REPLKNET_EXT_{name}", "0").lower() not in ("", "0", "false", "no", "off")


def cuda_folder(home: Path, holds: str, *names: str) -> Path | None:
    """The first of a toolkit's folders that holds a file; conda's toolkits have theirs under targets/PLATFORM."""
    folders = [folder for name in names for folder in sorted(home.glob(name))]
    return next((folder for folder in folders if (folder / holds).is_file()), None)


def find_cuda_home() -> Path | None:
    """The toolkit's root: ``CUDA_HOME`` or ``CUDA_PATH``, else the one ``nvcc`` stands in, else the usual place."""
    if flag("SKIP_CUDA"):
        if flag("FORCE_CUDA"):
            raise SystemExit("REPLKNET_EXT_SKIP_CUDA and REPLKNET_EXT_FORCE_CUDA exclude each other: unset one")
        return None
    if sys.platform == "darwin":
        if flag("FORCE_CUDA"):
            raise SystemExit("REPLKNET_EXT_FORCE_CUDA is set, but macOS has no CUDA: unset it")
        return None
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    places = [named] if named else [nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    for place in filter(None, places):
        home = Path(place)
        if (home / "bin/nvcc").is_file() and cuda_folder(home, "cuda_runtime.h", "include", "targets/*/include"):
            return home
    if named:
        raise SystemExit(f"CUDA_HOME={named} holds no bin/nvcc with include/cuda_runtime.h; unset it or correct it")
    if flag("FORCE_CUDA"):
        raise SystemExit("REPLKNET_EXT_FORCE_CUDA is set, but no CUDA toolkit was found: set CUDA_HOME")
    return None


def native_cuda_archs() -> str:
    """The compute capabilities of the GPUs that torch sees."""
    import torch

    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if not found:
        raise SystemExit("TORCH_CUDA_ARCH_LIST=native, but torch sees no GPU: name the architectures, such as 8.0;9.0")
    return ";".join(f"{major}.{minor}" for major, minor in sorted(found)) + "+PTX"


def cuda_archs(nvcc: Path) -> list[str]:
    """``TORCH_CUDA_ARCH_LIST``, else (or if it is All) of our list what this toolkit can compile for."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if named.lower() in ("", "all"):
        known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
        archs = [a for a in DEFAULT_CUDA_ARCHS.split(";") if "sm_" + re.sub(r"[.af]|\+PTX", "", a) in known]
        if archs and not any(arch.endswith("+PTX") for arch in archs):
            archs[-1] += "+PTX"  # later GPUs compile it at load time
        return archs
    archs = []
    for word in filter(None, re.split(r"[;,\s]+", named)):
        meant = native_cuda_archs() if word.lower() == "native" else NAMED_CUDA_ARCHS.get(word.lower(), word)
        archs += [arch for arch in meant.split(";") if arch not in archs]
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", arch):
            names = ", ".join(name.capitalize() for name in NAMED_CUDA_ARCHS if "+" not in name)
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST: '{arch}' is not of the form 8.0, 9.0 or 12.0+PTX, nor "
                f"one of {names}, native, All"
            )
        if float(arch.split("+")[0].rstrip("af")) < 8:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: the kernels need compute capability 8.0 or higher, not {arch}")
    return archs


def generation(number: str) -> str:
    """The architectures ("86", "100", "90a") that nvcc makes the same PTX for; only what ptxas makes of it differs."""
    if not number.isdecimal():  # 90a and 100f have instructions of their own
        return number
    return "10 and later" if int(number) >= 100 else number[0]


def nvcc_options(archs: list[str]) -> list[str]:
    """Options of nvcc for `archs` (``["8.0", "9.0+PTX"]``); PTX is made once per generation, for its first of them."""
    codes: dict[str, list[str]] = {}  # by the architecture that the PTX is made for
    first: dict[str, str] = {}
    for arch in sorted(archs, key=lambda arch: float(arch.removesuffix("+PTX").rstrip("af"))):
        number = arch.removesuffix("+PTX").replace(".", "")
        base = first.setdefault(generation(number), number)
        codes.setdefault(base, []).append(f"sm_{number}")
        if arch.endswith("+PTX"):
            codes.setdefault(number, []).append(f"compute_{number}")
    options = [f"-gencode=arch=compute_{base},code=[{','.join(code)}]" for base, code in codes.items()]
    return ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", *options]


def archs_of(source: Path, archs: list[str]) -> list[str]:
    """The architectures of ``archs`` that a .cu file is compiled for."""
    hopper = any(re.match(r"9\.0", arch) for arch in archs)
    kernels = source.parent.name == HOPPER_FAMILY and source.stem != "launch"
    return ["9.0a"] if hopper and kernels else archs


def cuda_sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").rglob("*.cu"))


def max_jobs() -> int:
    """``MAX_JOBS``, else the number of processors."""
    text = os.environ.get("MAX_JOBS", "").strip()
    if text and not (text.isdecimal() and int(text) > 0):
        raise SystemExit(f"MAX_JOBS={text}: it must be a whole number of compilers at a time, at least 1")
    return int(text or os.cpu_count() or 1)


def check_compiler(command: str) -> None:
    """Stops where the first compilation would, with a page of traceback."""
    compiler = shlex.split(command)[0]
    if not shutil.which(compiler):
        raise SystemExit(
            f"no C++ compiler: '{compiler}' was not found. Install one (Debian, Ubuntu: apt install g++) or name it in "
            f"CXX; {WITHOUT}"
        )
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        raise SystemExit(
            f"Python's headers are missing: no Python.h in {include}. Install them (Debian, Ubuntu: apt install "
            f"python3-dev); {WITHOUT}"
        )


def compile_cuda(home: Path, archs: list[str], build_dir: Path) -> list[str]:
    """Objects of the .cu files under csrc/cuda, made again only where a source or the command changed."""
    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc/cuda").rglob("*.cuh"), ROOT / "setup.py"]
    newest_header = max(h.stat().st_mtime for h in headers)
    build_dir.mkdir(parents=True, exist_ok=True)
    options = nvcc_options(archs)
    stamp = build_dir / "options.txt"
    same_options = stamp.is_file() and stamp.read_text() == " ".join(options)

    def compile_one(source: Path) -> str:
        target = build_dir / source.relative_to(ROOT / "csrc/cuda").with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.is_file() and target.stat().st_mtime > max(newest_header, source.stat().st_mtime)
        if not (fresh and same_options):
            own = nvcc_options(archs_of(source, archs))
            subprocess.run([home / "bin/nvcc", *own, "-c", source, "-o", target], check=True)
        return str(target)

    with ThreadPoolExecutor(max_jobs()) as pool:
        objects = list(pool.map(compile_one, cuda_sources()))
    stamp.write_text(" ".join(options))
    return objects


def check_platform() -> None:
    """Stops where no compiler that torch's build system calls can compile the kernels."""
    if sys.platform == "win32":
        raise SystemExit(
            "the compiled kernels are written in GNU vector types, which MSVC does not have: on Windows use WSL 2, "
            f"or {WITHOUT.replace('installs', 'to install')}"
        )


def compile_options() -> list[str]:
    """Options for GCC and Clang."""
    options = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
    # GCC on x86-64 notes, for every function with 64-byte vectors, that the way they are passed has changed.
    return options if sys.platform == "darwin" else [*options, "-Wno-psabi"]


def link_options(cuda_libraries: Path | None) -> list[str]:
    """Options for GNU ld, lld and gold; for Apple's ld none: it has no --exclude-libs, and macOS has no CUDA.

    Args:
        cuda_libraries: folder of the static CUDA runtime; the library must load where no CUDA library is.
    """
    options = [] if sys.platform == "darwin" else ["-Wl,--exclude-libs,ALL"]
    if cuda_libraries:
        options += [f"-L{cuda_libraries}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return options


def extension_arguments() -> dict:
    check_platform()
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise SystemExit(
            "the build needs torch 2.11 or later in this environment: pip install torch, then pip install "
            f"--no-build-isolation again; {WITHOUT}"
        ) from None

    max_jobs()  # a wrong number is told before minutes of compiling
    home = find_cuda_home() if cuda_sources() else None
    archs = cuda_archs(home / "bin/nvcc") if home else []
    define = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION), ("Py_LIMITED_API", LIMITED_API)]
    libraries = None
    if home:
        release = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        define += [
            ("REPLKNET_EXT_WITH_CUDA", "1"),
            ("REPLKNET_EXT_CUDA_ARCHS", f'"{";".join(archs)}"'),
            ("REPLKNET_EXT_CUDA_TOOLKIT", f'"{re.search(r"release ([0-9.]+)", release)[1]}"'),
        ]
        libraries = cuda_folder(home, "libcudart_static.a", "lib64", "lib", "targets/*/lib")
        if libraries is None:
            raise SystemExit(
                f"the CUDA toolkit in {home} has no libcudart_static.a in lib64, lib or targets/*/lib: install its "
                "static runtime (conda: cuda-cudart-static), or build without CUDA by REPLKNET_EXT_SKIP_CUDA=1"
            )

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            check_compiler(get_cxx_compiler())
            if home:
                self.extensions[0].extra_objects += compile_cuda(home, archs, Path(self.build_temp).resolve() / "cuda")
            super().build_extensions()

    sources = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*.cpp"))]  # planners are plain C++, too
    depends = [
        str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".inc", ".cuh", ".cu")
    ]
    extension = CppExtension(
        "replknet_ext._C",
        sources,
        depends=depends,
        define_macros=define,
        py_limited_api=True,
        libraries=[],
        extra_compile_args={"cxx": compile_options()},
        extra_link_args=link_options(libraries),
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**({} if flag("SKIP_EXT") else extension_arguments()))
