"""Latency of depthwise layers on the CPU: `nn.Conv2d` beside replknet_ext, pass by pass.

    python -m benchmarks.cpu_ops                          # the layers of RepLKNet-31B -> benchmarks/results/
    python -m benchmarks.cpu_ops --group bf16 small       # other groups (cpu_cases.py); "all" for all of them
    python -m benchmarks.cpu_ops --isa avx2               # our kernels capped, torch as it is
    python -m benchmarks.cpu_ops --check                  # also asserts the speed-ups that this package promises
    python -m benchmarks.plot                             # a picture beside each results file
    python -m benchmarks.readme                           # the tables of README.md, docs/benchmarks.md

Every output is compared with a float64 reference before it is timed, and every call is traced to prove which operator
ran. The FMA peak is measured between the contenders (cpu_peak.py). Rates count only the taps that lie inside the image.
torch is measured on NCHW and on channels_last tensors; mixed ones (weight, gradient) were tried and are never its best.
Each group runs in a process of its own, in under 100 seconds on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import cpu_compare, cpu_peak, harness
from benchmarks.cpu_cases import GROUPS, TITLES, Group, label
from benchmarks.cpu_compare import compare, milliseconds, percent, times
from benchmarks.cpu_problem import ALGORITHMS, OURS, PEAK, TORCH, Job, Problem, peak_job, verify
from benchmarks.shapes import PASSES, clipped_flop

#: Calls with cold caches, and the milliseconds up to which it matters: a longer call fetches its tensors in no time.
COLD_ROUNDS, COLD_LIMIT_MS = 5, 100
#: Seconds that the fast contenders are worth, and the least number of samples that a slow one gets.
BUDGET_SECONDS, MIN_ROUNDS = 0.6, 1


@torch.no_grad()
def measure(
    group: Group,
    *,
    algorithms: Sequence[str] = ALGORITHMS,
    with_peak: bool = True,
    rounds: int = 15,
    min_rounds: int = MIN_ROUNDS,
    budget_seconds: float = BUDGET_SECONDS,
    on_start: Callable[[str], object] = lambda label: None,
    on_done: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Verifies and times all passes of the layers: torch on every layout, ours with every algorithm, the FMA peak.

    `on_start` (with a label) and `on_done` are called around each layer and pass, for a progress bar; for the other
    arguments see `harness.interleave`.

    Returns:
        One row for each: the labels, milliseconds (median, p10, p90; of some the median with cold caches), GFLOP/s
        inside the image, error.
    """
    rows = []
    extra = [peak_job(torch.ops.replknet_ext._cpu_isa())] if with_peak else []
    for layer in group.layers:
        problem = Problem(layer, group.dtype)
        gflop = clipped_flop(layer) / 1e9
        for pass_ in PASSES:
            on_start(f"{label(layer)} {pass_}")
            jobs = list(problem.jobs(pass_, ours=(group.layout,), algorithms=algorithms))
            errors, seconds = verify(problem, pass_, jobs)
            if group.beside_float32:
                wide = list(Problem(layer).jobs(pass_, theirs=(), ours=(group.layout,)))
                for job in wide:
                    job.name += " float32"
                errors |= dict.fromkeys((job.name for job in wide), 0.0)
                jobs += wide
            jobs += extra
            timings = harness.interleave(
                jobs, rounds=rounds, min_rounds=min_rounds, budget_seconds=budget_seconds, warm=seconds
            )
            cold = harness.interleave(
                [job for job in jobs if _is_compared(job, group) and timings[job.name].median < COLD_LIMIT_MS],
                rounds=COLD_ROUNDS,
                budget_seconds=budget_seconds,
                warm={name: 1.0 for name in timings},  # they have run
                before=harness.evict,
            )
            for job in jobs:
                timing = timings[job.name]
                work = job.gflop or gflop
                rows.append(
                    {
                        "layer": label(layer),
                        "batch": layer.n,
                        "dtype": job.dtype,
                        "pass": pass_,
                        "provider": job.provider,
                        "layout": job.layout,
                        "algorithm": job.algorithm,
                        "kernel": job.kernel,
                        **timing.as_dict(),
                        **({"cold_ms": cold[job.name].as_dict()["median_ms"]} if job.name in cold else {}),
                        "gflop": float(f"{work:.6g}"),
                        "gflops": float(f"{work / timing.median * 1e3:.4g}"),
                        "error": float(f"{errors.get(job.name, 0.0):.1e}"),
                    }
                )
            on_done()
    return rows


def _is_compared(job: Job, group: Group) -> bool:
    """Whether it is torch or what ours chooses, in the group's dtype."""
    return job.provider == TORCH or (job.provider == OURS and (job.algorithm, job.dtype) == ("auto", group.dtype))


