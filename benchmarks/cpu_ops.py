"""Latency of the RepLKNet-31B depthwise layers on the CPU: `nn.Conv2d` beside replknet_ext, pass by pass.

    python -m benchmarks.cpu_ops                  # all layers, passes and layouts -> benchmarks/results/
    python -m benchmarks.cpu_ops --check          # also asserts the speed-ups that this package promises
    python -m benchmarks.plot                     # a picture beside each results file
    python -m benchmarks.readme                   # the tables of README.md

Every output is compared with a float64 reference before it is timed, and every call is traced to prove which operator
ran. Rates count only the taps that lie inside the image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import replknet_ext
from benchmarks import harness, shapes
from benchmarks.harness import BenchmarkError, Candidate

PASSES = ("fwd", "bwd_input", "bwd_weight")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
TORCH, OURS = "nn.Conv2d", "replknet_ext"
ERROR_LIMIT = 2e-5  # relative, in float32; sums over a whole batch and map reach a quarter of it
CHECKED_CHANNELS = 8  # at either end; the others are compared with torch's float32 result


@dataclass(frozen=True)
class Layer:
    """A square depthwise layer, stride 1, "same" padding."""

    channels: int
    size: int
    kernel: int

    @property
    def name(self) -> str:
        return f"{self.size}x{self.size} K{self.kernel}"

    def gflop(self, batch: int) -> float:
        """Multiplications and additions of taps inside the image, in 10^9; the same for all three passes."""
        pad = self.kernel // 2
        taps = sum(min(self.size, out - pad + self.kernel) - max(0, out - pad) for out in range(self.size))
        return 2e-9 * batch * self.channels * taps**2


REPLKNET_31B = tuple(Layer(layer.c, layer.h, layer.kh) for layer in shapes.MAIN)


@dataclass(frozen=True)
class Promise:
    """`OURS` is at least `ratio` times as fast as `TORCH`, both on NCHW tensors."""

    layer: Layer
    direction: str
    ratio: float


PROMISES = (Promise(REPLKNET_31B[0], "fwd", 40.0), Promise(REPLKNET_31B[0], "bwd_weight", 40.0))


@dataclass
class Job(Candidate):
    """A candidate with the labels of its result row."""

    provider: str
    layout: str


class Problem:
    """One layer's tensors, float64 references on some channels, and the callables of each pass."""

    def __init__(self, layer: Layer, batch: int, seed: int = 0) -> None:
        self.layer = layer
        generator = torch.Generator().manual_seed(seed)
        maps = (batch, layer.channels, layer.size, layer.size)
        self.input = torch.randn(maps, generator=generator)
        self.grad = torch.randn(maps, generator=generator)
        self.weight = torch.randn(layer.channels, 1, layer.kernel, layer.kernel, generator=generator)
        few = min(CHECKED_CHANNELS, layer.channels)
        self.sample = sorted({*range(few), *range(layer.channels - few, layer.channels)})

    def reference(self, direction: str) -> Tensor:
        """Result in float64 for the channels in `sample`, by torch."""
        x, g, w = (t[:, self.sample].double() for t in (self.input, self.grad, self.weight.transpose(0, 1)))
        return self._torch(direction, x, g, w.transpose(0, 1).contiguous())()

    def pick(self, direction: str, result: Tensor) -> Tensor:
        """The sampled channels of a result."""
        return result[self.sample] if direction == "bwd_weight" else result[:, self.sample]

    def _torch(self, direction: str, x: Tensor, g: Tensor, w: Tensor) -> Callable[[], Tensor]:
        pad, channels = self.layer.kernel // 2, w.shape[0]
        if direction == "fwd":
            conv = nn.Conv2d(channels, channels, self.layer.kernel, padding=pad, groups=channels, bias=False)
            conv.weight = nn.Parameter(w, requires_grad=False)
            return lambda: conv(x)
        index = PASSES.index(direction) - 1
        mask = [index == 0, index == 1, False]

        def backward() -> Tensor:
            gradients = torch.ops.aten.convolution_backward(
                g, x, w, None, (1, 1), (pad, pad), (1, 1), False, (0, 0), channels, mask
            )
            result: Tensor = gradients[index]
            return result

        return backward

    def _ours(self, direction: str, x: Tensor, g: Tensor, w: Tensor) -> Callable[[], Tensor]:
        pad = self.layer.kernel // 2
        if direction == "fwd":
            return lambda: replknet_ext.depthwise_conv2d(x, w, padding=pad)
        ops, tail = torch.ops.replknet_ext, ((pad, pad, pad, pad), "ieee", "auto", -1)
        if direction == "bwd_input":
            return lambda: ops.dwconv2d_backward_input(g, w, *tail)
        return lambda: ops.dwconv2d_backward_weight(g, x, *tail)

    def jobs(self, direction: str) -> Iterator[Job]:
        """Every provider on every layout."""
        for layout, memory_format in LAYOUTS.items():
            tensors = [t.contiguous(memory_format=memory_format) for t in (self.input, self.grad, self.weight)]
            for provider, make in ((TORCH, self._torch), (OURS, self._ours)):
                yield Job(f"{provider} {layout}", make(direction, *tensors), provider, layout)


