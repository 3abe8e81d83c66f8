"""One step of the GPU benchmark: every route of some layers, verified, proved and timed in one process.

    python -m benchmarks.gpu_table --group main --output part.json

Times are of CUDA graph replays, rounds of all routes interleaved. "cold" rotates input sets whose inputs and outputs
exceed three times the L2 cache; "warm" repeats one set. Before a route is timed its output is compared with float64 on
some channels and with the first route's everywhere, and its kernels are recorded. After the timing, what a last replay
of the same graph writes is compared again: cuDNN before 9.24 can be wrong after a convolution of another size, so one
runs before it. Outputs are NaN before each replay. The file is written after each pass.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_plan, gpu_rivals, roofline
from benchmarks.gpu_routes import Route, Tensors, kernels_of, our_routes, reference, their_routes, whose
from benchmarks.harness import BenchmarkError, Timing, require_close, write_json
from benchmarks.shapes import GOALS_US, GROUPS, NUMBERS, PASSES, TRAINING, Layer, clipped_flop
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
    outputs: dict[str, deque[Any]] = field(default_factory=dict)  # cache -> what a replay writes; the last: of set 0

    def poison(self, cache: str) -> None:
        """Makes the outputs of a replay NaN, so that what is found there later is of a later replay."""
        for output in self.outputs[cache]:
            for t in several(output):
                t.fill_(float("nan"))


@dataclass
class Exact:
    """What is right for input set 0: in float64 in some places, and everywhere by the first route that was right."""

    channels: list[int]
    images: list[int]
    values: dict[str, torch.Tensor]  # by pass
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)


def several(output: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of an output: one, or those of a training step."""
    return output if isinstance(output, tuple) else (output,)


def parts_of(pass_: str) -> tuple[str, ...]:
    """The passes whose results a pass returns."""
    return PASSES[1:] if pass_ == TRAINING else (pass_,)


