"""What triton's compiler makes of the kernels for GPUs that are not there: registers, spills, tensor instructions."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch_pins

from replknet_ext.backends.triton import backend, device

SCRIPT = Path(__file__).resolve().parents[1] / "helpers" / "triton_compile.py"
ARCHS = (80, 90, 100, 120)
pytestmark = [
    pytest.mark.xdist_group("triton-compile"),
    pytest.mark.skipif(backend.WHY_NOT is not None, reason=str(backend.WHY_NOT)),
]
VERSION = "none" if backend.WHY_NOT else ".".join(metadata.version("triton").split(".")[:2])

# kernel -> registers at most, tensor instructions; each for sm_80, 90, 100, 120. HMMA of sm_80 and 120 is 16x8x16, the
# others' instructions are of a warp group or an SM. From `python tests/helpers/triton_compile.py --table`.
BUDGETS: dict[str, dict[str, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "3.9": {
        "fwd-56-k31-bf16": ((230, 166, 102, 180), (64, 4, 8, 64)),
        "fwd-14-k27-fp16": ((215, 156, 144, 186), (32, 2, 4, 32)),
        "fwd-7-k13-bf16": ((225, 210, 226, 238), (16, 4, 8, 16)),
        "fwd-28-k29-tf32": ((218, 218, 128, 179), (64, 4, 8, 64)),
        "fwd-56-k7-fp32": ((128, 128, 128, 96), (0, 0, 0, 0)),
        "weight-56-k31-bf16": ((238, 156, 118, 248), (64, 4, 8, 64)),
        "weight-28-k29-fp16-bias": ((255, 221, 168, 186), (64, 4, 8, 64)),
    },
    "3.8": {
        "fwd-56-k31-bf16": ((230, 166, 100, 180), (64, 4, 8, 64)),
        "fwd-14-k27-fp16": ((215, 155, 144, 186), (32, 2, 4, 32)),
        "fwd-7-k13-bf16": ((225, 229, 226, 238), (16, 4, 8, 16)),
        "fwd-28-k29-tf32": ((218, 218, 128, 179), (64, 4, 8, 64)),
        "fwd-56-k7-fp32": ((128, 128, 128, 96), (0, 0, 0, 0)),
        "weight-56-k31-bf16": ((242, 155, 118, 248), (64, 4, 8, 64)),
        "weight-28-k29-fp16-bias": ((246, 221, 168, 190), (64, 4, 8, 64)),
    },
    "3.7": {
        "fwd-56-k31-bf16": ((180, 166, 99, 180), (64, 4, 8, 64)),
        "fwd-14-k27-fp16": ((186, 155, 144, 184), (32, 2, 4, 32)),
        "fwd-7-k13-bf16": ((212, 229, 190, 240), (16, 4, 8, 16)),
        "fwd-28-k29-tf32": ((184, 226, 128, 179), (64, 4, 8, 64)),
        "fwd-56-k7-fp32": ((128, 128, 128, 96), (0, 0, 0, 0)),
        "weight-56-k31-bf16": ((186, 155, 118, 248), (64, 4, 8, 64)),
        "weight-28-k29-fp16-bias": ((255, 216, 168, 188), (64, 4, 8, 64)),
    },
    "3.6": {
        "fwd-56-k31-bf16": ((180, 165, 118, 180), (64, 4, 8, 64)),
        "fwd-14-k27-fp16": ((186, 157, 128, 185), (32, 2, 4, 32)),
        "fwd-7-k13-bf16": ((212, 229, 192, 240), (16, 4, 8, 16)),
        "fwd-28-k29-tf32": ((184, 226, 128, 180), (64, 4, 8, 64)),
        "fwd-56-k7-fp32": ((126, 127, 128, 96), (0, 0, 0, 0)),
        "weight-56-k31-bf16": ((186, 150, 120, 249), (64, 4, 8, 64)),
        "weight-28-k29-fp16-bias": ((255, 218, 166, 184), (64, 4, 8, 64)),
    },
}
#: Bytes that a block may have; code for 8.0 also runs on 8.6 and 8.9, which have less.
SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
#: Local memory instructions that a kernel may have, by triton and architecture: none, but for what is named here.
SPILLS: dict[str, dict[tuple[str, int], int]] = {
    "3.9": {
        ("fwd-28-k29-tf32", 100): 8,
        ("fwd-56-k7-fp32", 90): 2,
        ("fwd-56-k7-fp32", 100): 2,
        ("fwd-56-k7-fp32", 120): 2,
        ("weight-28-k29-fp16-bias", 80): 2,
    },
    "3.8": {("fwd-28-k29-tf32", 100): 8, ("fwd-56-k7-fp32", 100): 2},
    "3.7": {("fwd-28-k29-tf32", 100): 10},
    "3.6": {("fwd-14-k27-fp16", 100): 3},
}


@functools.cache
def compiled(capability: int) -> dict[str, dict[str, int]]:
    """The kernels on one architecture."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(capability)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, int]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def report(version: str, capability: int, found: dict[str, dict[str, int]]) -> None:
    """Of a triton that has no table yet, what was measured: one line among pytest's warnings."""
    values = ", ".join(f"{name} {row['registers']} ({row['spills']}, {row['tensor']})" for name, row in found.items())
    warnings.warn(f"no budgets for triton {version}; sm_{capability} registers (spills, mma): {values}", stacklevel=2)


