"""The rules of csrc/cuda/model.h that all planners share, against numbers by hand."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.mark.parametrize(
    ("capability", "warps", "shared", "register_warps", "blocks"),
    [
        (90, 8, 103 << 10, 16, 2),  # 228 KB / (103 + 1) = 2.2; registers for two
        (90, 8, 103 << 10, 8, 1),
        (90, 4, 10_000, 64, 16),  # 64 warps; shared memory would do for 20
        (86, 4, 100, 64, 12),  # 48 warps
        (86, 1, 100, 48, 16),  # 16 blocks
        (90, 1, 100, 64, 32),  # 32 blocks
        (120, 1, 100, 64, 24),
        (90, 1, 32_640, 64, 6),  # 255 units of 128 bytes and 1 KB for itself: 6.9
        (90, 1, 32_641, 64, 6),
        (90, 1, 37_888, 64, 6),  # 6 times 38912 is all there is
        (90, 1, 37_889, 64, 5),  # a unit more each
        (90, 16, 227 << 10, 16, 1),
    ],
)
def test_blocks_of_an_sm_by_hand(
    plain: ModuleType, capability: int, warps: int, shared: int, register_warps: int, blocks: int
) -> None:
    limits = (capability, 132, 227 << 10, 228 << 10)
    assert plain.resident_blocks(limits, warps, shared, register_warps) == blocks


@pytest.mark.parametrize(
    ("blocks", "resident", "block", "work", "cycles"),
    [
        (10, 1, (100, 600, 0, 50), (1000,), 2500 + 100 + 1000 + 50),  # one block per SM, all at once
        (11, 1, (100, 600, 0, 50), (1000,), 2500 + 100 + 2 * 1000 + 600 + 50),  # the tail: a second one, alone
        (11, 2, (100, 600, 0, 50), (1000, 1500), 2500 + 100 + 1500 + 0.3 * 100 + 50),  # beside the first
        # 5 rounds of 2: two full waves, then one alone; 3 of 5 take another's place
        (41, 2, (100, 600, 0, 50), (1000, 1500), 2500 + 100 + 2 * 1500 + 1000 + 0.3 * (100 + 3 * 600) + 50),
        # 4 rounds: the last two end half a block apart, which is (1000 - 1500 / 2) / 2 more
        (40, 2, (100, 600, 0, 50), (1000, 1500), 2500 + 100 + 2 * 1500 + 125 + 0.3 * (100 + 2 * 600) + 50),
        (40, 2, (100, 600, 2000, 50), (1000, 1500), 2500 + 4 * 2000 + 50),  # memory is the limit
    ],
)
def test_waves_by_hand(
    plain: ModuleType, blocks: int, resident: int, block: tuple[float, ...], work: tuple[float, ...], cycles: float
) -> None:
    assert plain.sm_cycles(blocks, resident, 10, block, work) == pytest.approx(cycles)
