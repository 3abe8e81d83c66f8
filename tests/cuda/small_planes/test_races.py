"""Shared-memory discipline of the kernels for small planes: no race under any schedule tried, few bank conflicts."""

from __future__ import annotations

from types import ModuleType

import emulator_harness as harness
import pytest
from emulator_harness import Case

from .test_values import RUNS, VARIANT_CASES, variant_case
from .test_weight import WEIGHT_CASES, weight, weight_case

ONE_SM = (90, 1, 32 << 10, 33 << 10)  # with so little shared memory that blocks go on to further units


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_no_race_in_random_schedules(race: ModuleType, name: str) -> None:
    case = variant_case(race, name).but(bias=True, h=7, w=8, k=5)
    if name in RUNS:
        case = case.but(n=280, c=1, limits=ONE_SM)
        assert race.plan(case.problem(), case.limits, case.variant)["blocks"] < 5
    for seed in range(1, 9):
        race.set_options("random", seed)
        harness.check_exact(race, case.but(dtype="bfloat16" if seed % 4 == 0 else "float16"), seed % 3)


@pytest.mark.parametrize("schedule", ["ordered", "reversed", "lockstep"])
@pytest.mark.parametrize(
    "case",
    [Case(3, 5, 7, 7, 13), Case(2, 3, 7, 7, 3, shift=1), Case(300, 2, 3, 6, 5, limits=ONE_SM),
     Case(5, 1, 14, 14, 27, flip=True), Case(3, 1, 6, 9, 5, (2, 3, 1, 2)),
     Case(3, 14, 7, 7, 5, limits=(90, 1, 227 << 10, 228 << 10)), Case(3, 11, 7, 7, 5, channels_last=True, shift=1),
     Case(17, 12, 14, 14, 27, channels_last=True), Case(3, 24, 6, 9, 5, (2, 3, 1, 2), channels_last=True)],
    ids=str,
)  # fmt: skip
def test_no_race_in_odd_shapes(race: ModuleType, case: Case, schedule: str) -> None:
    race.set_options(schedule)
    harness.check_exact(race, case)


@pytest.mark.parametrize("name", WEIGHT_CASES)
def test_no_race_in_random_schedules_of_bwd_weight(race: ModuleType, name: str) -> None:
    case = weight_case(race, name).but(c=2, h=7, n=90)
    for seed in range(1, 7):
        race.set_options("random", seed)
        harness.check_exact(race, case, seed % 3)


@pytest.mark.parametrize("schedule", ["ordered", "reversed", "lockstep"])
@pytest.mark.parametrize(
    "case", [weight(3, 2, 6, 4, kernel=3, shift=1), weight(100, 1, 5, 6, kernel=5), weight(17, 1, 14, 14, kernel=27),
     weight(18, 6, 7, 7, kernel=3, shift=1)],
    ids=str,
)  # fmt: skip
def test_no_race_in_odd_shapes_of_bwd_weight(race: ModuleType, case: Case, schedule: str) -> None:
    race.set_options(schedule)
    harness.check_exact(race, case)


def test_bank_conflicts_of_bwd_weight(race: ModuleType) -> None:
    """None in ldmatrix. Diagonals are toeplitz_weight's; copies do not count: lanes have 3 or 4 words of a plane."""
    race.set_options(banks=True)
    harness.check_exact(race, weight(64, 1, 14, 14, kernel=27, variant=weight_case(race, "small_weight_7x3").variant))
    assert race.take_counters()["ldmatrix_conflicts"] == 0


@pytest.mark.parametrize(
    ("case", "name"),
    [(Case(64, 1, 14, 14, 27), "small_g4_even"), (Case(64, 4, 7, 7, 13), "small_g4"),
     (Case(64, 1, 12, 12, 13), "small_g4_even"), (Case(16, 16, 14, 14, 27, channels_last=True), "small_g1_even_cl"),
     (Case(32, 16, 7, 7, 13, channels_last=True), "small_g2_cl")],
    ids=str,
)  # fmt: skip
def test_bank_conflicts(race: ModuleType, case: Case, name: str) -> None:
    race.set_options(banks=True)
    harness.check_exact(race, case.but(variant=race.variants().index(name)))
    counters = race.take_counters()
    assert counters["accesses"] > 0
    assert counters["access_conflicts"] <= 0.15 * counters["accesses"], harness.conflicts_by_line(race)
