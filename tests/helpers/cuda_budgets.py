"""What the compiler may spend on each CUDA kernel: how to measure it. Tables: ``tests/cuda/<family>/budgets*.py``.

``python tests/helpers/cuda_budgets.py [family ...]`` prints the tables of this machine's nvcc, to be pasted into those
files after a change that is meant.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nvcc_objects
from nvcc_objects import ARCHS

from replknet_ext import _ext

TESTS = Path(__file__).resolve().parents[1]
CUDA = TESTS.parent / "csrc" / "cuda"
CACHE = TESTS / "emulator" / "_build" / "budgets"  # ignored by git
NVCC = "13.0"  # the compiler that the registers of the tables are of


@dataclass(frozen=True)
class Budget:
    """Of one variant: registers by architecture, and the steady block of its inner loop."""

    registers: tuple[int, ...]  # at most, in the order of the family's archs
    work: int  # the family's instructions of work in the block: HMMA, HGMMA, FFMA, DFMA
    ldsm: int  # at most
    lds: int  # at most
    # At least: the work's share of all but NOPs. An HMMA keeps its scheduler's tensor core busy for about 6 issue
    # slots, so a share under the goal of 0.75 costs nothing by itself; narrow planes have one.
    share: float


@dataclass(frozen=True)
class Family:
    """A family's sources and table. A module ``budgets*.py`` in its folder with a FAMILY is all that a family adds."""

    name: str
    sources: dict[str, tuple[str, ...]]  # .cu file -> architectures to compile it for
    budgets: dict[str, Budget]
    variant_of: Callable[[str], str | None]  # by mangled kernel name; None: a helper that has no budget
    variants: list[str]  # all of the family, in the order of its table
    work: str = "HMMA"
    whole_loop: bool = False  # the steady block is the innermost loop with the most work, branches included
    archs: tuple[str, ...] = ARCHS


@dataclass(frozen=True)
class Kernel:
    """What nvcc made of one kernel."""

    name: str
    registers: int
    spilled: int  # bytes
    local: int  # LDL and STL instructions, -1 without a disassembler
    work: int
    ldsm: int
    lds: int
    share: float


def families() -> dict[str, Family]:
    """Every family that has a table, by name."""
    found = [
        importlib.import_module(f"tests.cuda.{path.parent.name}.{path.stem}").FAMILY
        for path in sorted((TESTS / "cuda").glob("*/budgets*.py"))
    ]
    return {family.name: family for family in found}


def without_budget() -> set[str]:
    """The variants of the extension that no family's table has; a table calls fft_14's two kernels "fft_14 fwd", ..."""
    known = {name.split()[0] for family in families().values() for name in family.variants}
    return {name for pass_ in ("fwd", "bwd_weight") for name in _ext.variant_names("cuda_variants", pass_)} - known


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


def _steady_block(sass: str, work: str) -> list[str]:
    """The straight-line block with the most instructions of work."""
    blocks: list[list[str]] = [[]]
    for line in sass.split("\n"):
        found = re.match(r"^\s+/\*[0-9a-f]+\*/\s+(.*?);", line)
        if re.match(r"^\.L_x", line):
            blocks.append([])
        elif found:
            blocks[-1].append(re.sub(r"^@!?U?P\w+\s+", "", found.group(1)).split()[0])
            if blocks[-1][-1].split(".")[0] in ("BRA", "EXIT"):
                blocks.append([])
    return max(blocks, key=lambda block: sum(op.split(".")[0] == work for op in block))


def _steady_loop(sass: str, work: str) -> list[str]:
    """The innermost loop with the most instructions of work."""
    ops: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in sass.split("\n"):
        label = re.match(r"^(\.L_x_\d+):", line)
        found = re.match(r"^\s+/\*[0-9a-f]+\*/\s+(.*?);", line)
        if label:
            labels[label[1]] = len(ops)
        elif found:
            ops.append(re.sub(r"^@!?U?P\w+\s+", "", found[1]).split()[0])
            target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", found[1])
            if target and target[1] in labels:
                loops.append((labels[target[1]], len(ops)))
    inner = [a for a in loops if not any(b != a and b[0] >= a[0] and b[1] <= a[1] for b in loops)]
    bodies = [ops[first:end] for first, end in inner]
    return max(bodies, key=lambda body: sum(op.split(".")[0] == work for op in body))


def compile_kernels(arch: str, nvcc: str, nvdisasm: str | None, family: Family, source: str) -> list[Kernel]:
    """Compiles the kernels of a file for one architecture.

    Raises:
        RuntimeError: with the compiler's output; spills are errors.
    """
    compiled = _compile(arch, nvcc, nvdisasm, family, source)
    named = [(family.variant_of(kernel.name), kernel) for kernel in compiled]
    return [replace(kernel, name=name) for name, kernel in named if name is not None]


