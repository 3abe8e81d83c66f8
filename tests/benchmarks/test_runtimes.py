"""benchmarks/runtimes.py: a run from end to end, its table, and what it refuses to time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import harness, readme, runtimes
from benchmarks.cpu_problem import OURS, TORCH


def small(_name: str = "") -> nn.Module:
    layers = (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers)


@pytest.mark.slow  # torch.compile
def test_run_and_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runtimes_test.json"
    monkeypatch.setattr(runtimes, "build", small)
    assert runtimes.main(["--quick", "--output", str(path)]) == 0
    payload = harness.read_json(path)
    rows = payload["rows"]
    providers = [row["provider"] for row in rows]
    assert providers[:6] == [TORCH, TORCH, f"{TORCH}, compiled", OURS, OURS, f"{OURS}, compiled"]
    assert "onnxruntime" in providers  # installed for the tests
    assert all(row["median_ms"] > 0 and row["error"] < 1e-4 and row["peak_bytes"] >= 0 for row in rows)
    table = runtimes.table(payload)
    assert all(payload["meta"][key] in table for key in ("cpu", "commit", "torch", "command"))
    monkeypatch.setattr(harness, "RESULTS", tmp_path)  # what the page shows comes from the files
    assert table in readme.section()


def test_a_table_shows_losses_and_gaps() -> None:
    meta = {**harness.metadata(), "packages": {"onnxruntime": "1"}}
    common = {"model": "net", "batch": 1, "size": 8, "layout": "NCHW"}
    ms = {TORCH: 4.0, "onnxruntime": 1.0, OURS: 2.0}
    rows = [{**common, "what": "inference", "provider": name, "median_ms": value} for name, value in ms.items()]
    rows += [{**rows[0], "layout": "channels_last", "median_ms": 3.0}]
    rows += [{**row, "what": "training step"} for row in rows if row["provider"] != "onnxruntime"]
    lines = runtimes.table({"rows": rows, "meta": meta}).splitlines()
    assert lines[2] == "| net, inference | 1 | 4 | 3 | **1** | 2 | 0.50x |"
    assert lines[3] == "| net, training step | 1 | 4 | 3 |  | **2** | 1.5x |"


def test_wrong_results_and_wrong_operators_are_refused() -> None:
    images, labels = torch.randn(1, 3, 16, 16), torch.zeros(1, dtype=torch.long)
    model = small().eval()
    exact = [model(images).detach()]
    plain = runtimes.in_torch(TORCH, "NCHW", "inference", model, images, labels)
    assert runtimes.check(plain, exact, 0.0)[0] < 1e-6
    with pytest.raises(harness.BenchmarkError, match="relative error"):
        runtimes.check(plain, [exact[0] * 1.01], 0.0)
    with pytest.raises(harness.BenchmarkError, match="did not run"):
        runtimes.check(runtimes.in_torch(OURS, "NCHW", "inference", model, images, labels), exact, 0.0)


def test_peak_memory_sees_what_a_call_needs() -> None:
    if harness.peak_memory(lambda: None) is None:
        pytest.skip("the system does not tell")
    large = harness.peak_memory(lambda: torch.zeros(64 << 20, dtype=torch.uint8))
    assert large is not None and 56 << 20 < large < 128 << 20
