"""Values of the CUDA forward and bwd_input kernels, on the emulator, against the float64 oracle."""

from __future__ import annotations

import random
from types import ModuleType

import cases as table
import emulator_harness as harness
import pytest
import reference as oracle
import torch
from emulator_harness import A100, H200, RTX4090, RTX5090, VARIANT_CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st

SMALLEST = (86, 1, 48 << 10, 49 << 10)  # a device that grants no opt-in shared memory, to force small tiles
DTYPES = ("float16", "bfloat16")


def variant_case(emulator: ModuleType, name: str, dtype: str = "float16") -> Case:
    return VARIANT_CASES[name].but(variant=emulator.variants().index(name), dtype=dtype)


def test_every_variant_has_a_case(plain: ModuleType) -> None:
    cases = [*VARIANT_CASES, *harness.STAGED_CASES]
    assert cases == [name for name in plain.variants() if name.startswith("rt_")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", table.rows(table.CASES))
def test_forward_is_exact_on_the_table(plain: ModuleType, case: table.Case, dtype: str) -> None:
    harness.check_exact(plain, harness.from_table(case, dtype=dtype, bias=True))


@pytest.mark.parametrize("case", table.rows(table.CASES))
def test_bwd_input_is_exact_on_the_table(plain: ModuleType, case: table.Case) -> None:
    harness.check_bwd_input(plain, case, harness.bwd_input_of(case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANT_CASES)
def test_every_variant_is_exact(plain: ModuleType, name: str, dtype: str) -> None:
    case = variant_case(plain, name, dtype)
    assert plain.plan(case.problem(), case.limits, case.variant)["name"] == name
    harness.check_exact(plain, case.but(bias=True, activation="relu"))
    assert plain.take_counters()["ldmatrix_conflicts"] == 0
    harness.check_exact(plain, case.but(n=1))  # row groups
    harness.check_exact(plain, case.but(n=3, flip=True), seed=1)


@pytest.mark.parametrize("schedule", [("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2)], ids=str)
def test_results_do_not_depend_on_the_schedule(plain: ModuleType, schedule: tuple[str, int]) -> None:
    case = VARIANT_CASES["rt_5x4_w"].but(bias=True)
    harness.check_schedule(plain, case, schedule)


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("width", [56, 28, 14, 7, 9, 36, 33])
def test_rows_of_any_alignment(plain: ModuleType, width: int, shift: int) -> None:
    harness.check_exact(plain, Case(2, 2, 9, width, 5, shift=shift))


@pytest.mark.parametrize("limits", [A100, RTX4090, RTX5090, SMALLEST], ids=lambda v: f"sm_{v[0]}")
@pytest.mark.parametrize(
    "case",
    [Case(1, 1, 40, 70, 63), Case(2, 1, 24, 130, (9, 101)), Case(8, 1, 56, 56, 31), Case(1, 1, 30, 96, (31, 29)),
     Case(1, 1, 70, 20, (51, 5)), Case(9, 1, 14, 14, 27)],
    ids=str,
)  # fmt: skip
def test_tiles_and_filter_parts_of_small_devices(
    plain: ModuleType, case: Case, limits: tuple[int, int, int, int]
) -> None:
    case = case.but(limits=limits)
    plan = plain.plan(case.problem(), limits, -1)
    assert plan["shared_bytes"] <= limits[2] and plan["blocks_per_sm"] * plan["shared_bytes"] <= limits[3]
    harness.check_exact(plain, case)


def test_a_filter_in_parts(plain: ModuleType) -> None:
    case = Case(1, 1, 40, 70, 63, limits=SMALLEST, bias=True)
    assert plain.plan(case.problem(), case.limits, -1)["parts"] > 2
    harness.check_exact(plain, case)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 9, 20])
def test_row_groups_of_small_batches(plain: ModuleType, n: int) -> None:
    groups = set()
    for h in (7, 16, 33, 56):
        case = Case(n, 1, h, 28, 13, limits=(90, 1, 227 << 10, 228 << 10))  # one SM: no gain in more blocks
        groups.add(plain.plan(case.problem(), case.limits, -1)["row_groups"])
        harness.check_exact(plain, case)
    assert n >= 7 or max(groups) > 1


def test_row_groups_without_a_row(plain: ModuleType) -> None:
    """7 row pairs are 7 of the 8 groups of one image; the last one is empty."""
    for h in (13, 14):
        case = Case(1, 2, h, 40, 13, bias=True, limits=(90, 1, 227 << 10, 228 << 10))
        assert plain.plan(case.problem(), case.limits, -1)["row_groups"] == 8
        harness.check_exact(plain, case)
        harness.check_exact(plain, case.but(flip=True, activation="relu"))


@settings(max_examples=120)
@given(data=st.data())
def test_any_shape(plain_build: ModuleType, data: st.DataObject) -> None:
    plain_build.set_options()
    size = st.integers
    kh, kw = data.draw(size(1, 40)), data.draw(size(1, 40))
    n, h, w = data.draw(size(0, 18)), data.draw(size(1, 40)), data.draw(size(1, 90))
    top, left = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = max(bottom, kh - h - top), max(right, kw - w - left)  # at least one output
    case = Case(n, 1, h, w, (kh, kw), (top, bottom, left, right), dtype=data.draw(st.sampled_from(DTYPES)),
                flip=data.draw(st.booleans()), bias=data.draw(st.booleans()), shift=data.draw(size(0, 2)),
                limits=data.draw(st.sampled_from([H200, A100, RTX4090, SMALLEST])))  # fmt: skip
    harness.check_exact(plain_build, case)


@pytest.mark.parametrize("activation", table.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["rt_5x7_w", "rt_3x2_w", "rt_1x1_w", "rt_5x4_t"])
def test_random_data_is_within_the_table_of_tolerances(
    plain: ModuleType, name: str, dtype: str, activation: str
) -> None:
    case = variant_case(plain, name, dtype).but(bias=True, activation=activation)
    inputs = harness.random_inputs(case)
    got, want = harness.run(plain, case, inputs)["out"], harness.reference(case, inputs)["out"]
    top, _, left, _ = case.padding
    w = inputs["w"][:, None]
    torchs = torch.nn.functional.conv2d(inputs["x"], w, inputs["bias"], padding=(top, left), groups=case.c)
    if activation != "none":
        torchs = torchs.relu() if activation == "relu" else torch.nn.functional.gelu(torchs)
    table.assert_close(got, want, torch_result=torchs)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_inputs_spill_no_further_than_documented(plain: ModuleType, dtype: str, value: float) -> None:
    total = 0
    for n, kernel, width in ((2, (5, 9), 56), (9, (4, 3), 30), (9, (7, 6), 14), (3, (5, 5), 7), (1, (8, 17), 100)):
        case = Case(n, 2, 24, width, kernel, dtype=dtype)
        for at in ((0, 1, 11, 5), (n - 1, 0, 0, 0), (n // 2, 0, 23, width - 1), (0, 0, 12, width // 2)):
            total += int(harness.spilled(plain, case, value, at).sum())
    assert total > 0  # else the documentation is out of date


@pytest.mark.parametrize("k", [3, 5, 7, 13, 27, 29, 31, (51, 5), (5, 51)], ids=str)
@pytest.mark.parametrize("size", [7, 14, 28, 56, 96])
def test_spill_of_the_papers_filters(plain: ModuleType, size: int, k: int | tuple[int, int]) -> None:
    plan = plain.plan(Case(64, 128, size, size, k).problem(), H200, -1)
    rows, columns = (6, 6) if plan["name"].endswith("_sq") else (2, 14)
    assert plan["spill_rows"] <= rows and plan["spill_columns"] <= columns


def test_a_non_finite_filter_stays_in_its_channel(plain: ModuleType) -> None:
    case = Case(8, 3, 12, 20, 5)
    inputs = harness.exact_inputs(case)
    want = harness.run(plain, case, inputs)["out"]
    inputs["w"][1, 2, 2] = float("inf")
    got = harness.run(plain, case, inputs)["out"]
    assert not got[:, 1].isfinite().all() and torch.equal(got[:, ::2], want[:, ::2])


def test_relu_keeps_nan(plain: ModuleType) -> None:
    case = Case(1, 1, 8, 8, 3, activation="relu")
    inputs = harness.exact_inputs(case)
    inputs["x"][0, 0, 4, 4] = float("nan")
    assert bool(harness.run(plain, case, inputs)["out"][0, 0, 3:6, 3:6].isnan().all())


@pytest.mark.slow  # 20 seconds of memory traffic
def test_offsets_beyond_two_to_the_31(plain: ModuleType) -> None:
    """More than 2^31 elements: only the last blocks run, and only their memory is touched."""
    case = Case(17, 1000, 360, 360, 3)
    assert case.n * case.c * case.h * case.w > 1 << 31
    plan = plain.plan(case.problem(), case.limits, -1)
    x = torch.empty(case.n, case.c, case.h, case.w, dtype=torch.float16)
    y = torch.empty_like(x)
    w = harness.exact_inputs(Case(1, 1000, 1, 1, 3))["w"]
    last = torch.randint(-2, 3, (1, 1, case.h, case.w)).half()
    x[-1, -1] = last[0, 0]
    y[-1, -1] = float("nan")
    per_channel = plan["blocks"] // case.c // -(-case.n // (8 * plan["block_groups"] // plan["row_groups"]))
    plain.set_options(first_block=plan["blocks"] - per_channel)
    tensors = {"x": x.data_ptr(), "w": w.data_ptr(), "out": y.data_ptr()}
    assert plain.launch(case.problem(), tensors, -1, case.limits) == ""
    want = oracle.fwd(last, w[-1:, None], None, case.padding)
    assert torch.equal(y[-1, -1].double(), want[0, 0])


def test_batches_beyond_a_grid_axis_launch_in_slices(plain: ModuleType) -> None:
    case = Case(1 << 20, 1, 1, 1, 1, variant=plain.variants().index("rt_1x1_w"))
    images = 8 * plain.plan(case.problem(), case.limits, case.variant)["block_groups"]  # of a block
    case = case.but(n=65535 * images + 3)
    assert plain.plan(case.problem(), case.limits, case.variant)["blocks"] == 65536
    x = torch.zeros(case.n, 1, 1, 1, dtype=torch.float16)
    y = torch.full_like(x, float("nan"))
    x[:images, 0, 0, 0], x[-3:, 0, 0, 0] = 2, 3
    plain.set_options(last_block=0)  # the first block of every launch
    w = torch.ones(1, dtype=torch.float16)
    tensors = {"x": x.data_ptr(), "w": w.data_ptr(), "out": y.data_ptr()}
    assert plain.launch(case.problem(), tensors, case.variant, case.limits) == ""
    assert bool((y[:images] == 2).all() and (y[-3:] == 3).all() and y[images:-3].isnan().all())


def test_refusals_say_why(plain: ModuleType) -> None:
    problem = Case(2, 2, 8, 8, 3).problem()
    assert plain.supports(problem, H200, -1) is None
    number = plain.variants().index("rt_3x4_t")
    assert "only by precision" in plain.supports({**problem, "dtype": "float32"}, H200, number)
    assert "channels_last" in plain.supports({**problem, "channels_last": True}, H200, number)
    assert "dtype" in plain.supports({**problem, "dtype": "float32", "precision": "tf32"}, H200, number)
    assert "float64" in plain.supports({**problem, "dtype": "float64"}, H200, number)
    assert "FFT" in plain.supports({**problem, "algorithm": "fft"}, H200, number)
    assert "8.0" in plain.supports(problem, (75, 40, 64 << 10, 64 << 10), number)
    assert "another width" in plain.supports(problem, H200, plain.variants().index("rt_5x7_w"))
    assert "no variant" in plain.supports(problem, H200, len(plain.variants()))
    assert "2^28" in plain.supports({**problem, "w": 1 << 29}, H200, -1)
    wide = Case(8, 1, 96, 96, 63).problem()
    assert "shared memory" in plain.supports({**wide, "w": 56, "wo": 56}, SMALLEST, plain.variants().index("rt_9x7_w"))
    x = torch.zeros(2, 2, 8, 8)
    tensors = {"x": x.data_ptr(), "w": x.data_ptr(), "out": x.data_ptr()}
    with pytest.raises(ValueError, match="empty sizes"):  # without a plan there is no launch
        plain.launch({**problem, "n": -1}, tensors, -1, H200)


def test_plans_fit_every_device(plain: ModuleType) -> None:
    """No variant is chosen that a device has no shared memory for, and "auto" never refuses a shape."""
    rng = random.Random(0)
    for _ in range(60):
        k = rng.choice([1, 3, 7, 13, 31, 51, 63])
        size = rng.choice([7, 14, 28, 56, 57, 96, 300])
        problem = Case(rng.choice([1, 4, 8, 64]), rng.choice([1, 64, 512]), size, size, k).problem()
        for limits in (A100, H200, RTX4090, RTX5090):
            plan = plain.plan(problem, limits, -1)
            assert 0 < plan["shared_bytes"] <= limits[2] and 1 <= plan["warps"] <= 8 and plan["blocks_per_sm"] >= 1


@pytest.mark.parametrize(
    ("case", "name", "share"),
    [(Case(64, 128, 56, 56, 31), "rt_5x7_w", 0.76), (Case(64, 256, 28, 28, 29), "rt_9x7_sq", 0.76),
     (Case(64, 512, 14, 14, 27), "rt_3x2_w_p4", 0.76), (Case(64, 1024, 7, 7, 13), "rt_1x1_w", 0.58),
     (Case(64, 128, 96, 96, 31), "rt_5x12_w", 0.75), (Case(64, 96, 56, 56, 7), "rt_3x7_w", 0.26),
     (Case(64, 124, 56, 56, (51, 5)), "rt_3x14_sq", 0.38),
     (Case(64, 1024, 20, 20, 27), "rt_9x5_sq", 0.79), (Case(64, 1024, 12, 12, 13), "rt_5x3_sq", 0.62),
     (Case(64, 124, 56, 56, (5, 51)), "rt_9x7_w", 0.6)],
    ids=lambda v: str(v) if isinstance(v, str) else "",
)  # fmt: skip
def test_layers_of_the_papers_get_their_variant(plain: ModuleType, case: Case, name: str, share: float) -> None:
    """The share of tensor work that is a valid tap, of kernels that are chosen on an H200."""
    plan = plain.plan(case.problem(), H200, -1)
    (kh, kw), (ho, wo) = case.kernel, case.out

    def taps(extent: int, k: int, pad: int, out: int) -> int:
        return sum(min(extent, o - pad + k) - max(0, o - pad) for o in range(out))

    useful = case.n * case.c * taps(case.h, kh, kh // 2, ho) * taps(case.w, kw, kw // 2, wo) / (plan["mmas"] * 2048)
    assert plan["name"] == name and plan["blocks_per_sm"] >= (1 if name == "rt_5x12_w" else 2)
    assert useful >= share


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_the_plan_counts_products_exactly(plain: ModuleType, name: str) -> None:
    case = variant_case(plain, name)
    plan = plain.plan(case.problem(), case.limits, case.variant)
    harness.run(plain, case, harness.exact_inputs(case))
    assert plain.take_counters()["mma"] == pytest.approx(plan["mmas"], rel=0.1)
