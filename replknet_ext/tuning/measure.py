"""Times the candidates of one pass of one problem: interleaved, medians, checked outputs, cold L2 on a GPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import Candidate, Problem
from ..operator.ops import RAW

__all__ = ["Measured", "capture", "difference", "measure", "timed"]

#: Largest relative difference of two correct results, in norm and in the largest value: twice a kernel's error.
LARGEST_DIFFERENCE = {
    "float64": 1e-12, "float32 ieee": 3e-5, "float32 bf16x3": 2e-4, "float32 tf32": 4e-3,
    "float16": 4e-3, "bfloat16": 2e-2,
}  # fmt: skip

ROUNDS = 15
#: After so many rounds only those within a factor of the best go on, and the first, which they are held against.
CUTS = {1: 2.0, 3: 1.3, 6: 1.1}
#: Minimum speed-up over what runs untuned; smaller gains may be noise.
LEAST_GAIN = 0.02
SAMPLE_SECONDS = 4e-3
L2_SETS = 3.0  # operands and results of all sets, in sizes of the L2 cache
MOST_SETS = 24


class Operands(NamedTuple):
    """Tensors of one set."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    grad: Tensor


@dataclass
class Measured:
    """A candidate with its samples in microseconds, or the reason why there are none."""

    candidate: Candidate
    samples: list[float] = field(default_factory=list)
    failed: str | None = None

    @property
    def us(self) -> float:
        """The median, infinite without samples."""
        return statistics.median(self.samples) if self.samples and self.failed is None else math.inf

    @property
    def least_us(self) -> float:
        """The smallest, infinite without samples."""
        return min(self.samples) if self.samples and self.failed is None else math.inf

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        us = None if math.isinf(self.us) else float(f"{self.us:.4g}")
        return {**self.candidate.as_dict(), "us": us, "samples": len(self.samples), "failed": self.failed}


def winner(measured: Sequence[Measured]) -> Measured | None:
    """The fastest, or the first if that is as good; None if nothing ran.

    Where something else runs beside, medians alone mislead: the smallest samples must say the same.
    """
    best = min(measured, key=lambda m: m.us, default=None)
    if best is None or math.isinf(best.us):
        return None
    first = measured[0]
    return first if best.us > first.us * (1 - LEAST_GAIN) or best.least_us > first.least_us else best


def difference(result: Any, wanted: Any) -> float:
    """The larger of ||result - wanted|| / ||wanted|| and the same with the maximum norm; infinite for NaN."""
    if isinstance(wanted, tuple):
        return max(difference(r, w) for r, w in zip(result, wanted, strict=True))
    if result.shape != wanted.shape:
        return math.inf
    gap, exact = result.double() - wanted.double(), wanted.double()
    worst = max(float(gap.norm(p=p) / exact.norm(p=p).clamp_min(1e-300)) for p in (2, math.inf))
    return worst if worst == worst else math.inf


def operands(problem: Problem, device: torch.device, sets: int) -> list[Operands]:
    """Random tensors, from a generator of their own: nobody else's random numbers change."""
    generator = torch.Generator(device).manual_seed(0)
    layout = torch.channels_last if problem.channels_last else torch.contiguous_format
    n, c, h, w = problem.input_shape
    kh, kw = problem.weight_shape[2:]
    top, bottom, left, right = problem.geometry.padding

    def random(*size: int, format: torch.memory_format = torch.contiguous_format) -> Tensor:
        values = torch.randn(size, dtype=torch.float32, device=device, generator=generator)
        return values.to(problem.dtype).contiguous(memory_format=format)

    result = []
    for _ in range(sets):
        grad = random(n, c, h + top + bottom - kh + 1, w + left + right - kw + 1, format=layout)
        bias = random(c) if problem.has_bias else None
        result.append(Operands(random(n, c, h, w, format=layout), random(c, 1, kh, kw), bias, grad))
    return result


def call_of(problem: Problem, candidate: Candidate, given: Sequence[Operands]) -> Callable[[int], Any]:
    """The pass by the candidate on the operands of a set."""
    padding = problem.geometry.padding
    rest = (problem.precision, problem.algorithm, candidate.backend, candidate.variant)
    if problem.pass_ == "fwd":
        return lambda i: RAW.fwd(given[i].x, given[i].weight, given[i].bias, padding, problem.activation, *rest)
    if problem.pass_ == "bwd_input":
        return lambda i: RAW.bwd_input(given[i].grad, given[i].weight, padding, *rest)
    # The bias gradient comes from the same kernel on a GPU; on the CPU it is a sum of torch's.
    with_bias = problem.has_bias and problem.device_type == "cuda"
    run: Callable[..., Any] = RAW.bwd_weight_bias if with_bias else RAW.bwd_weight
    return lambda i: run(given[i].grad, given[i].x, padding, *rest)


