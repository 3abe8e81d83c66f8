"""What the compiler may spend on each CUDA kernel: the one table of budgets, and how to measure it.

``python tests/cuda_budgets.py`` prints the table as this machine's nvcc has it, to be pasted below after a change that
is meant. Registers are of the bf16 kernels; the fp16 ones are the same code but for one instruction's type.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CUDA = HERE.parent / "csrc" / "cuda"
CACHE = HERE / "emulator" / "_build" / "budgets"  # ignored by git
ARCHS = ("80", "86", "89", "90a", "100", "120")
NVCC = "13.0"  # the compiler that the registers below are of


@dataclass(frozen=True)
class Budget:
    """Of one variant: registers by architecture, and the steady block of its inner loop."""

    registers: tuple[int, ...]  # at most, in the order of ARCHS
    hmma: int  # tensor instructions of the block
    ldsm: int  # at most
    lds: int  # at most
    # At least: tensor instructions of all but NOPs. An HMMA keeps its scheduler's tensor core busy for about 6 issue
    # slots, so a share under the goal of 0.75 costs nothing by itself; narrow planes have one.
    share: float


# registers of sm_80, 86, 89, 90a, 100, 120; HMMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "rt_5x7_w": Budget((133, 133, 133, 125, 173, 176), 116, 8, 10, 0.85),
    "rt_5x4_w": Budget((103, 99, 99, 97, 126, 126), 56, 4, 10, 0.77),
    "rt_3x2_w": Budget((74, 68, 68, 65, 78, 79), 16, 2, 6, 0.61),
    "rt_1x1_w": Budget((48, 48, 48, 52, 62, 64), 4, 2, 2, 0.4),
    "rt_3x7_w": Budget((121, 117, 117, 118, 127, 127), 76, 8, 6, 0.82),
    "rt_3x4_w": Budget((91, 91, 91, 90, 124, 123), 40, 4, 6, 0.76),
    "rt_5x3_w": Budget((92, 90, 90, 85, 116, 116), 36, 4, 10, 0.69),
    "rt_5x5_w": Budget((113, 109, 109, 108, 126, 126), 76, 6, 10, 0.8),
    "rt_5x6_w": Budget((121, 118, 118, 117, 127, 127), 96, 6, 10, 0.84),
    "rt_5x10_w": Budget((167, 167, 167, 178, 208, 210), 176, 10, 10, 0.88),
    "rt_5x12_w": Budget((190, 190, 190, 193, 227, 227), 216, 12, 10, 0.9),
    "rt_9x7_w": Budget((113, 109, 109, 108, 123, 122), 43, 0, 9, 0.79),
    "rt_7x4_w": Budget((118, 114, 114, 111, 127, 127), 64, 4, 14, 0.76),
    "rt_3x4_t": Budget((116, 126, 126, 116, 127, 126), 48, 6, 6, 0.76),
    "rt_5x4_t": Budget((128, 128, 128, 128, 127, 127), 80, 8, 10, 0.78),
    "rt_3x6_t": Budget((128, 128, 128, 127, 128, 128), 72, 8, 6, 0.8),
    "rt_5x6_t": Budget((168, 168, 168, 168, 218, 217), 120, 10, 10, 0.83),
    "rt_5x7_w_p4": Budget((229, 230, 230, 224, 253, 253), 464, 16, 20, 0.92),
    "rt_5x7_w_g2": Budget((203, 203, 203, 202, 216, 220), 232, 16, 10, 0.89),
    "rt_5x4_w_g2": Budget((143, 143, 143, 153, 176, 174), 112, 8, 10, 0.84),
    "rt_3x2_w_p4": Budget((115, 110, 110, 107, 127, 128), 64, 4, 12, 0.78),
    "rt_5x3_w_g2": Budget((123, 118, 118, 115, 128, 127), 72, 8, 10, 0.77),
}


@dataclass(frozen=True)
class Kernel:
    """What nvcc made of one kernel."""

    name: str
    registers: int
    spilled: int  # bytes
    local: int  # LDL and STL instructions, -1 without a disassembler
    hmma: int
    ldsm: int
    lds: int
    share: float


def find_nvcc() -> str | None:
    """Path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    candidate = Path(home) / "bin" / "nvcc"
    return str(candidate) if candidate.exists() else shutil.which("nvcc")


