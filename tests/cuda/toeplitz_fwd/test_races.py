"""Shared-memory discipline of the CUDA kernels: no race under any schedule tried, no bank conflict that matters."""

from __future__ import annotations

from types import ModuleType

import emulator_harness as harness
import pytest
from emulator_harness import VARIANT_CASES, Case

SMALLEST = (86, 1, 48 << 10, 49 << 10)


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_no_race_in_twenty_random_schedules(race: ModuleType, name: str) -> None:
    case = VARIANT_CASES[name]
    h = min(case.h, 11)
    case = case.but(n=9 if not name.endswith("g2") else 17, c=1, h=h, variant=race.variants().index(name), bias=True)
    case = case.but(k=(min(case.kernel[0], 9), case.kernel[1]))
    for seed in range(1, 21):
        race.set_options("random", seed)
        harness.check_exact(race, case.but(dtype="bfloat16" if seed % 4 == 0 else "float16"), seed % 3)


@pytest.mark.parametrize("schedule", ["ordered", "reversed", "lockstep"])
@pytest.mark.parametrize(
    "case",
    [Case(1, 1, 20, 40, (35, 45), limits=SMALLEST), Case(2, 1, 13, 15, 7, shift=1), Case(1, 1, 24, 28, 13),
     Case(3, 1, 9, 26, (5, 5), shift=2, flip=True), Case(5, 2, 7, 7, 13, activation="relu")],
    ids=str,
)  # fmt: skip
def test_no_race_in_parts_row_groups_and_odd_rows(race: ModuleType, case: Case, schedule: str) -> None:
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
