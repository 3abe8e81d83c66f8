"""`replknet-ext doctor`: runs anywhere, fits the terminal, says what goes to torch and why."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import read_configuration

import replknet_ext
from replknet_ext import _env, _ext
from replknet_ext.backends import BACKENDS, PASSES
from replknet_ext.tools import doctor

pytest.importorskip("rich")
pytest.importorskip("typer")

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, columns: int = 100, code: int = 0) -> str:
    """What the command line writes to stdout."""
    return processes.run(*arguments, code=code, COLUMNS=str(columns), NO_COLOR="1").stdout.decode()


def doctor_without(module: str) -> subprocess.CompletedProcess[str]:
    """The command in an interpreter that has just started and cannot import a module."""
    program = f"import sys, runpy\nsys.modules[{module!r}] = None\nsys.argv = ['replknet-ext', 'doctor']\n"
    program += "runpy.run_module('replknet_ext', run_name='__main__')"
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.collect()


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_the_terminal(columns: int) -> None:
    shown = run("doctor", columns=columns)
    assert max(len(text) for text in shown.splitlines()) <= columns
    words = " ".join(shown.split())
    assert replknet_ext.__version__ in words
    assert "…" not in words, "something was cut off"
    for name in _env.VARIABLES:
        assert _env.PREFIX + name in words
    assert "stride or dilation other than 1 and channel multipliers go to torch" in words


def test_json_is_the_report() -> None:
    found = json.loads(run("doctor", "--json"))
    assert found["versions"]["replknet_ext"] == replknet_ext.__version__
    assert found["extension"]["loaded"] == _ext.HAS_EXT
    assert [row["problem"] for row in found["backends"]] == list(doctor.TYPICAL)


def test_the_report_has_what_a_maintainer_asks_for(report: dict[str, Any]) -> None:
    extras = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]["optional-dependencies"]
    asked = {
        canonicalize_name(Requirement(line).name)
        for extra in ("cli", "hub", "onnx", "timm", "triton")
        for line in extras[extra]
    }
    assert asked <= {canonicalize_name(name) for name in report["versions"]}
    for name in ("python", "torch", "numpy", "Pillow", "rich", "typer"):
        assert report["versions"][name]
    assert report["installation"]["folder"] == str(Path(replknet_ext.__file__).parent)
    assert report["torch"]["cuda"] == torch.version.cuda
    assert report["torch"]["cpu_capability"] in ("DEFAULT", "AVX2", "AVX512", "NO AVX", "SVE256")
    assert report["torch"]["build"][0].startswith("PyTorch built with")
    assert any("OpenMP" in line for line in report["torch"]["threads"])
    assert report["extension"]["cpu_isa"] == _ext.cpu_isa()
    assert report["extension"]["compiler"] == _ext.build_info().get("compiler")
    system = report["system"]
    assert system["machine"] and system["processors"] and system["processor"]
    if sys.platform == "linux":
        assert system["libc"].split() == [*platform.libc_ver()]


def test_programs_are_asked_for_their_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("nvidia-smi", "echo 580.65.06; echo 580.65.06"), ("some-c++", "echo $0 $1; exit $BROKEN")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CXX", f"{tmp_path}/some-c++ --for-version")
    monkeypatch.setenv("BROKEN", "0")
    found = doctor._system()
    assert found["gpu_driver"] == "580.65.06"
    assert found["compiler"] == f"{tmp_path}/some-c++ --for-version"
    monkeypatch.setenv("BROKEN", "1")
    assert doctor._system()["compiler"] is None
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert doctor._system()["compiler"] is None


@pytest.mark.parametrize(("url", "editable"), [('{"dir_info": {"editable": true}}', True), (None, False), ("{", None)])
def test_what_pip_knows(url: str | None, editable: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"WHEEL": "Wheel-Version: 1.0\nTag: cp310-abi3-manylinux_2_28_x86_64\n", "INSTALLER": "uv\n"}
    dist = SimpleNamespace(read_text=lambda name: url if name == "direct_url.json" else files[name])
    monkeypatch.setattr(doctor.metadata, "distribution", lambda name: dist)
    found = doctor._installation()
    assert found["wheel_tags"] == ["cp310-abi3-manylinux_2_28_x86_64"]
    assert (found["installer"], found["editable"]) == ("uv", editable)


def test_every_backend_answers_for_every_pass(report: dict[str, Any]) -> None:
    for row in report["backends"]:
        assert list(row["runs"]) == list(PASSES)
        for pass_, reasons in row["reasons"].items():
            assert list(reasons) == list(BACKENDS)
            assert reasons[row["runs"][pass_]] is None, "the one that runs it has no reason not to"


def test_what_goes_to_torch(report: dict[str, Any]) -> None:
    runs = {row["problem"]: row["runs"] for row in report["backends"]}
    assert set(runs["CUDA bfloat16, stride 2"].values()) == {"torch"}
    if _ext.HAS_EXT:
        assert set(runs["CPU float32, 31x31"].values()) == {"cpu"}
    if "dwconv2d" in _ext.CUDA_OPS:
        for name in ("CUDA float32, 31x31", "CUDA bfloat16, 31x31", "CUDA float16, 13x13"):
            assert set(runs[name].values()) == {"cuda"}
        assert [plan["pass"] for plan in report["cuda_plans"]] == ["fwd", "bwd_weight"] * 4
        assert all(plan["name"].startswith(("rt_", "ring_", "rtw_", "small_")) for plan in report["cuda_plans"])


def test_set_variables_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLKNET_EXT_SKIP_CUDA", "1")
    values = {row["name"]: row["value"] for row in doctor.collect()["environment"]}
    assert values["REPLKNET_EXT_SKIP_CUDA"] == "1"


def test_without_the_extension() -> None:
    done = doctor_without("replknet_ext._C")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "NOT loaded" in words
    assert "everything on CPU" in words


@pytest.mark.parametrize("package", ["typer", pytest.param("rich", marks=pytest.mark.slow)])
def test_a_missing_package_is_named(package: str) -> None:
    done = doctor_without(package)
    assert done.returncode == 1
    assert done.stderr.strip() == f"the command line needs {package}: pip install 'replknet_ext[cli]'"


def test_help_and_a_wrong_command() -> None:
    assert "doctor" in run("--help")
    run("docter", code=2)


@pytest.mark.parametrize(
    ("capability", "archs", "words"),
    [
        ((9, 0), ["8.0", "9.0a"], "built for it"),
        ((8, 6), ["8.0", "9.0a"], "runs those of 8.0"),
        ((9, 0), ["8.0"], "none: this build has 8.0"),
        ((10, 0), ["9.0a"], "none: this build has 9.0a"),
        ((12, 1), ["9.0a", "12.0+PTX"], "runs those of 12.0"),
        ((13, 0), ["9.0a", "12.0+PTX"], "compiled by the driver from 12.0"),
        ((7, 5), ["8.0"], "none: the kernels need compute capability 8.0"),
        ((9, 0), [], "none: built without CUDA"),
    ],
)
def test_architectures(
    capability: tuple[int, int], archs: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_extension", lambda: {"cuda_archs": archs})
    assert doctor._kernels_for(SimpleNamespace(major=capability[0], minor=capability[1])) == words
