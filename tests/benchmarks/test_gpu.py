"""The GPU benchmark without a GPU: its dry run, its failures, and its table on stand-ins for the CUDA runtime."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_cuda import CUDNN_KERNEL, NATIVE_KERNEL, OUR_KERNEL, TINY, FakeGraph

from benchmarks import gpu_cases, gpu_ops, gpu_plan, gpu_routes, gpu_table, roofline
from benchmarks.gpu_ops import Step
from benchmarks.harness import ROOT
from benchmarks.shapes import GROUPS, MAIN, NUMBERS, PASSES

# ---- dry run and command line ----


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [str(ROOT / "benchmarks/gpu.sh"), *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


def test_dry_run() -> None:
    done = shell("--dry-run")
    assert done.returncode == 0, done.stderr
    for step in gpu_ops.STEPS:
        assert step.name in done.stdout
    for layer in MAIN:
        assert layer.name in done.stdout
    for word in ("PREDICTION", "torch nchw", "torch nhwc", "cudnn nchw", "ours auto", *gpu_plan.variants()):
        assert word in done.stdout


@pytest.mark.parametrize("limit", [240, 540, 840])
def test_a_dry_run_of_a_limit(limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What decides most comes first, and no step is planned beyond the limit."""
    assert gpu_ops.main(["--dry-run", "--limit", str(limit)]) == 0
    shown = capsys.readouterr().out
    assert f"{'quick' if limit < 300 else 'full'} run of at most {limit} s" in shown
    planned = gpu_ops.schedule(limit < 300, limit)
    assert [step.name for step, _, _ in planned][:3] == ["device", "build", "smoke"]
    assert all(start + budget <= limit for _, start, budget in planned)
    reached = [step.name for step, _, budget in planned if budget]
    assert reached == [step.name for step, _, _ in planned][: len(reached)]
    assert {"tests", "sanitizer"} <= set(reached) if limit < 500 else {"ceilings", "table: main"} <= set(reached)
    for name in reached:
        assert name in shown


def test_a_limit_too_short_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_ops.main(["--dry-run", "--limit", "3"])
    assert "--limit must be at least 8 seconds, got 3" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    done = shell("--quick", str(output))
    assert done.returncode == 2, done.stderr
    found = json.loads(output.read_text())
    assert found["status"] == "no GPU"
    assert "no CUDA device" in found["steps"]["device"]["failed"]


def test_every_step_fits_its_run() -> None:
    for quick, limit in ((False, gpu_ops.LIMIT), (True, gpu_ops.QUICK_LIMIT)):
        assert limit <= (180 if quick else 480) - 15, "a step that is stopped needs a little longer"
        assert all(budget <= limit for _, budget in gpu_ops.chosen(quick))
    measured = {step.group for step in gpu_ops.STEPS if step.group}
    assert measured == set(GROUPS)


EARLY = "table: ring and wgmma"


def test_what_is_right_is_known_before_times_are_taken() -> None:
    """Also in the shortest run, which once left neither tests nor sanitizer any time."""
    for quick in (False, True):
        names = [step.name for step, _ in gpu_ops.chosen(quick)]
        first_table = next(i for i, name in enumerate(names) if name.startswith("table") and name != EARLY)
        assert {"smoke", "tests", "sanitizer"} <= set(names[:first_table])


def test_the_first_five_minutes_decide_on_wgmma() -> None:
    """After the smoke step, which compares the bits of every kernel."""
    steps = gpu_ops.chosen(quick=False)
    early = [step.name for step, _ in steps].index(EARLY)
    assert "smoke" in [step.name for step, _ in steps[:early]]
    assert sum(budget for _, budget in steps[: early + 1]) <= 300


def test_the_limit_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[float] = []
    monkeypatch.setattr(gpu_ops, "run_step", lambda step, seconds, *_: budgets.append(seconds) or {})
    assert gpu_ops.main(["--limit", "12", "--only", "tests", "sanitizer", "--", str(tmp_path / "out.json")]) == 0
    assert all(11 < seconds <= 12 for seconds in budgets) and len(budgets) == 2


