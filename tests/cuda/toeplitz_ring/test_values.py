"""Values of the ring kernels, forward and bwd_input, on the emulator, against the float64 oracle."""

from __future__ import annotations

import random
from types import ModuleType

import cases as table
import emulator_harness as harness
import pytest
import torch
from emulator_harness import A100, H200, RTX4090, RTX5090, Case
from hypothesis import assume, given, settings
from hypothesis import strategies as st

SMALLEST = (86, 1, 48 << 10, 49 << 10)  # a device that grants no opt-in shared memory
ONE_SM = (90, 1, 227 << 10, 228 << 10)
ONE_BLOCK = (90, 1, 227 << 10, 1 << 10)  # one SM that holds one block, which computes all groups of slots
DTYPES = ("float16", "bfloat16")

#: A small problem for every variant: more output pairs than the ring is long, a ragged last row, two groups of slots.
VARIANT_CASES = {
    "ring_5x7_w": Case(9, 1, 27, 56, (9, 31)),
    "ring_5x6_w": Case(9, 1, 19, 48, (9, 29)),
    "ring_5x5_w": Case(9, 1, 19, 40, (5, 29)),
    "ring_5x4_w_g2": Case(17, 1, 19, 28, (7, 29)),
    "ring_5x3_w_g2": Case(17, 2, 19, 20, (5, 27)),
    "ring_5x12_w": Case(9, 1, 19, 96, (9, 31)),
    "ring_5x10_w": Case(9, 1, 17, 77, (5, 27)),
    "ring_5x8_w": Case(9, 1, 17, 60, (5, 31)),
    "ring_3x7_w": Case(9, 1, 21, 52, (7, 13)),
    "ring_3x4_w_g2": Case(17, 1, 19, 30, (5, 13)),
    "ring_9x7_w": Case(9, 1, 19, 56, (5, 51)),
    "ring_7x4_w": Case(9, 1, 19, 28, (5, 49)),
    "ring_5x4_t": Case(9, 1, 19, 65, (7, 31)),
    "ring_5x5_t": Case(9, 1, 19, 73, (5, 31)),
    "ring_5x6_t": Case(9, 1, 19, 97, (9, 31)),
    "ring_3x6_t": Case(9, 1, 19, 94, (9, 13)),
    "ring_9x7_sq": Case(9, 1, 27, 28, (9, 29)),
    "ring_7x7_sq": Case(9, 1, 27, 26, (9, 21)),
    "ring_5x7_sq": Case(9, 1, 27, 28, (9, 13)),
    "ring_3x7_sq": Case(9, 1, 35, 28, (13, 5)),
    "ring_5x5_sq": Case(9, 1, 27, 20, (9, 12)),
    "ring_5x3_sq": Case(9, 2, 27, 12, (7, 13)),
    "ring_3x4_sq": Case(9, 2, 27, 14, (9, 5)),
    "ring_9x9_sq": Case(9, 1, 19, 36, (5, 29)),
    "ring_9x11_sq": Case(9, 1, 19, 44, (5, 29)),
    "ring_9x13_sq": Case(9, 1, 19, 52, (5, 29)),
    "ring_3x7_t_sq": Case(9, 1, 27, 62, (9, 5)),
    "ring_3x5_t_sq": Case(9, 1, 27, 45, (9, 7)),
}


def variant_case(emulator: ModuleType, name: str, dtype: str = "float16") -> Case:
    return VARIANT_CASES[name].but(variant=emulator.variants().index(name), dtype=dtype)


def runs(emulator: ModuleType, case: Case) -> bool:
    """Whether the family has a variant for a case: filters of up to 62 rows and 33 columns, or small planes."""
    try:
        emulator.plan(case.problem(), case.limits, -1)
    except ValueError:  # the family's reason
        return False
    return True


