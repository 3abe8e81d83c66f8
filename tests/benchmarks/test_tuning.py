"""The cost models' first choice and order against measured times, and the benchmark that measures them."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")

from benchmarks import harness, shapes, tuning
from replknet_ext import HAS_EXT
from replknet_ext.backends import PASSES

FILES = sorted(harness.RESULTS.glob("tuning_*.json"))

#: The first choice's time over the best one's: of every pass, and over all of them.
WORST, MEAN = 1.10, 1.05
#: Of the pairs of candidates whose times differ by this factor, the share that the model may have in the wrong order.
APART, MISPLACED = 1.25, 0.10


def shortcomings(content: dict[str, Any]) -> list[str]:
    """What a file says against the cost model."""
    found = []
    pairs: list[tuple[float, float]] = []
    for row in content["rows"]:
        times = {c["name"]: c["us"] for c in row["candidates"] if c["us"] is not None and c["failed"] is None}
        ratio = times[row["candidates"][0]["name"]] / min(times.values())
        assert abs(ratio - row["first_over_best"]) <= 2e-3 * ratio, "the file is made of its own numbers"
        pairs += itertools.combinations(times.values(), 2)  # as the model orders them
        if ratio > WORST:
            found.append(f"{row['problem']}: {row['first']} takes {ratio:.2f} times as long as {row['best']}")
    if content["summary"]["geometric_mean"] > MEAN:
        found.append(f"{content['summary']['geometric_mean']} on average")
    clear = [(one, other) for one, other in pairs if max(one, other) > APART * min(one, other)]
    wrong = sum(one > other for one, other in clear)
    if wrong > MISPLACED * len(clear):
        found.append(f"{wrong} of {len(clear)} pairs in the wrong order")
    assert tuning.summary(content["rows"]) == content["summary"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_first_choice_is_good_on_measured_data(path: Path) -> None:
    content = harness.read_json(path)
    assert content["rows"] and "measured" not in content.get("kind", "measured").removeprefix("measured")
    assert shortcomings(content) == []


@pytest.mark.skipif(not HAS_EXT, reason="the compiled extension is not installed")
def test_the_benchmark_on_small_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [shapes.square(1, 8, 7, 5), shapes.Layer(2, 4, 9, 8, 5, 3)]
    monkeypatch.setattr(tuning, "CPU_LAYERS", layers)
    output = tmp_path / "out.json"
    for part in ("1/2", "2/2"):
        options = ["--device", "cpu", "--part", part, "--seconds", "0.1", "--output", str(output)]
        assert tuning.main(options) == 0
    content = json.loads(output.read_text())
    assert [row["pass"] for row in content["rows"]] == [*PASSES] * 4, "two layers in two layouts"
    assert len({row["problem"] for row in content["rows"]}) == 12
    assert content["summary"]["passes"] == 12 and content["device"]["isa"]
    for row in content["rows"]:
        assert row["candidates"][0]["name"] == row["first"] and row["first_over_best"] >= 1.0
        assert all(c["us"] > 0 for c in row["candidates"] if not c["failed"])
    # And the check sees a bad first choice.
    bad = copy.deepcopy(content)
    for row in bad["rows"]:
        row["candidates"] = [{**row["candidates"][0], "us": 3.0}, {**row["candidates"][0], "name": "better", "us": 2.0}]
        row["first_over_best"] = 1.5
    bad["summary"] = tuning.summary(bad["rows"])
    assert len(shortcomings(bad)) == 12 + 2, "of each pass, on average, and the order"
    for row in bad["rows"][1:]:
        row["candidates"].reverse()
        row["first_over_best"] = 1.0
    bad["summary"] = tuning.summary(bad["rows"])
    assert len(shortcomings(bad)) == 1, "one pass alone"
