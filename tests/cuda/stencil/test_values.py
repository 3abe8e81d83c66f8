"""Values of the stencil kernels (small filters; all passes and memory formats), on the emulator, against float64."""

from __future__ import annotations

from types import ModuleType

import cases as table
import emulator_harness as harness
import pytest
import torch
from emulator_harness import A100, H200, RTX4090, RTX5090, Case
from hypothesis import given, settings
from hypothesis import strategies as st

SMALLEST = (86, 1, 48 << 10, 49 << 10)  # one SM with little shared memory
DTYPES = ("bfloat16", "float16", "float32")
PASSES = ("fwd", "bwd_weight")

#: A small problem for every variant: several strips, images and blocks along channels, ragged all of them. One SM, so
#: that a thread has several rows; NCHW also has several tiles of rows.
_SHAPES = {
    "3_half": Case(20, 3, 13, 20, (3, 3), dtype="bfloat16"),
    "3_half_cl": Case(3, 70, 13, 15, (3, 3), channels_last=True),
    "5_half_cl": Case(2, 70, 11, 15, (5, 4), dtype="bfloat16", channels_last=True),
    "7_half_cl": Case(2, 70, 9, 15, (7, 6), channels_last=True),
    "9_half_cl": Case(2, 70, 9, 15, (8, 9), channels_last=True),
    "11_half_cl": Case(2, 70, 11, 15, (11, 10), dtype="bfloat16", channels_last=True),
    "3_f32": Case(20, 3, 13, 20, (3, 2), dtype="float32"),
    "5_f32": Case(20, 2, 11, 20, (5, 5), dtype="float32"),
    "7_f32": Case(20, 2, 11, 20, (6, 7), dtype="float32"),
    "3_f32_cl": Case(3, 35, 13, 15, (2, 3), dtype="float32", channels_last=True),
    "5_f32_cl": Case(2, 35, 11, 15, (5, 5), dtype="float32", channels_last=True),
    "7_f32_cl": Case(2, 35, 9, 15, (7, 7), dtype="float32", channels_last=True),
    "9_f32": Case(20, 2, 11, 20, (9, 8), dtype="float32"),
    "11_f32": Case(20, 2, 11, 20, (11, 11), dtype="float32"),
    "9_f32_cl": Case(2, 35, 9, 15, (9, 9), dtype="float32", channels_last=True),
    "11_f32_cl": Case(2, 35, 11, 15, (10, 11), dtype="float32", channels_last=True),
}
STENCIL_CASES = {
    **{f"stencil_{name}": case.but(limits=SMALLEST) for name, case in _SHAPES.items()},
    **{f"stencil_weight_{name}": case.but(pass_="bwd_weight", limits=SMALLEST) for name, case in _SHAPES.items()},
}
EVERY_VARIANT = pytest.mark.parametrize("name", STENCIL_CASES)
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


def stencil_case(emulator: ModuleType, name: str, **changes: object) -> Case:
    case = STENCIL_CASES[name]
    return case.but(variant=emulator.variants(case.pass_).index(name), **changes)


def running(emulator: ModuleType, case: Case) -> list[Case]:
    """The case on every stencil variant that takes it."""
    numbers = [i for i, name in enumerate(emulator.variants(case.pass_)) if name.startswith("stencil_")]
    return [case.but(variant=i) for i in numbers if emulator.supports(case.problem(), case.limits, i) is None]


def test_every_variant_has_a_case(plain: ModuleType) -> None:
    names = [name for pass_ in PASSES for name in plain.variants(pass_) if name.startswith("stencil_")]
    assert list(STENCIL_CASES) == names


