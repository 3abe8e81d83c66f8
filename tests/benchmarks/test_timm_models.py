"""benchmarks/timm_models.py: a run from end to end, its table, and what it refuses to time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import harness, readme, timm_models
from replknet_ext import DepthwiseConv2dLarge


@pytest.mark.slow  # minutes, most of them timm and torch in NCHW
def test_quick_run_and_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timm_models_test.json"
    assert timm_models.main(["--quick", "--output", str(path)]) == 0
    payload = harness.read_json(path)
    rows = payload["rows"]
    assert [(row["model"], row["what"], row["layout"]) for row in rows] == [
        (name, what, layout)
        for name in timm_models.SMALL
        for what in timm_models.WHATS
        for layout in ("NCHW", "channels_last")
    ]
    assert all(row["layers"] > 0 and row["speedup"] > 0 for row in rows)
    table = timm_models.table(payload)
    assert f"| {timm_models.SMALL[0]} | {rows[0]['layers']} | " in table
    assert all(payload["meta"][key] in table for key in ("cpu", "commit", "torch", "timm", "command"))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)  # what the page shows comes from the files
    assert table in readme.section()


def test_wrong_results_are_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DepthwiseConv2dLarge._conv_forward
    monkeypatch.setattr(DepthwiseConv2dLarge, "_conv_forward", lambda *args: right(*args) * 1.1)
    images, labels = torch.randn(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    with pytest.raises(harness.BenchmarkError, match=rf"{timm_models.MODELS[0]}.*relative error"):
        timm_models.measure(timm_models.MODELS[0], "inference", images, labels, 0.01)