def alive() -> None:
    """Raises ContextLostError if an earlier kernel has broken the context."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise ContextLostError(str(error)) from error


def compare(route: Route, output: Any, pass_: str, exact: Exact, limit: float) -> float:
    """The largest relative error of an output for input set 0.

    Raises:
        BenchmarkError: a wrong result.
    """
    shown = route.shown(output)
    if route.exact is not None:
        if not bool(shown.isfinite().all()):
            raise BenchmarkError(f"{route.name}: the result is not finite everywhere; a wrong result is not timed")
        return require_close(shown[exact.channels].cpu(), route.exact(exact.channels), name=route.name, limit=limit)
    errors = []
    for part, result in zip(parts_of(pass_), several(shown), strict=True):
        picked = result[exact.channels] if part == "bwd_weight" else result[exact.images][:, exact.channels]
        errors.append(require_close(picked.cpu(), exact.values[part], name=route.name, limit=limit))
        if part in exact.outputs:
            require_close(result, exact.outputs[part], name=f"{route.name}, all elements", limit=2 * limit)
        else:
            exact.outputs[part] = result.clone()
    return max(errors)


def verify(route: Route, t: Tensors, pass_: str, exact: Exact, limit: float) -> dict[str, Any]:
    """Runs a route for the first time and checks its output; returns the start of its row.

    Raises:
        BenchmarkError: a wrong result.
    """
    # The allocator hands the block of this poison to the output: an element that is never written stays NaN.
    poison = [torch.full_like(t.weight if p == "bwd_weight" else t.x[0], float("nan")) for p in parts_of(pass_)]
    torch.cuda.synchronize()
    del poison
    started = time.perf_counter()
    output = route.run(0)
    torch.cuda.synchronize()
    first_call = time.perf_counter() - started
    error = compare(route, output, pass_, exact, limit)
    return {"error": float(f"{error:.2g}"), "first_call_ms": round(first_call * 1e3, 1)}


def of_another_size(layer: Layer, numbers: str) -> Callable[[], None]:
    """All passes of a smaller layer by cuDNN, by its first plan."""
    t = Tensors(replace(layer, n=1, h=max(1, layer.h // 2), kh=layer.kh // 2 | 1), numbers, 1)
    routes = [route for pass_ in PASSES for route in their_routes(t, pass_, benchmark=False, native=False)]

    def run() -> None:
        searches = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False
        for route in routes:
            with suppress(RuntimeError):  # a pass that this cuDNN does not have
                route.run(0)
        torch.backends.cudnn.benchmark = searches

    return run


def verify_again(subject: Subject, other: Callable[[], None], pass_: str, exact: Exact, limit: float) -> None:
    """Checks what the graphs write after all the timing, each after `other`; a wrong one loses its times."""
    for cache, (replay, _) in subject.graphs.items():
        subject.poison(cache)
        other()
        replay()
        torch.cuda.synchronize()
        try:
            compare(subject.route, subject.outputs[cache][-1], pass_, exact, limit)
        except BenchmarkError as error:
            subject.row["failed"] = f"after the timing, {cache}: {error}"
    if "failed" in subject.row:
        strike(subject)


def strike(subject: Subject) -> None:
    """Takes the times out of a row: they are not of what its name says."""
    for cache in CACHES:
        subject.row.pop(cache, None)


def prove(subject: Subject) -> None:
    """Records whose kernels a route ran; its times are struck out if they are not those of its name."""
    if not subject.graphs:
        return
    try:
        kernels = kernels_of(lambda: subject.route.run(0))
    except Exception as error:  # a profiler that does not work is no reason to lose the times
        subject.row["ran"] = f"not proved: {type(error).__name__}: {error}"[:200]
        return
    ran, wants = whose(kernels), subject.route.wants
    if wants == "other" and ran == "cudnn":
        ran = "other"  # whose() knows no library but cuDNN
    subject.row |= {"ran": ran, "kernels": kernels}
    wanted = ("native", "cudnn") if wants == "torch" else (wants,)
    if ran not in (*wanted, "unknown"):
        subject.row["failed"] = f"these are kernels of {ran}, not of {wants}"
        strike(subject)


def prepare(
    routes: Sequence[Route], t: Tensors, pass_: str, exact: Exact, limit: float, deadline: float
) -> list[Subject]:
    """Verifies routes and captures their graphs; a route that fails has the reason in its row."""
    subjects = []
    for route in routes:
        subject = Subject(route, {"route": route.name, "variant": route.variant})
        subjects.append(subject)
        if route.exact is not None:
            subject.row["operator"] = "another: products of windows, no convolution"
        late = "out of time" if time.monotonic() > deadline else ""
        if route.missing or late:
            subject.row["skipped"] = route.missing or late
            continue
        try:
            subject.row |= verify(route, t, pass_, exact, limit)
            subject.seconds = min(timed(partial(route.run, 0)) for _ in range(3))
            for cache in CACHES:
                sets = t.sets if cache == "cold" else 1
                calls = max(1, min(MOST_CALLS, math.ceil(GRAPH_SECONDS / max(subject.seconds, 1e-6))))
                calls = math.ceil(calls / sets) * sets
                subject.graphs[cache] = (graph_or_launches(subject, cache, calls, sets), calls)
        except torch.cuda.OutOfMemoryError as error:
            subject.graphs.clear()
            subject.outputs.clear()
            subject.row["failed"] = f"{error}"[:300]
            torch.cuda.empty_cache()
        except Exception as error:  # every failure belongs in the table
            subject.graphs.clear()
            subject.row["failed"] = f"{type(error).__name__}: {error}"[:600]
            alive()
    return subjects


def graph_or_launches(subject: Subject, cache: str, calls: int, sets: int) -> Callable[[], None]:
    """A graph's replay, or plain launches if the route can't be captured; the row says which."""
    outputs = subject.outputs[cache] = deque(maxlen=sets)

    def call(i: int) -> Any:
        outputs.append(subject.route.run((i + 1) % sets))  # the last of all is of set 0, whose result is known
        return outputs[-1]

    try:
        replay = capture(call, calls, sets)
        subject.row["timed"] = "graph replays"
        return replay
    except RuntimeError as error:
        alive()
        outputs.clear()  # of a capture that came to nothing
        subject.row["timed"] = f"launches, as it can't be captured: {error}"[:300]

    def launches() -> None:
        for i in range(calls):
            call(i)

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
            subject.poison(cache)
            if subject.seconds * timing.calls < 20e-3:
                replay()  # leaves the caches as it found them, and hides the launch of the one that is timed
            timing.samples.append(timed(replay) / timing.calls * 1e3)
    alive()
    for subject, cache, _, timing, _ in jobs:
        micro = {"median_us": timing.median, "p10_us": timing.percentile(10), "p90_us": timing.percentile(90)}
        subject.row[cache] = {key: float(f"{value * 1e3:.4g}") for key, value in micro.items()}
        subject.row[cache] |= {"samples": len(timing.samples), "calls": timing.calls}


def derived(layer: Layer, numbers: str, row: dict[str, Any], plans: Sequence[gpu_plan.Plan], passes: int) -> None:
    """Rates on the taps inside the image, and the model's prediction beside the measurement."""
    if plans:
        row["predicted_us"] = roofline.cycles_us(sum(plan.cycles for plan in plans))
    if len(plans) == 1:
        row["plan"] = asdict(plans[0])
    if "cold" in row and "operator" not in row:
        seconds = row["cold"]["median_us"] * 1e-6 / passes
        row["clipped_tflops"] = float(f"{clipped_flop(layer) / seconds * 1e-12:.4g}")
        row["gb_per_s"] = float(f"{roofline.least_bytes(layer, NUMBERS[numbers].element) / seconds * 1e-9:.4g}")
        if plans:
            row["measured_over_predicted"] = float(f"{row['cold']['median_us'] / row['predicted_us']:.3g}")


