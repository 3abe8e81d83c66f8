"""The steps of the GPU benchmark other than the table, each run in a process of its own by `gpu_ops`.

    python -m benchmarks.gpu_steps NAME --output part.json --seconds 60 [--quick]

A step returns a dict for the results file; what it raises is recorded by `main` as its failure.
"""

from __future__ import annotations

import argparse
import csv
import glob
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import gpu_ceilings, gpu_plan
from benchmarks.harness import ROOT, write_json
from benchmarks.shapes import MAIN, PASSES

TAIL = 3000  # characters of a failed command's output that are kept


class StepError(RuntimeError):
    """A step that could not do its work, with what to read about it."""


OURS = "replknet_ext"  # in the mangled name of every kernel of every family: their namespace

#: Process groups that this step has started and that may still run.
GROUPS: set[int] = set()


def stop(sign: int, frame: object) -> None:
    """SIGTERM of this process ends what it has started, too."""
    for group in GROUPS:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    sys.exit(128 + sign)


def command(
    arguments: Sequence[str], seconds: float, environment: dict[str, str] | None = None, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process group of its own; after `seconds` it gets SIGINT, then SIGKILL: returncode 124."""
    process = subprocess.Popen(
        arguments, cwd=folder, env={**os.environ, **(environment or {})}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    GROUPS.add(process.pid)
    late, output = False, ""
    for sign, patience in ((signal.SIGINT, max(seconds, 1.0)), (signal.SIGKILL, 5.0), (None, 10.0)):
        try:
            output, _ = process.communicate(timeout=patience)
            break
        except subprocess.TimeoutExpired:
            late = True
            if sign is not None:
                os.killpg(process.pid, sign)
    GROUPS.discard(process.pid)
    return subprocess.CompletedProcess(arguments, 124 if late else process.returncode, output, "")


def tool(name: str, *patterns: str) -> str:
    """Path of a CUDA tool, from PATH or the usual places.

    Raises:
        StepError: it is not installed.
    """
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = [shutil.which(name), f"{home}/bin/{name}", f"{home}/compute-sanitizer/{name}"]
    places += [path for pattern in patterns for path in sorted(glob.glob(pattern), reverse=True)]
    for place in places:
        if place and os.access(place, os.X_OK) and os.path.isfile(place):
            return place
    raise StepError(f"{name} is not installed")


def smi(fields: str) -> dict[str, str]:
    """Fields of the first GPU from nvidia-smi; {} where it does not answer."""
    done = command(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"], 15)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields.split(","), values, strict=False)) if done.returncode == 0 else {}


def arch_of(capability: tuple[int, int]) -> str:
    """TORCH_CUDA_ARCH_LIST for one GPU."""
    return f"{capability[0]}.{capability[1]}"


# ---- steps ----


def device(options: argparse.Namespace) -> dict[str, Any]:
    """GPU, driver, libraries, clocks."""
    import torch

    if not torch.cuda.is_available():
        raise StepError("torch sees no CUDA device")
    p = torch.cuda.get_device_properties(0)
    versions = dict.fromkeys(("torch", "triton", "numpy", "pytest", "hypothesis", "ninja", "setuptools"), "missing")
    for name in versions:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    try:
        nvcc = command([tool("nvcc"), "--version"], 15).stdout
    except StepError:
        nvcc = ""
    release = re.search(r"release ([0-9.]+)", nvcc)
    result = {
        "gpu": p.name,
        "capability": [p.major, p.minor],
        "multiprocessors": p.multi_processor_count,
        "limits": asdict(gpu_plan.device_limits()),
        "memory_gib": round(p.total_memory / 2**30, 1),
        "l2_mib": round(getattr(p, "L2_cache_size", 0) / 2**20, 1),
        "smi": smi("driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"),
        "cuda_of_torch": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": release.group(1) if release else "not found",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": versions,
    }
    print(f"{p.name}, driver {result['smi'].get('driver_version')}, torch {torch.__version__}, nvcc {result['nvcc']}")
    return result


PROBE = """
import json, torch, replknet_ext
from replknet_ext import _ext
from benchmarks import harness
kernel = torch._C._dispatch_has_kernel_for_dispatch_key("replknet_ext::dwconv2d", "CUDA")
info = _ext.build_info()
devices = json.loads(torch.ops.replknet_ext._cuda_devices()) if _ext.HAS_EXT else []
print("PROBE" + json.dumps({"extension": _ext.HAS_EXT, "why_not": _ext.WHY_NOT, "info": info, "devices": devices,
    "cuda_kernel": kernel, "cuda_ops": sorted(_ext.CUDA_OPS), "meta": harness.metadata()}))
"""


def probe() -> dict[str, Any]:
    """What a fresh process finds of the extension."""
    done = command([sys.executable, "-c", PROBE], 60)
    for text in done.stdout.splitlines():
        if text.startswith("PROBE"):
            found: dict[str, Any] = json.loads(text.removeprefix("PROBE"))
            found["meta"].pop("command")  # of the probe
            return found
    return {"extension": False, "why_not": done.stdout[-TAIL:]}


#: The digest of the sources that the last step `build` has built.
BUILT_OF = ROOT / "build" / "gpu_sources.sha256"


def usable(found: dict[str, Any], arch: str) -> bool:
    """Whether an extension with kernels for this GPU is installed and newer than its sources."""
    if not found["extension"] or "dwconv2d" not in found["cuda_ops"]:
        return False
    if arch not in found["info"].get("cuda_archs", "").replace("+PTX", "").split(";"):
        return False
    if BUILT_OF.exists() and BUILT_OF.read_text() == digest_of_sources():
        return True  # also where the sources were copied here again and look newer
    built = max((path.stat().st_mtime for path in (ROOT / "replknet_ext").glob("_C*.so")), default=0.0)
    return built > max(path.stat().st_mtime for path in sources_of_build())


def sources_of_build() -> list[Path]:
    """The files that the extension is built from."""
    return [*sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file()), ROOT / "setup.py"]


def digest_of_sources() -> str:
    """SHA-256 of their contents."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources_of_build())).hexdigest()


def build_folder() -> Path:
    """Where to start setup.py: here, or beside links to the sources where setuptools is too old for pyproject.toml."""
    if int(metadata.version("setuptools").split(".")[0]) >= 77:
        return ROOT
    folder = Path(tempfile.mkdtemp())
    (ROOT / "build").mkdir(exist_ok=True)
    for name in ("setup.py", "csrc", "replknet_ext", "build"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Builds the extension in place for this GPU alone, unless a usable one is there."""
    import torch

    arch = arch_of(torch.cuda.get_device_capability())
    found = probe()
    if usable(found, arch):
        print("a usable extension is installed")
        return {"built": False, **found}
    environment = {
        "TORCH_CUDA_ARCH_LIST": arch,
        "MAX_JOBS": str(os.cpu_count() or 1),
        "REPLKNET_EXT_FORCE_CUDA": "1",
        # A file holds dozens of kernels: let nvcc optimise them side by side.
        "NVCC_APPEND_FLAGS": f"{os.environ.get('NVCC_APPEND_FLAGS', '')} --split-compile=0".strip(),
    }
    started = time.monotonic()
    setup = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = command(setup, options.seconds - 20, environment, build_folder())
    seconds = round(time.monotonic() - started, 1)
    if done.returncode:
        late = f"out of time after {seconds} s; " if done.returncode == 124 else ""
        raise StepError(f"{late}setup.py build_ext failed:\n{done.stdout[-TAIL:]}")
    BUILT_OF.parent.mkdir(exist_ok=True)
    BUILT_OF.write_text(digest_of_sources())
    found = probe()
    print(f"built for {arch} in {seconds} s; kernels: {', '.join(found.get('cuda_ops', [])) or 'none'}")
    result = {"built": True, "arch": arch, "build_seconds": seconds, **found}
    if not usable(found, arch):
        result["failed"] = "the extension was built, but its CUDA kernels can't be used"
    return result


def smoke(options: argparse.Namespace) -> dict[str, Any]:
    """All variants on small exact cases."""
    done = command([sys.executable, "-m", "benchmarks.gpu_cases"], options.seconds - 3)
    lines = done.stdout.strip().splitlines()
    print(lines[-1] if lines else "no output")
    if done.returncode:
        raise StepError(f"exit status {done.returncode}\n{done.stdout[-TAIL:]}")
    return {"summary": lines[-1]}


def ceilings(options: argparse.Namespace) -> dict[str, Any]:
    """What the GPU gives at most: see gpu_ceilings.py."""
    import torch

    def run(line: list[str]) -> str | None:
        done = command(line, 90)
        return done.stdout[-TAIL:] if done.returncode else None

    p = torch.cuda.get_device_properties(0)
    result: dict[str, Any] = {"multiprocessors": p.multi_processor_count}
    failed = []
    with gpu_ceilings.library(tool("nvcc"), (p.major, p.minor), run) as measured:
        for name, part in gpu_ceilings.PARTS.items():
            try:
                result[name] = part(measured)
                torch.cuda.synchronize()
            except (gpu_ceilings.CeilingError, RuntimeError) as error:
                failed.append(f"{name}: {error}")
            print(f"{name}: {result.get(name, 'failed')}")
        result |= gpu_ceilings.bandwidth()
        result["clocks_after_gemm"] = smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")
    print(f"copy {result['copy_tb_per_s']} TB/s, bf16 gemm {result['bf16_gemm_tflops']} TFLOP/s")
    return result | ({"failed": "; ".join(failed)} if failed else {})


def gpu_test_files() -> list[str]:
    """The files with tests for a GPU, so that no others are collected; Triton's last, as each compiles its kernels."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    return [str(path.relative_to(ROOT)) for path in sorted(files, key=lambda path: path.parent.name == "triton")]


def tests(options: argparse.Namespace) -> dict[str, Any]:
    """The GPU tests of the suite."""
    report = f"{tempfile.mkdtemp()}/junit.xml"
    marks = "gpu and not slow" if options.quick else "gpu"
    arguments = [sys.executable, "-m", "pytest", "-m", marks, "-q", f"--junitxml={report}", "-p", "no:cacheprovider"]
    arguments += ["--continue-on-collection-errors", "--maxfail=40", "--tb=short"]
    try:
        metadata.version("pytest-xdist")
        arguments += ["-n", str(min(8, os.cpu_count() or 1))]
    except metadata.PackageNotFoundError:
        pass
    done = command([*arguments, *gpu_test_files()], options.seconds - 12)
    lines = [text for text in done.stdout.strip().splitlines() if text.strip()]
    result: dict[str, Any] = {"summary": lines[-1] if lines else "", "returncode": done.returncode}
    if os.path.exists(report):
        result |= junit(Path(report).read_text())
    print(result["summary"])
    if done.returncode:
        late = "out of time; " if done.returncode == 124 else ""
        result |= {"failed": f"{late}pytest exit status {done.returncode}", "tail": done.stdout[-TAIL:]}
    return result


def junit(text: str) -> dict[str, Any]:
    """Counts, and the tests that failed with the first line of their messages."""
    counts, wrong, skipped = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}, [], []
    for suite in ElementTree.fromstring(text).iter("testsuite"):
        for key in counts:
            counts[key] += int(suite.get(key, 0))
        for case in suite.iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            for kind in ("failure", "error"):
                wrong += [f"{name}: {(bad.get('message') or '')[:300]}" for bad in case.findall(kind)]
            skipped += [f"{name}: {skip.get('message')}" for skip in case.findall("skipped")]
    return {**counts, "wrong": wrong[:40], "why_skipped": skipped[:20]}


def sanitizer(options: argparse.Namespace) -> dict[str, Any]:
    """memcheck, racecheck, initcheck and synccheck on the small cases, all at once."""
    program = tool("compute-sanitizer")
    names = ("memcheck", "racecheck") if options.quick else ("memcheck", "racecheck", "initcheck", "synccheck")
    folder, started = tempfile.mkdtemp(), time.monotonic()
    # Without torch's cache every tensor is an allocation of its own, and an access past its end is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def start(name: str, filters: list[str]) -> subprocess.Popen[bytes]:
        arguments = [program, "--tool", name, "--error-exitcode", "99", "--print-limit", "20", *filters]
        with open(f"{folder}/{name}", "wb") as log:
            process = subprocess.Popen(
                [*arguments, sys.executable, "-m", "benchmarks.gpu_cases", "--sanitizer"],
                cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        GROUPS.add(process.pid)
        return process

    running = {name: start(name, ["--kernel-name", f"kns={OURS}"]) for name in names}
    result: dict[str, Any] = {}
    retried: set[str] = set()
    while running:
        late = time.monotonic() - started > options.seconds - 8
        for name, process in list(running.items()):
            if process.poll() is None and not late:
                continue
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            GROUPS.discard(process.pid)
            text = Path(f"{folder}/{name}").read_text(errors="replace")
            summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
            if not summaries and not late and name not in retried:  # an option that this version does not know?
                retried.add(name)
                running[name] = start(name, [])
                continue
            done = re.findall(r"\d+ launches, \d+ wrong", text)
            row: dict[str, Any] = {"returncode": process.returncode, "summary": [*summaries, *done]}
            clean = process.returncode == 0 and bool(summaries) and bool(done)
            row["clean"] = clean
            row["only_our_kernels"] = name not in retried
            if not clean:
                row |= {"late": late, "head": text[:TAIL], "tail": text[-TAIL:]}
            result[name] = row
            del running[name]
        time.sleep(0.2)
    bad = [name for name in names if not result[name]["clean"]]
    print(f"compute-sanitizer: {len(names) - len(bad)} of {len(names)} tools clean")
    return result | ({"failed": f"not clean: {', '.join(bad)}"} if bad else {})


TUNED = len(MAIN) * len(PASSES)  # problems of the step `tuning`

SECTIONS = (
    "SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables", "Occupancy",
    "LaunchStats", "SchedulerStats", "WarpStateStats",
)  # fmt: skip
METRICS = (
    r"tensor|hmma|bank_conflict|occupancy|warps_active|registers|gpu__time_duration|throughput|issue_active|waves|"
    r"shared_mem|launch__(grid|block)_size|issue_stalled.*per_warp_active|inst_executed\.sum$|cycles_active\.avg$"
)


def ncu(options: argparse.Namespace) -> dict[str, Any]:
    """Hardware counters of the four main kernels; clocks are left as they are."""
    program = tool("ncu", "/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/nsight-compute*/ncu")
    report = f"{tempfile.mkdtemp()}/report"
    base = [program, "--clock-control", "none", "--target-processes", "all", "-f", "-o", report]
    base += ["--kernel-name-base", "mangled", "-k", f"regex:{OURS}"]
    target = [sys.executable, "-m", "benchmarks.gpu_cases", "--profile"]
    chosen = [option for section in SECTIONS for option in ("--section", section)]
    started = time.monotonic()
    done = command([*base, *chosen, *target], options.seconds - 12)
    if done.returncode not in (0, 124) and time.monotonic() - started < options.seconds / 2:
        first = done.stdout[-TAIL:]
        done = command([*base, "--set", "full", *target], options.seconds / 2)
        done.stdout = f"{first}\n--- with --set full ---\n{done.stdout}"
    if not os.path.exists(f"{report}.ncu-rep"):
        raise StepError(f"ncu wrote no report (exit status {done.returncode}):\n{done.stdout[-TAIL:]}")
    text = command([program, "--import", f"{report}.ncu-rep", "--page", "raw", "--csv"], 30).stdout
    kernels = counters(text)
    for kernel in kernels:
        print(f"{kernel['kernel'][:60]} {kernel.get('gpu__time_duration.sum', '')}")
    return {"kernels": kernels} if kernels else {"failed": "no kernel was profiled", "tail": text[-TAIL:]}


def counters(text: str) -> list[dict[str, Any]]:
    """The metrics worth keeping of `ncu --page raw --csv`, a dict a kernel, each value with its unit."""
    start = text.find('"ID"')
    rows = list(csv.reader(io.StringIO(text[start:]))) if start >= 0 else []
    if len(rows) < 3:
        return []
    kernels = []
    for row in rows[2:]:
        if len(row) != len(rows[0]):
            continue
        cells = dict(zip(rows[0], zip(row, rows[1], strict=True), strict=True))
        kept = {
            key: f"{value} {unit}".strip() for key, (value, unit) in cells.items() if re.search(METRICS, key) and value
        }
        kernels.append({"kernel": cells.get("Kernel Name", ("", ""))[0], **kept})
    return kernels


def tuning(options: argparse.Namespace) -> dict[str, Any]:
    """Every candidate of the four main layers, all backends: how good the cost models' first choices are."""
    output = Path(tempfile.mkdtemp()) / "tuning.json"
    each = min(4.0, (options.seconds - 20) / TUNED)
    arguments = ["--device", "cuda", "--quick", "--seconds", f"{each:.1f}", "--output", str(output)]
    done = command([sys.executable, "-m", "benchmarks.tuning", *arguments], options.seconds - 3)
    if done.returncode or not output.exists():
        late = "out of time; " if done.returncode == 124 else ""
        raise StepError(f"{late}exit status {done.returncode}\n{done.stdout[-TAIL:]}")
    found = json.loads(output.read_text())
    print(found["summary"])
    return {"summary": found["summary"], "rows": found["rows"]}


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    step.__name__: step for step in (device, build, smoke, ceilings, tests, sanitizer, ncu, tuning)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_steps", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, stop)
    try:
        result = STEPS[options.step](options)
    except StepError as error:
        result = {"failed": str(error)}
    except Exception:
        result = {"failed": traceback.format_exc()[-TAIL:]}
    write_json(options.output, result)
    return int("failed" in result)


if __name__ == "__main__":
    sys.exit(main())