def _compile(arch: str, nvcc: str, nvdisasm: str | None, family: Family, source: str) -> list[Kernel]:
    """All kernels of a file by their mangled names; results are kept by a hash of what went in."""
    compiler = f"{nvcc_objects.nvcc_version(nvcc)} {nvcc_objects.flags(arch)}"
    how = f"{compiler} {arch} {nvdisasm is not None} {source} {family.work} {family.whole_loop}"
    digest = hashlib.sha256(how.encode())
    digest.update(Path(__file__).read_bytes())
    for _, text in sorted(nvcc_objects.sources_of(CUDA / source, {}).items()):
        digest.update(text)
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = CACHE / f"{source.replace('/', '-')}-{arch}-{digest.hexdigest()[:16]}.json"
    if kept.exists():
        return [Kernel(**row) for row in json.loads(kept.read_text())]
    shared = nvcc_objects.compiled(CUDA / source, nvcc, nvcc_objects.flags(arch))
    kernels = _read(shared.cubin(arch), _of_arch(shared.log.read_text(), arch), nvdisasm, family)
    partial = kept.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
    partial.replace(kept)
    return kernels


def _of_arch(log: str, arch: str) -> str:
    """The lines of ptxas about one architecture."""
    parts = re.split(r"^(?=ptxas info\s*: Compiling entry function)", log, flags=re.M)
    return "".join(part for part in parts if f"for 'sm_{arch}'" in part.split("\n")[0])


def _read(cubin: Path, log: str, nvdisasm: str | None, family: Family) -> list[Kernel]:
    """The kernels of a cubin and of what ptxas said of it."""
    sass: dict[str, str] = {}
    if nvdisasm is not None:
        text = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
        sass = dict(re.findall(r"^\.text\.(\w+):(.*?)(?=^\.text\.|\Z)", text, re.M | re.S))
    kernels = []
    report = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.S,
    )
    for symbol, stores, loads, registers in report:
        find = _steady_loop if family.whole_loop else _steady_block
        block = find(sass[symbol], family.work) if symbol in sass else []
        ops = Counter(op.split(".")[0] for op in block)
        busy = len(block) - ops["NOP"]
        local = len(re.findall(r"\b(?:LDL|STL)\b", sass[symbol])) if symbol in sass else -1
        kernels.append(Kernel(symbol, int(registers), int(stores) + int(loads), local, ops[family.work], ops["LDSM"],
                              ops["LDS"], round(ops[family.work] / max(1, busy), 3)))  # fmt: skip
    return kernels


Job = tuple[str, str]  # a source and the architecture to compile it for
Tables = dict[Job, list[Kernel]]


def compile_family(family: Family, nvcc: str, nvdisasm: str | None, jobs: Iterable[Job] = ()) -> Tables:
    """A family's sources, two at a time: those of `jobs`, or every one for each of its architectures."""
    jobs = jobs or [(source, arch) for source, archs in family.sources.items() for arch in archs]
    jobs = sorted(jobs, key=lambda job: job[1] != nvcc_objects.generation(job[1])[0])  # the others wait for the first
    with ThreadPoolExecutor(2) as pool:
        running = {job: pool.submit(compile_kernels, job[1], nvcc, nvdisasm, family, job[0]) for job in jobs}
        return {job: result.result() for job, result in running.items()}


def measured(family: Family, tables: Tables) -> dict[str, Budget]:
    """The budgets that the kernels need: the worst over files and architectures; 0 registers where not compiled."""
    out = {}
    for name in family.variants:
        rows = [(arch, k) for (_, arch), kernels in tables.items() for k in kernels if k.name == name]
        registers = tuple(max((k.registers for a, k in rows if a == arch), default=0) for arch in family.archs)
        kernels = [k for _, k in rows]
        out[name] = Budget(registers, kernels[0].work, max(k.ldsm for k in kernels), max(k.lds for k in kernels),
                           int(min(k.share for k in kernels) * 100) / 100)  # fmt: skip
    return out


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS.parent))  # for tests.cuda
    compiler = find_nvcc()
    if compiler is None:
        sys.exit("nvcc was not found")
    for family in families().values():
        if len(sys.argv) > 1 and family.name not in sys.argv[1:]:
            continue
        print(family.name)
        for variant, b in measured(family, compile_family(family, compiler, find_nvdisasm())).items():
            print(f'    "{variant}": Budget({b.registers}, {b.work}, {b.ldsm}, {b.lds}, {b.share}),')