def find_nvdisasm() -> str | None:
    """Path of nvdisasm: $NVDISASM, PATH, the toolkit, NVIDIA's and triton's wheels; or None."""
    if os.environ.get("NVDISASM"):
        return os.environ["NVDISASM"]
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    for package, inside in (("nvidia", "cu13/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        places = (spec.submodule_search_locations or []) if spec else []
        folders.extend(Path(place) / inside for place in places)
    found = [str(folder / "nvdisasm") for folder in folders if (folder / "nvdisasm").exists()]
    return found[0] if found else shutil.which("nvdisasm")


def nvcc_version(nvcc: str) -> str:
    """ "13.0" """
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else "unknown"


def variant_names() -> dict[tuple[int, ...], str]:
    """Template arguments (offsets, pairs, groups, chunks, whole, rotate) of every line of the variants table."""
    text = (CUDA / "rt_fwd_variants.h").read_text()
    rows = re.findall(r'X\("(\w+)",\s*(\d+), (\d+), (\d+), (\d+),\s*(true|false),\s*(true|false),', text)
    return {(*map(int, row[1:5]), int(row[5] == "true"), int(row[6] == "true")): row[0] for row in rows}


def _steady_block(sass: str) -> list[str]:
    """The straight-line block with the most tensor instructions."""
    blocks: list[list[str]] = [[]]
    for line in sass.split("\n"):
        found = re.match(r"^\s+/\*[0-9a-f]+\*/\s+(.*?);", line)
        if re.match(r"^\.L_x", line):
            blocks.append([])
        elif found:
            blocks[-1].append(re.sub(r"^@!?U?P\w+\s+", "", found.group(1)).split()[0])
            if blocks[-1][-1].split(".")[0] in ("BRA", "EXIT"):
                blocks.append([])
    return max(blocks, key=lambda block: sum(op.startswith("HMMA") for op in block))


def compile_kernels(arch: str, nvcc: str, nvdisasm: str | None, source: str = "rt_fwd_bf16.cu") -> list[Kernel]:
    """Compiles the kernels of a file for one architecture; results are kept by a hash of what went in.

    Raises:
        RuntimeError: with the compiler's output; spills are errors.
    """
    digest = hashlib.sha256(f"{arch} {nvcc_version(nvcc)} {nvdisasm is not None} {source}".encode())
    for path in sorted(CUDA.iterdir()):
        if path.suffix in (".cu", ".cuh", ".h"):
            digest.update(path.read_bytes())
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = CACHE / f"{source}-{arch}-{digest.hexdigest()[:16]}.json"
    if kept.exists():
        return [Kernel(**row) for row in json.loads(kept.read_text())]
    cubin = kept.with_suffix(f".{os.getpid()}.cubin")
    command = [nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin",
               "-Xptxas", "-v,-warn-spills,-Werror", str(CUDA / source), "-o", str(cubin)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    names = variant_names()
    sass: dict[str, str] = {}
    if nvdisasm is not None:
        text = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
        sass = dict(re.findall(r"^\.text\.(\w+):(.*?)(?=^\.text\.|\Z)", text, re.M | re.S))
    cubin.unlink()
    kernels = []
    report = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        done.stdout + done.stderr,
        re.S,
    )
    for symbol, stores, loads, registers in report:
        key = tuple(int(v) for v in re.findall(r"L[ib](\d+)E", symbol)[1:7])
        block = _steady_block(sass[symbol]) if symbol in sass else []
        ops = Counter(op.split(".")[0] for op in block)
        busy = len(block) - ops["NOP"]
        local = len(re.findall(r"\b(?:LDL|STL)\b", sass[symbol])) if symbol in sass else -1
        kernels.append(Kernel(names[key], int(registers), int(stores) + int(loads), local, ops["HMMA"], ops["LDSM"],
                              ops["LDS"], round(ops["HMMA"] / max(1, busy), 3)))  # fmt: skip
    partial = kept.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
    partial.replace(kept)
    return kernels


def compile_all(nvcc: str, nvdisasm: str | None) -> dict[str, list[Kernel]]:
    """Every architecture, two at a time; and the fp16 file once, under the key "f16"."""
    with ThreadPoolExecutor(2) as pool:
        jobs = {arch: pool.submit(compile_kernels, arch, nvcc, nvdisasm) for arch in ARCHS}
        jobs["f16"] = pool.submit(compile_kernels, "90a", nvcc, nvdisasm, "rt_fwd_f16.cu")
        return {key: job.result() for key, job in jobs.items()}


if __name__ == "__main__":
    compiler = find_nvcc()
    if compiler is None:
        sys.exit("nvcc was not found")
    tables = compile_all(compiler, find_nvdisasm())
    for variant in variant_names().values():
        rows = [next(k for k in tables[arch] if k.name == variant) for arch in ARCHS]
        used = ", ".join(str(k.registers) for k in rows)
        worst = min(k.share for k in rows)
        print(f'    "{variant}": Budget(({used}), {rows[0].hmma}, {max(k.ldsm for k in rows)}, '
              f"{max(k.lds for k in rows)}, {int(worst * 100) / 100}),")  # fmt: skip
