"""Times functions against each other in one process, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Candidate", "Timing", "interleave"]


@dataclass
class Candidate:
    """One thing to time: `run` is called with no arguments, again and again."""

    name: str
    run: Callable[[], Any]


@dataclass
class Timing:
    """Samples of one candidate in milliseconds per call; each sample is the mean of `calls` calls in a row."""

    name: str
    calls: int
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def percentile(self, q: float) -> float:
        """Linear interpolation between the sorted samples; `q` in [0, 100]."""
        ordered = sorted(self.samples)
        position = (len(ordered) - 1) * q / 100
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    def as_dict(self) -> dict[str, Any]:
        """What goes into the JSON file: milliseconds, four significant digits."""
        values = {"median_ms": self.median, "p10_ms": self.percentile(10), "p90_ms": self.percentile(90)}
        rounded: dict[str, Any] = {key: float(f"{value:.4g}") for key, value in values.items()}
        return {**rounded, "samples": len(self.samples), "calls_per_sample": self.calls}


def interleave(
    candidates: Sequence[Candidate],
    *,
    rounds: int = 15,
    min_rounds: int = 3,
    sample_seconds: float = 0.02,
    budget_seconds: float = 5.0,
    warm: Mapping[str, float] | None = None,
    on_sample: Callable[[], None] | None = None,
    synchronize: Callable[[], object] = lambda: None,
    before: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Times all candidates in turn, round after round, in one process.

    Args:
        candidates: what to time; names must differ.
        rounds: samples of a candidate that fits its budget.
        min_rounds: samples of a candidate that does not.
        sample_seconds: short calls are repeated within a sample until about this long.
        budget_seconds: time for one candidate; a slow one takes part in fewer rounds, spread over all of them.
        warm: seconds of a call that was made before (name -> seconds). A long one counts as the warm-up, so that slow
            candidates are not called for nothing.
        on_sample: called after each sample, for a progress bar.
        synchronize: waits until the device has done what was called; for devices that work asynchronously.
        before: called, untimed, before each sample, which then is one call: to make caches cold.

    Returns:
        Name -> Timing. Two untimed calls warm up each candidate; one more before each short sample refills its caches.
    """
    if len({candidate.name for candidate in candidates}) != len(candidates):
        raise ValueError("candidates need different names")
    timings: dict[str, Timing] = {}
    takes: dict[str, set[int]] = {}
    for candidate in candidates:
        seconds = (warm or {}).get(candidate.name, 0.0)
        if seconds < 10 * sample_seconds:
            candidate.run()
            synchronize()
            start = time.perf_counter()
            candidate.run()
            synchronize()
            seconds = time.perf_counter() - start
        calls = 1 if before else max(1, min(1000, int(sample_seconds / max(seconds, 1e-7))))
        timings[candidate.name] = Timing(candidate.name, calls)
        affordable = int(budget_seconds / max(seconds, sample_seconds))
        count = min(rounds, max(min_rounds, affordable))
        takes[candidate.name] = {index * rounds // count for index in range(count)}
    for index in range(rounds):
        for candidate in candidates:
            if index not in takes[candidate.name]:
                continue
            timing = timings[candidate.name]
            if before is not None:
                before()
            elif timing.calls > 1:
                candidate.run()
            synchronize()
            start = time.perf_counter()
            for _ in range(timing.calls):
                candidate.run()
            synchronize()
            timing.samples.append((time.perf_counter() - start) / timing.calls * 1e3)
            if on_sample is not None:
                on_sample()
    return timings
