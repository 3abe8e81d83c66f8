"""The paper's Table 1 on the CPU: a stack of 24 depthwise layers with 384 channels, by resolution and kernel size.

    python -m benchmarks.cpu_stack [--batch 1] [--sizes 16 32 64] [--kernels 3 ... 31]

The paper (arXiv 2203.06717, Table 1) has 64 images in float32 on a GTX 2080 Ti; here it is one image, since
`nn.Conv2d` needs minutes for 64. Every stack's output is compared with float64 on some channels, and traced, before it
is timed. Writes benchmarks/results/cpu_stack_ISA_Nt.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.cpu_compare import milliseconds, times
from benchmarks.cpu_problem import CHECKED_CHANNELS, LAYOUTS, OPERATORS, OURS, TORCH
from benchmarks.harness import Candidate
from replknet_ext import DepthwiseConv2dLarge

DEPTH, CHANNELS = 24, 384
SIZES = (16, 32, 64)
KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 29, 31)
LIMIT = 1e-4  # relative error in both norms, behind 24 layers


def stack(provider: str, weights: Tensor) -> nn.Sequential:
    """Layers without bias for filters of (DEPTH, C, 1, K, K)."""
    channels, kernel = weights.shape[1], weights.shape[-1]
    layers = nn.Sequential()
    for weight in weights:
        layer = (
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
            if provider == TORCH
            else DepthwiseConv2dLarge(
                channels, kernel, bias=False, backend="cpu"
            )  # "auto" leaves some small kernels to torch
        )
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layers.append(layer)
    return layers


@torch.inference_mode()
def measure(size: int, kernel: int, batch: int, rounds: int, channels: int = CHANNELS) -> list[dict[str, Any]]:
    """Checks and times one stack on every layout.

    Raises:
        BenchmarkError: a wrong result, or not the operator that the label claims.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, size, size, generator=generator)
    weights = torch.randn(DEPTH, channels, 1, kernel, kernel, generator=generator) / kernel  # keeps the variance
    few = min(CHECKED_CHANNELS, channels)
    exact = stack(TORCH, weights[:, :few].double())(images[:, :few].double())
    jobs, seconds, errors = [], {}, {}
    for provider in OPERATORS:
        for layout, memory_format in LAYOUTS.items():
            name = f"{provider} {layout}"
            model = stack(provider, weights).to(memory_format=memory_format)  # type: ignore[call-overload]
            run = partial(model, images.contiguous(memory_format=memory_format))
            seen = harness.trace(run)
            label = f"{size}x{size} K{kernel}, {name}"
            need, forbid = OPERATORS[provider]
            harness.require_ops(seen.ops, name=label, need=need, forbid=forbid)
            errors[name] = harness.require_close(seen.result[:, :few], exact, name=label, limit=LIMIT)
            jobs.append(Candidate(name, run))
            seconds[name] = seen.seconds
    timings = harness.interleave(jobs, rounds=rounds, min_rounds=1, budget_seconds=1.0, warm=seconds)
    return [
        {
            "size": size,
            "kernel": kernel,
            "batch": batch,
            "provider": job.name.split()[0],
            "layout": job.name.split()[1],
            **timings[job.name].as_dict(),
            "error": float(f"{errors[job.name]:.1e}"),
        }
        for job in jobs
    ]


def table(payload: dict[str, Any]) -> str:
    """The file as a Markdown table in the form of the paper's: a line per resolution and contender."""
    rows = payload["rows"]
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    lines = [
        f"| table 1 of the paper: {DEPTH} layers, {CHANNELS} channels, float32, batch {rows[0]['batch']}, ms | "
        + " | ".join(f"K{kernel}" for kernel in kernels)
        + " |",
        "|---|" + "--:|" * len(kernels),
    ]
    for size in dict.fromkeys(row["size"] for row in rows):
        best = {}
        for provider in OPERATORS:
            for kernel in kernels:
                of = [row for row in rows if (row["size"], row["kernel"], row["provider"]) == (size, kernel, provider)]
                best[provider, kernel] = min(float(row["median_ms"]) for row in of)
        for provider, name in ((TORCH, "`nn.Conv2d`, best layout"), (OURS, "ours, best layout")):
            cells = " | ".join(milliseconds(best[provider, kernel]) for kernel in kernels)
            lines.append(f"| {size}x{size}, {name} | {cells} |")
        cells = " | ".join(f"**{times(best[TORCH, kernel] / best[OURS, kernel])}**" for kernel in kernels)
        lines.append(f"| speed-up | {cells} |")
    meta = payload["meta"]
    return "\n".join([*lines, "", f"<sub>{harness.describe(meta)}. `{meta['command']}`</sub>"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_stack", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kernels", type=int, nargs="+", default=KERNELS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/cpu_stack_ISA_Nt.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    rows = []
    for size in options.sizes:
        for kernel in options.kernels:
            new = measure(size, kernel, options.batch, options.rounds)
            shown = ", ".join(f"{row['provider']} {row['layout']} {milliseconds(row['median_ms'])}" for row in new)
            console.print(f"{size}x{size} K{kernel:<2}  {shown} ms", soft_wrap=True)
            rows += new
    meta = harness.metadata()
    output = options.output or harness.RESULTS / f"cpu_stack_{meta['kernel_isa']}_{meta['threads']}t.json"
    harness.write_json(output, {"benchmark": "cpu_stack", "meta": meta, "rows": rows})
    console.print(f"wrote {output}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
