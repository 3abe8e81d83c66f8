"""Writes the benchmark tables of README.md from benchmarks/results: `python -m benchmarks.readme [--check]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from benchmarks.cpu_ops import compare, milliseconds, times

BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.readme) -->", "<!-- benchmarks: end -->"
README = harness.ROOT / "README.md"


def cpu_table(payload: dict[str, Any]) -> str:
    """One results file as a Markdown table with its machine below."""
    first = payload["rows"][0]
    lines = [
        f"| {first['dtype']}, batch {first['batch']}, ms | pass | `nn.Conv2d` | `nn.Conv2d`, best layout | ours "
        "| vs default | vs best |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    previous = ""
    for item in compare(payload["rows"]):
        label = "" if item.layer == previous else f"C{item.channels} {item.layer}"
        previous = item.layer
        best = "same" if item.best_layout == "NCHW" else milliseconds(item.best)
        lines.append(
            f"| {label} | {item.direction} | {milliseconds(item.default)} | {best} | {milliseconds(item.ours)} "
            f"| **{times(item.vs_default)}** | {times(item.vs_best)} |"
        )
    meta = payload["meta"]
    return "\n".join([*lines, "", f"<sub>{harness.describe(meta)}. `{meta['command']}`</sub>"])


def section() -> str:
    """All tables with their pictures, in the order of the file names."""
    parts = []
    for path in sorted(harness.RESULTS.glob("cpu_ops_*.json")):
        parts.append(cpu_table(json.loads(path.read_text())))
        picture = path.with_suffix(".png")
        if picture.exists():
            parts.append(f"![The same figures as a bar chart]({picture.relative_to(harness.ROOT).as_posix()})")
    return "\n\n".join(parts) or "No results stored yet."


def render(text: str, tables: str) -> str:
    """The README's text with the part between the markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError("README.md needs each benchmark marker exactly once")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; with --check, 1 if README.md is not what the results say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if README.md is out of date")
    options = parser.parse_args(arguments)
    old = README.read_text()
    new = render(old, section())
    if options.check:
        return int(new != old)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
