"""The GPU benchmark: builds, tests, checks and measures in one go, into one JSON file. `benchmarks/gpu.sh` starts it.

    python -m benchmarks.gpu_ops [--quick] [OUT.json]    # under 8 minutes, quick: under 3; --limit SECONDS for more
    python -m benchmarks.gpu_ops --dry-run               # no GPU needed: steps, shapes, routes, predictions

Every step is a process of its own with a time budget: a crash, a lost CUDA context or a step that hangs costs that step
and no other. The file is rewritten, whole, after each step. Exit status: 0 if every step that was started did its work,
1 if one failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import gpu_plan, roofline
from benchmarks.harness import RESULTS, ROOT, BenchmarkError, write_json
from benchmarks.shapes import GROUPS, PASSES, TRAINING

LIMIT, QUICK_LIMIT = 455.0, 160.0  # seconds of the whole run
LEAST_FULL = 300.0  # a run that is shorter takes the quick budgets
LEAST = 8.0  # a step is not started with less time left
EVERY_PASS = ("--passes", *PASSES)


@dataclass(frozen=True)
class Step:
    """A process of the run. `seconds` and `quick` are its budgets; 0: not part of that kind of run."""

    name: str
    module: str
    arguments: tuple[str, ...]
    seconds: float
    quick: float = 0.0
    group: str = ""  # of layers, for the steps that measure some

    def command(self, output: Path, seconds: float, quick: bool) -> list[str]:
        """What runs it. The step is told less than its budget, to end by itself."""
        own = seconds - (12 if self.group else 2)
        line = [sys.executable, "-m", self.module, *self.arguments, "--output", str(output), "--seconds", f"{own:.0f}"]
        return [*line, "--quick"] if quick else line


def _step(name: str, seconds: float, quick: float = 0.0) -> Step:
    return Step(name, "benchmarks.gpu_steps", (name,), seconds, quick)


def _table(name: str, group: str, seconds: float, quick: float = 0.0, extra: Sequence[str] = ()) -> Step:
    return Step(name, "benchmarks.gpu_table", ("--group", group, *extra), seconds, quick, group)


#: The most important first: what the time limit cuts off is at the end. Whether results are right comes before how fast
#: they are had.
STEPS = (
    _step("device", 40, 40),
    _step("build", 200, 120),
    _step("smoke", 40, 25),
    # Decides whether wgmma_* are chosen: >= 1.15 times as fast as ring_* on 56x56 K31, else they are removed.
    _table("table: ring and wgmma", "ring and wgmma", 20, extra=("--passes", "fwd", "--variants", "ring_", "wgmma_")),
    _step("tests", 110, 40),
    _step("sanitizer", 75, 30),
    _step("ceilings", 40, 25),
    _table("table: main", "main", 110, 75),
    _table("table: main, backward weight", "main", 60, 30, extra=("--passes", "bwd_weight")),
    _table("table: powers of two", "powers of two", 75, extra=(*EVERY_PASS, TRAINING, "--rivals", "fft", "inductor")),
    _step("ncu", 75, 35),
    Step("training step", "benchmarks.gpu_training", (), 60),
    Step("1x1 products", "benchmarks.pointwise", ("--device", "cuda"), 25),
    _table("table: large and small", "large and small", 50),
    _table("table: windows", "windows", 40, extra=(*EVERY_PASS, "--rivals", "windows")),
    _table("table: main, torch's defaults", "main", 60, extra=("--heuristics", "--rivals", "inductor")),
    _table("table: small batches", "small batches", 40),
    _step("tuning", 70),
    _table("table: main, float32", "main", 90, extra=(*EVERY_PASS, "--numbers", "float32", "tf32", "bf16x3")),
    _table("table: main, fp16", "main", 60, extra=(*EVERY_PASS, "--numbers", "float16")),
    *(_table(f"table: {group}", group, 45) for group in ("31B at 384", "XL at 384", "stripes", "XL at 320")),
)


def chosen(quick: bool) -> list[tuple[Step, float]]:
    """The steps of a run, with their budgets."""
    return [(step, step.quick if quick else step.seconds) for step in STEPS if step.quick or not quick]


def schedule(quick: bool, limit: float, only: Sequence[str] = ()) -> list[tuple[Step, float, float]]:
    """A run in which every step takes its whole budget: steps, seconds until each starts, and what it then gets.

    Steps that end sooner leave their time to those that follow.
    """
    planned, start = [], 0.0
    for step, budget in chosen(quick):
        if not only or step.name in only:
            granted = min(budget, limit - start) if limit - start >= LEAST else 0.0
            planned.append((step, start, granted))
            start += granted
    return planned


def run_step(step: Step, seconds: float, quick: bool, folder: Path) -> dict[str, Any]:
    """Runs a step and returns what it wrote, with "failed" in it if it did not end well and in time."""
    output, errors = folder / "part.json", folder / "stderr"
    output.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "PYTHONUNBUFFERED": "1"}
    started = time.monotonic()
    with open(errors, "wb") as stderr:
        process = subprocess.Popen(
            step.command(output, seconds, quick), cwd=ROOT, env=environment, stderr=stderr, start_new_session=True
        )
        late = False
        try:
            for sign, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0), (None, 10.0)):
                try:
                    process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    late = True
                    if sign is not None:
                        os.killpg(process.pid, sign)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    try:
        result: dict[str, Any] = json.loads(output.read_text())
    except (OSError, ValueError):
        result = {}
    result["seconds"] = round(time.monotonic() - started, 1)
    if late:
        result["failed"] = f"out of time: stopped after {result['seconds']} s" + _after(result.get("failed"))
    elif process.returncode and "failed" not in result:
        result["failed"] = f"exit status {process.returncode}"
    if "failed" in result:
        result["stderr"] = errors.read_text(errors="replace")[-3000:]
    return result


def _after(text: object) -> str:
    return f"; {text}" if text else ""


def summary(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """One short row for each layer, pass and dtype that was measured."""
    rows = []
    for name, part in steps.items():
        for result in part.get("results", []) if name.startswith("table") else []:
            if "summary" in result:
                keys = ("layer", "pass", "numbers", "goal_us", "cudnn_plans", "complete")
                rows.append({key: result[key] for key in keys} | result["summary"])
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The summary as a table under 110 columns, microseconds with a cold L2."""
    lines = [
        f"{'layer':<21} {'pass':<10} {'numbers':<8} {'ours':>7} {'model':>7} {'goal':>5}  {'best variant':<19} "
        f"{'best other':<19} {'times':>6}"
    ]
    for row in rows:
        if row["cudnn_plans"] == "heuristics":
            continue
        best = f"{row.get('best_variant', '')} {row.get('best_variant_us', '')}"
        other = f"{row.get('best_other', '')} {row.get('best_other_us', '')}"
        lines.append(
            f"{row['layer']:<21} {row['pass']:<10} {row['numbers']:<8} {row.get('ours_us', ''):>7} "
            f"{row.get('predicted_us') or '':>7} {row['goal_us'] or '':>5}  {best:<19} {other:<19} "
            f"{row.get('faster_than_best_other', ''):>6}"
        )
    return "\n".join(lines)