# ---- time ----


def timed(run: Callable[[], object]) -> float:
    """Seconds between two events around what `run` does on the current CUDA stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def capture(run: Callable[[int], Any], calls: int, sets: int) -> Callable[[], None]:
    """A CUDA graph of `calls` calls over `sets` input sets, as many outputs alive at once, so that those rotate too."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    outputs: list[Any] = []
    with torch.cuda.stream(side):
        for i in range(min(2, sets)):
            run(i)
        torch.cuda.synchronize()
        # In mode "global" a data loader that pins memory in its own thread would break the capture, and die of it.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for i in range(calls):
                if len(outputs) == sets:
                    outputs.pop(0)
                outputs.append(run(i % sets))
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(side)
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def _sampler(run: Callable[[int], Any], device: torch.device, sets: int) -> Callable[[], float]:
    """A function that measures microseconds of a call."""
    if device.type == "cuda":
        seconds = min(timed(partial(run, 0)) for _ in range(3))
        calls = math.ceil(max(1, min(200, SAMPLE_SECONDS / max(seconds, 1e-6))) / sets) * sets
        replay = capture(run, calls, sets)
        return lambda: timed(replay) / calls * 1e6
    start = time.perf_counter()
    run(0)
    calls = max(1, min(200, int(SAMPLE_SECONDS / max(time.perf_counter() - start, 1e-7))))

    def sample() -> float:
        if calls > 1:
            run(0)  # what ran before has its own data in the caches
        start = time.perf_counter()
        for _ in range(calls):
            run(0)
        return (time.perf_counter() - start) / calls * 1e6

    return sample


def sets_for(problem: Problem, device: torch.device) -> int:
    """How many sets of operands are larger than the L2 cache; the CPU's caches stay warm, as in a network."""
    if device.type != "cuda":
        return 1
    properties = torch.cuda.get_device_properties(device)
    n, c, h, w = problem.input_shape
    bytes_ = 2 * n * c * h * w * problem.dtype.itemsize
    return max(1, min(MOST_SETS, math.ceil(L2_SETS * getattr(properties, "L2_cache_size", 64 << 20) / max(bytes_, 1))))


@torch.no_grad()
def measure(
    problem: Problem, candidates: Sequence[Candidate], device: torch.device, *, rounds: int = ROUNDS,
    budget_seconds: float = 20.0,
) -> list[Measured]:  # fmt: skip
    """Runs, checks and times candidates.

    Args:
        problem: with its pass and memory format.
        candidates: the first is what runs untuned; the outputs of the others must agree with its.
        device: where.
        rounds: samples of a candidate that stays near the best; others drop out (`CUTS`).
        budget_seconds: when this has passed, no further round begins, but each has 3.

    Returns:
        All candidates in their order; what failed or computed something else has its reason.
    """
    kind = problem.dtype_name + (f" {problem.precision}" if problem.dtype == torch.float32 else "")
    sets = sets_for(problem, device)
    measured = [Measured(candidate) for candidate in candidates]
    samplers: list[tuple[Measured, Callable[[], float]]] = []
    deadline = time.monotonic() + budget_seconds
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            given = operands(problem, device, sets)
        except (RuntimeError, MemoryError) as error:
            for m in measured:
                m.failed = _words(error)
            return measured
        reference: Any = None
        for m in measured:
            run = call_of(problem, m.candidate, given)
            try:
                output = run(0)
                if reference is None:
                    reference = output
                gap = difference(output, reference)
                if not gap <= LARGEST_DIFFERENCE[kind]:
                    m.failed = f"another result than {measured[0].candidate.name}'s, by {gap:.1e}"
                else:
                    samplers.append((m, _sampler(run, device, sets)))
            except (RuntimeError, ValueError, MemoryError) as error:
                m.failed = _words(error)
                if m is measured[0]:
                    for other in measured[1:]:
                        other.failed = "nothing to compare its result with"
                    return measured
            except Exception as error:  # triton's own: out of resources, compilation
                m.failed = _words(error)
        for index in range(rounds):
            if index >= 3 and time.monotonic() > deadline:
                break
            for m, sample in samplers:
                m.samples.append(sample())
            factor = CUTS.get(index)
            if factor is not None and samplers:
                limit = factor * min(m.us for m, _ in samplers)
                samplers = [pair for pair in samplers if pair[0] is measured[0] or pair[0].us <= limit]
    return measured


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
