"""The cost models' first choice against measured times, and the benchmark that measures them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")

from benchmarks import harness, shapes, tuning
from replknet_ext import HAS_EXT
from replknet_ext.backends import PASSES

FILES = sorted(harness.RESULTS.glob("tuning_*.json"))

#: The first choice's time over the best one's: of every pass, and over all of them. CPU times of two processes on two
#: cores differ by a few percent from run to run, and so may what is best of two kernels that are as good.
LIMITS = {"gpu": (1.10, 1.05), "cpu": (1.25, 1.10)}


def shortcomings(content: dict[str, Any]) -> list[str]:
    """What a file says against the cost model."""
    worst, mean = LIMITS["cpu" if "isa" in content["device"] else "gpu"]
    found = []
    for row in content["rows"]:
        times = {c["name"]: c["us"] for c in row["candidates"] if c["us"] is not None and c["failed"] is None}
        ratio = times[row["candidates"][0]["name"]] / min(times.values())
        assert abs(ratio - row["first_over_best"]) <= 2e-3 * ratio, "the file is made of its own numbers"
        if ratio > worst:
            found.append(f"{row['problem']}: {row['first']} takes {ratio:.2f} times as long as {row['best']}")
    if content["summary"]["geometric_mean"] > mean:
        found.append(f"{content['summary']['geometric_mean']} on average")
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
    assert len(shortcomings(bad)) == 13
    bad["device"] = {"device": "NVIDIA H200"}
    assert len(shortcomings(bad)) == 13