def measure_with_progress(console: Console, group: Group, **arguments: Any) -> list[dict[str, Any]]:
    """`measure` with a progress bar."""
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(group.layers) * len(PASSES))
        return measure(
            group,
            on_start=lambda label: progress.update(task, description=label),
            on_done=lambda: progress.advance(task),
            **arguments,
        )


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The comparison for a terminal, 80 columns wide."""
    result = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("layer", no_wrap=True)
    result.add_column("pass", no_wrap=True)
    items = compare(rows)
    headings = ["Conv2d\nNCHW", "Conv2d\nbest", "ours\n", "faster\nvs NCHW", "faster\nvs best"]
    if any(item.direct_share for item in items):
        headings += ["direct\nof peak"]
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)

    def verdict(ratio: float) -> str:
        return f"[bold green]{times(ratio)}" if ratio >= 1 else f"[bold red]{times(ratio)}"

    previous = ""
    for item in items:
        if previous and item.layer != previous:
            result.add_section()
        cells = [
            item.layer if item.layer != previous else "",
            item.pass_,
            milliseconds(item.default),
            "same" if item.best_layout == "NCHW" else milliseconds(item.best),
            f"[bold]{milliseconds(item.ours)}",
            verdict(item.vs_default),
            verdict(item.vs_best),
            percent(item.direct_share),
        ]
        result.add_row(*cells[: len(headings) + 2])
        previous = item.layer
    return result


def report(rows: list[dict[str, Any]], group: str = "main") -> dict[str, Any]:
    """What the JSON file holds."""
    return {"benchmark": "cpu_ops", "group": group, "meta": harness.metadata(), "rows": rows}


def run_group(console: Console, name: str, options: argparse.Namespace) -> int:
    """Measures one group in this process and writes its file; the exit status."""
    torch.set_num_threads(options.threads)
    group = GROUPS[name]
    rows = measure_with_progress(console, group, rounds=options.rounds)
    payload = report(rows, name)
    meta = payload["meta"]
    isa = meta["kernel_isa"]
    meta["command"] = f"python -m benchmarks.cpu_ops --group {name}{f' --isa {options.isa}' if options.isa else ''}"
    console.print(table(rows, f"{TITLES[name]}: milliseconds per call, {group.dtype}, batch {group.layers[-1].n}"))
    peaks = [row["gflops"] for row in rows if row["provider"] == PEAK]
    console.print(f"FMA peak: {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s between the calls", style="dim")
    console.print(harness.describe(meta), style="dim", soft_wrap=True)
    payload["goals"] = cpu_compare.goals(rows, name, isa)
    for goal in payload["goals"]:
        if not goal["kept"]:
            console.print(f"goal missed: {_line(goal)}", style="yellow")
    payload["checks"] = cpu_compare.promises(rows, name, isa) if options.check else []
    for result in payload["checks"]:
        console.print(f"promise {_line(result)}: {'[green]kept' if result['kept'] else '[red]NOT kept'}")
    output = options.output or harness.RESULTS / f"cpu_ops_{name}_{isa}_{meta['threads']}t.json"
    harness.write_json(output, payload)
    console.print(f"wrote {output}", soft_wrap=True)
    return 0 if all(result["kept"] for result in payload["checks"]) else 1


def _line(result: dict[str, Any]) -> str:
    return f"{result['layer']} {result['pass']} {result['figure']}: {result['measured']}, wanted {result['at_least']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, or 1 if a checked promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_ops", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--group", nargs="+", choices=["all", *GROUPS], default=["main"], metavar="NAME")
    parser.add_argument("--isa", choices=list(cpu_peak.VECTOR_BYTES), help="cap our kernels' instruction set")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--check", action="store_true", help="fail unless the promised speed-ups are reached")
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/cpu_ops_GROUP_ISA_Nt.json")
    options = parser.parse_args(arguments)
    names = list(GROUPS) if "all" in options.group else options.group
    capped = options.isa and os.environ.get("REPLKNET_EXT_CPU_ISA") != options.isa
    if len(names) == 1 and not capped:
        return run_group(Console(), names[0], options)
    if len(names) > 1 and options.output:
        parser.error("--output takes the results of one group")
    # A group in a process of its own: the instruction set is chosen once in a process, and the groups stay apart.
    environment = {**os.environ, **({"REPLKNET_EXT_CPU_ISA": options.isa} if options.isa else {})}
    return max(
        subprocess.run(_command(name, options), env=environment, cwd=harness.ROOT, check=False).returncode
        for name in names
    )


def _command(name: str, options: argparse.Namespace) -> list[str]:
    """What measures one group as `options` say."""
    command = [sys.executable, "-m", "benchmarks.cpu_ops", "--group", name]
    command += ["--threads", str(options.threads), "--rounds", str(options.rounds)]
    command += ["--check"] if options.check else []
    command += ["--isa", options.isa] if options.isa else []
    return command + (["--output", str(options.output.resolve())] if options.output else [])


if __name__ == "__main__":
    sys.exit(main())