def test_every_triton_of_a_known_torch_has_budgets() -> None:
    brought = {".".join(re.findall(r"\d+", pin)[:2]) for pin in torch_pins.TRITON.values()}
    first, last = device.OLDEST, backend.NEWEST
    tested = {f"{first[0]}.{minor}" for minor in range(first[1], last[1] + 1)}
    assert set(BUDGETS) == set(SPILLS) == tested
    assert brought <= tested


def test_a_triton_without_budgets_is_measured_and_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"registers": 99, "spills": 1, "shared": 1024, "tensor": 4}
    monkeypatch.setattr(sys.modules[__name__], "VERSION", "9.9")
    monkeypatch.setattr(sys.modules[__name__], "compiled", lambda capability: {"fwd": row, "weight": row})
    with pytest.warns(
        UserWarning, match=r"^no budgets for triton 9\.9; sm_90 .*: fwd 99 \(1, 4\), weight 99 \(1, 4\)$"
    ):
        test_kernels_keep_their_budgets(90)
    row["shared"] = SHARED[90] + 1
    with pytest.raises(AssertionError, match="shared memory"):
        test_kernels_keep_their_budgets(90)


@pytest.mark.slow  # minutes of compiling
@pytest.mark.parametrize("capability", ARCHS)
def test_kernels_keep_their_budgets(capability: int) -> None:
    found = compiled(capability)
    for name, row in found.items():
        assert row["shared"] <= SHARED[capability], f"{name}: more shared memory than a block may have"
    if VERSION not in BUDGETS:
        report(VERSION, capability, found)
        return
    assert set(BUDGETS[VERSION]) == set(found)
    column = ARCHS.index(capability)
    for name, (registers, tensor) in BUDGETS[VERSION].items():
        row, spills = found[name], SPILLS[VERSION].get((name, capability), 0)
        assert row["spills"] <= spills, f"{name}: {row}, {spills} spills allowed"
        assert row["registers"] <= registers[column], f"{name}: {row}, budget {registers[column]} registers"
        assert row["tensor"] == tensor[column], f"{name}: {row}, {tensor[column]} tensor instructions expected"


def test_wide_planes_are_copied_asynchronously_and_multiplied_by_tensor_cores() -> None:
    for name, row in compiled(90).items():
        strict = name.endswith("fp32")
        assert (row["tensor"] > 0) == (not strict), name
        assert (row["async"] > 0) == (not strict and "-7-" not in name), f"{name}: rows of 7 can't be copied so"
