"""Bar charts of results, each beside its file: `python -m benchmarks.plot [RESULT.json ...]`, all by default."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.cpu_cases import TITLES
from benchmarks.cpu_compare import Comparison, compare, milliseconds, percent, times
from benchmarks.shapes import PASSES

PASS_TITLES = {"fwd": "forward", "bwd_input": "backward: input gradient", "bwd_weight": "backward: weight gradient"}
COLOURS = {
    "nn.Conv2d": "#b8bcc4",
    "nn.Conv2d, best layout": "#7d8491",
    "replknet_ext": "#e8590c",
    "replknet_ext, algorithm=direct": "#f4b183",
}


def draw(payload: dict[str, Any], path: Path) -> None:
    """Writes the chart of a cpu_ops result: a panel for each pass, a bar for each contender, logarithmic time."""
    comparisons = compare(payload["rows"])
    everything = [value for item in comparisons for value in (item.default, item.best, item.ours)]
    layers = len({item.layer for item in comparisons})
    bars = 4 if any(item.direct for item in comparisons) else 3
    peak = "Percentages: of the FMA peak, on taps inside the image. " if bars == 4 else ""
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(16, 1.9 + 0.36 * bars * layers), dpi=110)
        panels = figure.subplots(1, len(PASSES), sharey=True)
        for panel, pass_ in zip(panels, PASSES, strict=True):
            items = [item for item in comparisons if item.pass_ == pass_]
            for place, item in enumerate(items):
                _group(panel, place, item, bars)
            panel.set_yticks(range(len(items)), [item.layer.replace(" ", "\n", 1) for item in items])
            panel.set_ylim(len(items) - 0.45, -0.55)
            panel.set_xscale("log")
            panel.set_xlim(min(everything) / 2, max(everything) * 20)  # room for the words right of the longest bar
            panel.set_xlabel("milliseconds per call (log scale)")
            panel.set_title(PASS_TITLES[pass_], fontweight="bold", loc="left")
            panel.grid(axis="x", which="major", color="#e4e4e4")
            panel.set_axisbelow(True)
            panel.tick_params(axis="y", length=0)
        first = payload["rows"][0]
        batches = " or ".join(str(batch) for batch in sorted({item.batch for item in comparisons}))
        title = f"On a CPU: {TITLES[payload['group']]}, {first['dtype']}, batch {batches}"
        height = figure.get_figheight()
        figure.suptitle(
            f"{title}: shorter is better", fontsize=16, fontweight="bold", x=0.01, ha="left", y=1 - 0.16 / height
        )
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(0.005, 1 - 0.34 / height), ncols=4, frameon=False
        )
        caption = textwrap.wrap(
            "Orange figures: how many times faster than nn.Conv2d as users call it (NCHW), and than the faster of its "
            f"NCHW and channels_last. {peak}Medians of calls interleaved in one process; every output checked against "
            "float64 first. "
            f"{harness.describe(payload['meta'])}.",
            200,
        )
        figure.text(0.01, 0.09 / height, "\n".join(caption), fontsize=9, color="#555555", va="bottom")
        figure.tight_layout(rect=(0, 0.45 / height, 1, 1 - 0.5 / height))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _group(panel: Any, place: int, item: Comparison, bars: int) -> None:
    """The bars of one layer with their figures."""
    height = 0.82 / bars
    best = "(NCHW is its best)" if item.best_layout == "NCHW" else "(channels_last)"
    ratios = times(item.vs_default)
    if item.best_layout != "NCHW":
        ratios += f",  {times(item.vs_best)} vs best"
    values = (item.default, item.best, item.ours, item.direct)
    share = percent(item.direct_share)
    words = ("ms", f"ms {best}", "ms", f"ms  {share} of peak" if share else "ms")
    for index, ((label, colour), value, unit) in enumerate(zip(COLOURS.items(), values, words, strict=True)):
        if value is None:
            continue
        y = place + (index - (bars - 1) / 2) * height
        panel.barh(y, value, height * 0.92, color=colour, label=label if place == 0 else None)
        text = panel.annotate(
            f"{milliseconds(value)} {unit}",
            (value, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="#444444",
        )
        if index == 2:
            panel.annotate(
                ratios,
                (1, 0.5),
                xycoords=text,
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=13,
                fontweight="bold",
                color=colour,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, nargs="*", default=sorted(harness.RESULTS.glob("cpu_ops_*.json")))
    for result in parser.parse_args(arguments).results:
        draw(json.loads(result.read_text()), result.with_suffix(".png"))
        print(f"wrote {result.with_suffix('.png')}")


if __name__ == "__main__":
    main()
