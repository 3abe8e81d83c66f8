"""The search for a tile counts few tiles in full: a bound on counts, as times would depend on the machine."""

from __future__ import annotations

from types import ModuleType

import pytest
from emulator_harness import A100, H200, Case

#: Of some ten thousand problems, those whose plans took longest, or counted most; and ordinary ones.
WORST = [
    case.but(dtype="float32") if case.dtype == "float16" else case
    for case in [
        Case(2, 512, 384, 384, 255, pass_="bwd_weight"),
        Case(64, 512, 200, 96, 63, pass_="bwd_weight"),
        Case(16, 1024, 96, 96, 63, pass_="bwd_weight"),
        Case(64, 128, 96, 96, 191, pass_="bwd_weight"),
        Case(16, 32, 1000, 1000, (511, 5), pass_="bwd_weight", channels_last=True, dtype="float64"),
        Case(64, 512, 512, 65536, 255, pass_="bwd_weight"),
        Case(2, 1024, 1000, 1000, (41, 5), pass_="bwd_weight"),
        Case(64, 128, 200, 200, 399, channels_last=True),
        Case(2, 1024, 4096, 4096, 1001, flip=True),
        Case(8, 1024, 4096, 4096, (1001, 5)),
        Case(64, 1024, 2048, 2048, 255, flip=True, limits=A100),
        Case(128, 3, 52, 54, 89, pass_="bwd_weight", dtype="float64", limits=A100),
        Case(64, 128, 56, 56, 31, pass_="bwd_weight"),
        Case(64, 128, 56, 56, 31, limits=A100),
    ]
]

#: Of all variants together. Seen: 127 at most; without a bound, hundreds.
MOST = 150


@pytest.mark.parametrize("case", WORST)
def test_few_tiles_are_counted_in_full(plain: ModuleType, case: Case) -> None:
    problem = case.but(algorithm="direct").problem()
    before = plain.fma_blocks_counted()
    assert plain.supports(problem, case.limits, -1) is None
    assert 0 < plain.fma_blocks_counted() - before <= MOST


def test_a_plan_that_cannot_win_counts_no_tile(plain: ModuleType) -> None:
    """Tensor cores are so much faster here that the FMA pipe's bound for the whole problem settles it."""
    before = plain.fma_blocks_counted()
    assert plain.supports(Case(64, 128, 57, 57, 31, dtype="float32", precision="tf32").problem(), H200, -1) is None
    assert plain.fma_blocks_counted() == before
