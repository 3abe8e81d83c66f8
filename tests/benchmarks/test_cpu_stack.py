"""The paper's Table 1: what is timed is right, is what the label says, and is shown in the paper's form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import cpu_stack, harness
from benchmarks.cpu_problem import OPERATORS, OURS, TORCH


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return cpu_stack.measure(6, 5, batch=2, rounds=1, channels=3)


def test_both_are_timed_on_both_layouts(rows: list[dict[str, Any]]) -> None:
    layouts = [(provider, layout) for provider in (TORCH, OURS) for layout in ("NCHW", "channels_last")]
    assert [(row["provider"], row["layout"]) for row in rows] == layouts
    assert all(0 < row["error"] < cpu_stack.LIMIT for row in rows)


def test_table_takes_the_better_layout(rows: list[dict[str, Any]]) -> None:
    fixed = [{**row, "median_ms": ms} for row, ms in zip(rows, (8.0, 6.0, 3.0, 2.0), strict=True)]
    shown = cpu_stack.table({"rows": fixed, "meta": harness.metadata()})
    assert "| 6x6, `nn.Conv2d`, best layout | 6 |" in shown
    assert "| 6x6, ours, best layout | 2 |" in shown and "| speed-up | **3.0x** |" in shown


def test_another_operator_and_a_wrong_result_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, OURS, OPERATORS[TORCH])
    with pytest.raises(harness.BenchmarkError, match="did not run"):
        cpu_stack.measure(6, 5, batch=1, rounds=1, channels=3)
    monkeypatch.undo()
    build = cpu_stack.stack

    def wrong(provider: str, weights: torch.Tensor) -> torch.nn.Sequential:
        return build(provider, weights + (0.01 if provider == OURS else 0))

    monkeypatch.setattr(cpu_stack, "stack", wrong)
    with pytest.raises(harness.BenchmarkError, match="relative error"):
        cpu_stack.measure(6, 5, batch=1, rounds=1, channels=3)
