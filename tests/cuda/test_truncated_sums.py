"""Errors where tensor cores cut off their sums, as GPUs do and the emulator does on request, against float64."""

from __future__ import annotations

from types import ModuleType

import emulator_harness as harness
import pytest
from emulator_harness import Case

ONE_SM = (90, 1, 227 << 10, 228 << 10)  # the whole batch in one block's sums: the longest there are
#: RepLKNet's widest layer: variant, case, ||error|| / ||result|| at most, as the READMEs of the families state it.
LAYERS = [
    ("rt_5x7_w_bf16x3", Case(2, 1, 56, 56, 31, dtype="float32", precision="bf16x3"), 7e-6),
    ("rt_5x7_w_tf32", Case(2, 1, 56, 56, 31, dtype="float32", precision="tf32"), 4e-4),
    ("rtw_5x7_w_bf16x3", Case(8, 1, 56, 56, 31, dtype="float32", precision="bf16x3", pass_="bwd_weight"), 8e-6),
    ("rtw_5x7_w_tf32", Case(8, 1, 56, 56, 31, dtype="float32", precision="tf32", pass_="bwd_weight"), 4e-4),
    ("rtw_5x7_w_bf16x3", Case(64, 1, 56, 56, 31, dtype="float32", precision="bf16x3", pass_="bwd_weight"), 4e-5),
]
SLOW = 64  # images


def error(emulator: ModuleType, case: Case) -> float:
    inputs = harness.random_inputs(case)
    wanted = harness.reference(case, inputs)["out"]
    return float((harness.run(emulator, case, inputs)["out"].double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("name", "case", "most"),
    [
        pytest.param(*row, id=f"{row[0]}-{row[1].n}", marks=[pytest.mark.slow] if row[1].n == SLOW else [])
        for row in LAYERS
    ],
)
def test_errors_are_stated_for_sums_that_are_cut_off(plain: ModuleType, name: str, case: Case, most: float) -> None:
    case = case.but(variant=plain.variants(case.pass_).index(name), limits=ONE_SM)
    plain.set_options(truncate=True)
    found = error(plain, case)
    assert found <= most
    if case.n == SLOW:
        assert found >= most / 2, "cut off the error is several times that of rounding: 4e-6"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "case",
    [Case(17, 2, 14, 14, 27), Case(3, 2, 28, 28, 29), Case(17, 2, 7, 7, 13, channels_last=True)],
    ids=["14", "28", "7-nhwc"],
)
def test_16_bit_results_keep_their_tolerance(plain: ModuleType, case: Case, dtype: str) -> None:
    """Their own rounding is coarser than what a sum in float32 loses."""
    plain.set_options(truncate=True)
    for pass_ in ("fwd", "bwd_weight"):
        harness.check_random(plain, case.but(dtype=dtype, pass_=pass_))


def test_exact_sums_stay_exact(plain: ModuleType) -> None:
    """Nothing is cut off below 2^24 units, so data of few bits are exact in either way of adding."""
    plain.set_options(truncate=True)
    for pass_ in ("fwd", "bwd_weight"):
        for dtype, precision in (("float16", "ieee"), ("float32", "tf32"), ("float32", "bf16x3")):
            harness.check_exact(plain, Case(9, 2, 14, 14, 13, dtype=dtype, precision=precision, pass_=pass_))