@FORMATS
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", table.rows([c for c in table.CASES if c.n and max(c.kh, c.kw) <= 11]))
def test_the_table_is_exact(plain: ModuleType, case: table.Case, pass_: str, channels_last: bool) -> None:
    """On every variant that takes a row, and on bwd_input's problem of it."""
    for dtype in DTYPES:
        launch = harness.from_table(case, dtype=dtype, bias=True, pass_=pass_, channels_last=channels_last)
        runs = running(plain, launch)
        assert runs or not channels_last or case.c == 1  # only NCHW depends on the padding
        for variant in runs:
            harness.check_exact(plain, variant)
        if pass_ == "bwd_weight":
            continue
        back = harness.bwd_input_of(case, dtype=dtype, channels_last=channels_last)
        for variant in running(plain, back):
            harness.check_bwd_input(plain, case, variant)


@EVERY_VARIANT
def test_every_variant_is_exact(plain: ModuleType, name: str) -> None:
    case = stencil_case(plain, name)
    assert plain.plan(case.problem(), case.limits, case.variant)["name"] == name
    harness.check_exact(plain, case.but(bias=True, activation="relu" if case.pass_ == "fwd" else "none"))
    for n in (1, 2, 7):
        harness.check_exact(plain, case.but(n=n, flip=case.pass_ == "fwd"), seed=n)
    for limits in (H200, A100, RTX4090, RTX5090):
        harness.check_exact(plain, case.but(limits=limits), seed=1)


