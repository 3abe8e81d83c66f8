"""The steps of the GPU benchmark without a GPU: what they build, start, and read of other programs' output."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_ops, gpu_steps, tuning
from benchmarks.harness import ROOT

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


@pytest.mark.slow  # it waits for time limits
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


def test_sources_that_only_look_newer_are_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"extension": True, "cuda_ops": ["dwconv2d"], "info": {"cuda_archs": "9.0"}}
    source = tmp_path / "csrc" / "a.cu"
    for path, text in ((source, "1"), (tmp_path / "setup.py", ""), (tmp_path / "replknet_ext" / "_C.abi3.so", "")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    os.utime(tmp_path / "replknet_ext" / "_C.abi3.so", (0, 0))
    monkeypatch.setattr(gpu_steps, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_steps, "BUILT_OF", tmp_path / "built")
    assert not gpu_steps.usable(found, "9.0")
    gpu_steps.BUILT_OF.write_text(gpu_steps.digest_of_sources())
    assert gpu_steps.usable(found, "9.0")
    source.write_text("2")
    assert not gpu_steps.usable(found, "9.0")


def test_the_files_with_tests_for_a_gpu() -> None:
    files = gpu_steps.gpu_test_files()
    assert {"tests/cuda/test_gpu.py", "tests/cuda/test_gpu_host.py", "tests/ops/test_library.py"} <= set(files)
    assert files[-1] == "tests/triton/test_gpu.py"


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
