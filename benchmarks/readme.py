"""Writes the tables of README.md, docs/benchmarks.md and results/README.md: `python -m benchmarks.readme [--check]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import cpu_stack, harness, runtimes, timm_models
from benchmarks.cpu_cases import GROUPS, TITLES
from benchmarks.cpu_compare import compare, geomean, milliseconds, percent, times
from benchmarks.cpu_problem import LAYOUTS, OURS, TORCH
from benchmarks.shapes import PASSES

BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.readme) -->", "<!-- benchmarks: end -->"
README = harness.ROOT / "README.md"
PAGE = harness.ROOT / "docs/benchmarks.md"
MISSED = harness.ROOT / "benchmarks/results/README.md"
#: The figures of a goal.
FIGURES = {
    "vs_best": "times faster than `nn.Conv2d` in its best layout",
    "vs_default": "times faster than `nn.Conv2d` as called",
    "direct_share": "direct kernel's share of the FMA peak",
    "vs_float32": "times faster than ours in float32",
}


def cpu_table(payload: dict[str, Any]) -> str:
    """One results file as a Markdown table with its machine below."""
    first = payload["rows"][0]
    items = compare(payload["rows"])
    cold = any(item.ours_cold for item in items)
    lines = [
        f"| {first['dtype']}, batch {first['batch']}, ms | pass | `nn.Conv2d` | `nn.Conv2d`, best layout | ours "
        "| vs default | vs best | direct kernel, of FMA peak |" + " cold: best layout | ours | vs best |" * cold,
        "|---|---|--:|--:|--:|--:|--:|--:|" + "--:|--:|--:|" * cold,
    ]
    previous = ""
    for item in items:
        name = "" if item.layer == previous else item.layer
        previous = item.layer
        best = "same" if item.best_layout == "NCHW" else milliseconds(item.best)
        lines.append(
            f"| {name} | {item.pass_} | {milliseconds(item.default)} | {best} | {milliseconds(item.ours)} "
            f"| **{times(item.vs_default)}** | {times(item.vs_best)} | {percent(item.direct_share)} |"
            + (
                f" {milliseconds(item.best_cold)} | {milliseconds(item.ours_cold)} | {times(item.vs_best_cold)} |"
                if item.best_cold and item.ours_cold and item.vs_best_cold
                else " | | |" * cold
            )
        )
    meta = payload["meta"]
    return "\n".join([*lines, "", f"<sub>{harness.describe(meta)}. `{meta['command']}`</sub>"])


def summary(payloads: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """One line per results file: speed-ups over torch's best layout, geometric mean and worst layer."""
    lines = [
        "| against `nn.Conv2d` in its best layout: mean (worst layer) | fwd | bwd_input | bwd_weight |",
        "|---|--:|--:|--:|",
    ]
    for name, payload in payloads:
        cells = []
        for pass_ in PASSES:
            ratios = [item.vs_best for item in compare(payload["rows"]) if item.pass_ == pass_]
            cells.append(f"**{times(geomean(ratios))}** ({times(min(ratios))})")
        isa = payload["meta"]["kernel_isa"]
        title = f"{TITLES[payload['group']]}{f'; ours {isa}' if isa != 'avx512' else ''}"
        lines.append(f"| [{title}](../benchmarks/results/{name}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def model_table(payload: dict[str, Any]) -> str:
    """A whole model: milliseconds of each provider and layout, and the speed-ups."""
    lines = [
        "| RepLKNet-31B, float32, batch {batch}, ms | `nn.Conv2d` | channels_last | ours | channels_last | vs default "
        "| vs best | depthwise layers take |".format(**payload["rows"][0]),
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for what in dict.fromkeys(row["what"] for row in payload["rows"]):
        rows = {(row["provider"], row["layout"]): row for row in payload["rows"] if row["what"] == what}
        cells = [milliseconds(rows[provider, layout]["median_ms"]) for provider in (TORCH, OURS) for layout in LAYOUTS]
        cells += [f"**{times(goal['measured'])}**" for goal in payload["goals"] if goal["what"] == what]
        ours = min((row for row in rows.values() if row["provider"] == OURS), key=lambda row: float(row["median_ms"]))
        lines.append(f"| {what} | {' | '.join(cells)} | {percent(ours['depthwise_share'])} |")
    meta = payload["meta"]
    return "\n".join([*lines, "", f"<sub>{harness.describe(meta)}. `{meta['command']}`</sub>"])


def section() -> str:
    """Everything, for docs/benchmarks.md: the whole model, the main group with its picture, a line per results
    file, whole networks beside other runtimes, the paper's Table 1, and timm's networks."""
    files = sorted(harness.RESULTS.glob("cpu_ops_*.json"))
    payloads = [(path.name, json.loads(path.read_text())) for path in files]
    order = list(GROUPS)
    payloads.sort(key=lambda item: (order.index(item[1]["group"]), item[1]["meta"]["kernel_isa"] != "avx512"))
    parts = [model_table(json.loads(path.read_text())) for path in sorted(harness.RESULTS.glob("cpu_model_*.json"))]
    for name, payload in payloads:
        if payload["group"] == "main" and payload["meta"]["kernel_isa"] == "avx512":
            parts.append(cpu_table(payload))
            picture = (harness.RESULTS / name).with_suffix(".png")
            if picture.exists():
                parts.append(
                    f"![The same figures as a bar chart]({picture.relative_to(harness.ROOT).as_posix()})".replace(
                        "](", "](../"
                    )
                )
    if payloads:
        parts.append(summary(payloads))
    parts += [runtimes.table(harness.read_json(path)) for path in sorted(harness.RESULTS.glob("runtimes_*.json"))]
    parts += [cpu_stack.table(harness.read_json(path)) for path in sorted(harness.RESULTS.glob("cpu_stack_*.json"))]
    parts += [timm_models.table(harness.read_json(path)) for path in sorted(harness.RESULTS.glob("timm_models_*.json"))]
    return "\n\n".join(parts) or "No results stored yet."


def missed() -> str:
    """One line per results file and figure that has goals: how many are met, and by how much the others are missed."""
    lines = ["| results | figure | goals met | missed: measured, goal |", "|---|---|--:|---|"]
    for path in sorted(harness.RESULTS.glob("cpu_*.json")):
        goals = harness.read_json(path).get("goals", [])
        for figure in dict.fromkeys(goal["figure"] for goal in goals):
            of_figure = [goal for goal in goals if goal["figure"] == figure]
            short = [
                f"{goal.get('what') or goal['layer'] + ' ' + goal['pass']} "
                f"{goal['measured']:.3g}, {goal['at_least']:.3g}"
                for goal in of_figure
                if not goal["kept"]
            ]
            met = f"{len(of_figure) - len(short)} of {len(of_figure)}"
            lines.append(f"| [{path.stem}]({path.name}) | {FIGURES[figure]} | {met} | {'; '.join(short)} |")
    return "\n".join(lines)


def headline() -> str:
    """README.md's one table: the whole model in each provider's best layout, then its layers, forward and backward."""
    lines = ["| float32, batch {batch}, ms | `nn.Conv2d`, best layout | ours | speed-up |", "|---|--:|--:|--:|"]
    metas: list[dict[str, Any]] = []
    for path in sorted(harness.RESULTS.glob("cpu_model_*.json")):
        payload = json.loads(path.read_text())
        metas.append(payload["meta"])
        batch = payload["rows"][0]["batch"]
        lines[0] = lines[0].replace("{batch}", str(batch))
        for what in dict.fromkeys(row["what"] for row in payload["rows"]):
            best = [
                min(row["median_ms"] for row in payload["rows"] if (row["what"], row["provider"]) == (what, provider))
                for provider in (TORCH, OURS)
            ]
            cells = [milliseconds(best[0]), milliseconds(best[1]), f"**{times(best[0] / best[1])}**"]
            lines.append(f"| RepLKNet-31B, {what} | {' | '.join(cells)} |")
    for path in sorted(harness.RESULTS.glob("cpu_ops_main_avx512_*.json")):
        payload = json.loads(path.read_text())
        metas.append(payload["meta"])
        for item in compare(payload["rows"]):
            cells = [milliseconds(item.best), milliseconds(item.ours), f"**{times(item.vs_best)}**"]
            lines.append(f"| {item.layer}, {item.pass_} | {' | '.join(cells)} |")
    if not metas:
        return "No results stored yet."
    commits = " and ".join(dict.fromkeys(meta["commit"] for meta in metas))
    return "\n".join([*lines, "", f"<sub>{harness.describe({**metas[0], 'commit': commits})}</sub>"])


def render(text: str, tables: str) -> str:
    """A page's text with the part between the markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError("the page needs each benchmark marker exactly once")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; with --check, 1 if a page is not what the results say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a page is out of date")
    options = parser.parse_args(arguments)
    stale = 0
    for page, tables in ((README, headline()), (PAGE, section()), (MISSED, missed())):
        old = page.read_text()
        new = render(old, tables)
        stale |= new != old
        if not options.check:
            page.write_text(new)
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