def run(output: Path, quick: bool, only: Sequence[str], commit: str | None, limit: float) -> int:
    """The whole benchmark in at most `limit` seconds; returns the exit status."""
    started = time.monotonic()
    command = " ".join(["benchmarks/gpu.sh", *sys.argv[1:]])
    payload: dict[str, Any] = {
        "benchmark": "gpu_ops",
        "status": "running",
        "command": command,
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "commit": commit,
        "quick": quick,
        "steps": {},
        "summary": [],
    }
    steps: dict[str, Any] = payload["steps"]
    with tempfile.TemporaryDirectory() as folder:
        for step, budget in chosen(quick):
            if only and step.name not in only:
                continue
            left = limit - (time.monotonic() - started)
            print(f"[{time.monotonic() - started:4.0f} s] {step.name}", flush=True)
            if left < LEAST:
                steps[step.name] = {"skipped": "no time was left"}
            else:
                steps[step.name] = run_step(step, min(budget, left), quick, Path(folder))
            part = steps[step.name]
            if "failed" in part:
                print(f"         failed: {part['failed'].strip().splitlines()[-1][:300]}", flush=True)
            payload["summary"] = summary(steps)
            payload["meta"] = part.get("meta", payload.get("meta"))
            payload["commit"] = commit or (payload["meta"] or {}).get("commit")
            payload["seconds"] = round(time.monotonic() - started, 1)
            write_json(output, payload)
            if step.name == "device" and "failed" in part:
                payload["status"] = "no GPU"
                write_json(output, payload)
                return 2
    failed = [name for name, part in steps.items() if "failed" in part]
    skipped = [name for name, part in steps.items() if part.get("skipped")]
    verdicts = [f"failed: {', '.join(failed)}"] * bool(failed) + [f"no time for: {', '.join(skipped)}"] * bool(skipped)
    payload["status"] = "; ".join(verdicts) or "complete"
    write_json(output, payload)
    print(shown(payload["summary"]))
    print(f"{payload['status']}; {payload['seconds']:.0f} s; wrote {output}")
    return int(bool(failed))


