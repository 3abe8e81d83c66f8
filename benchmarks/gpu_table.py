"""One step of the GPU benchmark: every route of some layers, verified, proved and timed in one process.

    python -m benchmarks.gpu_table --group main --output part.json

Times are of CUDA graph replays, rounds of all routes interleaved. "cold" rotates input sets whose inputs and outputs
exceed three times the L2 cache; "warm" repeats one set. Before a route is timed its output is compared with float64 on
some channels and with the first route's everywhere, and its kernels are recorded. The file is written after each pass.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_plan, gpu_routes, roofline
from benchmarks.gpu_routes import Route, Tensors, kernels_of, our_routes, reference, their_routes, whose
from benchmarks.harness import Timing, require_close, write_json
from benchmarks.shapes import GOALS_US, GROUPS, NUMBERS, PASSES, Layer, clipped_flop
from replknet_ext.tuning.measure import capture, timed

CACHES = ("cold", "warm")
GRAPH_SECONDS, MOST_CALLS = 1e-3, 200
BUDGET_SECONDS = 0.3  # of one route's samples
ROUNDS, MIN_ROUNDS = 25, 3


class ContextLostError(RuntimeError):
    """The CUDA context is lost: nothing more can run in this process."""


@dataclass
class Subject:
    """A route under measurement."""

    route: Route
    row: dict[str, Any]
    seconds: float = 0.0  # of a warm call
    graphs: dict[str, tuple[Callable[[], None], int]] = field(default_factory=dict)  # cache -> (replay, calls)


def alive() -> None:
    """Raises ContextLostError if an earlier kernel has broken the context."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise ContextLostError(str(error)) from error


def verify(route: Route, t: Tensors, pass_: str, exact: dict[str, Any], limit: float) -> dict[str, Any]:
    """Runs a route for the first time and checks its output; returns the start of its row.

    Raises:
        BenchmarkError: a wrong result.
    """
    # The allocator hands the block of this poison to the output: an element that is never written stays NaN.
    shape = t.weight.shape if pass_ == "bwd_weight" else t.x[0].shape
    poison = torch.full(shape, float("nan"), dtype=t.weight.dtype, device=gpu_routes.DEVICE)
    torch.cuda.synchronize()
    del poison
    started = time.perf_counter()
    output = route.run(0)
    torch.cuda.synchronize()
    first_call = time.perf_counter() - started
    picked = output if pass_ == "bwd_weight" else output[exact["images"]].transpose(0, 1)
    picked = picked[exact["channels"]]
    picked = picked if pass_ == "bwd_weight" else picked.transpose(0, 1)
    error = require_close(picked.cpu(), exact["value"], name=route.name, limit=limit)
    if "output" in exact:
        require_close(output, exact["output"], name=f"{route.name}, all elements", limit=2 * limit)
    else:
        exact["output"] = output.clone()
    return {"error": float(f"{error:.2g}"), "first_call_ms": round(first_call * 1e3, 1)}


def prove(subject: Subject) -> None:
    """Records whose kernels a route ran; its times are struck out if they are not those of its name."""
    if not subject.graphs:
        return
    try:
        kernels = kernels_of(lambda: subject.route.run(0))
    except Exception as error:  # a profiler that does not work is no reason to lose the times
        subject.row["ran"] = f"not proved: {type(error).__name__}: {error}"[:200]
        return
    ran = whose(kernels)
    subject.row |= {"ran": ran, "kernels": kernels}
    wanted = ("native", "cudnn") if subject.route.wants == "torch" else (subject.route.wants,)
    if ran not in (*wanted, "unknown"):
        subject.row["failed"] = f"these are kernels of {ran}, not of {subject.route.wants}"
        for cache in CACHES:
            subject.row.pop(cache, None)


