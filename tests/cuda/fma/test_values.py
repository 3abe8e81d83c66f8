"""Values of the FMA kernels (float32 and float64, all passes and memory formats), on the emulator, against float64."""

from __future__ import annotations

import random
from types import ModuleType

import cases as table
import emulator_harness as harness
import pytest
import torch
from emulator_harness import A100, H200, RTX4090, RTX5090, Case
from hypothesis import given, settings
from hypothesis import strategies as st

SMALLEST = (86, 1, 48 << 10, 49 << 10)  # a device that grants no opt-in shared memory, to force small tiles
DTYPES = ("float32", "float64")
PASSES = ("fwd", "bwd_weight")

#: A small problem for every variant: several warps and tiles, ragged rows, columns, images and channels, both ends.
FMA_CASES = {
    "fma_7x4": Case(9, 3, 19, 22, (9, 11), dtype="float32"),
    "fma_8x4": Case(9, 3, 19, 22, (11, 7), dtype="float32"),
    "fma_4x4_f64": Case(5, 3, 15, 22, (9, 6), dtype="float64"),
    "fma_weight_7x4": Case(9, 3, 19, 22, (9, 11), dtype="float32", pass_="bwd_weight"),
    "fma_weight_8x4": Case(9, 3, 19, 22, (11, 7), dtype="float32", pass_="bwd_weight"),
    "fma_weight_4x4_f64": Case(5, 3, 15, 22, (9, 6), dtype="float64", pass_="bwd_weight"),
}


def fma_case(emulator: ModuleType, name: str, **changes: object) -> Case:
    case = FMA_CASES[name]
    return case.but(variant=emulator.variants(case.pass_).index(name), **changes)


def test_every_variant_has_a_case(plain: ModuleType) -> None:
    names = [name for pass_ in PASSES for name in plain.variants(pass_) if name.startswith("fma_")]
    assert list(FMA_CASES) == names


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", table.rows([case for case in table.CASES if case.n]))
def test_the_table_is_exact(plain: ModuleType, case: table.Case, dtype: str, pass_: str, channels_last: bool) -> None:
    launch = harness.from_table(case, dtype=dtype, bias=True, pass_=pass_, channels_last=channels_last)
    number = plain.variants(pass_).index({"float32": "fma_7x4", "float64": "fma_4x4_f64"}[dtype].replace(
        "fma_", "fma_weight_" if pass_ == "bwd_weight" else "fma_"))  # fmt: skip
    harness.check_exact(plain, launch.but(variant=number))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", table.rows([case for case in table.CASES if case.n]))
def test_bwd_input_is_exact_on_the_table(plain: ModuleType, case: table.Case, channels_last: bool) -> None:
    number = plain.variants().index("fma_7x4")
    launch = harness.bwd_input_of(case, dtype="float32", channels_last=channels_last, variant=number)
    harness.check_bwd_input(plain, case, launch)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", FMA_CASES)
def test_every_variant_is_exact(plain: ModuleType, name: str, channels_last: bool) -> None:
    case = fma_case(plain, name, channels_last=channels_last)
    assert plain.plan(case.problem(), case.limits, case.variant)["name"] == name
    harness.check_exact(plain, case.but(bias=True, activation="relu" if case.pass_ == "fwd" else "none"))
    for n in (1, 2, 3, 17):
        harness.check_exact(plain, case.but(n=n, flip=case.pass_ == "fwd"), seed=n)
    for limits in (A100, RTX4090, SMALLEST):
        harness.check_exact(plain, case.but(limits=limits), seed=1)