def dry_run(quick: bool = False, limit: float | None = None, only: Sequence[str] = ()) -> None:
    """Prints what a run would do; without a limit, the two usual ones.

    Imports and plans all of it, so that what is broken fails here and not on a GPU.

    Raises:
        BenchmarkError: two steps share a name, or one is unknown to its module.
    """
    from benchmarks import gpu_cases, gpu_routes, gpu_steps, gpu_table, gpu_training, pointwise  # noqa: F401

    if len({step.name for step in STEPS}) != len(STEPS):
        raise BenchmarkError("two steps have the same name")
    runs = [(quick, limit)] if limit else [(False, LIMIT), (True, QUICK_LIMIT)]
    for quick, limit in runs:
        planned = schedule(quick, limit, only)
        wanted = sum(budget for step, budget in chosen(quick) if not only or step.name in only)
        print(f"{'quick' if quick else 'full'} run of at most {limit:.0f} s; all budgets together {wanted:.0f} s")
        print(f"  {'step':<30} {'starts by':>9} {'budget':>7}")
        for step, start, budget in planned:
            known: dict[str, Any] = {"benchmarks.gpu_steps": gpu_steps.STEPS, "benchmarks.gpu_table": GROUPS}
            if step.module in known and (step.group or step.name) not in known[step.module]:
                raise BenchmarkError(f"step {step.name!r} is unknown to {step.module}")
            if budget:
                line = " ".join(step.command(Path("PART"), budget, quick)[2:])
                print(f"  {step.name:<30} {start:>7.0f} s {budget:>5.0f} s  {line}")
            else:
                print(f"  {step.name:<30} {'if earlier steps leave time':>17}")
    variants = [*gpu_plan.variants(), *gpu_plan.variants("bwd_weight")]
    print(f"\nexact cases: {len(gpu_cases.CASES)}; CUDA variants: {', '.join(variants)}\n")
    for group, layers in GROUPS.items():
        print(f"{group}:")
        for layer in layers:
            routes = {pass_: gpu_routes.names(layer, pass_, "bfloat16") for pass_ in PASSES}
            print(f"  {layer.name:<22} {'; '.join(f'{pass_} {len(names)} routes' for pass_, names in routes.items())}")
            print(f"    {', '.join(routes['fwd'])}")
    print(f"\ntraining step of {gpu_training.ARCH}, batch {gpu_training.BATCHES[0]}: {gpu_training.prediction()}\n")
    print(roofline.table([roofline.predict(layer) for layers in GROUPS.values() for layer in layers]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, nargs="?", default=RESULTS / "gpu_ops.json", metavar="OUT.json")
    parser.add_argument("--quick", action="store_true", help="the main layers in bf16 only, under 3 minutes")
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help=f"of the whole run; below {LEAST_FULL:.0f} it is quick"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", choices=[step.name for step in STEPS])
    parser.add_argument("--commit", help="the commit under test, where git can't tell")
    parser.add_argument("--dry-run", action="store_true", help="say what a run would do; needs no GPU")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < LEAST:
        parser.error(f"--limit must be at least {LEAST:.0f} seconds, got {options.limit:g}")
    quick = options.quick or (options.limit is not None and options.limit < LEAST_FULL)
    limit = options.limit or (QUICK_LIMIT if quick else LIMIT)
    if options.dry_run:
        dry_run(quick, limit if options.limit or options.quick else None, options.only)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return run(options.output.resolve(), quick, options.only, options.commit, limit)


if __name__ == "__main__":
    sys.exit(main())
