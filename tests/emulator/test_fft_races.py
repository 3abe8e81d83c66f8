"""Shared-memory discipline of the FFT kernels: no race under any schedule tried, few bank conflicts."""

from __future__ import annotations

from types import ModuleType

import emulator_harness as harness
import pytest
from emulator_harness import Case
from fft_harness import PASSES, check_close, fft, variant_cases


@pytest.mark.parametrize("pass_", PASSES)
def test_no_race_in_twenty_random_schedules(race: ModuleType, pass_: str) -> None:
    small = [case for case in variant_cases(race, pass_).values() if case.h < 30]
    assert small
    for seed in range(1, 21):
        race.set_options("random", seed)
        for case in small[:: 1 if seed < 4 else len(small)]:
            check_close(race, case.but(n=3, bias=True, limits=(90, 1, 227 << 10, 228 << 10)))


@pytest.mark.parametrize("pass_", PASSES)
def test_no_race_in_any_variant(race: ModuleType, pass_: str) -> None:
    for seed, case in enumerate(variant_cases(race, pass_).values()):
        race.set_options("random", seed + 1)
        check_close(race, case)


@pytest.mark.parametrize("schedule", ["ordered", "reversed", "lockstep"])
@pytest.mark.parametrize(
    "case",
    [fft(1, 1, 30, 17, k=(5, 9)), fft(5, 2, 7, 8, k=13, shift=1), fft(3, 2, 9, 9, k=4, flip=True, channels_last=True)],
    ids=str,
)
def test_no_race_in_tiles_odd_rows_and_channels_last(race: ModuleType, case: Case, schedule: str) -> None:
    race.set_options(schedule)
    check_close(race, case)
    check_close(race, case.but(pass_="bwd_weight", flip=False, bias=True))


def shared_memory(emulator: ModuleType, case: Case) -> tuple[int, int]:
    """(warp-wide accesses, extra wavefronts) of a launch"""
    emulator.set_options(banks=True)
    emulator.take_counters()
    harness.run(emulator, case, harness.random_inputs(case))
    counters = emulator.take_counters()
    return counters["accesses"], counters["access_conflicts"]


@pytest.mark.parametrize("pass_", PASSES)
def test_bank_conflicts(race: ModuleType, pass_: str) -> None:
    for name, case in variant_cases(race, pass_).items():
        accesses, extra = shared_memory(race, case.but(limits=(90, 1, 227 << 10, 228 << 10)))
        print(name, pass_, accesses, extra, round(extra / accesses, 3))
