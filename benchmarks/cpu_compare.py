"""The rows of a CPU benchmark side by side, and held to goals and promises."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu_cases import GOALS, PROMISES, Target, label
from benchmarks.cpu_problem import OURS, PEAK, TORCH
from benchmarks.harness import BenchmarkError


@dataclass(frozen=True)
class Comparison:
    """One layer and pass: milliseconds of torch on NCHW and on its better layout, and of ours; rates of ours."""

    layer: str
    batch: int
    pass_: str
    default: float
    best: float
    best_layout: str
    ours: float
    kernel: str
    direct: float | None  # milliseconds, where measured by name
    fft: float | None
    float32: float | None  # ours, where the group has another dtype
    peak: float | None  # GFLOP/s, the run's highest median: a disturbed one would flatter
    gflop: float
    best_cold: float | None  # milliseconds with cold caches
    ours_cold: float | None

    @property
    def vs_default(self) -> float:
        return self.default / self.ours

    @property
    def vs_best(self) -> float:
        """Against torch's best; ours stays in its layout, whatever torch likes."""
        return self.best / self.ours

    @property
    def vs_best_cold(self) -> float | None:
        """The same with tensors that are in no cache, as inside a network."""
        return self.best_cold / self.ours_cold if self.best_cold and self.ours_cold else None

    @property
    def vs_float32(self) -> float | None:
        return self.float32 and self.float32 / self.ours

    @property
    def share(self) -> float | None:
        """Of the FMA peak, on taps inside the image. An FFT does fewer operations: it can be over 1."""
        return self.peak and self.gflop / self.ours * 1e3 / self.peak

    @property
    def direct_share(self) -> float | None:
        return self.peak and self.direct and self.gflop / self.direct * 1e3 / self.peak


def compare(rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    """The rows of one run, in the order measured."""
    peak = max((row["gflops"] for row in rows if row["provider"] == PEAK), default=None)
    by_case: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault((row["layer"], row["pass"]), []).append(row)
    result = []
    for (layer, pass_), case in by_case.items():

        def ours(algorithm: str, dtype: str, case: list[dict[str, Any]] = case) -> dict[str, Any]:
            wanted = (OURS, algorithm, dtype)
            return next((row for row in case if (row["provider"], row["algorithm"], row["dtype"]) == wanted), {})

        of_torch = [row for row in case if row["provider"] == TORCH]
        theirs = {row["layout"]: float(row["median_ms"]) for row in of_torch}
        layout = min(theirs, key=lambda key: theirs[key])
        dtype = of_torch[0]["dtype"]
        auto = ours("auto", dtype)
        result.append(
            Comparison(
                layer,
                auto["batch"],
                pass_,
                theirs["NCHW"],
                theirs[layout],
                layout,
                float(auto["median_ms"]),
                auto["kernel"],
                ours("direct", dtype).get("median_ms"),
                ours("fft", dtype).get("median_ms"),
                ours("auto", "float32").get("median_ms") if dtype != "float32" else None,
                peak,
                auto["gflop"],
                min(float(row.get("cold_ms", row["median_ms"])) for row in of_torch) if "cold_ms" in auto else None,
                auto.get("cold_ms"),
            )
        )
    return result


def check(rows: Sequence[dict[str, Any]], targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Each target with the figure measured and whether it is kept.

    Raises:
        BenchmarkError: a layer was not measured, or not what the figure needs.
    """
    measured = {(item.layer, item.batch, item.pass_): item for item in compare(rows)}
    results = []
    for target in targets:
        key = (label(target.layer), target.layer.n, target.pass_)
        value = getattr(measured[key], target.figure) if key in measured else None
        if value is None:
            name = f"{key[0]}, batch {key[1]}, {key[2]}"
            raise BenchmarkError(f"{name} was not measured for {target.figure}, so it cannot be checked")
        got = float(f"{value:.4g}")
        results.append(
            {
                "layer": key[0],
                "pass": key[2],
                "figure": target.figure,
                "at_least": target.at_least,
                "measured": got,
                "kept": got >= target.at_least,
            }
        )
    return results


def targets_of(targets: Sequence[Target], group: str, isa: str) -> list[Target]:
    """Those for a run of `group` on kernels of `isa`."""
    return [target for target in targets if (target.group, target.isa) == (group, isa)]


def goals(rows: Sequence[dict[str, Any]], group: str, isa: str) -> list[dict[str, Any]]:
    """What this project set out to reach, met or not."""
    return check(rows, targets_of(GOALS, group, isa))


def promises(rows: Sequence[dict[str, Any]], group: str, isa: str) -> list[dict[str, Any]]:
    """The floors that README.md promises."""
    return check(rows, targets_of(PROMISES, group, isa))


def geomean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(values)


def milliseconds(value: float) -> str:
    """Three significant digits at most (two below one), no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def times(ratio: float) -> str:
    """A speed-up for readers: 2.4x, 37x, 1,240x; below 1 it is a loss."""
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"


def percent(share: float | None) -> str:
    """A share of the peak."""
    return "" if share is None else f"{100 * share:.0f} %"
