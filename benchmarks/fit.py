"""Fits the constants of csrc/cuda/model.h, by which every planner chooses, to one results file of benchmarks/gpu.sh.

    python -m benchmarks.fit RESULTS.json            # constants, and how well they predict, before and after
    python -m benchmarks.fit RESULTS.json --write    # writes them into model.h; then rebuild and renew the predictions

Rates come from the step `ceilings`, each from the measurement that `SOURCES` names. Those in `SEARCHED` no
microbenchmark shows: they take the values that predict the cold times of all variants in the tables best, by the median
of |log(measured / predicted)|.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import CSRC, Limits, sizes_of
from benchmarks.harness import ROOT, BenchmarkError, read_json
from benchmarks.shapes import NUMBERS, Layer

MODEL = CSRC / "cuda" / "model.h"
CONSTANT = re.compile(r"^constexpr double (k\w+) = ([0-9.e+-]+);", re.M)

#: Constants that are searched, and the range that a GPU can have.
SEARCHED = {
    "kStartCycles": (800.0, 8000.0),
    "kSecondLaunch": (1000.0, 12000.0),
    "kExposed": (0.0, 1.0),
}
#: In the order of the enums in csrc/problem.h.
DTYPES = ("float64", "float32", "float16", "bfloat16")
PRECISIONS = ("ieee", "tf32", "bf16x3")

Constants = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """A variant's cold time."""

    layer: Layer
    pass_: str
    numbers: str
    variant: int
    name: str
    us: float

    @property
    def problem(self) -> tuple[Layer, str, str]:
        return self.layer, self.pass_, self.numbers


def constants(text: str) -> Constants:
    """The constants of model.h."""
    return {name: float(value) for name, value in CONSTANT.findall(text)}


def _mma_cycles(ceilings: Mapping[str, Any]) -> float:
    """Of the form that the Toeplitz kernels have: a fragment of the filter meets several of the input."""
    rows = [row for row in ceilings["registers_only"] if row["unit"] == "mma bf16, A fixed"]
    return float(min(row["cycles_per_mma"] for row in rows))


def _wgmma_cycles(ceilings: Mapping[str, Any]) -> float:
    """Of an m64n128k16. Once it is known, the planner chooses between its family and the others."""
    flop = 2 * 64 * 128 * 16 * ceilings["multiprocessors"]
    rows = [row for row in ceilings["wgmma"] if row["n"] == 128 and row["a"] == "registers"]
    return float(min(flop * row["sm_ghz"] / row["tflops"] * 1e-3 for row in rows))


def _clock_mhz(ceilings: Mapping[str, Any]) -> float:
    rows = [row for row in ceilings["registers_only"] if row["unit"] == "mma bf16, A fixed"]
    return float(1e3 * statistics.median(row["sm_ghz"] for row in rows))


def _per_sm(bytes_per_second: float, ceilings: Mapping[str, Any]) -> float:
    return float(bytes_per_second / (ceilings["multiprocessors"] * 1e6 * _clock_mhz(ceilings)))


def _copy_share(ceilings: Mapping[str, Any]) -> float:
    """The slower direction of our transposes of 16-bit numbers, of the bandwidth of plain copies."""
    rates = [row["own_tb_per_s"] for name, row in ceilings["transposes"].items() if name.endswith("2 bytes")]
    return float(min(rates) / ceilings["copy_tb_per_s"])


#: Constant -> its value in the step `ceilings`, and the name of the measurement.
SOURCES: dict[str, tuple[Callable[[Mapping[str, Any]], float], str]] = {
    "kClockMHz": (_clock_mhz, "clock during mma.sync from registers"),
    "kMmaCycles": (_mma_cycles, "mma.sync from registers, A fixed"),
    "kWgmmaCycles": (_wgmma_cycles, "wgmma of 128 columns, A from registers"),
    "kGlobalBytes": (lambda c: _per_sm(1e12 * c["copy_tb_per_s"], c), "copy bandwidth"),
    "kCopyShare": (_copy_share, "transposes between NCHW and channels_last"),
    "kL2Bytes": (lambda c: float(c["l2_bytes_per_cycle"]["32"]), "reads of whole sectors from L2"),
}


