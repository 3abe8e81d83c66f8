"""Whole networks on the CPU beside what people run them with: torch, torch.compile, ONNX Runtime and OpenVINO.

    pip install onnx onnxscript onnxruntime openvino            # those that are missing have no rows
    python -m benchmarks.runtimes [--models replknet_31b]       # -> benchmarks/results/runtimes_ISA_Nt.json
    python -m benchmarks.runtimes --quick                       # small: does it still run?

Inference of merged networks, and a training step. `nn.Conv2d` runs in both layouts and, compiled, in the one that was
faster; so does ours. ONNX Runtime and OpenVINO read one and the same exported file, in float32. Before anything is
timed, each output, and in training the gradients of all depthwise filters, is compared with the network in float64.
Networks of `timm_models.USERS` are the convolutions of those papers at their sizes. About 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import replknet_ext
from benchmarks import harness, timm_models
from benchmarks.cpu_compare import milliseconds, times
from benchmarks.cpu_model import accelerated, gradients, plain
from benchmarks.cpu_model import build as build_replknet
from benchmarks.cpu_problem import LAYOUTS, OPERATORS, OURS, TORCH
from benchmarks.harness import Candidate
from benchmarks.timm_models import WHATS, call
from replknet_ext.integrations.onnx import export_onnx
from replknet_ext.models import RepLKNet

MODELS = ("replknet_31b", "unireplknet_t", "slak_t", "overlock_xt", "convnext_tiny", "replknet_31l")
#: For `--quick`.
SMALL = ("overlock_xt",)
#: Images of an inference and of a training step.
BATCHES = {"inference": 1, "training step": 4}
COMPILED = "compiled"
#: Those that read an ONNX file, and what has to be installed for each.
RUNTIMES = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}
#: Largest relative error of logits, loss and gradients; or this multiple of nn.Conv2d's (see `timm_models`).
LIMIT, FLIPS = timm_models.LIMIT, timm_models.FLIPS


@dataclass
class Contender:
    """One way to run a network. `results` are what is compared: logits, or loss and gradients."""

    provider: str
    layout: str
    run: Callable[[], Tensor]
    results: Callable[[], list[Tensor]]

    @property
    def name(self) -> str:
        return f"{self.provider}, {self.layout}"


def build(name: str) -> nn.Module:
    """On `nn.Conv2d` or, a RepLKNet, on our kernels; BatchNorm statistics are not those of a fresh network."""
    return build_replknet(name) if name.startswith("replknet") else timm_models.build(name)


def merged(model: nn.Module) -> nn.Module:
    """A copy in eval mode, its parallel kernels merged where it has some."""
    result = copy.deepcopy(model).eval()
    if isinstance(result, RepLKNet):
        return result.switch_to_deploy()
    for module in list(result.modules()):
        if callable(merge := getattr(module, "merge", None)):  # of UniRepLKNet and OverLoCK
            merge()
    return result


def swapped(model: nn.Module) -> nn.Module:
    """A copy on our kernels."""
    if isinstance(model, RepLKNet):
        return accelerated(model)
    result = copy.deepcopy(model)
    replknet_ext.replace_depthwise(result)
    return result


def in_torch(
    provider: str, layout: str, what: str, model: nn.Module, images: Tensor, labels: Tensor, compiled: bool = False
) -> Contender:
    """A copy of `model` in a memory format, by itself or compiled; drop path is the same at every call."""
    model = copy.deepcopy(model).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    images = images.contiguous(memory_format=LAYOUTS[layout])
    inner = call(what, torch.compile(model) if compiled else model, images, labels)  # type: ignore[arg-type]

    def run() -> Tensor:
        torch.manual_seed(0)
        return inner()

    def results() -> list[Tensor]:
        output = run()
        return [output] if what == "inference" else [output, gradients(model)]

    return Contender(f"{provider}, {COMPILED}" if compiled else provider, layout, run, results)


def installed() -> list[str]:
    """The `RUNTIMES` that can run here."""
    return [name for name, needs in RUNTIMES.items() if all(map(importlib.util.find_spec, needs))]


def in_runtime(name: str, file: Path, images: Tensor) -> Contender:
    """An ONNX file in one of `RUNTIMES`, in float32, on as many threads as torch has."""
    batch = images.contiguous().numpy()
    if name == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

        def run() -> Tensor:
            return torch.from_numpy(session.run(None, {"input": batch})[0])
    else:
        openvino = importlib.import_module("openvino")  # not among what type checks have
        # Without the hint it computes in bfloat16 where the CPU has instructions for that.
        config = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = openvino.Core().compile_model(str(file), "CPU", config)

        def run() -> Tensor:
            return torch.from_numpy(compiled([batch])[0])

    return Contender(name, "NCHW", run, lambda: [run().clone()])


def check(contender: Contender, references: Sequence[Tensor], allowed: float) -> tuple[float, float]:
    """The largest relative error of the contender's results, and the seconds that the call took.

    Raises:
        BenchmarkError: it is over `LIMIT` and `allowed`, or another operator ran than the contender is named after.
    """
    seen = harness.trace(contender.results)
    if contender.provider == TORCH:
        harness.require_ops(seen.ops, name=contender.name, need=r"^aten::\w*conv", forbid=OPERATORS[TORCH][1])
    elif contender.provider == OURS and contender.layout == "NCHW":  # in channels_last all layers may be left to torch
        harness.require_ops(seen.ops, name=contender.name, need=OPERATORS[OURS][0], forbid="^$")
    error = max(harness.relative_error(ours, exact) for ours, exact in zip(seen.result, references, strict=True))
    if not error <= max(LIMIT, allowed):
        raise harness.BenchmarkError(f"{contender.name}: relative error {error:.1e}; a wrong result is not timed")
    return error, seen.seconds


def measure(name: str, what: str, batch: int, size: int, seconds: float) -> list[dict[str, Any]]:
    """Checks and times one network on everything that is installed.

    Raises:
        BenchmarkError: a result is wrong, or a contender runs the kernels of another.
    """
    torch.manual_seed(0)
    model = build(name)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(100, (batch,))
    if what == "inference":
        model = merged(model)
    exact = in_torch(OURS, "NCHW", what, swapped(model).double(), images.double(), labels).results()
    errors: dict[str, float] = {}
    warm: dict[str, float] = {}
    peaks: dict[str, int | None] = {}
    timed: list[Contender] = []

    def add(contender: Contender) -> None:
        allowed = FLIPS * max((errors[other.name] for other in timed if other.provider == TORCH), default=0.0)
        if contender.provider == TORCH:
            allowed = 1.0 / FLIPS  # torch's own errors are what others are held against; they are in the file
        if COMPILED in contender.provider:
            contender.run()
        errors[contender.name], warm[contender.name] = check(contender, exact, allowed)
        peaks[contender.name] = harness.peak_memory(contender.run)
        timed.append(contender)

    harness.keep_memory(False)
    for provider, make in ((TORCH, plain), (OURS, swapped)):
        layers = [in_torch(provider, layout, what, make(model), images, labels) for layout in LAYOUTS]
        for contender in layers:
            add(contender)
        first = harness.interleave(
            [Candidate(c.name, c.run) for c in layers], rounds=1, min_rounds=1, budget_seconds=0.5, warm=warm
        )
        best = min(layers, key=lambda contender: first[contender.name].median).layout
        add(in_torch(provider, best, what, make(model), images, labels, compiled=True))
    with tempfile.TemporaryDirectory() as folder:
        if what == "inference" and installed():
            file = Path(folder) / "model.onnx"
            export_onnx(plain(model).eval(), file, size, batch_size=batch, dynamic_batch=False, verify=False)
            for runtime in installed():
                add(in_runtime(runtime, file, images))
        harness.keep_memory()
        timings = harness.interleave(
            [Candidate(contender.name, contender.run) for contender in timed],
            rounds=40,
            min_rounds=2,
            budget_seconds=seconds,
            warm=warm,
        )
    return [
        {
            "model": name,
            "what": what,
            "batch": batch,
            "size": size,
            "provider": contender.provider,
            "layout": contender.layout,
            **timings[contender.name].as_dict(),
            "error": float(f"{errors[contender.name]:.2g}"),
            "peak_bytes": peaks[contender.name],
        }
        for contender in timed
    ]


def table(payload: dict[str, Any]) -> str:
    """A results file as a Markdown table with its machine below: ms of each contender, the fastest bold."""
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in payload["rows"]:
        rows.setdefault((row["model"], row["what"]), {}).setdefault(row["provider"], []).append(row["median_ms"])
    providers = [
        name
        for name in (TORCH, f"{TORCH}, {COMPILED}", *RUNTIMES, OURS, f"{OURS}, {COMPILED}")
        if any(name in cells for cells in rows.values())
    ]
    heads = {
        TORCH: ["`nn.Conv2d`", "best layout"],
        OURS: ["ours, best layout"],
        f"{OURS}, {COMPILED}": ["ours, compiled"],
    }
    columns = [head for name in providers for head in heads.get(name, [name.removeprefix(f"{TORCH}, ")])]
    lines = [
        f"| float32, {payload['rows'][0]['size']} px, ms | batch | {' | '.join(columns)} | ours over the best other |",
        "|---|--:|" + "--:|" * (len(columns) + 1),
    ]
    batches = {(row["model"], row["what"]): row["batch"] for row in payload["rows"]}
    for key, cells in rows.items():
        values: list[float | None] = []
        for name in providers:
            found = cells.get(name)
            values += [found[0]] if found and name == TORCH else []
            values.append(min(found) if found else None)
        fastest = min(value for value in values if value is not None)
        shown = ["" if value is None else f"**{milliseconds(value)}**" if value == fastest else milliseconds(value)
                 for value in values]  # fmt: skip
        mine = min(min(found) for name, found in cells.items() if name.startswith(OURS))
        others = min(min(found) for name, found in cells.items() if not name.startswith(OURS))
        lines.append(f"| {key[0]}, {key[1]} | {batches[key]} | {' | '.join(shown)} | {times(others / mine)} |")
    meta = payload["meta"]
    versions = ", ".join(f"{name} {version}" for name, version in meta["packages"].items())
    return "\n".join([*lines, "", f"<sub>{harness.describe(meta)}, {versions}. `{meta['command']}`</sub>"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--what", nargs="+", choices=WHATS, default=list(WHATS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each contender; a slow one is timed twice")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one network, inference of a small image")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/runtimes_ISA_Nt.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.models, options.what, options.size, options.seconds = list(SMALL), ["inference"], 64, 0.1
    console = Console()
    rows: list[dict[str, Any]] = []
    meta = harness.metadata()  # of the sources that run
    output = options.output or harness.RESULTS / f"runtimes_{meta['kernel_isa']}_{meta['threads']}t.json"
    for name in options.models:
        for what in options.what:
            torch.compiler.reset()
            new = measure(name, what, BATCHES[what], options.size, options.seconds)
            rows += new
            for row in new:
                console.print(
                    f"{name:<16} {what:<14} {row['provider'] + ', ' + row['layout']:<40} "
                    f"{milliseconds(row['median_ms']):>8} ms  error {row['error']:.0e}",
                    soft_wrap=True,
                )
            meta["packages"] = {name: importlib.metadata.version(name) for name in ("timm", *installed())}
            payload = {"benchmark": "runtimes", "meta": meta, "rows": rows}
            if options.output or not options.quick:
                harness.write_json(output, payload)  # each time: a run that is cut leaves what it has
    console.print(table(payload), soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
