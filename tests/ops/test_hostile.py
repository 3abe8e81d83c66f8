"""Hostile numbers, names and devices in calls of the extension: a right result, or an error that names the argument."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from replknet_ext import _ext

pytestmark = pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")

H200 = {"capability": 90, "multiprocessors": 132, "shared_per_block": 227 << 10, "shared_per_sm": 228 << 10}
SIZES = [2, 8, 16, 16, 5, 5, 16, 16, 2, 2]


def make_calls(seed: int, count: int, tmp_path: Path) -> dict[str, int]:
    """Makes the calls in a process of its own, and says with which it died."""
    log = tmp_path / "call"
    script = Path(__file__).parents[1] / "helpers" / "hostile_calls.py"
    command = [sys.executable, str(script), str(seed), str(count), str(log)]
    environment = {**os.environ, "PYTHONPATH": str(Path(_ext.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    last = log.read_text().strip() if log.exists() else ""
    assert done.returncode >= 0, f"killed by signal {-done.returncode} in call {last}"
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-2000:]}\nlast call {last}"
    ends: dict[str, int] = json.loads(done.stdout)
    return ends


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory by /proc")
def test_hostile_calls(tmp_path: Path) -> None:
    ends = make_calls(0, 60, tmp_path)
    assert sum(ends.values()) == 60
    assert min(ends["result"], ends["refused"]) > 10, "both kinds of call are there"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory by /proc")
@pytest.mark.parametrize("seed", range(1, 3))
def test_more_hostile_calls(seed: int, tmp_path: Path) -> None:
    make_calls(seed, 1550, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pass_", ["fwd", "bwd_input", "bwd_weight"])
def test_cuda_plans_of_no_device_and_no_batch(pass_: str, dtype: torch.dtype) -> None:
    """Each divided by zero and killed the process."""
    for precision in ("ieee", "tf32"):
        none = _ext.cuda_plan(SIZES, dtype, pass_, precision, "auto", {**H200, "multiprocessors": 0})
        assert none == {"unsupported": "the device has no multiprocessors"}
        empty = _ext.cuda_plan([0, *SIZES[1:]], dtype, pass_, precision, "auto", H200)
        one = _ext.cuda_plan([1, *SIZES[1:]], dtype, pass_, precision, "auto", H200)
        assert empty["variant"] == one["variant"]


@pytest.mark.parametrize("limit", [2**24 + 1, 2**31, 2**32, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize("key", H200)
def test_limits_that_no_device_has_are_refused(key: str, limit: int) -> None:
    """2^32 multiprocessors were 0 of them: the number was cut to 32 bits."""
    with pytest.raises(RuntimeError, match=rf"limits must lie between 0 and 2\^24, got {limit}"):
        _ext.cuda_plan(SIZES, torch.float32, "fwd", "ieee", "auto", {**H200, key: limit})


@pytest.mark.parametrize("variant", [2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, -2, -(2**63)])
def test_variants_of_plans_are_not_cut_to_32_bits(variant: int) -> None:
    message = rf"variant must be the number of a variant of the backend, or -1 to have one chosen; got {variant}"
    with pytest.raises(RuntimeError, match=message):
        _ext.cpu_plan(SIZES, torch.float32, "fwd", "auto", 1, variant)
    with pytest.raises(RuntimeError, match=message):
        _ext.cuda_plan(SIZES, torch.float32, "fwd", "ieee", "auto", H200, variant)
