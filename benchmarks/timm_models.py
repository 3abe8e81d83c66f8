"""Networks of other people on the CPU before and after `replace_depthwise`: inference and training, both layouts.

    python -m benchmarks.timm_models [--batch 8] [--size 160]    # -> benchmarks/results/timm_models_ISA_Nt.json
    python -m benchmarks.timm_models --quick                     # two small models and images: does it still run?

Ten are timm's. OverLoCK needs a CUDA library: its convolutions alone are measured, at their sizes. The whole run takes
less than 8 minutes on two cores. Before anything is timed, outputs, and in training the gradients of all depthwise
filters, are compared with those of the same model in float64. No model may take more than `SLOWEST` times as long as
before; the file says which does. Freed memory is kept for the next call (`harness.keep_memory`).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import replknet_ext
from benchmarks import harness
from benchmarks.cpu_compare import milliseconds, times
from benchmarks.cpu_model import deploy_call, gradients, training_step
from benchmarks.cpu_problem import LAYOUTS, OURS, TORCH
from benchmarks.harness import Candidate

#: With depthwise filters of 5x5 to 17x17, and bands of 1x11 and 11x1.
MODELS = (
    "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "mixnet_s", "mobilenetv4_conv_small",
    "convnext_atto", "convnextv2_atto", "inception_next_atto", "starnet_s1", "edgenext_xx_small", "overlock_xt",
)  # fmt: skip
#: Networks that timm does not have, or needs a CUDA library for: their convolutions, at their sizes.
USERS = ("overlock_xt", "unireplknet_t", "slak_t")
#: For `--quick`.
SMALL = ("mobilenetv3_small_100", "inception_next_atto")
WHATS = ("inference", "training step")
#: What a swap may cost at most.
SLOWEST = 1.03
#: Largest relative error of results, beside the model in float64.
LIMIT = 1e-3
#: Or this multiple of the error that nn.Conv2d has in its worse layout: where rounding flips a ReLU, a gradient jumps
#: (starnet_s1 in channels_last: 3e-3 without our kernels).
FLIPS = 4


def build(name: str) -> nn.Module:
    """The model with random weights, BatchNorm statistics that fit them, and nothing random in a step."""
    from tests.helpers import torchvision_shim  # noqa: F401  # before timm, for a torchvision that is not this torch's

    import timm  # isort: skip

    torch.manual_seed(0)
    model: nn.Module
    if name in USERS:  # by name: mypy leaves helpers of tests alone
        model = getattr(importlib.import_module("tests.helpers.large_kernel_users"), name)(num_classes=100)
    else:
        model = timm.create_model(name, num_classes=100, drop_rate=0.0)
    # As built, features vanish in eval mode, or in residuals scaled by 1e-6: the logits would be those of any kernel.
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the statistics of one pass, as they are
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def call(what: str, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """Logits of an inference, or the loss of a training step."""
    return deploy_call(model, images) if what == "inference" else training_step(model, images, labels)


def results(what: str, model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """What is compared: logits, or the loss and the gradients of all depthwise filters."""
    output = call(what, model, images, labels)()
    return [output] if what == "inference" else [output, gradients(model)]


def measure(name: str, what: str, images: Tensor, labels: Tensor, seconds: float) -> list[dict[str, Any]]:
    """One row per layout: the model as timm built it, and swapped.

    Raises:
        BenchmarkError: results are wrong, or the baseline runs our kernels.
    """
    built = build(name)
    references = results(what, copy.deepcopy(built).double(), images.double(), labels)
    errors: dict[tuple[str, str], list[float]] = {}
    rows = []
    for layout, memory_format in LAYOUTS.items():
        before = copy.deepcopy(built).to(memory_format=memory_format)  # type: ignore[call-overload]
        swapped = copy.deepcopy(built).to(memory_format=memory_format)  # type: ignore[call-overload]
        report = replknet_ext.replace_depthwise(swapped)
        batch = images.contiguous(memory_format=memory_format)
        jobs, warm = [], {}
        for provider, model in ((TORCH, before), (OURS, swapped)):
            found = results(what, model, batch, labels)
            errors[provider, layout] = [
                harness.relative_error(result, reference) for result, reference in zip(found, references, strict=True)
            ]
            seen = harness.trace(run := call(what, model, batch, labels))
            if provider == TORCH:
                harness.require_ops(seen.ops, name=f"{name}, {what}", need=r"^aten::\w*conv", forbid=r"^replknet_ext::")
            elif what != "inference" and layout == "NCHW":  # else all layers may be left to torch
                harness.require_ops(seen.ops, name=f"{name}, {what}", need=r"^replknet_ext::", forbid=r"^$")
            jobs.append(Candidate(provider, run))
            warm[provider] = seen.seconds
        timings = harness.interleave(jobs, rounds=60, min_rounds=3, budget_seconds=seconds, warm=warm)
        rows.append(
            {
                "model": name,
                "what": what,
                "layout": layout,
                "batch": images.shape[0],
                "size": images.shape[-1],
                "layers": len(report.swapped),
                TORCH: timings[TORCH].as_dict(),
                OURS: timings[OURS].as_dict(),
                "speedup": float(f"{timings[TORCH].median / timings[OURS].median:.4g}"),
            }
        )
    check_errors(f"{name}, {what}", errors)
    return rows


def check_errors(name: str, errors: dict[tuple[str, str], list[float]]) -> None:
    """Raises BenchmarkError where our errors, by (provider, layout), are over both `LIMIT` and what torch's allow."""
    worst = {
        provider: [max(pair) for pair in zip(*(errors[provider, layout] for layout in LAYOUTS), strict=True)]
        for provider in (TORCH, OURS)
    }
    for ours, theirs in zip(worst[OURS], worst[TORCH], strict=True):
        if not ours <= max(LIMIT, FLIPS * theirs):
            raise harness.BenchmarkError(f"{name}: relative error {ours:.1e}, of nn.Conv2d {theirs:.1e}: not written")


