"""Builds the one extension, ``replknet_ext._C``: LibTorch stable ABI, abi3, CUDA objects where a toolkit is found.

Environment: ``CUDA_HOME``, ``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS`` as everywhere in the torch world;
``REPLKNET_EXT_SKIP_CUDA=1`` builds CPU kernels only, ``REPLKNET_EXT_FORCE_CUDA=1`` fails where no toolkit is found,
``REPLKNET_EXT_SKIP_EXT=1`` builds a pure Python wheel.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11
LIMITED_API = "0x030A0000"  # CPython 3.10
DEFAULT_CUDA_ARCHS = "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"


def flag(name: str) -> bool:
    return os.environ.get(f"REPLKNET_EXT_{name}", "0").lower() not in ("", "0", "false", "no", "off")


def find_cuda_home() -> Path | None:
    """The toolkit's root: ``CUDA_HOME`` or ``CUDA_PATH``, else the one ``nvcc`` stands in, else the usual place."""
    if flag("SKIP_CUDA"):
        if flag("FORCE_CUDA"):
            raise SystemExit("REPLKNET_EXT_SKIP_CUDA and REPLKNET_EXT_FORCE_CUDA exclude each other: unset one")
        return None
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    places = [named] if named else [nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    for place in filter(None, places):
        home = Path(place)
        if (home / "bin/nvcc").is_file() and (home / "include/cuda_runtime.h").is_file():
            return home
    if named:
        raise SystemExit(f"CUDA_HOME={named} holds no bin/nvcc with include/cuda_runtime.h; unset it or mend it")
    if flag("FORCE_CUDA"):
        raise SystemExit("REPLKNET_EXT_FORCE_CUDA is set, but no CUDA toolkit was found: set CUDA_HOME")
    return None


def cuda_archs(nvcc: Path) -> list[str]:
    """``TORCH_CUDA_ARCH_LIST``, else of our list what this toolkit can compile for."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    archs = [a for a in re.split(r"[;,\s]+", named or DEFAULT_CUDA_ARCHS) if a]
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", arch):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: '{arch}' is not of the form 8.0, 9.0a or 12.0+PTX")
    if named:
        return archs
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    archs = [a for a in archs if "sm_" + re.sub(r"[.af]|\+PTX", "", a) in known]
    if archs and not any(a.endswith("+PTX") for a in archs):
        archs[-1] += "+PTX"  # later GPUs compile it at load time
    return archs


def gencode(archs: list[str]) -> list[str]:
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def compile_cuda(home: Path, archs: list[str], build_dir: Path) -> list[str]:
    """Objects of csrc/cuda/*.cu, made again only where a source or the command changed."""
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    headers = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cuda").glob("*.[hc]*h"), ROOT / "setup.py"]
    newest_header = max(h.stat().st_mtime for h in headers)
    build_dir.mkdir(parents=True, exist_ok=True)
    options = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", *gencode(archs)]
    stamp = build_dir / "options.txt"
    same_options = stamp.is_file() and stamp.read_text() == " ".join(options)

    def compile_one(source: Path) -> str:
        target = build_dir / (source.stem + ".o")
        fresh = target.is_file() and target.stat().st_mtime > max(newest_header, source.stat().st_mtime)
        if not (fresh and same_options):
            subprocess.run([home / "bin/nvcc", *options, "-c", source, "-o", target], check=True)
        return str(target)

    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, sources))
    stamp.write_text(" ".join(options))
    return objects


def extension_arguments() -> dict:
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    home = find_cuda_home() if list((ROOT / "csrc/cuda").glob("*.cu")) else None
    archs = cuda_archs(home / "bin/nvcc") if home else []
    define = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION), ("Py_LIMITED_API", LIMITED_API)]
    compile_args = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi"]
    link_args = ["-Wl,--exclude-libs,ALL"]
    if home:
        release = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        define += [
            ("REPLKNET_EXT_WITH_CUDA", "1"),
            ("REPLKNET_EXT_CUDA_ARCHS", f'"{";".join(archs)}"'),
            ("REPLKNET_EXT_CUDA_TOOLKIT", f'"{re.search(r"release ([0-9.]+)", release)[1]}"'),
        ]
        # Static runtime: the library must load where no CUDA library is.
        link_args += [f"-L{home}/lib64", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            if home:
                self.extensions[0].extra_objects += compile_cuda(home, archs, Path(self.build_temp).resolve() / "cuda")
            super().build_extensions()

    folders = ["csrc", "csrc/cpu", "csrc/cuda"]  # of csrc/cuda the planners, which are plain C++
    sources = [str(p.relative_to(ROOT)) for folder in folders for p in sorted((ROOT / folder).glob("*.cpp"))]
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
        extra_compile_args={"cxx": compile_args},
        extra_link_args=link_args,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**({} if flag("SKIP_EXT") else extension_arguments()))
