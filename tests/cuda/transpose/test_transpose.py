"""The transposes between NCHW and channels_last: values, bounds, races, bank conflicts, more than 2^31 elements."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import emulator_harness
import pytest
import torch

from .harness import CASES, DTYPES, Matrices, check

#: More matrices than a grid is high, so that the first blocks take two, one after the other.
MANY = Matrices(65_535 + 3, 2, 3)
EVERY_SIZE = pytest.mark.parametrize("bytes_", DTYPES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_element_moves_to_its_place(plain: ModuleType, case: Matrices) -> None:
    check(plain, case)


@EVERY_SIZE
def test_more_matrices_than_a_grid_is_high(plain: ModuleType, bytes_: int) -> None:
    plain.set_options(last_block=2)
    check(plain, replace(MANY, bytes_=bytes_), 3)


@EVERY_SIZE
def test_empty_tensors_launch_nothing(plain: ModuleType, bytes_: int) -> None:
    for sizes in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        assert plain.transpose(0, 0, *sizes, bytes_) == ""


@pytest.mark.parametrize("sizes", [(1, (1 << 25) + 40, 72), (40_000, 1_024, 64)], ids=str)
def test_offsets_beyond_32_bits(plain: ModuleType, sizes: tuple[int, int, int]) -> None:
    """More than 2^31 elements; the last two blocks run, on memory that takes room only where it is touched."""
    matrices, rows, columns = sizes
    source, target = (torch.empty(sizes[0] * rows * columns, dtype=torch.int16) for _ in range(2))
    corner = torch.arange(8 * columns, dtype=torch.int16).view(8, columns) + 1
    source.view(sizes)[-1, -8:] = corner
    blocks = -(-rows // 64) * -(-columns // 64) * matrices
    plain.set_options(first_block=blocks - 2, last_block=blocks - 1)
    assert plain.transpose(source.data_ptr(), target.data_ptr(), *sizes, 2) == ""
    assert torch.equal(target.view(matrices, columns, rows)[-1, :, -8:], corner.T)


@pytest.mark.parametrize("schedule", [("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2)], ids=str)
def test_no_race(race: ModuleType, schedule: tuple[str, int]) -> None:
    race.set_options(*schedule)
    for case in CASES:
        check(race, case)
    race.set_options(*schedule, last_block=2)
    check(race, MANY, 3)


@EVERY_SIZE
@pytest.mark.parametrize("columns", [128, 127])
def test_no_bank_conflict(race: ModuleType, bytes_: int, columns: int) -> None:
    race.set_options(banks=True)
    check(race, Matrices(1, columns, columns, bytes_))
    counters = race.take_counters()
    assert counters["accesses"] > 0
    assert emulator_harness.conflicts_by_line(race) == {} and counters["access_conflicts"] == 0