def table(payload: dict[str, Any]) -> str:
    """A results file as a Markdown table with its machine below: speed-ups, and ms before -> after."""
    rows = {(row["model"], row["what"], row["layout"]): row for row in payload["rows"]}
    columns = list(dict.fromkeys(key[1:] for key in rows))
    first = payload["rows"][0]
    lines = [
        f"| float32, batch {first['batch']}, {first['size']} px, ms | layers | "
        + " | ".join(f"{what}, {layout}" for what, layout in columns) + " |",
        "|---|--:|" + "--:|" * len(columns),
    ]  # fmt: skip
    for model in dict.fromkeys(key[0] for key in rows):
        cells = []
        for column in columns:
            row = rows[model, column[0], column[1]]
            ms = [milliseconds(row[provider]["median_ms"]) for provider in (TORCH, OURS)]
            cells.append(f"**{times(row['speedup'])}** ({ms[0]} -> {ms[1]})")
        lines.append(f"| {model} | {rows[model, columns[0][0], columns[0][1]]['layers']} | {' | '.join(cells)} |")
    meta = payload["meta"]
    return "\n".join([*lines, "", f"<sub>{harness.describe(meta)}, timm {meta['timm']}. `{meta['command']}`</sub>"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 if a model became slower than `SLOWEST` allows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.timm_models", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=2.5, help="for each contender of a row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two small models, two images of 64 px, judged by nobody")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/timm_models_ISA_Nt.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.models, options.batch, options.size, options.seconds = list(SMALL), 2, 64, 0.1
    console = Console()
    kept = harness.keep_memory()
    images, labels = torch.randn(options.batch, 3, options.size, options.size), torch.randint(100, (options.batch,))
    rows = []
    for name in options.models:
        for what in WHATS:
            for row in measure(name, what, images, labels, options.seconds):
                rows.append(row)
                console.print(f"{name:<24} {what:<14} {row['layout']:<14} {times(row['speedup'])}", soft_wrap=True)
    meta = {**harness.metadata(), "timm": importlib.metadata.version("timm"), "memory_kept": kept}
    slow = [row for row in rows if row["speedup"] * SLOWEST < 1]
    for row in slow:
        console.print(
            f"[yellow]slower than {SLOWEST}x:[/] {row['model']}, {row['what']}, {row['layout']}", soft_wrap=True
        )
    console.print(harness.describe(meta), style="dim", soft_wrap=True)
    output = options.output or harness.RESULTS / f"timm_models_{meta['kernel_isa']}_{meta['threads']}t.json"
    payload = {"benchmark": "timm_models", "meta": meta, "rows": rows, "slower": len(slow)}
    if options.quick and options.output is None:
        console.print(table(payload), soft_wrap=True, markup=False)
        return 0
    harness.write_json(output, payload)
    console.print(f"wrote {output}", soft_wrap=True)
    return int(bool(slow) and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
