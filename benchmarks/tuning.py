"""Every candidate of a fixed list of layers, measured: how good is the cost models' first choice?

    python -m benchmarks.tuning                   # this machine's GPU, else its CPU -> benchmarks/results/
    python -m benchmarks.tuning --quick           # the four RepLKNet-31B layers alone
    python -m benchmarks.tuning --from benchmarks/results/tuning_DEVICE.json --save-config CONFIG.json
                                                  # what was measured, as a file that the package can ship

A test reads the files and holds the first choice against the best one. Nothing is written to the user's cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, shapes
from benchmarks.harness import BenchmarkError
from replknet_ext.backends import PASSES, Candidate, Problem
from replknet_ext.choices import table
from replknet_ext.choices.device import identity, stem_of
from replknet_ext.operator.problem import Geometry
from replknet_ext.tuning import measure, search
from replknet_ext.tuning.measure import Measured
from replknet_ext.tuning.report import layer_of, us

#: More layers that the networks of the papers have: ConvNeXt's, EfficientNet's, SLaK's.
CPU_LAYERS = [
    *(replace(layer, n=8) for layer in shapes.MAIN),
    shapes.square(8, 128, 96, 31),
    shapes.square(8, 96, 56, 7),
    shapes.square(8, 240, 28, 5),
    shapes.square(8, 512, 14, 5),
    shapes.Layer(8, 124, 56, 56, 51, 5),
    shapes.square(8, 50, 29, 13),
]


def problem(layer: shapes.Layer, pass_: str, dtype: torch.dtype, device: str, channels_last: bool = False) -> Problem:
    """A layer as the backends see it."""
    rows, columns = layer.padding
    geometry = Geometry((1, 1), (rows, rows, columns, columns), (1, 1))
    size, kernel = (layer.n, layer.c, layer.h, layer.w), (layer.c, 1, layer.kh, layer.kw)
    return Problem(size, kernel, False, geometry, dtype, device, pass_=pass_, channels_last=channels_last)


def subjects(device: str, quick: bool) -> list[Problem]:
    """The fixed list."""
    if device == "cuda":
        layers, dtype = [*shapes.MAIN] if quick else shapes.all_layers(), torch.bfloat16
    else:
        layers, dtype = CPU_LAYERS[:4] if quick else CPU_LAYERS, torch.float32
    layouts = (False,) if quick else (False, True)
    return [problem(layer, pass_, dtype, device, last) for layer in layers for last in layouts for pass_ in PASSES]


def row_of(subject: Problem, device: torch.device, most: int, budget: float) -> dict[str, Any]:
    """One pass of one layer: what the model takes, what is best, every candidate.

    Raises:
        BenchmarkError: the untuned choice does not run.
    """
    measured = measure.measure(subject, search.shortlist(subject, "auto", most), device, budget_seconds=budget)
    best = min(measured, key=lambda m: m.us)
    if not measured or measured[0].failed is not None:
        raise BenchmarkError(f"{table.key_of(subject)}: {measured[0].failed if measured else 'no candidate'}")
    return {
        "problem": table.key_of(subject),
        "layer": layer_of(subject),
        "pass": subject.pass_,
        "first": measured[0].candidate.name,
        "best": best.candidate.name,
        "first_over_best": float(f"{measured[0].us / best.us:.3f}"),
        "candidates": [m.as_dict() for m in measured],
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the first choices compare with the best ones."""
    ratios = [row["first_over_best"] for row in rows]
    return {
        "passes": len(ratios),
        "geometric_mean": float(f"{statistics.geometric_mean(ratios):.3f}"),
        "worst": max(ratios),
        "within_10_percent": sum(ratio <= 1.1 for ratio in ratios),
    }


def choices(rows: Sequence[dict[str, Any]]) -> dict[str, table.Entry]:
    """What to take, by the rows of a file, for `table.save_config`."""
    found = {}
    for row in rows:
        measured = [
            Measured(
                Candidate(c["backend"], c["name"], c["variant"], c["family"], c["predicted_us"]),
                [] if c["us"] is None else [c["us"]], c["failed"],
            )
            for c in row["candidates"]
        ]  # fmt: skip
        entry = search.entry_of(measured)
        if entry is not None:
            found[row["problem"]] = entry
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--most", type=int, default=search.MOST, help="candidates of each backend")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="of the list, for a machine that is shared")
    parser.add_argument("--seconds", type=float, default=4.0, help="for one pass of one layer")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/tuning_DEVICE.json; parts are added")
    parser.add_argument("--save-config", type=Path, metavar="FILE", help="add the best to a file that can be shipped")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="measure nothing: take these results")
    options = parser.parse_args(arguments)

    if options.source is not None:
        content = harness.read_json(options.source)
        if options.save_config is None:
            parser.error("--from is for --save-config")
        path = table.save_config(options.save_config, content["device"], choices(content["rows"]))
        print(f"wrote {path}, to be shipped as {stem_of(content['device'])}.json")
        return 0
    device = torch.device(options.device)
    part, parts = map(int, options.part.split("/"))
    listed = subjects(options.device, options.quick)
    started, rows = time.monotonic(), []
    for subject in listed[(part - 1) * len(listed) // parts : part * len(listed) // parts]:
        row = row_of(subject, device, options.most, options.seconds)
        rows.append(row)
        first, best = row["candidates"][0], min(row["candidates"], key=lambda c: c["us"] or float("inf"))
        times = f"{first['name']:<18} {us(first['us']):>7}  {best['name']:<18} {us(best['us']):>7}"
        print(f"{row['layer']:<44} {row['pass']:<10} {times} {row['first_over_best']:.2f}", flush=True)
    who = identity(device)
    output = options.output or harness.RESULTS / f"tuning_{stem_of(who)}.json"
    if part > 1 and output.exists():
        rows = [*harness.read_json(output)["rows"], *rows]
    print(f"{summary(rows)}, {time.monotonic() - started:.0f} s; wrote {output}")
    payload = {"benchmark": "tuning", "meta": harness.metadata(), "device": who, "summary": summary(rows), "rows": rows}
    harness.write_json(output, payload)
    if options.save_config is not None:
        print(f"wrote {table.save_config(options.save_config, who, choices(rows))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
