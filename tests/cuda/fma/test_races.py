"""Shared-memory discipline of the FMA kernels: no race under any schedule tried, no bank conflict in the sums."""

from __future__ import annotations

from types import ModuleType

import emulator_build
import emulator_harness as harness
import pytest
from emulator_harness import Case

from .test_values import FMA_CASES, PASSES, SMALLEST, fma_case


@pytest.mark.parametrize("name", FMA_CASES)
def test_no_race_in_twenty_random_schedules(race: ModuleType, name: str) -> None:
    case = fma_case(race, name, c=2, h=9, w=11, n=5, k=(8, 5), bias=True)
    for seed in range(1, 21):
        race.set_options("random", seed)
        limits = SMALLEST if seed % 3 else case.limits
        harness.check_exact(race, case.but(channels_last=seed % 2 == 0, limits=limits), seed % 3)


@pytest.mark.parametrize("schedule", ["ordered", "reversed", "lockstep"])
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    "case",
    [Case(1, 1, 20, 40, (35, 45), limits=SMALLEST), Case(2, 1, 13, 15, 7, shift=1),
     Case(1, 1, 60, 61, 5, limits=SMALLEST), Case(3, 2, 9, 26, (5, 5), shift=2, channels_last=True),
     Case(9, 2, 7, 7, 13), Case(2, 1, 3, 9, 3)],
    ids=str,
)  # fmt: skip
def test_no_race_in_parts_tiles_and_odd_rows(race: ModuleType, case: Case, pass_: str, schedule: str) -> None:
    race.set_options(schedule)
    harness.check_exact(race, case.but(dtype="float32", pass_=pass_, bias=True))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", PASSES)
def test_bank_conflicts(race: ModuleType, pass_: str, channels_last: bool) -> None:
    """None in the sums of 8 planes and more; some while channels_last tensors are spread over planes."""
    race.set_options(banks=True)
    case = Case(16, 16 if channels_last else 1, 14, 14, 9, dtype="float32", pass_=pass_, channels_last=channels_last)
    assert race.plan(case.problem(), case.limits, -1)["planes"] >= 8
    harness.check_exact(race, case)
    source = (emulator_build.CUDA / "ptx.cuh").read_text().split("\n")
    loads = next(i for i, line in enumerate(source, 1) if "load_quad" in line)
    places = [line.split(":") for line in harness.conflicts_by_line(race)]
    assert not any(file == "ptx.cuh" and loads <= int(number) < loads + 16 for file, number in places)
    assert {file for file, _ in places} <= {"ptx.cuh", "fma/tile.cuh"}  # the loader