def prepare(
    routes: Sequence[Route], t: Tensors, pass_: str, exact: dict[str, Any], limit: float, deadline: float
) -> list[Subject]:
    """Verifies routes and captures their graphs; a route that fails has the reason in its row."""
    subjects = []
    for route in routes:
        subject = Subject(route, {"route": route.name, "variant": route.variant})
        subjects.append(subject)
        if time.monotonic() > deadline:
            subject.row["skipped"] = "out of time"
            continue
        try:
            subject.row |= verify(route, t, pass_, exact, limit)
            subject.seconds = min(timed(partial(route.run, 0)) for _ in range(3))
            for cache in CACHES:
                sets = t.sets if cache == "cold" else 1
                calls = max(1, min(MOST_CALLS, math.ceil(GRAPH_SECONDS / max(subject.seconds, 1e-6))))
                calls = math.ceil(calls / sets) * sets
                subject.graphs[cache] = (graph_or_launches(subject, calls, sets), calls)
        except torch.cuda.OutOfMemoryError as error:
            subject.graphs.clear()
            subject.row["failed"] = f"{error}"[:300]
            torch.cuda.empty_cache()
        except Exception as error:  # every failure belongs in the table
            subject.graphs.clear()
            subject.row["failed"] = f"{type(error).__name__}: {error}"[:600]
            alive()
    return subjects


def graph_or_launches(subject: Subject, calls: int, sets: int) -> Callable[[], None]:
    """A graph's replay, or plain launches if the route can't be captured; the row says which."""
    try:
        replay = capture(subject.route.run, calls, sets)
        subject.row["timed"] = "graph replays"
        return replay
    except RuntimeError as error:
        alive()
        subject.row["timed"] = f"launches, as it can't be captured: {error}"[:300]

    def launches() -> None:
        for i in range(calls):
            subject.route.run(i % sets)

    return launches


def measure(subjects: Sequence[Subject], deadline: float, most: int = ROUNDS) -> None:
    """Times all graphs, at most `most` rounds of all, into the subjects' rows."""
    jobs = []
    for subject in subjects:
        for cache, (replay, calls) in subject.graphs.items():
            sample = subject.seconds * calls
            rounds = min(most, max(MIN_ROUNDS, int(BUDGET_SECONDS / max(sample, 1e-6))))
            jobs.append((subject, cache, replay, Timing(subject.route.name, calls), rounds))
    warm_up = time.monotonic() + 0.2
    while jobs and time.monotonic() < warm_up:
        jobs[0][2]()
        torch.cuda.synchronize()
    for index in range(most):
        for subject, _, replay, timing, rounds in jobs:
            if index * rounds // most == (index - 1) * rounds // most:
                continue  # a slow route takes part in few rounds, spread over all
            if time.monotonic() > deadline and timing.samples:
                continue
            if subject.seconds * timing.calls < 20e-3:
                replay()  # leaves the caches as it found them, and hides the launch of the one that is timed
            timing.samples.append(timed(replay) / timing.calls * 1e3)
    alive()
    for subject, cache, _, timing, _ in jobs:
        micro = {"median_us": timing.median, "p10_us": timing.percentile(10), "p90_us": timing.percentile(90)}
        subject.row[cache] = {key: float(f"{value * 1e3:.4g}") for key, value in micro.items()}
        subject.row[cache] |= {"samples": len(timing.samples), "calls": timing.calls}


def derived(layer: Layer, numbers: str, row: dict[str, Any], plan: gpu_plan.Plan | None) -> None:
    """Rates on the taps inside the image, and the model's prediction beside the measurement."""
    if plan is not None:
        row |= {"plan": asdict(plan), "predicted_us": roofline.cycles_us(plan.cycles)}
    if "cold" in row:
        seconds = row["cold"]["median_us"] * 1e-6
        row["clipped_tflops"] = float(f"{clipped_flop(layer) / seconds * 1e-12:.4g}")
        row["gb_per_s"] = float(f"{roofline.least_bytes(layer, NUMBERS[numbers].element) / seconds * 1e-9:.4g}")
        if plan is not None:
            row["measured_over_predicted"] = float(f"{row['cold']['median_us'] / row['predicted_us']:.3g}")