def test_every_variant_has_a_case(plain: ModuleType) -> None:
    assert list(VARIANT_CASES) == [name for name in plain.variants() if name.startswith("ring_")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", table.rows(table.CASES))
def test_forward_and_bwd_input_are_exact_on_the_table(plain: ModuleType, case: table.Case, dtype: str) -> None:
    launch = harness.from_table(case, dtype=dtype, bias=True)
    if runs(plain, launch):
        harness.check_exact(plain, launch)
    launch = harness.bwd_input_of(case, dtype=dtype)
    if runs(plain, launch):
        harness.check_bwd_input(plain, case, launch)


def test_the_table_has_cases_for_the_ring(plain: ModuleType) -> None:
    assert sum(runs(plain, harness.from_table(case)) for case in table.CASES) > 0.8 * len(table.CASES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANT_CASES)
def test_every_variant_is_exact(plain: ModuleType, name: str, dtype: str) -> None:
    case = variant_case(plain, name, dtype)
    plan = plain.plan(case.problem(), case.limits, case.variant)
    assert plan["name"] == name
    harness.check_exact(plain, case.but(bias=True, activation="relu"))
    counters = plain.take_counters()
    assert counters["ldmatrix_conflicts"] == 0 and counters["mma"] == plan["mmas"]
    harness.check_exact(plain, case.but(n=1))  # row groups
    harness.check_exact(plain, case.but(n=3, flip=True, limits=ONE_SM), seed=1)


@pytest.mark.parametrize("schedule", [("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2)], ids=str)
def test_results_do_not_depend_on_the_schedule(plain: ModuleType, schedule: tuple[str, int]) -> None:
    harness.check_schedule(plain, VARIANT_CASES["ring_5x4_w_g2"].but(bias=True), schedule)


@pytest.mark.parametrize("shift", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("width", [56, 28, 13, 36, 33])
def test_rows_of_any_alignment(plain: ModuleType, width: int, shift: int) -> None:
    harness.check_exact(plain, Case(2, 2, 9, width, (5, 17), shift=shift))


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 301, 28, (31, 29)),
        Case(9, 1, 200, 20, (7, 27)),
        Case(2, 1, 257, 33, (31, 3)),
        Case(1, 1, 128, 56, 31),
    ],
    ids=str,
)
@pytest.mark.parametrize("limits", [ONE_SM, RTX4090], ids=lambda v: f"sm_{v[0]}")
def test_planes_of_any_height(plain: ModuleType, case: Case, limits: tuple[int, int, int, int]) -> None:
    """The ring goes around many times; shared memory does not depend on the height."""
    case = case.but(limits=limits, bias=True)
    plan = plain.plan(case.problem(), limits, -1)
    taller = plain.plan(case.but(h=100 * case.h).problem(), limits, plan["variant"])
    assert plan["shared_bytes"] <= limits[2] and taller["shared_bytes"] <= limits[2]
    harness.check_exact(plain, case)


@pytest.mark.parametrize("kh", [1, 2, 3, 4, 15, 16, 17, 29, 30, 31, 32, 33, 51, 62])
@pytest.mark.parametrize("h", [1, 2, 15, 33, 34, 91])
def test_filters_of_every_height(plain: ModuleType, kh: int, h: int) -> None:
    harness.check_exact(plain, Case(3, 1, h, 20, (kh, 27), bias=True, limits=ONE_SM))


def test_a_block_computes_several_groups_of_images(plain: ModuleType) -> None:
    for n in (33, 41, 64):
        case = Case(n, 2, 21, 28, (13, 29), limits=ONE_BLOCK, bias=True)
        assert plain.plan(case.problem(), ONE_BLOCK, -1)["turns"] > 1
        harness.check_exact(plain, case)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 9, 20])
def test_row_groups_of_small_batches(plain: ModuleType, n: int) -> None:
    groups = set()
    for h in (7, 16, 33, 57):
        case = Case(n, 1, h, 28, (13, 29), limits=ONE_SM)
        groups.add(plain.plan(case.problem(), ONE_SM, -1)["row_groups"])
        harness.check_exact(plain, case)
    assert n >= 7 or max(groups) > 1


@pytest.mark.parametrize(
    "pad", [(40, 3, 2, 2), (3, 40, 2, 2), (40, 40, 2, 2), (40, -16, 2, 2), (-16, 40, 2, 2), (90, -64, 2, 2)], ids=str
)
def test_outputs_that_see_no_row_of_the_image(plain: ModuleType, pad: tuple[int, int, int, int]) -> None:
    """They hold the bias: pairs that meet no input are stored all the same, and in their turn."""
    for n in (1, 8):
        harness.check_exact(plain, Case(n, 1, 20, 21, 5, pad, bias=True, activation="relu"))


