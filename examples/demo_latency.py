"""Part 3: latency of the four RepLKNet-31B layers, with the tools of `benchmarks`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from benchmarks import cpu_ops, harness, plot
from benchmarks.cpu_cases import BATCH, GROUPS
from benchmarks.cpu_compare import compare, geomean, times


def show(console: Console, output: Path) -> bool:
    """Measures, prints the table, writes `latency.png` and `latency.json`; True if ours is faster in every row."""
    console.print(
        "Every output is compared with float64 before it is timed. nn.Conv2d needs seconds for some calls, so those "
        "are timed once or twice, the others up to 9 times (median). For more rounds: make bench.\n"
    )
    rows = cpu_ops.measure_with_progress(
        console, GROUPS["main"], algorithms=("auto",), with_peak=False, rounds=9, min_rounds=1, budget_seconds=2.0
    )
    payload = cpu_ops.report(rows)
    console.print(cpu_ops.table(rows, f"Milliseconds a call, float32, batch {BATCH} (median)"))
    console.print(
        "NCHW is what nn.Conv2d gets unless a user changes it; best: the faster of NCHW and channels_last. "
        '"Faster": nn.Conv2d\'s time over ours on NCHW tensors.'
    )
    console.print(harness.describe(payload["meta"]), style="dim")
    comparisons = compare(rows)
    slowest = min(comparisons, key=lambda item: item.vs_default)
    faster = slowest.vs_default >= 1
    for words, ratios in (
        ("nn.Conv2d as users call it", [item.vs_default for item in comparisons]),
        ("nn.Conv2d in its best layout", [item.vs_best for item in comparisons]),
    ):
        mean = times(geomean(ratios))
        least, most = times(min(ratios)), times(max(ratios))
        console.print(f"against {words}: {mean} faster (geometric mean), from {least} to {most}")
    if not faster:
        console.print(f"[red]nn.Conv2d as users call it is faster in {slowest.layer} {slowest.pass_}.")
    harness.write_json(output / "latency.json", payload)
    plot.draw(payload, output / "latency.png")
    console.print(f"The picture: [bold]{output / 'latency.png'}[/], its figures: {output / 'latency.json'}")
    return faster
