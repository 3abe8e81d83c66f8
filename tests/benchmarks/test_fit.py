"""The fit of the planners' constants, to times that planners with other constants make up."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import fit, gpu_ceilings, gpu_plan
from benchmarks.harness import ROOT
from benchmarks.shapes import MAIN, SMALL_KERNEL
from replknet_ext import _ext

TRUTH = {"kClockMHz": 1600.0, "kMmaCycles": 5.9, "kGlobalBytes": 19.5, "kL2Bytes": 30.0,
         "kStartCycles": 3600.0, "kSecondLaunch": 4800.0, "kExposed": 0.55, "kCopyShare": 0.8,
         "kWgmmaCycles": 72.0}  # fmt: skip
CEILINGS = {
    "multiprocessors": 132,
    "copy_tb_per_s": 19.5 * 132 * 1600e6 * 1e-12,
    "transposes": {
        f"{way}, {size} bytes": {"own_tb_per_s": share * 19.5 * 132 * 1600e6 * 1e-12}
        for way, size, share in (("to NCHW", 2, 0.8), ("to channels_last", 2, 0.9), ("to NCHW", 4, 0.7))
    },
    "l2_bytes_per_cycle": {"32": 30.0, "16": 28.0, "4": 27.0},
    "wgmma": [
        {"n": 128, "a": "shared memory", "tflops": 900.0, "sm_ghz": 1.6},
        {"n": 64, "a": "registers", "tflops": 900.0, "sm_ghz": 1.6},
        {"n": 128, "a": "registers", "tflops": 700.0, "sm_ghz": 1.6},
        {"n": 128, "a": "registers", "tflops": 2 * 64 * 128 * 16 * 132 * 1.6e-3 / 72, "sm_ghz": 1.6},
    ],
    "registers_only": [
        {"unit": "mma bf16, A and B fixed", "cycles_per_mma": 4.0, "sm_ghz": 1.9},
        {"unit": "mma bf16, A fixed", "cycles_per_mma": 6.3, "sm_ghz": 1.6},
        {"unit": "mma bf16, A fixed", "cycles_per_mma": 5.9, "sm_ghz": 1.6},
    ],
}


def run_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A results file of benchmarks/gpu.sh."""
    return {
        "started": "2030-01-02 03:04:05 UTC",
        "steps": {
            "device": {"limits": asdict(gpu_plan.H200)},
            "ceilings": CEILINGS,
            "table: main": {"results": rows},
        },
    }


@pytest.mark.slow  # compiles the planners
@pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")
def test_constants_are_found_again(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    truth = fit.Model(tmp_path / "truth")
    as_built = fit.Measured(MAIN[0], "fwd", "bfloat16", 0, "", 0.0)
    expected = gpu_plan.plan(MAIN[0], variant=0).cycles / truth.constants["kClockMHz"]
    assert truth.us(as_built, gpu_plan.H200) == pytest.approx(expected, rel=1e-5)
    truth.set(TRUTH)
    rows = []
    for layer in (*MAIN, SMALL_KERNEL):
        for pass_ in ("fwd", "bwd_input", "bwd_weight"):
            timed = []
            for variant, plan in gpu_plan.supported(layer, pass_, "bfloat16").items():
                us = truth.us(fit.Measured(layer, pass_, "bfloat16", variant, plan.name, 0.0), gpu_plan.H200)
                assert us is not None
                timed.append({"route": f"ours {plan.name}", "variant": variant, "cold": {"median_us": us}})
            timed.append({"route": "torch nchw", "variant": -1, "cold": {"median_us": 1.0}})  # of no interest
            rows.append({**asdict(layer), "pass": pass_, "numbers": "bfloat16", "rows": timed})
    (tmp_path / "model").mkdir()
    model = fit.Model(tmp_path / "model")
    found, before, after = fit.fit(run_of(rows), model)
    assert set(found) == set(TRUTH)
    for name, value in TRUTH.items():
        assert found[name][0] == pytest.approx(value, rel=0.02), name
    assert after.error < 0.01 < 0.05 < before.error
    assert after.regret < 1.001


def test_a_run_without_times_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "run.json"
    empty.write_text(json.dumps(run_of([])))
    assert not fit.measured_rows(json.loads(empty.read_text()))
    missing = tmp_path / "nothing.json"
    assert fit.main([str(missing)]) == 2
    assert "nothing.json" in capsys.readouterr().err


def test_the_header_keeps_its_comments_and_names_the_source() -> None:
    text = fit.MODEL.read_text()
    assert set(TRUTH) < set(fit.constants(text))
    once = fit.rewritten(text, {"kL2Bytes": (31.5, "reads of whole sectors from L2")}, "run.json, 2030-01-02")
    line = next(line for line in once.split("\n") if "kL2Bytes =" in line)
    assert line.startswith("constexpr double kL2Bytes = 31.5;  // an SM's share of L2 bandwidth")
    assert line.endswith("[reads of whole sectors from L2, run.json, 2030-01-02]")
    assert fit.constants(once) == {**fit.constants(text), "kL2Bytes": 31.5}
    twice = fit.rewritten(once, {"kL2Bytes": (30.0, "s")}, "r")
    assert next(line for line in twice.split("\n") if "kL2Bytes =" in line).endswith("[s, r]")
    assert twice.count("[") == once.count("[") == text.count("[") + 1


def test_ceilings_ask_for_what_the_library_has() -> None:
    """Names of functions and kinds, which nothing else holds together without a GPU."""
    source = (ROOT / "benchmarks/ceilings.cu").read_text()
    python = Path(gpu_ceilings.__file__).read_text()
    exported = set(re.findall(r'extern "C" int (\w+)\(', source))
    assert set(re.findall(r'"(\w+)", (?:kind|n|piece|loads|size)\b', python)) | {"dsmem_rates"} == exported
    assert [kind for _, kind, _ in gpu_ceilings.REGISTERS] == list(range(source.count("mma_rate<") - 2 + 1))
    for piece in gpu_ceilings.PIECES:
        assert f"l2_rate<{piece}>" in source


def test_periodic_a_is_the_matrix_that_its_descriptor_reads() -> None:
    """Core matrix (i, j), at 128 (i + j) bytes, is block i + j."""
    blocks = torch.arange(9 * 64).reshape(9, 8, 8)
    flat = blocks.flatten()
    m, k = torch.meshgrid(torch.arange(64), torch.arange(16), indexing="ij")
    read = flat[64 * (m // 8 + k // 8) + m % 8 * 8 + k % 8]
    a = torch.cat([torch.cat([blocks[i], blocks[i + 1]], 1) for i in range(8)])
    assert torch.equal(read, a)


def test_a_layer_that_failed_is_passed_over() -> None:
    """As the table writes it: its name and its reason alone."""
    right = {**asdict(MAIN[0]), "pass": "fwd", "numbers": "bfloat16"}
    right["rows"] = [
        {"route": "ours one", "variant": 3, "cold": {"median_us": 2.0}},
        {"route": "ours two", "variant": 4},
    ]
    found = fit.measured_rows(run_of([{"layer": "N1", "numbers": "bfloat16", "failed": "no memory"}, right]))
    assert [(row.variant, row.us) for row in found] == [(3, 2.0)]