@pytest.mark.parametrize("schedule", [("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2)], ids=str)
@EVERY_VARIANT
def test_results_do_not_depend_on_the_schedule(plain: ModuleType, name: str, schedule: tuple[str, int]) -> None:
    case = stencil_case(plain, name, bias=True)
    harness.check_schedule(plain, case, schedule)


@pytest.mark.parametrize("shift", [0, 1, 2, 4])
@pytest.mark.parametrize("width", [56, 28, 14, 7, 9])
def test_rows_of_any_alignment(plain: ModuleType, width: int, shift: int) -> None:
    for pass_ in PASSES:
        for k, dtype in ((3, "float16"), *((k, "float32") for k in (3, 5, 7, 9, 11))):
            harness.check_exact(plain, Case(2, 2, 8, width, k, shift=shift, dtype=dtype, pass_=pass_))


@pytest.mark.parametrize("channels", [1, 2, 3, 33, 34])
@pytest.mark.parametrize("shift", [0, 1])
def test_channels_of_any_number_and_alignment(plain: ModuleType, channels: int, shift: int) -> None:
    for pass_ in PASSES:
        for dtype in DTYPES:
            case = Case(2, channels, 8, 9, 3, shift=shift, dtype=dtype, pass_=pass_, channels_last=True, bias=True)
            harness.check_exact(plain, case)


@EVERY_VARIANT
def test_tiles_of_rows(plain: ModuleType, name: str) -> None:
    """From planes cut into single rows (many SMs, few images) to whole planes; bwd_weight split over blocks or not."""
    case, rows, splits = stencil_case(plain, name, bias=True), set(), set()
    for sms in (1, 4, 132):
        for n in (1, 7, 20 if case.channels_last else 70):
            launch = case.but(n=n, limits=(90, sms, 227 << 10, 228 << 10), c=min(case.c, 34))
            plan = plain.plan(launch.problem(), launch.limits, launch.variant)
            rows.add(plan["tile_rows"])
            splits.add(plan["workspace_bytes"] > 0)
            harness.check_exact(plain, launch, seed=n)
    height = case.out[0]
    assert {1, height} <= rows and any(1 < r < height for r in rows), rows
    assert splits == ({True, False} if case.pass_ == "bwd_weight" else {False})


@settings(max_examples=150)
@given(data=st.data())
def test_any_shape(plain_build: ModuleType, data: st.DataObject) -> None:
    plain_build.set_options()
    size = st.integers
    kh, kw = data.draw(size(1, 11)), data.draw(size(1, 11))
    n, c, h, w = data.draw(size(1, 6)), data.draw(size(1, 40)), data.draw(size(1, 30)), data.draw(size(1, 40))
    channels_last = data.draw(st.booleans())
    top, left = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2) if channels_last else size(0, 5))
    bottom, right = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = max(bottom, kh - h - top), max(right, kw - w - left)  # at least one output
    case = Case(n, c, h, w, (kh, kw), (top, bottom, left, right), dtype=data.draw(st.sampled_from(DTYPES)),
                bias=data.draw(st.booleans()), shift=data.draw(size(0, 2)), pass_=data.draw(st.sampled_from(PASSES)),
                channels_last=channels_last, limits=data.draw(st.sampled_from([H200, RTX4090, SMALLEST])))  # fmt: skip
    case = case.but(flip=case.pass_ == "fwd" and data.draw(st.booleans()))
    for launch in running(plain_build, case):
        harness.check_exact(plain_build, launch)


@EVERY_VARIANT
def test_random_data_is_within_the_table_of_tolerances(plain: ModuleType, name: str) -> None:
    base = stencil_case(plain, name, bias=True)
    for dtype in ("float32",) if base.dtype == "float32" else table.HALVES:
        for activation in table.ACTIVATIONS if base.pass_ == "fwd" else ("none",):
            case = base.but(activation=activation, dtype=str(dtype).removeprefix("torch."))
            harness.check_random(plain, case)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@EVERY_VARIANT
def test_non_finite_values_go_as_far_as_the_plan_says(plain: ModuleType, name: str, value: float) -> None:
    """Every result that sees the value is non-finite; further only by the plan's spill, never another channel."""
    case = stencil_case(plain, name)
    plan = plain.plan(case.problem(), case.limits, case.variant)
    rows, columns = plan["spill_rows"], plan["spill_columns"]
    inputs = harness.random_inputs(case)
    inputs["x"][-1, 1, case.h // 2, case.w // 2] = value
    got = harness.run(plain, case, inputs)["out"]
    if case.pass_ == "bwd_weight":
        assert rows == columns == -1
        assert not got[1].isfinite().any()  # in the middle: every tap sees it
        assert got[:1].isfinite().all() and got[2:].isfinite().all()
        return
    taps = int(name.split("_")[1])
    assert (rows, columns) == (0, taps - case.kernel[1])
    seen = ~harness.reference(case, {key: t.double() for key, t in inputs.items()})["out"].isfinite()
    reach = torch.nn.functional.max_pool2d(
        torch.nn.functional.pad(seen.double(), (columns, columns, rows, rows)),
        (2 * rows + 1, 2 * columns + 1),
        stride=1,
    )
    assert seen.any() and not got[seen].isfinite().any() and got[reach == 0].isfinite().all()


@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize("pass_", PASSES)
def test_offsets_beyond_two_to_the_31(plain: ModuleType, pass_: str, channels_last: bool) -> None:
    """More than 2^31 elements: only the last block of the grid runs, and only its memory is touched."""
    case = Case(65000, 32, 33, 33, 3, dtype="float32", pass_=pass_, channels_last=channels_last)
    plan = plain.plan(case.problem(), case.limits, -1)
    inputs = harness.exact_inputs(case.but(n=1))  # the last image; those before it are zeros
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    names = ("x", "grad" if pass_ == "bwd_weight" else "out")
    big = {key: torch.empty(65000, 32, 33, 33, memory_format=format_) for key in names}
    splits = plan["workspace_bytes"] // (4 * 32 * 10)
    images = 65000 // splits + 130 if splits else 130  # at least what the last block reads
    assert images < 1000
    for key in set(big) & set(inputs):
        big[key][-images:] = 0
        big[key][-1:] = inputs[key]
    want = harness.reference(case.but(n=1), inputs)["out"]
    tensors = {key: t.data_ptr() for key, t in {**inputs, **big}.items()}
    plain.set_options(first_block=plan["blocks"] - 1)
    if pass_ == "bwd_weight":
        space, small = torch.full((plan["workspace_bytes"] // 4,), float("nan")), torch.empty(32, 3, 3)
        tensors.update(workspace=space.data_ptr(), out=small.data_ptr())
        assert plain.launch(case.problem(), tensors, -1, case.limits) == ""
        got = space.view(splits, 32, 10)[-1, -1, :9].view(3, 3).double()
        assert plan["tiles"] > 1 or torch.equal(got, want[-1])
        assert got.isfinite().all() and got.abs().max() > 0
    else:
        big["out"][-images:] = float("nan")
        assert plain.launch(case.problem(), tensors, -1, case.limits) == ""
        got = big["out"][-1, -1].double()
        done = got.isfinite()  # the last row tile
        assert bool(done[-1].all()) and torch.equal(got[done], want[0, -1][done])


def test_refusals_say_why(plain: ModuleType) -> None:
    half = Case(2, 4, 8, 8, 3).problem()
    number = {name: i for i, name in enumerate(plain.variants())}
    assert plain.supports(half, H200, number["stencil_3_half"]) is None
    assert "channels_last" in plain.supports(half, H200, number["stencil_3_half_cl"])
    assert "another dtype" in plain.supports(half, H200, number["stencil_3_f32"])
    assert "larger filters" in plain.supports({**half, "dtype": "float32"}, H200, number["stencil_9_f32"])
    assert "smaller filters" in plain.supports({**half, "kh": 5, "ho": 6}, H200, number["stencil_3_half"])
    assert "padding on the left" in plain.supports({**half, "pad_left": 3, "wo": 10}, H200, number["stencil_3_half"])
    assert "11 x 11" in plain.supports(Case(2, 4, 9, 9, 12).problem(), H200, number["stencil_3_half"])
    assert "FFT" in plain.supports({**half, "algorithm": "fft"}, H200, number["stencil_3_half"])
    assert "float64" in plain.supports({**half, "dtype": "float64"}, H200, number["stencil_3_half"])


def test_the_planner_takes_it_where_the_model_says_so(plain: ModuleType) -> None:
    """Small filters in channels_last and in strict float32; tensor cores for 16 bit in NCHW. No time was measured."""
    plain.only("")
    layer = Case(64, 96, 56, 56, 7, dtype="bfloat16")
    for k in (3, 5, 7):
        for pass_ in PASSES:
            for chosen in (
                layer.but(k=k, pass_=pass_, channels_last=True),
                layer.but(k=k, pass_=pass_, dtype="float32"),
                layer.but(k=k, pass_=pass_, dtype="float32", channels_last=True),
            ):
                if (k, chosen.dtype) == (7, "bfloat16"):
                    continue  # the Toeplitz families are ahead
                assert plain.plan(chosen.problem(), H200, -1)["family"] == "stencil", chosen
            assert plain.plan(layer.but(k=k, pass_=pass_).problem(), H200, -1)["family"] != "stencil"
    large = layer.but(k=3, h=112, w=112)  # 3x3 in 16 bit and NCHW: a candidate for the tuner, a little behind
    cycles = {name: plain.plan(large.problem(), H200, i)["cycles"] for i, name in enumerate(plain.variants())
              if name in ("stencil_3_half", "rt_3x4_t")}  # fmt: skip
    assert 1 < cycles["stencil_3_half"] / cycles["rt_3x4_t"] < 1.3
    for size, channels in ((56, 128), (28, 256), (112, 96)):
        nine = Case(64, channels, size, size, 9, dtype="float32", pass_="bwd_weight")
        assert plain.plan(nine.problem(), H200, -1)["name"] == "stencil_weight_9_f32"
        for k, name in ((8, "9_f32"), (9, "9_f32"), (10, "11_f32"), (11, "11_f32")):
            for last in (False, True):
                large = Case(64, channels, size, size, k, dtype="float32", channels_last=last)
                assert plain.plan(large.problem(), H200, -1)["name"] == f"stencil_{name}{'_cl' if last else ''}", large