def measured_rows(payload: Mapping[str, Any]) -> list[Measured]:
    """Every CUDA variant of the tables in NCHW."""
    rows = {}
    for name, part in payload["steps"].items():
        for result in part.get("results", []) if name.startswith("table") else []:
            if "rows" not in result:  # a layer that failed as a whole
                continue
            layer = Layer(**{key: result[key] for key in ("n", "c", "h", "w", "kh", "kw")})
            for row in result["rows"]:
                if row.get("variant", -1) >= 0 and "cold" in row:
                    one = Measured(layer, result["pass"], result["numbers"], row["variant"], row["route"],
                                   row["cold"]["median_us"])  # fmt: skip
                    rows[one.problem, one.variant] = one
    return list(rows.values())


class Model:
    """The planners, with the constants of model.h as variables.

    Raises:
        BenchmarkError: g++ is missing, or the planners do not compile.
    """

    def __init__(self, folder: Path) -> None:
        text = MODEL.read_text()
        self.constants = constants(text)
        sources = folder / "csrc"
        shutil.copytree(CSRC, sources, ignore=shutil.ignore_patterns("cpu", "bindings", "*.cu", "*.cuh"))
        (sources / "cuda" / "model.h").write_text(CONSTANT.sub(r"inline double \1 = \2;", text))
        entries = ", ".join(f'{{"{name}", &cuda::{name}}}' for name in self.constants)
        (sources / "constants.inc").write_text(f"constexpr Constant kConstants[] = {{{entries}}};\n")
        library = folder / "planners.so"
        files = [*sorted((sources / "cuda").rglob("*.cpp")), ROOT / "benchmarks" / "fit.cpp"]
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fno-gnu-unique"]  # else two libraries share the variables
        command = ["g++", *flags, f"-I{sources}", *map(str, files), "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise BenchmarkError("g++ is not installed: it compiles the planners") from error
        if done.returncode:
            raise BenchmarkError(f"the planners do not compile:\n{done.stderr[-3000:]}")
        self._library = ctypes.CDLL(str(library))
        self._library.cycles.restype = ctypes.c_double
        self._library.set_constant.argtypes = (ctypes.c_char_p, ctypes.c_double)

    def set(self, values: Mapping[str, float]) -> None:
        """Changes constants for all that follows."""
        for name, value in values.items():
            if self._library.set_constant(name.encode(), value):
                raise BenchmarkError(f"model.h has no constant {name}")
            self.constants[name] = value

    def us(self, row: Measured, limits: Limits) -> float | None:
        """The predicted time of a variant, or None where it does not run the problem."""
        what = NUMBERS[row.numbers]
        backward, weight = row.pass_ == "bwd_input", row.pass_ == "bwd_weight"
        numbers = (DTYPES.index(what.dtype), 0, int(backward), int(weight), PRECISIONS.index(what.precision))
        device = (limits.capability, limits.sms, limits.shared_per_block, limits.shared_per_sm)
        cycles = self._library.cycles(
            (ctypes.c_int64 * 10)(*sizes_of(row.layer, row.pass_)),
            (ctypes.c_int * 5)(*numbers),
            (ctypes.c_int * 4)(*device),
            row.variant,
        )
        return cycles / self.constants["kClockMHz"] if cycles >= 0 else None


@dataclass(frozen=True)
class Quality:
    """How well a model predicts."""

    error: float  # median of |log(measured / predicted)|
    worst: float  # largest
    regret: float  # geometric mean, over problems, of the chosen variant's time by that of the best

    def __str__(self) -> str:
        return (
            f"off by {math.expm1(self.error):.1%} (median), {math.expm1(self.worst):.0%} (most); "
            f"its choices are {self.regret - 1:.1%} slower than the best variants"
        )


def quality(model: Model, rows: Sequence[Measured], limits: Limits) -> Quality:
    """Of the model as it is set."""
    errors = []
    choices: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        predicted = model.us(row, limits)
        if predicted is not None:
            errors.append(abs(math.log(row.us / predicted)))
            choices[row.problem].append((predicted, row.us))
    if not errors:
        raise BenchmarkError("the file has no time of a CUDA variant")
    regrets = [math.log(min(found)[1] / min(us for _, us in found)) for found in choices.values()]
    return Quality(statistics.median(errors), max(errors), math.exp(statistics.fmean(regrets)))


def _steps(value: float, low: float, high: float, scale: float) -> Iterator[float]:
    span = (high - low) * scale
    yield from (min(high, max(low, value + span * step)) for step in (-1, -0.5, 0.5, 1))


def search(model: Model, rows: Sequence[Measured], limits: Limits) -> Constants:
    """Coordinate by coordinate, in ever smaller steps; the mean error breaks the ties of the median."""

    def cost() -> float:
        errors = [abs(math.log(row.us / us)) for row in rows if (us := model.us(row, limits)) is not None]
        return statistics.median(errors) + 0.1 * statistics.fmean(errors)

    best = {name: model.constants[name] for name in SEARCHED}
    least = cost()
    scale = 0.25
    while scale > 2e-3:
        improved = False
        for name, (low, high) in SEARCHED.items():
            for value in _steps(best[name], low, high, scale):
                model.set({name: value})
                found = cost()
                if found < least - 1e-9:
                    best[name], least, improved = value, found, True
            model.set({name: best[name]})
        if not improved:
            scale /= 2
    return best


def fit(payload: Mapping[str, Any], model: Model) -> tuple[dict[str, tuple[float, str]], Quality, Quality]:
    """New constants with their sources, and the quality before and after; the model is left with the new ones.

    Raises:
        BenchmarkError: the run has no table.
        KeyError: nor a step `device`.
    """
    ceilings = payload["steps"].get("ceilings", {})
    limits = Limits(**payload["steps"]["device"]["limits"])
    rows = measured_rows(payload)
    if not rows:
        raise BenchmarkError("the run measured no variant: it needs a step `table: main`")
    before = quality(model, rows, limits)
    found = {}
    for name, (of_ceilings, source) in SOURCES.items():
        try:
            found[name] = (float(f"{of_ceilings(ceilings):.3g}"), source)
        except (KeyError, ValueError):  # noqa: PERF203
            print(f"{name} stays: the run did not measure it ({source})")
    model.set({name: value for name, (value, _) in found.items()})
    for name, value in search(model, rows, limits).items():
        rounded = float(f"{value:.2g}")
        found[name] = (rounded, f"fitted to {len(rows)} times")
        model.set({name: rounded})
    return found, before, quality(model, rows, limits)


def rewritten(text: str, found: Mapping[str, tuple[float, str]], run: str) -> str:
    """model.h with new values, and where they are from as the end of each line's comment."""
    lines = []
    for line in text.splitlines(keepends=True):
        match = CONSTANT.match(line)
        if match and match[1] in found:
            value, source = found[match[1]]
            comment = line[match.end() :].strip().removeprefix("//").split(" [")[0].strip()
            line = f"constexpr double {match[1]} = {value:g};  // {comment}{' ' * bool(comment)}[{source}, {run}]\n"
        lines.append(line)
    return "".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--write", action="store_true", help="write the constants into csrc/cuda/model.h")
    options = parser.parse_args(arguments)
    try:
        payload = read_json(options.results)
        with tempfile.TemporaryDirectory() as folder:
            model = Model(Path(folder))
            old = dict(model.constants)
            found, before, after = fit(payload, model)
    except (BenchmarkError, OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, (value, source) in found.items():
        print(f"{name:<14} {old[name]:>8g} -> {value:<8g} {source}")
    print(f"before: {before}\nafter:  {after}")
    if options.write:
        text = rewritten(MODEL.read_text(), found, f"{options.results.name}, {str(payload.get('started', ''))[:10]}")
        partial = MODEL.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        partial.replace(MODEL)
        print(f"wrote {MODEL.relative_to(ROOT)}; now rebuild, and run benchmarks.roofline and benchmarks.kernel_table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