def plan_of(layer: Layer, pass_: str, numbers: str, limits: gpu_plan.Limits, route: Route) -> gpu_plan.Plan | None:
    """How one of our routes is launched, or None."""
    if not route.name.startswith("ours"):
        return None
    what, nhwc = NUMBERS[numbers], route.name == "ours nhwc"
    try:
        return gpu_plan.plan(
            layer, pass_, what.dtype, limits, route.variant, channels_last=nhwc, precision=what.precision
        )
    except (gpu_plan.PlanError, gpu_plan.PlannerUnavailableError):
        return None


def layer_pass(
    layer: Layer, pass_: str, numbers: str, t: Tensors, options: argparse.Namespace, deadline: float
) -> Iterator[dict[str, Any]]:
    """All routes of one pass: first a result without cuDNN, whose search for plans may take too long, then all."""
    channels = sorted({0, layer.c // 2, layer.c - 1})
    images = sorted({0, layer.n // 2, layer.n - 1})
    exact = {"channels": channels, "images": images, "value": reference(t, pass_, channels, images)}
    limits = gpu_plan.device_limits()
    ours = our_routes(t, pass_, every_variant=not options.heuristics, nhwc=not (options.quick or options.heuristics))
    theirs = their_routes(t, pass_, benchmark=not options.heuristics, native=not options.heuristics)
    subjects: list[Subject] = []
    # PyTorch's own kernel goes first: it is the witness that the others are compared with.
    for routes, rounds in (([*theirs[:1], *ours], MIN_ROUNDS), (theirs[1:], ROUNDS)):
        subjects += prepare(routes, t, pass_, exact, NUMBERS[numbers].error, deadline)
        measure(subjects, deadline, rounds)
        for subject in subjects:
            if rounds == ROUNDS:
                prove(subject)
            derived(layer, numbers, subject.row, plan_of(layer, pass_, numbers, limits, subject.route))
        result = {
            "layer": layer.name,
            **asdict(layer),
            "pass": pass_,
            "numbers": numbers,
            "input_sets": t.sets,
            "goal_us": GOALS_US.get((layer, pass_, numbers)),
            "cudnn_plans": "heuristics" if options.heuristics else "best of all, by measurement",
            "complete": rounds == ROUNDS,
            "rows": [subject.row for subject in subjects],
        }
        yield result | {"summary": summarize(result)}


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Ours beside the best of the others, cold."""
    timed_rows = [row for row in result["rows"] if "cold" in row]
    ours = {r["route"]: r["cold"]["median_us"] for r in timed_rows if r["route"].startswith("ours")}
    others = {r["route"]: r["cold"]["median_us"] for r in timed_rows if not r["route"].startswith("ours")}
    named = {name: us for name, us in ours.items() if name not in ("ours auto", "ours nhwc")}
    summary: dict[str, Any] = {"failed": [r["route"] for r in result["rows"] if "failed" in r]}
    if "ours auto" in ours:
        auto = next(r for r in timed_rows if r["route"] == "ours auto")
        summary |= {"ours_us": ours["ours auto"], "predicted_us": auto.get("predicted_us")}
        summary |= {"warm_us": auto["warm"]["median_us"]} if "warm" in auto else {}
    if named:
        best = min(named, key=lambda name: named[name])
        summary |= {"best_variant": best.removeprefix("ours "), "best_variant_us": named[best]}
    if others:
        best = min(others, key=lambda name: others[name])
        summary |= {"best_other": best, "best_other_us": others[best]}
        if "ours auto" in ours:
            summary["faster_than_best_other"] = float(f"{others[best] / ours['ours auto']:.3g}")
        if "torch nchw" in others and "ours auto" in ours:
            summary["faster_than_torch_nchw"] = float(f"{others['torch nchw'] / ours['ours auto']:.3g}")
    return summary


def broken(result: dict[str, Any]) -> list[str]:
    """What makes the step a failure: a layer that could not be measured at all, a route of ours that is wrong."""
    if "failed" in result:
        return [result["layer"]]
    ours = [row["route"] for row in result["rows"] if "failed" in row and row["route"].startswith("ours")]
    return [f"{result['layer']} {result['pass']} {result['numbers']} {route}" for route in ours]


def line(result: dict[str, Any]) -> str:
    """One result for the terminal."""
    s = result["summary"]
    text = f"{result['layer']:<21} {result['pass']:<10} {result['numbers'][:8]:<8}"
    if "ours_us" in s:
        text += f"  ours {s['ours_us']:g} us (model {s['predicted_us']}, goal {result['goal_us']})"
    if "best_variant" in s:
        text += f"  best {s['best_variant']} {s['best_variant_us']:g}"
    if "best_other" in s:
        text += f"  {s['best_other']} {s['best_other_us']:g}"
    if "faster_than_best_other" in s:
        text += f"  {s['faster_than_best_other']:g}x"
    return text + (f"  FAILED: {', '.join(s['failed'])}" if s["failed"] else "")


def sets_for(layer: Layer, numbers: str) -> int:
    """Input sets whose inputs and outputs together exceed three times the L2 cache."""
    l2 = int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 60 << 20
    return max(2, math.ceil(3 * l2 / roofline.least_bytes(layer, NUMBERS[numbers].element)))


@torch.no_grad()
def run(options: argparse.Namespace) -> dict[str, Any]:
    """All layers of a group; the output file grows with every pass."""
    import replknet_ext

    deadline = time.monotonic() + options.seconds
    torch.backends.cudnn.benchmark = not options.heuristics
    torch.backends.cudnn.benchmark_limit = 0  # all plans
    payload: dict[str, Any] = {"extension": replknet_ext.HAS_EXT, "results": [], "skipped": []}
    for layer in GROUPS[options.group]:
        for numbers in options.numbers:
            if time.monotonic() > deadline:
                payload["skipped"].append(f"{layer.name} {numbers}")
                continue
            try:
                t = Tensors(layer, numbers, sets_for(layer, numbers))
                for pass_ in options.passes:
                    done = payload["results"]
                    for result in layer_pass(layer, pass_, numbers, t, options, deadline):
                        payload["results"] = [*done, result]
                        write_json(options.output, payload)
                    print(line(result), flush=True)
                    torch.cuda.empty_cache()
            except ContextLostError as error:
                payload["failed"] = f"the CUDA context was lost: {error}"[:600]
                write_json(options.output, payload)
                return payload
            except Exception as error:
                failure = {"layer": layer.name, "numbers": numbers, "failed": f"{type(error).__name__}: {error}"[:600]}
                payload["results"].append(failure)
                print(f"{layer.name} {numbers}: {failure['failed']}"[:200], flush=True)
            write_json(options.output, payload)
    bad = [text for result in payload["results"] for text in broken(result)]
    if bad:
        payload["failed"] = f"{', '.join(bad)}"[:2000]
    write_json(options.output, payload)
    return payload


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_table", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--group", choices=list(GROUPS), default="main")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES[:2]))
    parser.add_argument("--numbers", nargs="+", choices=list(NUMBERS), default=["bfloat16"])
    parser.add_argument("--heuristics", action="store_true", help="cuDNN's first choice instead of its best plan")
    parser.add_argument("--quick", action="store_true", help="leave out the less important routes")
    parser.add_argument("--seconds", type=float, default=120.0, help="start nothing new after this long")
    parser.add_argument("--output", type=Path, required=True)
    payload = run(parser.parse_args(arguments))
    return 1 if "failed" in payload else 0


if __name__ == "__main__":
    sys.exit(main())
