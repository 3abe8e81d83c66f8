"""The Triton kernels in triton's interpreter: values, tiles, gradients, torch.compile; one process per group."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton_interpreter
from cases import CASES

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
GROUPS = ("table", "tiles", "values", "around")

pytestmark = [
    pytest.mark.xdist_group("triton"),  # each process of the interpreter once
    triton_interpreter.needed,
]


@functools.cache
def results(group: str) -> dict[str, str | None]:
    """Every check of a group: None, or what went wrong."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HELPERS / "triton_interpreted.py"), group]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, str | None] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "group", [pytest.param(g, marks=pytest.mark.slow) if g in ("table", "tiles", "around") else g for g in GROUPS]
)
def test_checks_in_the_interpreter(group: str) -> None:
    found = results(group)
    least = {"table": 60, "tiles": 12, "values": 13, "around": 8}[group]
    assert len(found) >= least, sorted(found)
    wrong = {name: error for name, error in found.items() if error is not None}
    assert not wrong, "\n".join(f"{name}: {error}" for name, error in list(wrong.items())[:5])


@pytest.mark.slow
def test_the_table_is_covered_whole() -> None:
    small = [c for c in CASES if c.h * c.w * min(c.kh, 2 * c.h) * min(c.kw, 2 * c.w) <= 200_000]
    missing = [case.name for case in small if not any(name.startswith(f"{case.name}-") for name in results("table"))]
    assert missing == []
