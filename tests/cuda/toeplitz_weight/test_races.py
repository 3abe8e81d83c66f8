"""Shared-memory discipline of toeplitz_weight: no race under any schedule tried, no bank conflict that matters."""

from __future__ import annotations

from types import ModuleType

import emulator_harness as harness
import pytest
from emulator_build import CUDA
from emulator_harness import Case

from .test_values import SQUARE, VARIANT_CASES, check, variant_case, weight

SMALLEST = (86, 4, 48 << 10, 49 << 10)


def small(emulator: ModuleType, name: str) -> Case:
    case = variant_case(emulator, name)
    return case.but(c=1, h=min(case.h, 9), n=case.n - 8, k=(min(case.kernel[0], 7), case.kernel[1]))


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_no_race_in_twenty_random_schedules(race: ModuleType, name: str) -> None:
    case = small(race, name)
    for seed in range(1, 21):
        race.set_options("random", seed)
        last = seed % 2 == 0 and name not in SQUARE
        harness.check_exact(race, case.but(channels_last=last, c=1 + last), seed % 3)


@pytest.mark.parametrize("schedule", ["ordered", "reversed", "lockstep"])
@pytest.mark.parametrize(
    "case",
    [weight(1, 1, 20, 40, kernel=(35, 45)), weight(33, 1, 8, 14, kernel=7, limits=SMALLEST),
     weight(2, 1, 13, 15, kernel=7, shift=1), weight(1, 2, 24, 28, kernel=13), weight(33, 1, 9, 26, kernel=5, shift=2),
     weight(17, 4, 7, 7, kernel=13, channels_last=True), weight(33, 1, 6, 72, kernel=13)],
    ids=str,
)  # fmt: skip
def test_no_race_in_parts_row_groups_and_odd_rows(race: ModuleType, case: Case, schedule: str) -> None:
    race.set_options(schedule)
    check(race, case)


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_bank_conflicts(race: ModuleType, name: str) -> None:
    """None in ldmatrix, none where fragments of tf32 are read.

    Copies into shared memory meet a bank more often: 16 bytes of each slot and chunk. Diagonals are not counted here: a
    store of them meets a bank twice.
    """
    race.set_options(banks=True)
    harness.check_exact(race, small(race, name))
    counters = race.take_counters()
    assert counters["ldmatrix_conflicts"] == 0
    assert (counters["ldmatrix"] > 0) != name.endswith("tf32")
    source = (CUDA / "toeplitz_weight/toeplitz_weight.cuh").read_text().split("\n")
    end = next(i for i, line in enumerate(source, 1) if "sum_diagonals" in line)
    lines = harness.conflicts_by_line(race)
    fragments = {
        line: found for line, found in lines.items() if line.startswith("toeplitz_weight/toeplitz_weight.cuh:")
    }
    assert not {line for line in fragments if int(line.split(":")[1]) < end}, fragments
