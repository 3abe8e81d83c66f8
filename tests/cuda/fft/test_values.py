"""Values of the FFT kernels, all three passes, on the emulator, against the float64 oracle."""

from __future__ import annotations

from types import ModuleType

import cases as table
import emulator_harness as harness
import pytest
import reference as oracle
import torch
from emulator_harness import A100, H200, RTX4090, RTX5090, Case
from hypothesis import given, settings
from hypothesis import strategies as st

from .harness import PASSES, check_close, fft, variant_cases

ONE_SM = (90, 1, 227 << 10, 228 << 10)  # nothing to split a channel for
SMALLEST = (86, 1, 48 << 10, 49 << 10)  # a device that grants no opt-in shared memory


def from_table(case: table.Case, **changes: object) -> Case:
    return harness.from_table(case, algorithm="fft", bias=True, **changes)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", table.rows(table.CASES))
def test_on_the_table(plain: ModuleType, case: table.Case, pass_: str) -> None:
    check_close(plain, from_table(case, pass_=pass_, dtype="float32"))


@pytest.mark.parametrize("number", range(len(table.CASES)), ids=[case.name for case in table.CASES])
def test_on_the_table_in_16_bit(plain: ModuleType, number: int) -> None:
    """Each case in one dtype, pass and memory format of the eight."""
    dtype, pass_ = ("float16", "bfloat16")[number % 2], PASSES[number // 2 % 2]
    case = from_table(table.CASES[number], dtype=dtype, pass_=pass_, channels_last=number // 4 % 2 == 1)
    check_close(plain, case)


@pytest.mark.parametrize("case", table.rows(table.CASES))
def test_bwd_input_on_the_table(plain: ModuleType, case: table.Case) -> None:
    launch = harness.bwd_input_of(case, dtype="float32", algorithm="fft")
    inputs = harness.random_inputs(launch)
    got = check_close(plain, launch, inputs)["out"]
    want = oracle.bwd_input(inputs["x"], inputs["w"][:, None], case.padding)
    assert torch.allclose(got.double(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", PASSES)
def test_every_variant(plain: ModuleType, pass_: str, channels_last: bool) -> None:
    for name, case in variant_cases(plain, pass_).items():
        case = case.but(channels_last=channels_last, c=3 if case.h < 30 else 1)
        plan = plain.plan(case.problem(), case.limits, case.variant)
        assert plan["name"] == name and plan["family"] == "fft"
        check_close(plain, case.but(bias=True))
        tiled = case.but(n=1, c=1, h=case.h + 12, k=(5, case.kernel[1]), w=case.w + 3, bias=True)
        check_close(plain, tiled)


@pytest.mark.parametrize("pass_", PASSES)
def test_as_many_rows_as_an_odd_length(plain: ModuleType, pass_: str) -> None:
    """A pair's second row would be row 0 again: tiles."""
    number = plain.variants(pass_).index("fft_63")
    for size, k in ((63, 1), (62, 2), (61, 3)):
        check_close(plain, fft(1, 1, size, size, k=k, variant=number, pass_=pass_))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("size, k", [(56, 31), (28, 29), (14, 27), (7, 13), (96, 31), (48, 29), (24, 27), (12, 13)])
def test_layers_of_the_papers_are_within_1e_6_of_the_largest_value(
    plain: ModuleType, size: int, k: int, pass_: str
) -> None:
    case = fft(2, 2 if size < 50 else 1, size, size, k=k, pass_=pass_)
    inputs = harness.random_inputs(case)
    got, want = harness.run(plain, case, inputs)["out"].double(), harness.reference(case, inputs)["out"]
    assert (got - want).norm() <= 1e-6 * want.norm()
    assert (got - want).abs().max() <= 1e-6 * want.abs().amax((-1, -2)).min()


@pytest.mark.parametrize("activation", table.ACTIVATIONS)
def test_bias_and_activation(plain: ModuleType, activation: str) -> None:
    check_close(plain, fft(2, 2, 13, 15, k=7, bias=True, activation=activation))


def test_relu_keeps_nan(plain: ModuleType) -> None:
    case = fft(1, 1, 8, 8, k=3, activation="relu")
    inputs = harness.random_inputs(case)
    inputs["x"][0, 0, 4, 4] = float("nan")
    assert bool(harness.run(plain, case, inputs)["out"].isnan().all())


@pytest.mark.parametrize("case", [fft(3, 2, 14, 13, k=9), fft(2, 1, 40, 28, k=(31, 3), bias=True)], ids=str)
def test_channels_last_has_the_bits_of_nchw(plain: ModuleType, case: Case) -> None:
    for pass_ in PASSES:
        case = case.but(pass_=pass_, limits=ONE_SM)
        number = plain.plan(case.problem(), case.limits, -1)["variant"]
        inputs = harness.random_inputs(case)
        want = harness.run(plain, case.but(variant=number), inputs)
        got = harness.run(plain, case.but(variant=number, channels_last=True), inputs)
        assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("schedule", [("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2)], ids=str)
@pytest.mark.parametrize("pass_", PASSES)
def test_results_do_not_depend_on_the_schedule(plain: ModuleType, pass_: str, schedule: tuple[str, int]) -> None:
    case = fft(9, 2, 28, 28, k=13, bias=True, pass_=pass_)
    harness.check_schedule(plain, case, schedule)


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("pass_", PASSES)
def test_misaligned_tensors(plain: ModuleType, pass_: str, shift: int) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        check_close(plain, fft(2, 2, 9, 7, k=5, shift=shift, pass_=pass_, dtype=dtype))
        check_close(plain, fft(2, 2, 9, 8, k=5, shift=shift, pass_=pass_, dtype=dtype))


def copies(emulator: ModuleType, case: Case) -> int:
    emulator.take_counters()
    check_close(emulator, case)
    return int(emulator.take_counters()["cp_async"])


@pytest.mark.parametrize("pass_", PASSES)
def test_even_rows_of_16_bit_come_by_words(plain: ModuleType, pass_: str) -> None:
    """Two values a copy where rows are aligned, also where a tile starts at an odd column; else through registers."""
    whole = fft(2, 1, 12, 14, k=7, pass_=pass_, dtype="bfloat16", limits=ONE_SM)
    tiled = fft(1, 1, 9, 90, k=(3, 31), pass_=pass_, dtype="float16", limits=ONE_SM)
    assert copies(plain, whole) == 2 * 12 * 7 * (2 if pass_ == "bwd_weight" else 1)
    assert copies(plain, tiled) > 0
    for odd in (whole.but(w=13), whole.but(shift=1), tiled.but(w=89), whole.but(channels_last=True, c=2)):
        assert copies(plain, odd) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_results_are_those_of_float32_rounded_once(plain: ModuleType, dtype: str) -> None:
    for pass_ in PASSES:
        case = fft(3, 2, 13, 14, k=7, bias=True, activation="none" if pass_ == "bwd_weight" else "gelu",
                   pass_=pass_, dtype=dtype, limits=ONE_SM)  # fmt: skip
        inputs = harness.random_inputs(case)
        got = harness.run(plain, case, inputs)
        exact = harness.run(plain, case.but(dtype="float32"), {name: t.float() for name, t in inputs.items()})
        assert all(torch.equal(got[name], t.to(got[name].dtype)) for name, t in exact.items())


@pytest.mark.parametrize("mate", [float("nan"), float("inf"), 1e4], ids=str)
def test_images_do_not_influence_each_other(plain: ModuleType, mate: float) -> None:
    for case in (fft(3, 2, 14, 14, k=13), fft(3, 1, 9, 33, k=(3, 31), limits=ONE_SM)):
        inputs = harness.random_inputs(case)
        case = case.but(variant=plain.plan(case.problem(), case.limits, -1)["variant"])
        want = harness.run(plain, case, inputs)["out"]
        alone = harness.run(plain, case.but(n=1), {**inputs, "x": inputs["x"][1:2]})["out"]
        assert torch.equal(alone, want[1:2])  # nor does the size of the batch
        inputs["x"][0] *= mate
        inputs["x"][2, 0, 5, 5] = mate
        got = harness.run(plain, case, inputs)["out"]
        assert torch.equal(got[1], want[1]) and torch.equal(got[2, 1:], want[2, 1:])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize("pass_", PASSES)
def test_a_non_finite_value_fills_its_plane_and_no_other(plain: ModuleType, pass_: str, value: float) -> None:
    case = fft(2, 3, 12, 20, k=5, pass_=pass_, bias=True)
    plan = plain.plan(case.problem(), case.limits, -1)
    assert plan["spill_rows"] == plan["spill_columns"] == -1  # anywhere in the plane
    inputs = harness.random_inputs(case)
    want = harness.run(plain, case, inputs)
    sources = ("x", "w", "bias") if pass_ == "fwd" else ("x", "grad")
    for name in sources:
        dirty = {key: t.clone() for key, t in inputs.items()}
        at = {"w": (1, 2, 2), "bias": (1,)}.get(name, (0, 1, 6, 3))
        dirty[name][at] = value
        got = harness.run(plain, case, dirty)
        assert torch.equal(got["out"].movedim(-3, 0)[::2], want["out"].movedim(-3, 0)[::2])  # other channels
        if pass_ == "fwd" and name == "x":
            assert torch.equal(got["out"][1], want["out"][1])
            assert not got["out"][0, 1, 4:9, 1:6].isfinite().any()  # every output that sees it
        else:
            assert not got["out"].movedim(-3, 0)[1].isfinite().any()


@pytest.mark.parametrize("limits", [A100, RTX4090, RTX5090, SMALLEST], ids=lambda v: f"sm_{v[0]}")
@pytest.mark.parametrize(
    "case", [fft(1, 1, 96, 96, k=31), fft(1, 1, 130, 70, k=(5, 41)), fft(1, 1, 150, 20, k=13)], ids=str
)
@pytest.mark.parametrize("pass_", PASSES)
def test_tiles_of_small_devices(plain: ModuleType, case: Case, limits: tuple[int, int, int, int], pass_: str) -> None:
    case = case.but(limits=limits, pass_=pass_)
    plan = plain.plan(case.problem(), limits, -1)
    assert plan["shared_bytes"] <= limits[2] and plan["blocks_per_sm"] * plan["shared_bytes"] <= limits[3]
    check_close(plain, case)


@settings(max_examples=100)
@given(data=st.data())
def test_any_shape(plain_build: ModuleType, data: st.DataObject) -> None:
    plain_build.set_options()
    size = st.integers
    kh, kw = data.draw(size(1, 36)), data.draw(size(1, 36))
    n, h, w = data.draw(size(0, 5)), data.draw(size(1, 60)), data.draw(size(1, 60))
    top, left = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = max(bottom, kh - h - top), max(right, kw - w - left)  # at least one output
    weight = data.draw(st.booleans())
    case = fft(n, data.draw(size(1, 2)), h, w, k=(kh, kw), pad=(top, bottom, left, right),
               flip=not weight and data.draw(st.booleans()), bias=data.draw(st.booleans()),
               channels_last=data.draw(st.booleans()), pass_="bwd_weight" if weight else "fwd",
               dtype=data.draw(st.sampled_from(["float32", "float16", "bfloat16"])), shift=data.draw(size(0, 3)),
               limits=data.draw(st.sampled_from([H200, ONE_SM, RTX4090, SMALLEST])))  # fmt: skip
    check_close(plain_build, case)


def test_splits_of_a_batch(plain: ModuleType) -> None:
    """Few channels: a batch is split over blocks, partial sums go through the workspace."""
    case = fft(40, 1, 7, 7, k=5, bias=True, pass_="bwd_weight")
    many, one = (plain.plan(case.problem(), limits, -1) for limits in (H200, ONE_SM))
    assert 1 < one["blocks"] < many["blocks"] and many["workspace_bytes"] == many["blocks"] * (25 + 1) * 4
    single = plain.plan(case.but(n=1).problem(), ONE_SM, -1)
    assert single["blocks"] == 1 and single["workspace_bytes"] == 0
    check_close(plain, case)
    check_close(plain, case.but(dtype="float16"))
    check_close(plain, case.but(limits=ONE_SM))
    check_close(plain, case.but(bias=False))
    forward = case.but(pass_="fwd")
    assert plain.plan(forward.problem(), H200, -1)["blocks"] > 1
    check_close(plain, forward)


def test_workspace_is_bounded(plain: ModuleType) -> None:
    for n, c, size, k in ((64, 128, 56, 31), (256, 1, 56, 31), (4096, 3, 28, 29), (1 << 20, 1, 14, 13)):
        plan = plain.plan(fft(n, c, size, size, k=k, pass_="bwd_weight").problem(), H200, -1)
        assert plan["workspace_bytes"] <= 512 * (k * k + 1) * 4 * c


def test_workspace_of_spectra_is_that_of_the_blocks_that_run_at_once(plain: ModuleType) -> None:
    """Whatever the channels and splits of fwd; a block takes several of them in turn."""
    for pass_ in ("fwd", "bwd_input"):
        for name in ("fft_112", "fft_144"):
            number = plain.variants(pass_).index(name)
            case = fft(2, 5, 20, 20, k=5, bias=True, pass_=pass_, variant=number, limits=ONE_SM)
            plan = plain.plan(case.problem(), case.limits, number)
            assert plan["blocks"] <= plan["blocks_per_sm"] < case.c
            check_close(plain, case)
            few, many = (
                plain.plan(fft(1, c, 56, 56, k=15, pass_=pass_, variant=number).problem(), H200, number)
                for c in (132 * 4, 132 * 64)
            )
            assert few["workspace_bytes"] == many["workspace_bytes"]


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31(plain: ModuleType) -> None:
    """More than 2^31 elements: only the last block runs, and only its memory is touched."""
    case = fft(2, 1 << 19, 32, 72, k=3, limits=ONE_SM)
    assert case.n * case.c * case.h * case.w > 1 << 31
    plan = plain.plan(case.problem(), case.limits, -1)
    assert plan["blocks"] == case.c
    x = torch.empty(case.n, case.c, case.h, case.w)
    y = torch.empty_like(x)
    w = torch.randn(1, 1, 3, 3)
    weights = torch.zeros(case.c, 3, 3)
    weights[-1] = w[0]
    x[:, -1] = torch.randn(case.n, case.h, case.w)
    y[:, -1] = float("nan")
    plain.set_options(first_block=plan["blocks"] - 1)
    tensors = {"x": x.data_ptr(), "w": weights.data_ptr(), "out": y.data_ptr()}
    assert plain.launch(case.problem(), tensors, -1, case.limits) == ""
    want = oracle.fwd(x[:, -1:], w, None, case.padding)
    assert torch.allclose(y[:, -1:].double(), want, rtol=0, atol=1e-5)


def test_refusals_say_why(plain: ModuleType) -> None:
    problem = fft(2, 2, 8, 8, k=3).problem()
    number = plain.variants().index("fft_14")
    assert plain.supports(problem, H200, -1) is None
    assert plain.supports({**problem, "dtype": "float16"}, H200, number) is None
    assert "float64" in plain.supports({**problem, "dtype": "float64"}, H200, number)
    assert "by FFT" in plain.supports({**problem, "algorithm": "direct"}, H200, number)
    assert "8.0" in plain.supports(problem, (75, 40, 64 << 10, 64 << 10), number)
    assert "longer" in plain.supports(fft(1, 1, 40, 40, k=31).problem(), H200, number)
    assert "longer" in plain.supports(fft(1, 1, 300, 300, k=177).problem(), H200, -1)


@pytest.mark.parametrize("pass_", PASSES)
def test_plans_fit_every_device(plain: ModuleType, pass_: str) -> None:
    for size in (7, 14, 28, 56, 57, 96, 128, 300):
        for k in (1, 3, 13, 31, 51, 63):
            for limits in (A100, H200, RTX4090, RTX5090):
                plan = plain.plan(fft(16, 64, size, size, k=k, pass_=pass_).problem(), limits, -1)
                assert 0 < plan["shared_bytes"] <= limits[2] and plan["blocks_per_sm"] >= 1
                assert plan["blocks_per_sm"] * (plan["shared_bytes"] + 1024) <= limits[3]


@pytest.mark.parametrize(
    ("size", "k", "name"), [(56, 31, "fft_72"), (28, 29, "fft_42"), (14, 27, "fft_28"), (7, 13, "fft_14")]
)
def test_layers_of_the_papers_get_the_shortest_length(plain: ModuleType, size: int, k: int, name: str) -> None:
    for pass_ in PASSES:
        problem = fft(64, 128, size, size, k=k, pass_=pass_).problem()
        assert plain.plan(problem, H200, -1)["name"] == name


@pytest.mark.parametrize("pass_", PASSES)
def test_a_map_of_64_with_a_filter_of_127(plain: ModuleType, pass_: str) -> None:
    """It needs 128 points; the length of 132 leaves room for two blocks on an SM of an H200 in fwd."""
    large = fft(8, 768, 64, 64, k=127, pass_=pass_, dtype="bfloat16")
    plan = plain.plan(large.problem(), H200, -1)
    assert plan["name"] == "fft_132" and plan["blocks_per_sm"] == (2 if pass_ == "fwd" else 1)
    number = plain.variants(pass_).index("fft_132")
    case = large.but(n=2, c=1, dtype="float32", variant=number)
    inputs = harness.random_inputs(case)
    got, want = harness.run(plain, case, inputs)["out"].double(), harness.reference(case, inputs)["out"]
    assert (got - want).norm() <= 1e-6 * want.norm()
    assert (got - want).abs().max() <= 1e-6 * want.abs().amax((-1, -2)).min()