def verify(problem: Problem, direction: str, jobs: Sequence[Job]) -> tuple[dict[str, float], dict[str, float]]:
    """Traces one call of each job and checks operator and result.

    Returns:
        Relative error against float64, and seconds of the call, each by the job's name.

    Raises:
        BenchmarkError: a wrong result, or an operator other than the one that the label claims.
    """
    exact = problem.reference(direction)
    suffix = "" if direction == "fwd" else f"_{direction.replace('bwd', 'backward')}"
    needs = {
        TORCH: (r"^aten::\w*conv", r"^replknet_ext::"),
        OURS: (rf"^replknet_ext::dwconv2d{suffix}$", r"^aten::\w*conv"),
    }
    errors, seconds = {}, {}
    first: Tensor | None = None
    for job in jobs:
        label = f"{problem.layer.name} {direction}, {job.name}"
        seen = harness.trace(job.run)
        need, forbid = needs[job.provider]
        harness.require_ops(seen.ops, name=label, need=need, forbid=forbid)
        picked = problem.pick(direction, seen.result)
        errors[job.name] = harness.require_close(picked, exact, name=label, limit=ERROR_LIMIT)
        first = seen.result if first is None else first
        harness.require_close(seen.result, first, name=f"{label}, all channels", limit=2 * ERROR_LIMIT)
        seconds[job.name] = seen.seconds
    return errors, seconds


