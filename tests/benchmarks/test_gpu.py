"""The GPU benchmark without a GPU: its dry run, its failures, and its table on stand-ins for the CUDA runtime."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_cuda import CUDNN_KERNEL, NATIVE_KERNEL, OUR_KERNEL, TINY, FakeGraph

from benchmarks import gpu_cases, gpu_ops, gpu_plan, gpu_routes, gpu_steps, gpu_table, roofline, tuning
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


# ---- parsers of other programs' output ----


def test_junit() -> None:
    found = gpu_steps.junit(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1"><testcase classname="a" name="b">'
        '<failure message="1 is not 2"/></testcase><testcase classname="a" name="c"><skipped message="one GPU"/>'
        '</testcase><testcase classname="a" name="d"/></testsuite></testsuites>'
    )
    assert (found["tests"], found["failures"]) == (3, 1)
    assert found["wrong"] == ["a::b: 1 is not 2"]
    assert found["why_skipped"] == ["a::c: one GPU"]


def test_counters() -> None:
    text = (
        '==PROF== Connected\n"ID","Kernel Name","gpu__time_duration.sum","sm__pipe_tensor_cycles.pct","other"\n'
        '"","","us","%",""\n"0","toeplitz_fwd_kernel","101.5","61.2","7"\n'
    )
    assert gpu_steps.counters(text) == [
        {"kernel": "toeplitz_fwd_kernel", "gpu__time_duration.sum": "101.5 us", "sm__pipe_tensor_cycles.pct": "61.2 %"}
    ]
    assert gpu_steps.counters("==ERROR== no counters") == []


def test_a_command_that_hangs_returns_its_output() -> None:
    done = gpu_steps.command([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(30)"], 1.5)
    assert done.returncode == 124
    assert "here" in done.stdout
    assert not gpu_steps.GROUPS


def test_the_arch_that_is_built() -> None:
    assert [gpu_steps.arch_of(c) for c in ((8, 0), (9, 0), (12, 0))] == ["8.0", "9.0", "12.0"]


def test_an_extension_for_another_gpu_is_not_usable() -> None:
    found = {"extension": True, "cuda_ops": ["dwconv2d"], "info": {"cuda_archs": "8.0;9.0+PTX"}}
    assert not gpu_steps.usable(found, "10.0")
    assert not gpu_steps.usable({**found, "cuda_ops": []}, "9.0")
    assert not gpu_steps.usable({"extension": False}, "9.0")


# ---- steps that start other programs ----


def steps_options(seconds: float) -> argparse.Namespace:
    return argparse.Namespace(seconds=seconds, quick=False)


def fake_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """A program in place of a CUDA tool; every start adds its arguments to the file returned."""
    program, log = tmp_path / "tool", tmp_path / "arguments"
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr(gpu_steps, "tool", lambda *_: str(program))
    return log


def test_the_kernels_of_every_family_are_in_the_namespace_that_tools_look_for() -> None:
    sources = [path for path in (ROOT / "csrc/cuda").rglob("*.cu*") if "__global__" in path.read_text()]
    assert len(sources) >= 8
    for path in sources:
        before = path.read_text().split("__global__")[0]
        assert f"namespace {gpu_steps.OURS}::" in before, path.name


def test_the_sanitizer_looks_at_every_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_tool(tmp_path, monkeypatch, "echo '5 launches, 0 wrong'; echo '==1== ERROR SUMMARY: 0 errors'")
    result = gpu_steps.sanitizer(steps_options(60))
    assert "failed" not in result, result
    lines = log.read_text().splitlines()
    assert len(lines) == 4
    assert all("--kernel-name kns=replknet_ext " in line for line in lines)


def test_the_profiler_looks_at_every_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        'case "$1" in --import) echo \'"ID","Kernel Name","gpu__time_duration.sum"\'; echo \'"","","us"\';'
        ' echo \'"0","small_fwd_kernel","9"\';; *) while [ "$1" != -o ]; do shift; done; : > "$2.ncu-rep";; esac'
    )
    log = fake_tool(tmp_path, monkeypatch, script)
    assert gpu_steps.ncu(steps_options(60)) == {
        "kernels": [{"kernel": "small_fwd_kernel", "gpu__time_duration.sum": "9 us"}]
    }
    assert "--kernel-name-base mangled -k regex:replknet_ext " in log.read_text()


def test_every_candidate_is_measured_in_the_time_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def command(arguments: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        asked.append(arguments)
        summary = {"passes": 12, "geometric_mean": 1.0, "worst": 1.1, "within_10_percent": 12}
        found = {"summary": summary, "rows": [{"layer": "a"}]}
        Path(arguments[arguments.index("--output") + 1]).write_text(json.dumps(found))
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(gpu_steps, "command", command)
    budget = next(step.seconds for step in gpu_ops.STEPS if step.name == "tuning")
    result = gpu_steps.tuning(steps_options(budget - 2))
    assert result["summary"]["passes"] == 12
    assert result["rows"] == [{"layer": "a"}]
    each = float(asked[0][asked[0].index("--seconds") + 1])
    assert each > 1
    assert len(tuning.subjects("cuda", True)) * each <= budget - 20
    monkeypatch.setattr(gpu_steps, "command", lambda *_: subprocess.CompletedProcess([], 1, "no candidate", ""))
    with pytest.raises(gpu_steps.StepError, match="no candidate"):
        gpu_steps.tuning(steps_options(60))


# ---- the table, on the CPU ----


def measure(tmp_path: Path) -> dict[str, Any]:
    options = argparse.Namespace(
        group="tiny", passes=list(PASSES), numbers=["bfloat16"], heuristics=False, quick=False, seconds=60.0,
        output=tmp_path / "part.json",
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