@pytest.mark.parametrize("pass_", PASSES)
def test_small_cases_call_the_operators(pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the arguments that these take, a variant by its backend, and one float64 result for all numbers."""
    exact: list[str] = []

    def once(*arguments: Any) -> torch.Tensor:
        exact.append(pass_)
        return original(*arguments)

    original = gpu_cases.EXACT[pass_]
    monkeypatch.setitem(gpu_cases.EXACT, pass_, once)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(gpu_cases, "device_limits", lambda: gpu_plan.H200)
    monkeypatch.setattr(gpu_cases, "BACKEND", "cpu")
    plans = {0: SimpleNamespace(name="a direct kernel", copied=False)}
    monkeypatch.setattr(gpu_cases, "supported", lambda *arguments, **form: plans)
    gpu_cases.case.cache_clear()
    for numbers in ("float32", "bfloat16"):
        for nhwc in (False, True):
            assert gpu_cases.check(TINY, numbers, pass_, every_variant=True, nhwc=nhwc) == (2, [])
    assert exact == [pass_]
    gpu_cases.case.cache_clear()


def test_small_cases_reach_every_variant() -> None:
    small = [c for c in gpu_cases.CASES if c.h * c.w * c.kh * c.kw <= 1_000_000]
    for cases in (gpu_cases.CASES, small):
        for pass_ in ("fwd", "bwd_weight"):
            reached = {
                plan.name
                for layer in cases
                for numbers in NUMBERS.values()
                for nhwc in (False, True)
                for plan in gpu_plan.supported(
                    layer, pass_, numbers.dtype, channels_last=nhwc, precision=numbers.precision
                ).values()
            }
            assert reached == set(gpu_plan.variants(pass_))


# ---- steps survive each other ----


def fake_step(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 20.0) -> dict[str, Any]:
    def command(self: Step, output: Path, seconds: float, quick: bool) -> list[str]:
        return [sys.executable, "-c", program, str(output)]

    monkeypatch.setattr(Step, "command", command)
    return gpu_ops.run_step(Step("fake", "m", (), 1), seconds, False, tmp_path)


WRITE = "import sys, json, pathlib; pathlib.Path(sys.argv[1]).write_text(json.dumps({'a': 1}))\n"


def test_a_step_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = fake_step(WRITE, tmp_path, monkeypatch)
    assert result["a"] == 1
    assert "failed" not in result


def test_a_step_that_crashes_keeps_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = fake_step(
        WRITE + "import os; print('why', file=sys.stderr, flush=True); os.abort()", tmp_path, monkeypatch
    )
    assert result["a"] == 1
    assert result["failed"] == "exit status -6"
    assert "why" in result["stderr"]


def test_a_step_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    result = fake_step(WRITE + "import time; time.sleep(60)", tmp_path, monkeypatch, seconds=1.5)
    assert time.monotonic() - started < 10
    assert result["a"] == 1
    assert result["failed"].startswith("out of time")


@pytest.mark.slow  # it waits for time limits
def test_a_stopped_step_stops_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import gpu_steps
signal.signal(signal.SIGTERM, gpu_steps.stop)
gpu_steps.command([sys.executable, "-c", "import time; time.sleep(3); open({str(tmp_path / "alive")!r}, 'w')"], 60)
"""
    result = fake_step(program, tmp_path, monkeypatch, seconds=2.5)
    assert result["failed"].startswith("out of time")
    time.sleep(2)
    assert not (tmp_path / "alive").exists()


def test_the_whole_run_on_fake_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {"ours_us": 100.0, "predicted_us": 90.0, "best_other": "torch nhwc", "best_other_us": 300.0, "failed": []}
    labels = {"layer": TINY.name, "pass": "fwd", "numbers": "bfloat16", "goal_us": 92, "cudnn_plans": "best"}
    table_part = {"results": [labels | {"complete": True, "summary": summary | {"faster_than_best_other": 3.0}}]}
    parts: dict[str, dict[str, Any]] = {
        "build": {"failed": "no compiler"},
        "table: main": table_part,
        "device": {"gpu": "fake"},
    }
    monkeypatch.setattr(gpu_ops, "run_step", lambda step, *_: dict(parts.get(step.name, {})))
    output = tmp_path / "out.json"
    assert gpu_ops.main(["--commit", "abc", str(output)]) == 1
    found = json.loads(output.read_text())
    assert found["status"] == "failed: build"
    assert found["commit"] == "abc"
    assert len(found["steps"]) == len(gpu_ops.STEPS)
    assert found["summary"][0]["ours_us"] == 100.0
    printed = capsys.readouterr().out
    assert "failed: no compiler" in printed
    assert "torch nhwc 300.0" in printed
    assert max(len(text) for text in printed.splitlines() if not text.startswith(("failed", "["))) <= 120


def test_out_of_time_skips_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_ops, "run_step", lambda *_: {})
    monkeypatch.setattr(gpu_ops, "LIMIT", 1.0)
    output = tmp_path / "out.json"
    assert gpu_ops.main([str(output)]) == 0
    found = json.loads(output.read_text())
    assert all(part == {"skipped": "no time was left"} for part in found["steps"].values())
    assert found["status"].startswith("no time for: device")


# ---- the table, on the CPU ----


def measure(tmp_path: Path, passes: Sequence[str] = PASSES, variants: Sequence[str] = ()) -> dict[str, Any]:
    options = argparse.Namespace(
        group="tiny", passes=list(passes), numbers=["bfloat16"], heuristics=False, quick=False, seconds=600.0,
        rivals=[], variants=list(variants), output=tmp_path / "part.json",
    )  # fmt: skip
    gpu_table.run(options)
    found: dict[str, Any] = json.loads(options.output.read_text())
    return found


