"""The benchmark of the trainer's overhead: that it compares the same steps, and that it sees a trainer that is slow."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate")

from benchmarks import trainer
from benchmarks.harness import BenchmarkError
from replknet_ext.tools import timing


def run(output: Path) -> int:
    return trainer.main(["short steps", "--rounds", "2", "--output", str(output)])


def test_a_slow_trainer_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, clock = trainer.Run.one_step, [0.0]  # a clock of its own: a busy machine has no part in this

    def tick(seconds: float = 0.01) -> float:
        clock[0] += seconds
        return clock[0]

    def slow(*arguments: Any) -> float:
        tick(0.1)
        return real(*arguments)

    monkeypatch.setattr(trainer.Run, "one_step", slow)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=tick))
    assert run(tmp_path / "out.json") == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"cpu", "commit", "command", "torch"} <= found["meta"].keys()
    row = found["rows"][0]
    assert not row["kept"] and row["extra_ms"] > row["allowed_ms"] >= 5.0 and row["bare"]["samples"] == 2


def test_another_step_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.Run.one_step
    monkeypatch.setattr(trainer.Run, "one_step", lambda *arguments: real(*arguments) * 1.1)
    with pytest.raises(BenchmarkError, match="the first losses differ"):
        run(tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