@settings(max_examples=120)
@given(data=st.data())
def test_any_shape(plain_build: ModuleType, data: st.DataObject) -> None:
    plain_build.set_options()
    size = st.integers
    kh, kw = data.draw(size(1, 66)), data.draw(size(1, 33))
    n, h, w = data.draw(size(0, 18)), data.draw(size(1, 70)), data.draw(size(1, 100))
    top, left = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = max(bottom, kh - h - top), max(right, kw - w - left)  # at least one output
    case = Case(n, 1, h, w, (kh, kw), (top, bottom, left, right), dtype=data.draw(st.sampled_from(DTYPES)),
                flip=data.draw(st.booleans()), bias=data.draw(st.booleans()), shift=data.draw(size(0, 2)),
                limits=data.draw(st.sampled_from([H200, A100, ONE_BLOCK, SMALLEST])))  # fmt: skip
    assume(runs(plain_build, case))
    harness.check_exact(plain_build, case)


@pytest.mark.parametrize("activation", table.ACTIVATIONS)
@pytest.mark.parametrize("name", ["ring_5x7_w", "ring_5x4_w_g2", "ring_5x6_t", "ring_5x7_sq"])
def test_random_data_is_within_the_table_of_tolerances(plain: ModuleType, name: str, activation: str) -> None:
    for dtype in DTYPES:
        harness.check_random(plain, variant_case(plain, name, dtype).but(bias=True, activation=activation))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_non_finite_inputs_spill_no_further_than_documented(plain: ModuleType, value: float) -> None:
    total = 0
    for n, kernel, width in ((2, (5, 31), 56), (17, (7, 29), 28), (9, (7, 6), 14), (1, (8, 17), 100)):
        case = Case(n, 2, 24, width, kernel)
        for at in ((0, 1, 11, 5), (n - 1, 0, 0, 0), (n // 2, 0, 23, width - 1)):
            total += int(harness.spilled(plain, case, value, at).sum())
    assert total > 0  # else the documentation is out of date


@pytest.mark.parametrize("k", [13, 27, 29, 31])
@pytest.mark.parametrize("size", [20, 28, 56, 64, 96])
def test_spill_of_the_papers_filters(plain: ModuleType, size: int, k: int) -> None:
    case = Case(64, 128, size, size, k)
    for name in (name for name in VARIANT_CASES if "_t" not in name):
        variant, (rows, columns) = plain.variants().index(name), (6, 6) if name.endswith("_sq") else (2, 14)
        if plain.supports(case.problem(), H200, variant) is None:
            plan = plain.plan(case.problem(), H200, variant)
            assert plan["spill_rows"] <= rows and plan["spill_columns"] <= columns


def test_refusals_say_why(plain: ModuleType) -> None:
    problem = Case(2, 2, 28, 28, 29).problem()
    number = plain.variants().index("ring_5x4_w_g2")
    assert plain.supports(problem, H200, number) is None
    assert "float16" in plain.supports({**problem, "dtype": "float32"}, H200, number)
    assert "channels_last" in plain.supports({**problem, "channels_last": True}, H200, number)
    assert "FFT" in plain.supports({**problem, "algorithm": "fft"}, H200, number)
    assert "another width" in plain.supports(problem, H200, plain.variants().index("ring_5x7_w"))
    tall = Case(8, 2, 200, 28, (67, 29)).problem()
    assert "more rows than the ring" in plain.supports(tall, H200, number)
    wide = Case(2, 2, 28, 90, (29, 43)).problem()
    assert "wider" in plain.supports(wide, H200, plain.variants().index("ring_5x6_t"))
    assert "8.0" in plain.supports(problem, (75, 40, 64 << 10, 64 << 10), number)


def test_plans_fit_every_device(plain: ModuleType) -> None:
    rng = random.Random(0)
    for _ in range(60):
        size = rng.choice([20, 28, 56, 57, 64, 96, 300])
        case = Case(rng.choice([1, 4, 8, 64]), rng.choice([1, 64, 512]), size, size, rng.choice([1, 7, 13, 29, 31]))
        for limits in (A100, H200, RTX4090, RTX5090):
            plan = plain.plan(case.problem(), limits, -1)
            assert 0 < plan["shared_bytes"] <= limits[2] and 1 <= plan["warps"] <= 16 and plan["blocks_per_sm"] >= 1


@pytest.mark.parametrize(
    ("case", "name", "share"),
    [(Case(64, 128, 56, 56, 31), "ring_5x7_w", 0.76), (Case(64, 128, 96, 96, 31), "ring_5x12_w", 0.75),
     (Case(64, 256, 48, 48, 29), "ring_5x6_w", 0.71), (Case(64, 512, 24, 24, 27), "ring_5x3_w_g2", 0.7),
     (Case(64, 128, 64, 64, 31), "ring_5x8_w", 0.75), (Case(64, 256, 28, 28, 29), "ring_9x7_sq", 0.76),
     (Case(64, 256, 44, 44, 29), "ring_9x11_sq", 0.73), (Case(64, 1024, 12, 12, 13), "ring_5x3_sq", 0.62),
     (Case(64, 124, 56, 56, (51, 5)), "ring_3x7_t_sq", 0.36), (Case(64, 124, 56, 56, (5, 51)), "ring_9x7_w", 0.6)],
    ids=lambda v: str(v) if isinstance(v, str) else "",
)  # fmt: skip
def test_layers_where_the_ring_is_predicted_to_be_faster(
    plain: ModuleType, case: Case, name: str, share: float
) -> None:
    """By all families' planners, and by the share of tensor work that is a valid tap."""
    direct = case.but(algorithm="direct").problem()
    plain.only("toeplitz_fwd")
    before = plain.plan(direct, H200, -1)
    plain.only("")
    plan = plain.plan(direct, H200, -1)
    assert plan["name"] == name and plan["cycles"] < before["cycles"]

    def taps(extent: int, k: int, pad: int, out: int) -> int:
        return sum(min(extent, o - pad + k) - max(0, o - pad) for o in range(out))

    (kh, kw), (ho, wo) = case.kernel, case.out
    useful = case.n * case.c * taps(case.h, kh, kh // 2, ho) * taps(case.w, kw, kw // 2, wo) / (plan["mmas"] * 2048)
    assert useful >= share


@pytest.mark.parametrize("case", [Case(8, 128, 56, 56, 31), Case(64, 512, 14, 14, 27)], ids=str)
def test_layers_where_it_is_not(plain: ModuleType, case: Case) -> None:
    plain.only("")
    assert plain.plan(case.problem(), H200, -1)["family"] != "toeplitz_ring"


def test_the_busiest_scheduler_of_a_block_alone(plain: ModuleType) -> None:
    """56 rows, K31, 16 warps of one pair: 392 meetings of pairs take as long as 104 with every scheduler at work."""
    one, two = (
        plain.plan(case.problem(), H200, plain.variants().index("ring_5x12_w"))["cycles"]
        for case in (Case(8, 132, 56, 96, 31), Case(16, 132, 56, 96, 31))
    )
    products = 54 * 6.4 / 4 / 0.95  # cycles of a meeting of two pairs, at 16 warps per SM
    assert two - one == pytest.approx(4 * 104 * products, rel=0.01)


def test_relu_keeps_nan(plain: ModuleType) -> None:
    case = Case(1, 1, 20, 28, (3, 29), activation="relu")
    inputs = harness.exact_inputs(case)
    inputs["x"][0, 0, 4, 14] = float("nan")
    assert bool(harness.run(plain, case, inputs)["out"][0, 0, 3:6, 3:6].isnan().all())


def test_a_non_finite_filter_stays_in_its_channel(plain: ModuleType) -> None:
    case = Case(8, 3, 12, 20, (5, 27))
    inputs = harness.exact_inputs(case)
    want = harness.run(plain, case, inputs)["out"]
    inputs["w"][1, 2, 2] = float("inf")
    got = harness.run(plain, case, inputs)["out"]
    assert not got[:, 1].isfinite().all() and torch.equal(got[:, ::2], want[:, ::2])