def plans_of(layer: Layer, pass_: str, numbers: str, limits: gpu_plan.Limits, route: Route) -> list[gpu_plan.Plan]:
    """How one of our routes is launched, pass by pass; none for other routes."""
    if not route.name.startswith("ours"):
        return []
    what, passes = NUMBERS[numbers], PASSES if pass_ == TRAINING else (pass_,)
    form: dict[str, Any] = {"channels_last": route.name == "ours nhwc", "precision": what.precision}
    try:
        return [gpu_plan.plan(layer, p, what.dtype, limits, route.variant, **form) for p in passes]
    except (gpu_plan.PlanError, gpu_plan.PlannerUnavailableError):
        return []


def layer_pass(
    layer: Layer, pass_: str, numbers: str, t: Tensors, options: argparse.Namespace, deadline: float
) -> Iterator[dict[str, Any]]:
    """All routes of one pass: first a result without cuDNN, whose search for plans may take too long, then all."""
    channels = sorted({0, layer.c // 2, layer.c - 1})
    images = sorted({0, layer.n // 2, layer.n - 1})
    values = {part: reference(t, part, channels, images) for part in parts_of(pass_)}
    exact, limit = Exact(channels, images, values), NUMBERS[numbers].error
    other = of_another_size(layer, numbers)
    limits = gpu_plan.device_limits()
    ours = our_routes(t, pass_, every_variant=not options.heuristics, nhwc=not (options.quick or options.heuristics))
    theirs = their_routes(t, pass_, benchmark=not options.heuristics, native=not options.heuristics)
    theirs += gpu_rivals.routes(t, pass_, options.rivals)
    if options.variants:
        ours = [route for route in ours if route.name.startswith(tuple(f"ours {name}" for name in options.variants))]
        theirs = theirs[:1]
    subjects: list[Subject] = []
    # PyTorch's own kernel goes first: it is the witness that the others are compared with.
    for routes, rounds in (([*theirs[:1], *ours], MIN_ROUNDS), (theirs[1:], ROUNDS)):
        subjects += prepare(routes, t, pass_, exact, limit, deadline)
        measure(subjects, deadline, rounds)
        for subject in subjects:
            if rounds == ROUNDS:
                verify_again(subject, other, pass_, exact, limit)
                prove(subject)
            plans = plans_of(layer, pass_, numbers, limits, subject.route)
            derived(layer, numbers, subject.row, plans, len(PASSES) if pass_ == TRAINING else 1)
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
    timed_rows = [row for row in result["rows"] if "cold" in row and "operator" not in row]
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
    another = {r["route"]: r["cold"]["median_us"] for r in result["rows"] if "cold" in r and "operator" in r}
    return summary | ({"another_operator_us": another} if another else {})


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
    for name, us in s.get("another_operator_us", {}).items():
        text += f"  {name} {us:g}"
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
    parser.add_argument("--passes", nargs="+", choices=(*PASSES, TRAINING), default=list(PASSES[:2]))
    parser.add_argument("--numbers", nargs="+", choices=list(NUMBERS), default=["bfloat16"])
    parser.add_argument("--heuristics", action="store_true", help="cuDNN's first choice instead of its best plan")
    parser.add_argument("--rivals", nargs="+", choices=list(gpu_rivals.KINDS), default=[], help="see gpu_rivals.py")
    parser.add_argument(
        "--variants", nargs="+", default=[], metavar="PREFIX", help="only those of ours, beside PyTorch's own kernel"
    )
    parser.add_argument("--quick", action="store_true", help="leave out the less important routes")
    parser.add_argument("--seconds", type=float, default=120.0, help="start nothing new after this long")
    parser.add_argument("--output", type=Path, required=True)
    payload = run(parser.parse_args(arguments))
    return 1 if "failed" in payload else 0


if __name__ == "__main__":
    sys.exit(main())