@pytest.mark.parametrize("schedule", [("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2)], ids=str)
@pytest.mark.parametrize("name", FMA_CASES)
def test_results_do_not_depend_on_the_schedule(plain: ModuleType, name: str, schedule: tuple[str, int]) -> None:
    case = fma_case(plain, name, bias=True)
    harness.check_schedule(plain, case, schedule)


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("width", [56, 14, 7, 9])
def test_rows_of_any_alignment(plain: ModuleType, width: int, shift: int) -> None:
    for pass_ in PASSES:
        for channels_last in (False, True):
            for dtype in DTYPES:
                case = Case(2, 2, 9, width, 5, shift=shift, dtype=dtype, pass_=pass_, channels_last=channels_last)
                harness.check_exact(plain, case)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("limits", [RTX5090, SMALLEST], ids=lambda v: f"sm_{v[0]}")
@pytest.mark.parametrize(
    "case",
    [Case(1, 1, 40, 70, 63), Case(2, 1, 24, 130, (9, 101)), Case(3, 1, 30, 96, (31, 29)), Case(1, 1, 70, 20, (51, 5)),
     Case(1, 1, 130, 131, (3, 4)), Case(1, 1, 9, 9, (121, 123))],
    ids=str,
)  # fmt: skip
def test_tiles_and_parts_of_small_devices(
    plain: ModuleType, case: Case, limits: tuple[int, int, int, int], pass_: str
) -> None:
    for dtype in DTYPES:
        launch = case.but(limits=limits, pass_=pass_, dtype=dtype)
        plan = plain.plan(launch.problem(), limits, -1)
        assert plan["shared_bytes"] <= limits[2] and plan["blocks_per_sm"] * plan["shared_bytes"] <= limits[3]
        harness.check_exact(plain, launch)


@pytest.mark.parametrize(
    "case",
    [Case(3, 1, 21, 24, 15), Case(3, 1, 21, 24, (3, 9)), Case(1, 1, 21, 9, 15, pass_="bwd_weight"),
     Case(1, 1, 21, 24, 15, pass_="bwd_weight")],
    ids=str,
)  # fmt: skip
def test_row_groups_that_share_warps(plain: ModuleType, case: Case) -> None:
    number = plain.variants(case.pass_).index("fma_7x4" if case.pass_ == "fwd" else "fma_weight_7x4")
    case = case.but(dtype="float32", variant=number)
    assert plain.plan(case.problem(), case.limits, number)["merge"] > 1
    harness.check_exact(plain, case)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_a_filter_in_parts(plain: ModuleType, channels_last: bool) -> None:
    """Parts along both axes of the filter, and of the gradient in bwd_weight."""
    for pass_, case in (("fwd", Case(1, 1, 20, 70, (70, 250))), ("bwd_weight", Case(1, 1, 120, 270, 5))):
        case = case.but(dtype="float64", limits=SMALLEST, bias=True, pass_=pass_, channels_last=channels_last)
        assert plain.plan(case.problem(), case.limits, -1)["parts"] > 2
        harness.check_exact(plain, case)


@settings(max_examples=150)
@given(data=st.data())
def test_any_shape(plain_build: ModuleType, data: st.DataObject) -> None:
    plain_build.set_options()
    size = st.integers
    kh, kw = data.draw(size(1, 40)), data.draw(size(1, 40))
    n, c, h, w = data.draw(size(1, 18)), data.draw(size(1, 5)), data.draw(size(1, 40)), data.draw(size(1, 60))
    top, left = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = max(bottom, kh - h - top), max(right, kw - w - left)  # at least one output
    case = Case(n, c, h, w, (kh, kw), (top, bottom, left, right), dtype=data.draw(st.sampled_from(DTYPES)),
                bias=data.draw(st.booleans()), shift=data.draw(size(0, 2)), pass_=data.draw(st.sampled_from(PASSES)),
                channels_last=data.draw(st.booleans()),
                limits=data.draw(st.sampled_from([H200, RTX4090, SMALLEST])))  # fmt: skip
    harness.check_exact(plain_build, case.but(flip=case.pass_ == "fwd" and data.draw(st.booleans())))


@pytest.mark.parametrize("name", FMA_CASES)
def test_random_data_is_within_the_table_of_tolerances(plain: ModuleType, name: str) -> None:
    base = fma_case(plain, name, bias=True)
    for activation in table.ACTIVATIONS if base.pass_ == "fwd" else ("none",):
        harness.check_random(plain, base.but(activation=activation))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", FMA_CASES)
def test_non_finite_values_stay_in_their_receptive_field(plain: ModuleType, name: str, value: float) -> None:
    """An input reaches the outputs that see it and no other, with the value that torch gives them."""
    case = fma_case(plain, name)
    h, w = case.h, case.w
    reached = 0
    for at in ((0, 1, 0, 0), (case.n - 1, 2, h - 1, w - 1), (1, 0, h // 2, w // 2), (0, 0, 3, w - 2), (0, 0, h - 4, 1)):
        inputs = harness.exact_inputs(case)
        inputs["w" if case.pass_ == "fwd" else "grad"] += 3  # no tap hides it
        inputs["x"][at] = value
        got, want = harness.run(plain, case, inputs)["out"], harness.reference(case, inputs)["out"]
        assert torch.equal(got.isfinite(), want.isfinite())
        table.assert_same_bits(got.double(), want)
        reached += int((~got.isfinite()).sum())
    assert reached > 0


def test_a_non_finite_filter_or_gradient_stays_in_its_channel(plain: ModuleType) -> None:
    for name, key in (("fma_7x4", "w"), ("fma_weight_7x4", "grad")):
        case = fma_case(plain, name)
        inputs = harness.exact_inputs(case)
        want = harness.run(plain, case, inputs)["out"]
        inputs[key].view(-1, 3, *inputs[key].shape[-2:])[0, 1, 2, 2] = float("inf")
        got = harness.run(plain, case, inputs)["out"]
        channels = (slice(None), 1) if key == "w" else (1,)
        others = (slice(None), slice(0, 3, 2)) if key == "w" else (slice(0, 3, 2),)
        assert not got[channels].isfinite().all() and torch.equal(got[others], want[others])


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", PASSES)
def test_offsets_beyond_two_to_the_31(plain: ModuleType, pass_: str, channels_last: bool) -> None:
    """More than 2^31 elements: only the last block of the grid runs, and only its memory is touched."""
    case = Case(65000, 32, 33, 33, 3, dtype="float32", pass_=pass_, channels_last=channels_last)
    assert case.n * case.c * case.h * case.w > 1 << 31
    plan = plain.plan(case.problem(), case.limits, -1)
    weight = pass_ == "bwd_weight"
    splits = plan["workspace_bytes"] // (4 * 32 * (9 + 1))
    images = case.n // splits + 32 if weight else plan["planes"]  # at least what the last block reads
    assert not weight or splits > 20
    inputs = harness.exact_inputs(case.but(n=1))  # the last image; those before it are zeros
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    big = {key: torch.empty(65000, 32, 33, 33, memory_format=format_) for key in ("x", "grad" if weight else "out")}
    for key in set(big) & set(inputs):
        big[key][-images:] = 0
        big[key][-1:] = inputs[key]
    want = harness.reference(case.but(n=1), inputs)["out"]
    tensors = {key: t.data_ptr() for key, t in {**inputs, **big}.items()}
    plain.set_options(first_block=plan["blocks"] - 1)
    if weight:
        space, small = torch.full((plan["workspace_bytes"] // 4,), float("nan")), torch.empty(32, 3, 3)
        tensors.update(workspace=space.data_ptr(), out=small.data_ptr())
        assert plain.launch(case.problem(), tensors, -1, case.limits) == ""
        got = space[: splits * 32 * 9].view(splits, 32, 3, 3)[-1, -1].double()
        assert torch.equal(got, want[-1])
    else:
        big["out"][-images:] = float("nan")
        assert plain.launch(case.problem(), tensors, -1, case.limits) == ""
        got = big["out"][-1, -1].double()
        done = got.isfinite()  # the last row tile
        assert bool(done[-1].all()) and torch.equal(got[done], want[0, -1][done])


def test_batches_beyond_a_grid_axis_launch_in_slices(plain: ModuleType) -> None:
    case = Case(1 << 20, 1, 1, 1, 1, dtype="float32", variant=plain.variants().index("fma_7x4"))
    images = plain.plan(case.problem(), case.limits, case.variant)["planes"]
    case = case.but(n=65535 * images + 3)
    assert plain.plan(case.problem(), case.limits, case.variant)["blocks"] == 65536
    x = torch.zeros(case.n, 1, 1, 1)
    y = torch.full_like(x, float("nan"))
    x[:images, 0, 0, 0], x[-3:, 0, 0, 0] = 2, 3
    plain.set_options(last_block=0)  # the first block of every launch
    w = torch.ones(1)
    tensors = {"x": x.data_ptr(), "w": w.data_ptr(), "out": y.data_ptr()}
    assert plain.launch(case.problem(), tensors, case.variant, case.limits) == ""
    assert bool((y[:images] == 2).all() and (y[-3:] == 3).all() and y[images:-3].isnan().all())


def test_refusals_say_why(plain: ModuleType) -> None:
    problem = Case(2, 2, 8, 8, 3, dtype="float32").problem()
    number = plain.variants().index("fma_7x4")
    assert plain.supports(problem, H200, number) is None
    assert "float32 and float64" in plain.supports({**problem, "dtype": "float16"}, H200, number)
    assert "another dtype" in plain.supports({**problem, "dtype": "float64"}, H200, number)
    assert "FFT" in plain.supports({**problem, "algorithm": "fft"}, H200, number)
    assert "8.0" in plain.supports(problem, (75, 40, 64 << 10, 64 << 10), number)


def test_nothing_is_left_to_torch(plain: ModuleType) -> None:
    """Every float32 and float64 problem whose tensors can exist has a plan that fits, on every device from sm_80 on."""
    rng = random.Random(0)
    for _ in range(150):
        kh, kw = rng.choice([1, 3, 7, 13, 31, 63, 400]), rng.choice([1, 2, 5, 13, 31, 63, 900])
        h, w = rng.choice([1, 7, 14, 56, 57, 300, 3000]), rng.choice([1, 7, 28, 56, 96, 1000, 20000])
        case = Case(rng.choice([1, 3, 64, 100000]), rng.choice([1, 3, 64, 1024]), h, w, (kh, kw),
                    dtype=rng.choice(DTYPES), pass_=rng.choice(PASSES), channels_last=rng.random() < 0.5)  # fmt: skip
        for limits in (H200, RTX4090, SMALLEST):
            names = plain.variants(case.pass_)
            for variant in (i for i, name in enumerate(names) if name.startswith("fma_")):
                if ("f64" in names[variant]) != (case.dtype == "float64"):
                    continue
                if case.n * case.c * h * w > 2**40:
                    with pytest.raises(ValueError, match=r"more than 2\^40 elements"):
                        plain.plan(case.problem(), limits, variant)
                    continue
                plan = plain.plan(case.problem(), limits, variant)
                assert 0 < plan["shared_bytes"] <= limits[2] and 1 <= plan["warps"] <= 16 and plan["blocks_per_sm"] >= 1
                assert plan["cycles"] > 0 and plan["spill_rows"] == plan["spill_columns"] == 0


@pytest.mark.parametrize("pass_", PASSES)
def test_layers_of_the_papers_fill_the_pipe(plain: ModuleType, pass_: str) -> None:
    """The model's share of the FMA peak that is valid taps. No time was measured."""
    least = {(56, 31): (0.68, 0.6), (28, 29): (0.58, 0.45), (14, 27): (0.4, 0.25), (96, 31): (0.66, 0.55)}
    for (size, k), shares in least.items():
        case = Case(64, {56: 128, 28: 256, 14: 512, 96: 128}[size], size, size, k, dtype="float32", pass_=pass_)
        name = "fma_weight_7x4" if pass_ == "bwd_weight" else "fma_7x4"
        numbers = [i for i, v in enumerate(plain.variants(pass_)) if v in (name, name.replace("7x4", "8x4"))]
        cycles = min(plain.plan(case.problem(), H200, number)["cycles"] for number in numbers)
        taps = sum(min(size, y - k // 2 + k) - max(0, y - k // 2) for y in range(size)) ** 2 * case.n * case.c
        assert taps / (128 * H200[1]) / cycles >= shares[pass_ == "bwd_weight"]
