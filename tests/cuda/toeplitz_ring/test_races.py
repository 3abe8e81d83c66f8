"""Shared-memory discipline of the ring kernels: no race under any schedule tried, no bank conflict that matters."""

from __future__ import annotations

from types import ModuleType

import emulator_harness as harness
import pytest
from emulator_harness import Case

from .test_values import ONE_BLOCK, SMALLEST, VARIANT_CASES


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_no_race_in_twenty_random_schedules(race: ModuleType, name: str) -> None:
    """In a block that goes on from group to group, of more images than a group has."""
    case = VARIANT_CASES[name]
    case = case.but(c=1, h=min(case.h, 13), k=(min(case.kernel[0], 5), case.kernel[1]), limits=ONE_BLOCK, bias=True)
    case = case.but(variant=race.variants().index(name))
    for seed in range(1, 21):
        race.set_options("random", seed)
        harness.check_exact(race, case.but(dtype="bfloat16" if seed % 4 == 0 else "float16"), seed % 3)


@pytest.mark.parametrize("schedule", ["ordered", "reversed", "lockstep"])
@pytest.mark.parametrize(
    "case",
    [Case(1, 1, 41, 20, (9, 27), limits=SMALLEST), Case(2, 1, 33, 45, (5, 13), shift=1), Case(1, 1, 24, 28, (13, 29)),
     Case(3, 1, 19, 26, (5, 25), shift=2, flip=True), Case(41, 1, 9, 18, (7, 27), limits=ONE_BLOCK, activation="relu")],
    ids=str,
)  # fmt: skip
def test_no_race_in_row_groups_turns_and_odd_rows(race: ModuleType, case: Case, schedule: str) -> None:
    race.set_options(schedule)
    harness.check_exact(race, case)


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_bank_conflicts(race: ModuleType, name: str) -> None:
    """None in ldmatrix; of ordinary accesses only the transpose of the output may meet a bank twice."""
    race.set_options(banks=True)
    case = VARIANT_CASES[name]
    harness.check_exact(race, case.but(n=8, h=min(case.h, 12), variant=race.variants().index(name)))
    counters = race.take_counters()
    assert counters["ldmatrix"] > 0 and counters["ldmatrix_conflicts"] == 0
    assert counters["access_conflicts"] <= 0.15 * counters["accesses"], race.take_sites()