@pytest.mark.usefixtures("fake_cuda")
def test_table(tmp_path: Path) -> None:
    results = measure(tmp_path)["results"]
    assert [result["pass"] for result in results] == list(PASSES)
    for result in results:
        rows = {row["route"]: row for row in result["rows"]}
        assert next(iter(rows)) == "torch nchw"
        assert result["complete"]
        assert result["input_sets"] >= 3
        native = rows["torch nchw"]
        assert native["ran"] == "native"
        assert native["cold"]["median_us"] > 0
        assert native["warm"]["calls"] >= 1
        assert native["error"] < 1e-2
        # This is no cuDNN: the channels_last route ran, was found out and lost its times.
        assert rows["torch nhwc"]["failed"] == "these are kernels of native, not of cudnn"
        assert "cold" not in rows["torch nhwc"]
        ours = rows["ours auto"]
        assert ours["ran"] == "ours"
        assert ours["plan"]["name"] == gpu_plan.plan(TINY, result["pass"]).name
        assert ours["predicted_us"] == roofline.predict(TINY, result["pass"])["predicted_us"]
        assert "cold" in rows["ours nhwc"]
        assert result["summary"]["best_other"] == "torch nchw"
        assert result["summary"]["best_variant"] in gpu_plan.variants(result["pass"])
        assert result["summary"]["faster_than_best_other"] > 0
        assert "cudnn nchw" in result["summary"]["failed"], "the CPU has no cuDNN"
        assert TINY.name in gpu_table.line(result)


@pytest.mark.usefixtures("fake_cuda")
def test_table_of_some_variants(tmp_path: Path) -> None:
    (result,) = measure(tmp_path, ["fwd"], ["ring_", "rt_3x2"])["results"]
    names = {f"ours {name}" for name in gpu_plan.variants("fwd") if name.startswith(("ring_", "rt_3x2"))}
    found = [row["route"] for row in result["rows"]]
    assert found[0] == "torch nchw" and len(found) > 2 and set(found[1:]) <= names
    assert result["complete"] and result["summary"]["best_variant"] in {name.removeprefix("ours ") for name in names}


@pytest.mark.usefixtures("fake_cuda")
def test_table_refuses_a_wrong_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = gpu_routes._ours

    def damaged(*arguments: Any, **named: Any) -> Any:
        run = original(*arguments, **named)

        def wrong(i: int) -> torch.Tensor:
            result: torch.Tensor = run(i).clone()
            result[(1,) + (-1,) * (result.dim() - 1)] = float("nan")  # not among the channels compared with float64
            return result

        return wrong

    monkeypatch.setattr(gpu_routes, "_ours", damaged)
    found = measure(tmp_path)
    assert f"{TINY.name} fwd bfloat16 ours auto" in found["failed"]
    rows = {row["route"]: row for row in found["results"][0]["rows"]}
    assert "wrong result is not timed" in rows["ours auto"]["failed"]
    assert "cold" not in rows["ours auto"]
    assert "cold" in rows["torch nchw"]


@pytest.mark.slow
@pytest.mark.usefixtures("fake_cuda")
def test_table_falls_back_to_launches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeGraph, **how: str) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(FakeGraph, "capture_begin", refuse)
    rows = {row["route"]: row for row in measure(tmp_path)["results"][0]["rows"]}
    assert rows["ours auto"]["timed"].startswith("launches, as it can't be captured: operation not permitted")
    assert rows["ours auto"]["cold"]["median_us"] > 0


@pytest.mark.usefixtures("fake_cuda")
def test_table_ends_when_the_context_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise gpu_table.ContextLostError("an illegal memory access was encountered")

    monkeypatch.setattr(gpu_table, "measure", broken)
    assert "context was lost" in measure(tmp_path)["failed"]


@pytest.mark.parametrize("pass_", PASSES)
def test_references_of_the_table(pass_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_routes, "DEVICE", "cpu")
    t = gpu_routes.Tensors(TINY, "float32", 2)
    channels, images = [0, 3], [0, 2]
    x, grad = t.pair(0)
    assert x is not grad
    inputs = x.double().requires_grad_(), t.weight.double().requires_grad_()
    output = F.conv2d(*inputs, padding=2, groups=4)
    by_input, by_weight = torch.autograd.grad(output, inputs, grad.double())
    whole = {"fwd": output.detach(), "bwd_input": by_input}
    wanted = by_weight[channels] if pass_ == "bwd_weight" else whole[pass_][images][:, channels]
    torch.testing.assert_close(gpu_routes.reference(t, pass_, channels, images), wanted)
    # The trick by which cuDNN computes bwd_weight of NCHW tensors
    if pass_ == "bwd_weight":
        torch.testing.assert_close(gpu_routes._cudnn(t, pass_, True)(0).double(), by_weight, rtol=1e-4, atol=1e-4)


def test_whose_kernels() -> None:
    assert gpu_routes.whose([OUR_KERNEL]) == "ours"
    assert gpu_routes.whose(["at::native::vectorized_elementwise_kernel", NATIVE_KERNEL]) == "native"
    assert gpu_routes.whose(["void at::native::vectorized_elementwise_kernel", CUDNN_KERNEL]) == "cudnn"
    assert gpu_routes.whose(["Memset (Device)", "at::native::copy"]) == "unknown"
    assert gpu_routes.whose([]) == "unknown"
