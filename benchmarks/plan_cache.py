"""Host time of the CUDA launch plans of a training step: made in the first step, found in the planner's cache later.

`python -m benchmarks.plan_cache` asks the planner for every depthwise convolution of a training step of RepLKNet-31B at
224 x 224, in the order of the step, and writes results/cpu_plan_cache.json. Needs the extension, but no GPU.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import gpu_plan, harness
from benchmarks.shapes import Layer, square
from replknet_ext.models import ARCHS, RepLKNetConfig

LAYOUTS = {"NCHW": False, "channels_last": True}
BATCHES = (8, 64, 128)
DTYPES = ("float32", "float16", "bfloat16")
GOAL_MS = 0.1  # of a later step


def step(batch: int, arch: RepLKNetConfig, pixels: int = 224) -> list[tuple[Layer, str]]:
    """The (layer, pass) pairs of a training step: of each block the large kernel, then the small one beside it."""
    layers: list[Layer] = []
    rows = zip(arch.layers, arch.channels, arch.reductions, arch.large_kernel_sizes, strict=True)
    for blocks, channels, reduction, kernel in rows:
        for _ in range(blocks):
            sizes = [k for k in (kernel, arch.small_kernel) if k is not None]
            layers.extend(square(batch, int(channels * arch.dw_ratio), pixels // reduction, k) for k in sizes)
    backward = [(layer, pass_) for layer in reversed(layers) for pass_ in ("bwd_input", "bwd_weight")]
    return [(layer, "fwd") for layer in layers] + backward


def measure(batch: int, dtype: str, channels_last: bool, repeats: int = 200) -> dict[str, Any]:
    """Milliseconds of the first step and of a later one (the median), and the plans that each makes."""
    asked = step(batch, ARCHS["31B"])
    ask = gpu_plan.planner(asked, dtype, channels_last=channels_last)
    first, later = ask(), [ask() for _ in range(repeats)]
    return {
        "batch": batch,
        "dtype": dtype,
        "layout": "channels_last" if channels_last else "NCHW",
        "convolutions": len(asked),
        "plans_first": first.made,
        "plans_later": sum(cost.made for cost in later),
        "first_ms": round(first.ms, 4),
        "later_ms": round(statistics.median(cost.ms for cost in later), 4),
    }


def main() -> None:
    rows = []
    for dtype in DTYPES:
        for name, channels_last in LAYOUTS.items():
            for batch in BATCHES:
                rows.append(measure(batch, dtype, channels_last))
                print(f"{dtype} {name} N{batch}: {rows[-1]}")
    worst = max(row["later_ms"] for row in rows)
    print(f"A later step needs at most {worst} ms (goal: {GOAL_MS} ms).")
    payload = {
        "metadata": harness.metadata(),
        "summary": {"goal_ms": GOAL_MS, "worst_later_ms": worst},
        "results": rows,
    }
    harness.write_json(harness.RESULTS / "cpu_plan_cache.json", payload)


if __name__ == "__main__":
    main()
