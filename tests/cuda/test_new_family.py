"""A kernel family that is registered by one line appears in plans, launches, explain, doctor, budgets and docs.

The family is the folder tests/emulator/stand_in, put into a copy of csrc/cuda and named in the line of family.h. It is
compiled for the emulator, which then answers for the extension.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import cuda_budgets
import emulator_build
import emulator_harness as harness
import pytest
import torch
from emulator_harness import Case

from benchmarks import kernel_table
from replknet_ext import _ext
from replknet_ext.backends.cuda import DEVICES, CudaBackend
from replknet_ext.operator.problem import Geometry, Problem
from replknet_ext.tools import doctor

# Compiles what includes family.h once more.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")]

LAYER = Problem((2, 3, 14, 14), (3, 1, 5, 5), False, Geometry((1, 1), (2, 2, 2, 2), (1, 1)), torch.bfloat16, "cuda")
PROBLEM_FIELDS = ("n", "c", "h", "w", "kh", "kw", "ho", "wo", "pad_top", "pad_left")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The emulator of the sources with one family more."""
    why = emulator_build.missing()
    if why is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("family")
    shutil.copytree(emulator_build.CUDA.parent, folder / "csrc", ignore=shutil.ignore_patterns("cpu"))
    cuda = folder / "csrc" / "cuda"
    shutil.copytree(emulator_build.HERE / "stand_in", cuda / "stand_in")
    table = (cuda / "family.h").read_text()
    assert table.count(" X(fft)\n") == 1
    (cuda / "family.h").write_text(table.replace(" X(fft)\n", " X(fft) X(stand_in)\n"))
    emulator_build.build_module("plain")  # objects that every build shares
    return emulator_build.load("plain", folder / "build", cuda)


@pytest.fixture
def extension(emulator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension as if it were built from those sources, on a machine with an H200."""

    def cuda_plan(
        sizes: Sequence[int], dtype: torch.dtype, pass_: str, precision: str, algorithm: str, limits: dict[str, int],
        variant: int = -1, *, channels_last: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        problem = dict(zip(PROBLEM_FIELDS, sizes, strict=True))
        how = {
            "dtype": str(dtype).removeprefix("torch."), "channels_last": channels_last, "flip": pass_ == "bwd_input",
            "activation": "none", "precision": precision, "algorithm": algorithm, "pass": pass_,
        }  # fmt: skip
        device = tuple(limits.values())
        why = emulator.supports({**problem, **how}, device, variant)
        if why is not None:
            return {"unsupported": why}
        return {**emulator.plan({**problem, **how}, device, variant), "copied": False, "details": {}}

    info = {
        **_ext.build_info(),
        "cuda_archs": "9.0a",
        "cuda_variants": {pass_: emulator.variants(pass_) for pass_ in ("fwd", "bwd_weight")},
    }
    monkeypatch.setattr(_ext, "cuda_plan", cuda_plan)
    monkeypatch.setattr(_ext, "build_info", lambda: info)
    monkeypatch.setattr(_ext, "variant_names", _ext.variant_names.__wrapped__)  # without what it remembers
    monkeypatch.setattr(
        _ext, "CUDA_OPS", frozenset(("dwconv2d", "dwconv2d_backward_input", "dwconv2d_backward_weight"))
    )
    monkeypatch.setattr(_ext, "cuda_devices", lambda: (DEVICES["h200"],))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize(
    "case", [Case(2, 3, 9, 11, 5, dtype="bfloat16", bias=True), Case(2, 3, 9, 11, (3, 5), dtype="bfloat16", flip=True)]
)
def test_it_is_planned_and_launched(emulator: ModuleType, case: Case) -> None:
    emulator.only("")
    plan = emulator.plan(case.problem(), case.limits, -1)
    assert (plan["family"], plan["name"]) == ("stand_in", "stand_in_1")
    assert plan["variant"] == len(emulator.variants("fwd")) - 1
    harness.check_exact(emulator, case)
    assert emulator.take_counters()["blocks"] == case.n * case.c


def test_the_other_families_are_still_there(emulator: ModuleType) -> None:
    names = emulator.variants("fwd")
    assert names[:-1] == _ext.variant_names("cuda_variants", "fwd") and names[-1] == "stand_in_1"
    case = Case(2, 3, 9, 11, 5, dtype="float16")
    assert emulator.plan(case.problem(), case.limits, -1)["family"] != "stand_in"


def test_explain_and_the_tuner_name_it(extension: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backend = CudaBackend()
    assert backend.supports(LAYER) is None
    assert backend.kernel(LAYER) == "stand_in_1 (family stand_in)"
    first = backend.candidates(LAYER, DEVICES["h200"])[0]
    assert (first.name, first.family) == ("stand_in_1", "stand_in")
    assert backend.variant(LAYER, "stand_in_1") == first.variant


def test_doctor_shows_it(extension: None) -> None:
    report = doctor.collect()
    assert "stand_in_1" in report["extension"]["cuda_variants"]["fwd"]
    assert {plan["family"] for plan in report["cuda_plans"] if plan["pass"] == "fwd"} == {"stand_in"}


def test_the_page_of_kernels_has_a_column_of_it(extension: None) -> None:
    page = kernel_table.page()
    assert "`stand_in_1`" in page
    heads = [line for line in page.split("\n") if line.startswith("| layer | dtype | pass |")]
    assert len(heads) == 1 and "| stand_in |" in heads[0]


def test_its_missing_budget_is_named(extension: None) -> None:
    assert cuda_budgets.without_budget() == {"stand_in_1"}
