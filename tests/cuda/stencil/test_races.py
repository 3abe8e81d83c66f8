"""Shared-memory discipline of the stencil kernels: no race under any schedule tried, few bank conflicts."""

from __future__ import annotations

from types import ModuleType

import emulator_harness as harness
import pytest
from emulator_harness import H200, Case

from .test_values import EVERY_VARIANT, SMALLEST, stencil_case


@EVERY_VARIANT
def test_no_race_in_random_schedules(race: ModuleType, name: str) -> None:
    case = stencil_case(race, name, n=2, h=5, w=9, bias=True)
    for seed in range(1, 9):
        race.set_options("random", seed)
        harness.check_exact(race, case.but(c=2 + 6 * (seed % 3), limits=case.limits if seed % 3 else H200), seed)


@pytest.mark.parametrize("schedule", ["ordered", "reversed", "lockstep"])
@pytest.mark.parametrize("pass_", ["fwd", "bwd_weight"])
@pytest.mark.parametrize(
    "case",
    [Case(2, 1, 6, 15, 3, shift=1), Case(2, 17, 6, 9, 3, channels_last=True, shift=1),
     Case(3, 2, 9, 12, 5, dtype="float32", limits=SMALLEST), Case(1, 40, 5, 8, 7, channels_last=True)],
    ids=str,
)  # fmt: skip
def test_no_race_in_tiles_and_odd_rows(race: ModuleType, case: Case, pass_: str, schedule: str) -> None:
    race.set_options(schedule)
    harness.check_exact(race, case.but(pass_=pass_, bias=True))


@EVERY_VARIANT
def test_bank_conflicts(race: ModuleType, name: str) -> None:
    """The filter and the ring are read without any; what is left is where a block fills, or adds up, its few sums."""
    case = stencil_case(race, name, n=2, h=14, c=64, limits=H200)
    race.set_options(banks=True)
    harness.check_exact(race, case)
    files = {place.split(":")[0] for place in harness.conflicts_by_line(race)}
    assert files <= {"stencil/stencil.cuh"}, files  # ptx.cuh has the wide accesses