@torch.no_grad()
def measure(
    layers: Sequence[Layer],
    *,
    batch: int = 8,
    rounds: int = 15,
    min_rounds: int = 3,
    budget_seconds: float = 4.0,
    on_start: Callable[[str], object] = lambda label: None,
    on_done: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Verifies and times all passes, providers and layouts of the layers.

    `on_start` (with a label) and `on_done` are called around each layer and pass, for a progress bar; for the other
    arguments see `harness.interleave`.

    Returns:
        One row for each: the labels, milliseconds (median, p10, p90), GFLOP/s inside the image, error.
    """
    rows = []
    for layer in layers:
        problem = Problem(layer, batch)
        for direction in PASSES:
            on_start(f"C{layer.channels} {layer.name} {direction}")
            jobs = list(problem.jobs(direction))
            errors, seconds = verify(problem, direction, jobs)
            timings = harness.interleave(
                jobs, rounds=rounds, min_rounds=min_rounds, budget_seconds=budget_seconds, warm=seconds
            )
            for job in jobs:
                timing = timings[job.name]
                rows.append(
                    {
                        "layer": layer.name,
                        "channels": layer.channels,
                        "batch": batch,
                        "dtype": "float32",
                        "pass": direction,
                        "provider": job.provider,
                        "layout": job.layout,
                        **timing.as_dict(),
                        "gflops": float(f"{layer.gflop(batch) / timing.median * 1e3:.4g}"),
                        "error": float(f"{errors[job.name]:.1e}"),
                    }
                )
            on_done()
    return rows


def latency(rows: Sequence[dict[str, Any]], layer: str, direction: str, provider: str, layout: str) -> float:
    """Median milliseconds of one row."""
    wanted = (layer, direction, provider, layout)
    for row in rows:
        if (row["layer"], row["pass"], row["provider"], row["layout"]) == wanted:
            return float(row["median_ms"])
    raise KeyError(wanted)


@dataclass(frozen=True)
class Comparison:
    """Milliseconds of one layer and pass: torch on NCHW, torch on its better layout, ours on each layout."""

    layer: str
    channels: int
    direction: str
    default: float
    best: float
    best_layout: str
    ours: float
    ours_channels_last: float

    @property
    def vs_default(self) -> float:
        return self.default / self.ours

    @property
    def vs_best(self) -> float:
        """Against torch's best; ours stays on NCHW, whatever layout torch likes."""
        return self.best / self.ours


def compare(rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    """The rows of one run, side by side, in the order measured."""
    result = []
    for layer, channels, direction in dict.fromkeys((row["layer"], row["channels"], row["pass"]) for row in rows):
        theirs = {layout: latency(rows, layer, direction, TORCH, layout) for layout in LAYOUTS}
        ours = {layout: latency(rows, layer, direction, OURS, layout) for layout in LAYOUTS}
        layout = min(theirs, key=lambda key: theirs[key])
        result.append(
            Comparison(
                layer,
                channels,
                direction,
                theirs["NCHW"],
                theirs[layout],
                layout,
                ours["NCHW"],
                ours["channels_last"],
            )
        )
    return result


def check(rows: Sequence[dict[str, Any]], promises: Sequence[Promise] = PROMISES) -> list[dict[str, Any]]:
    """Each promise with the ratio measured and whether it is kept.

    Raises:
        BenchmarkError: a promised layer was not measured.
    """
    measured = {(item.layer, item.direction): item.vs_default for item in compare(rows)}
    results = []
    for promise in promises:
        key = (promise.layer.name, promise.direction)
        if key not in measured:
            raise BenchmarkError(f"{' '.join(key)} was not measured, so its speed-up cannot be checked")
        ratio = float(f"{measured[key]:.4g}")
        results.append(
            {"layer": key[0], "pass": key[1], "at_least": promise.ratio, "ratio": ratio, "kept": ratio >= promise.ratio}
        )
    return results


def milliseconds(value: float) -> str:
    """Three significant digits at most (two below one), no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def times(ratio: float) -> str:
    """A speed-up for readers: 2.4x, 37x, 1,240x; below 1 it is a loss."""
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The comparison for a terminal, 80 columns wide."""
    result = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("layer", no_wrap=True)
    result.add_column("pass", no_wrap=True)
    for heading in (
        "Conv2d\nNCHW",
        "Conv2d\nbest",
        "ours\nNCHW",
        "ours\nch.last",
        "faster\nvs NCHW",
        "faster\nvs best",
    ):
        result.add_column(heading, justify="right", no_wrap=True)

    def verdict(ratio: float) -> str:
        return f"[bold green]{times(ratio)}" if ratio >= 1 else f"[bold red]{times(ratio)}"

    previous = ""
    for item in compare(rows):
        if previous and item.layer != previous:
            result.add_section()
        result.add_row(
            f"C{item.channels} {item.layer}" if item.layer != previous else "",
            item.direction,
            milliseconds(item.default),
            "same" if item.best_layout == "NCHW" else milliseconds(item.best),
            f"[bold]{milliseconds(item.ours)}",
            milliseconds(item.ours_channels_last),
            verdict(item.vs_default),
            verdict(item.vs_best),
        )
        previous = item.layer
    return result


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the JSON file holds."""
    return {"benchmark": "cpu_ops", "meta": harness.metadata(), "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, or 1 if a checked promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_ops", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        choices=[layer.size for layer in REPLKNET_31B],
        metavar="N",
        help="only the layers with these map sizes (56 28 14 7)",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--check", action="store_true", help="fail unless the promised speed-ups are reached")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/cpu_ops_ISA_THREADSt.json")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    layers = [layer for layer in REPLKNET_31B if not options.sizes or layer.size in options.sizes]
    console = Console()
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(layers) * len(PASSES))
        rows = measure(
            layers,
            batch=options.batch,
            rounds=options.rounds,
            on_start=lambda label: progress.update(task, description=label),
            on_done=lambda: progress.advance(task),
        )
    payload = report(rows)
    meta = payload["meta"]
    console.print(table(rows, f"milliseconds a call, float32, batch {options.batch}"))
    console.print(harness.describe(meta), style="dim", soft_wrap=True)
    results = check(rows) if options.check else []
    for result in results:
        verdict = "[green]kept" if result["kept"] else "[red]NOT kept"
        console.print(
            f"{result['layer']} {result['pass']}: {result['ratio']}x, promised {result['at_least']}x: {verdict}"
        )
    if results:
        payload["checks"] = results
    output = options.output or harness.RESULTS / f"cpu_ops_{meta['kernel_isa']}_{meta['threads']}t.json"
    harness.write_json(output, payload)
    console.print(f"wrote {output}", soft_wrap=True)
    return 0 if all(result["kept"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
