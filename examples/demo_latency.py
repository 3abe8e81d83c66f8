"""Part 3: latency of the four RepLKNet-31B layers, with the tools of `benchmarks`."""

from __future__ import annotations

import statistics
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import cpu_ops, harness, plot

BATCH = 8


def show(console: Console, output: Path) -> bool:
    """Measures, prints the table, writes `latency.png` and `latency.json`; True if ours is faster in every row."""
    console.print(
        "Every output is compared with float64 before it is timed. nn.Conv2d needs seconds for some calls, so those "
        "are timed once or twice, the others up to 9 times (median). For more rounds: make bench.\n"
    )
    layers = cpu_ops.REPLKNET_31B
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(layers) * len(cpu_ops.PASSES))
        rows = cpu_ops.measure(
            layers,
            batch=BATCH,
            rounds=9,
            min_rounds=1,
            budget_seconds=2.0,
            on_start=lambda label: progress.update(task, description=label),
            on_done=lambda: progress.advance(task),
        )
    payload = cpu_ops.report(rows)
    console.print(cpu_ops.table(rows, f"Milliseconds a call, float32, batch {BATCH} (median)"))
    console.print(
        "NCHW is what nn.Conv2d gets unless a user changes it; best: the faster of NCHW and channels_last. "
        '"Faster": nn.Conv2d\'s time over ours on NCHW tensors.'
    )
    console.print(harness.describe(payload["meta"]), style="dim")
    comparisons = cpu_ops.compare(rows)
    slowest = min(comparisons, key=lambda item: item.vs_default)
    faster = slowest.vs_default >= 1
    for words, ratios in (
        ("nn.Conv2d as users call it", [item.vs_default for item in comparisons]),
        ("nn.Conv2d in its best layout", [item.vs_best for item in comparisons]),
    ):
        mean = cpu_ops.times(statistics.geometric_mean(ratios))
        least, most = cpu_ops.times(min(ratios)), cpu_ops.times(max(ratios))
        console.print(f"against {words}: {mean} faster (geometric mean), from {least} to {most}")
    if not faster:
        console.print(f"[red]nn.Conv2d as users call it is faster in {slowest.layer} {slowest.direction}.")
    harness.write_json(output / "latency.json", payload)
    plot.draw(payload, output / "latency.png")
    console.print(f"The picture: [bold]{output / 'latency.png'}[/], its figures: {output / 'latency.json'}")
    return faster
