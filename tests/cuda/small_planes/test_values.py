"""Values of the CUDA kernels for small planes, on the emulator, against the float64 oracle."""

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

from replknet_ext.backends.base import CYCLES_PER_US

SMALLEST = (86, 1, 48 << 10, 49 << 10)
ONE_SM = (90, 1, 227 << 10, 228 << 10)  # few SMs for a problem: a block takes several channels or units
ONE_BLOCK = (90, 1, 227 << 10, 1000)  # that one SM holds: it has several channels
DTYPES = ("float16", "bfloat16")

#: A small problem for every variant: more than one block of images and of channels, the last of both not full.
VARIANT_CASES = {
    "small_g4_even": Case(67, 2, 14, 14, 27),
    "small_g4": Case(67, 5, 7, 7, 13),
    "small_g2_even": Case(35, 3, 10, 12, 13),
    "small_g2": Case(35, 5, 7, 9, (8, 13)),
    "small_g2_even_cl": Case(35, 21, 14, 14, 27, channels_last=True),
    "small_g2_cl": Case(35, 21, 7, 7, 13, channels_last=True),
    "small_g1_even_cl": Case(19, 21, 10, 12, 13, channels_last=True),
    "small_g1_cl": Case(19, 21, 7, 9, (8, 13), channels_last=True),
}
RUNS = [name for name in VARIANT_CASES if not name.endswith("_cl")]
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
IN_TABLE = [case for case in table.CASES if max(case.h * case.w, case.output[2] * case.output[3]) <= 512]


def variant_case(emulator: ModuleType, name: str, dtype: str = "float16") -> Case:
    return VARIANT_CASES[name].but(variant=emulator.variants().index(name), dtype=dtype)


def test_every_variant_has_a_case(plain: ModuleType) -> None:
    assert list(VARIANT_CASES) == [name for name in plain.variants() if name.startswith("small_")]


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", IN_TABLE, ids=lambda case: case.name)
def test_forward_is_exact_on_the_table(plain: ModuleType, case: table.Case, dtype: str, channels_last: bool) -> None:
    harness.check_exact(plain, harness.from_table(case, dtype=dtype, bias=True, channels_last=channels_last))


@FORMATS
@pytest.mark.parametrize("case", IN_TABLE, ids=lambda case: case.name)
def test_bwd_input_is_exact_on_the_table(plain: ModuleType, case: table.Case, channels_last: bool) -> None:
    harness.check_bwd_input(plain, case, harness.bwd_input_of(case, channels_last=channels_last))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANT_CASES)
def test_every_variant_is_exact(plain: ModuleType, name: str, dtype: str) -> None:
    case = variant_case(plain, name, dtype)
    plan = plain.plan(case.problem(), case.limits, case.variant)
    assert plan["name"] == name and plan["family"] == "small_planes"
    harness.check_exact(plain, case.but(bias=True, activation="relu"))
    assert plain.take_counters()["mma"] == plan["mmas"]
    harness.check_exact(plain, case.but(n=1, c=2 if case.channels_last else 1))
    harness.check_exact(plain, case.but(n=3, flip=True), seed=1)


@FORMATS
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 11, 13, 16, 20, 22])
def test_every_number_of_tiles_and_steps(plain: ModuleType, size: int, channels_last: bool) -> None:
    """Planes whose last step has 1 to 16 pixels, and whose last warp has as many tiles as the first, or one less."""
    for h in (size, size + 1):
        case = Case(2, 3, h, size, (2 * h - 1, 2 * size - 1), channels_last=channels_last)
        harness.check_exact(plain, case)


@pytest.mark.parametrize("variant", RUNS)
def test_blocks_that_go_on_to_further_images_and_channels(plain: ModuleType, variant: str) -> None:
    case = variant_case(plain, variant).but(limits=ONE_SM, n=330 if "even" in variant else 1500, c=3, bias=True)
    plan = plain.plan(case.problem(), case.limits, case.variant)
    units = -(-case.n // (64 if "g4" in variant else 32))
    assert plan["blocks"] < units, "the case has no block with several units"
    harness.check_exact(plain, case)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("c", [12, 14])
@pytest.mark.parametrize("sizes", [(7, 7, 13), (5, 5, 3), (6, 4, 7), (3, 7, 5)], ids=str)
def test_channels_of_a_block_share_runs(plain: ModuleType, sizes: tuple[int, int, int], c: int, shift: int) -> None:
    """Planes that start in the middle of a word; a last block with fewer channels."""
    case = Case(5, c, *sizes, limits=ONE_BLOCK, bias=True, shift=shift)
    assert plain.plan(case.problem(), case.limits, -1)["warps"] > 1, "the plan has one channel per block"
    harness.check_exact(plain, case)


@pytest.mark.parametrize("shift", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("c", [2, 3, 4, 8, 12, 16, 17, 24, 32, 40])
def test_channels_of_any_number_and_alignment(plain: ModuleType, c: int, shift: int) -> None:
    """Accesses of 2 to 16 bytes; blocks with fewer channels than others, in one round of a canvas each or several."""
    rounds = set()
    for name, sizes in (("small_g1_even_cl", (5, 14)), ("small_g2_cl", (7, 7)), ("small_g2_even_cl", (14, 14))):
        case = Case(17, c, *sizes, 5, limits=ONE_SM, bias=True, shift=shift, channels_last=True)
        case = case.but(variant=plain.variants().index(name))
        plan = plain.plan(case.problem(), case.limits, case.variant)
        channels = -(-case.c // (plan["blocks"] // -(-case.n // (16 * int(name[7])))))
        rounds.add(channels * -(-sizes[0] * sizes[1] // 56) > plan["warps"])
        harness.check_exact(plain, case)
    assert rounds == {True, False} or c < 8


@pytest.mark.parametrize("schedule", [("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2)], ids=str)
@pytest.mark.parametrize("name", ["small_g4_even", "small_g4", "small_g2_even_cl", "small_g1_cl"])
def test_results_do_not_depend_on_the_schedule(plain: ModuleType, name: str, schedule: tuple[str, int]) -> None:
    case = variant_case(plain, name).but(bias=True, limits=ONE_SM)
    case = case if case.channels_last else case.but(n=200, c=2)
    harness.check_schedule(plain, case, schedule)


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    "sizes", [(1, 7, 7), (3, 7, 7), (4, 7, 7), (8, 7, 7), (3, 14, 14), (2, 5, 6), (2, 16, 16)], ids=str
)
def test_planes_of_any_alignment(plain: ModuleType, sizes: tuple[int, int, int], shift: int) -> None:
    c, h, w = sizes
    harness.check_exact(plain, Case(3, c, h, w, 5, shift=shift, bias=True))


@settings(max_examples=60)
@given(data=st.data())
def test_any_shape(plain_build: ModuleType, data: st.DataObject) -> None:
    plain_build.set_options()
    size = st.integers
    kh, kw = data.draw(size(1, 40)), data.draw(size(1, 40))
    n, c, h, w = data.draw(size(0, 70)), data.draw(size(1, 9)), data.draw(size(1, 12)), data.draw(size(1, 20))
    top, left = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = max(bottom, kh - h - top), max(right, kw - w - left)  # at least one output
    case = Case(n, c, h, w, (kh, kw), (top, bottom, left, right), dtype=data.draw(st.sampled_from(DTYPES)),
                flip=data.draw(st.booleans()), bias=data.draw(st.booleans()), shift=data.draw(size(0, 2)),
                limits=data.draw(st.sampled_from([H200, A100, RTX4090, SMALLEST])),
                channels_last=data.draw(st.booleans()))  # fmt: skip
    if case.out[0] * case.out[1] > 512:
        assert "512" in plain_build.supports(case.problem(), H200, plain_build.variants().index("small_g4"))
        return
    try:
        plain_build.plan(case.problem(), case.limits, -1)
    except ValueError as why:
        assert "shared memory" in str(why)
        return
    harness.check_exact(plain_build, case)


@pytest.mark.parametrize("activation", table.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["small_g4_even", "small_g4", "small_g1_even_cl"])
def test_random_data_is_within_the_table_of_tolerances(
    plain: ModuleType, name: str, dtype: str, activation: str
) -> None:
    case = variant_case(plain, name, dtype).but(bias=True, activation=activation)
    inputs = harness.random_inputs(case)
    got, want = harness.run(plain, case, inputs)["out"], harness.reference(case, inputs)["out"]
    top, _, left, _ = case.padding
    torchs = torch.nn.functional.conv2d(
        inputs["x"], inputs["w"][:, None], inputs["bias"], padding=(top, left), groups=case.c
    )
    if activation != "none":
        torchs = torchs.relu() if activation == "relu" else torch.nn.functional.gelu(torchs)
    table.assert_close(got, want, torch_result=torchs)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("k", [3, 13])
@pytest.mark.parametrize("name", VARIANT_CASES)
def test_non_finite_inputs_stay_in_their_plane(plain: ModuleType, name: str, k: int, value: float) -> None:
    """Neighbours in a run share words of memory; images share products."""
    case = variant_case(plain, name).but(c=14, h=5, w=8 if "even" in name else 7, k=k, n=17, limits=ONE_BLOCK)
    plan = plain.plan(case.problem(), case.limits, case.variant)
    assert plan["spill_rows"] == plan["spill_columns"] == -1 and plan["warps"] > 1
    inputs = harness.exact_inputs(case)
    inputs["w"][inputs["w"] == 0] = 1  # no tap hides it
    before = harness.run(plain, case, inputs)["out"]
    for n, c, y, x in ((0, 1, 0, 0), (16, 1, 4, case.w - 1), (8, 0, 4, case.w - 1), (9, 2, 0, 0)):
        poisoned = {**inputs, "x": inputs["x"].clone()}
        poisoned["x"][n, c, y, x] = value
        after = harness.run(plain, case, poisoned)["out"]
        sees = after[n, c, max(0, y - k // 2) : y + k // 2 + 1, max(0, x - k // 2) : x + k // 2 + 1]
        assert not sees.isfinite().any()
        after[n, c] = before[n, c]
        assert torch.equal(after, before)


def test_a_non_finite_filter_stays_in_its_channel(plain: ModuleType) -> None:
    case = Case(8, 5, 7, 7, 13)
    inputs = harness.exact_inputs(case)
    want = harness.run(plain, case, inputs)["out"]
    inputs["w"][2, 6, 6] = float("inf")
    got = harness.run(plain, case, inputs)["out"]
    others = [0, 1, 3, 4]
    assert not got[:, 2].isfinite().all() and torch.equal(got[:, others], want[:, others])


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31(plain: ModuleType) -> None:
    """More than 2^31 elements: only the last block runs, and only its memory is touched."""
    case = Case(1 << 16, 200, 14, 14, 3, variant=plain.variants().index("small_g4_even"))
    assert case.n * case.c * 196 > 1 << 31
    plan = plain.plan(case.problem(), case.limits, case.variant)
    x = torch.empty(case.n, case.c, 14, 14, dtype=torch.float16)
    y = torch.empty_like(x)
    x[-1, -1] = last = torch.randint(-2, 3, (14, 14)).half()
    w = harness.exact_inputs(Case(1, 200, 1, 1, 3))["w"]
    plain.set_options(first_block=plan["blocks"] - 1)
    tensors = {"x": x.data_ptr(), "w": w.data_ptr(), "out": y.data_ptr()}
    case_ = case.but(limits=(90, 1 << 20, *H200[2:]))  # as many blocks as units
    plain.set_options(first_block=plain.plan(case_.problem(), case_.limits, case.variant)["blocks"] - 1)
    assert plain.launch(case_.problem(), tensors, case.variant, case_.limits) == ""
    want = oracle.fwd(last[None, None], w[-1:, None], None, case.padding)
    assert torch.equal(y[-1, -1].double(), want[0, 0])


def test_offsets_in_a_pixel_row_beyond_two_to_the_31(plain: ModuleType) -> None:
    """Of channels_last: the last pixel of a plane is that many elements from its first. Only the last block runs."""
    c = (1 << 22) + (1 << 16)
    case = Case(1, c, 16, 32, 3, channels_last=True, variant=plain.variants().index("small_g1_even_cl"))
    assert (16 * 32 - 1) * c > 1 << 31
    x = torch.empty(1, c, 16, 32, dtype=torch.float16, memory_format=torch.channels_last)
    y = torch.empty_like(x)
    x[0, -1] = last = torch.randint(-2, 3, (16, 32)).half()
    w = torch.zeros(c, 3, 3, dtype=torch.float16)
    w[-1] = torch.randint(-1, 2, (3, 3))
    plan = plain.plan(case.problem(), case.limits, case.variant)
    plain.set_options(first_block=plan["blocks"] - 1)
    tensors = {"x": x.data_ptr(), "w": w.data_ptr(), "out": y.data_ptr()}
    assert plain.launch(case.problem(), tensors, case.variant, case.limits) == ""
    want = oracle.fwd(last[None, None], w[-1:, None], None, case.padding)
    assert torch.equal(y[0, -1].double(), want[0, 0])


def test_refusals_say_why(plain: ModuleType) -> None:
    problem = Case(2, 2, 8, 8, 3).problem()
    number, odd = plain.variants().index("small_g4_even"), plain.variants().index("small_g4")
    assert plain.supports(problem, H200, number) is None
    assert "channels_last" in plain.supports({**problem, "channels_last": True}, H200, number)
    assert "channels_last" in plain.supports(problem, H200, plain.variants().index("small_g2_even_cl"))
    assert "float16 and bfloat16" in plain.supports({**problem, "dtype": "float32"}, H200, number)
    assert "FFT" in plain.supports({**problem, "algorithm": "fft"}, H200, number)
    assert "even width" in plain.supports(Case(2, 2, 7, 7, 3).problem(), H200, number)
    assert "512 pixels" in plain.supports(Case(2, 2, 24, 24, 3).problem(), H200, odd)
    assert "shared memory" in plain.supports(Case(2, 2, 22, 22, 3).problem(), SMALLEST, odd)


@pytest.mark.parametrize("limits", [A100, H200, RTX4090, RTX5090], ids=lambda v: f"sm_{v[0]}")
def test_plans_fit_every_device(plain: ModuleType, limits: tuple[int, int, int, int]) -> None:
    for n in (1, 16, 64, 300):
        for c in (1, 3, 512):
            for size in (1, 4, 7, 10, 14, 16, 20):
                for channels_last in (False, True):
                    case = Case(n, c, size, size, 13, channels_last=channels_last)
                    plan = plain.plan(case.problem(), limits, -1)
                    assert plan["shared_bytes"] <= limits[2] and 1 <= plan["warps"] <= 16
                    assert plan["blocks_per_sm"] * plan["shared_bytes"] <= limits[3]


@pytest.mark.parametrize(
    ("case", "name", "us"),
    [(Case(64, 512, 14, 14, 27), "small_g4_even", 8.8), (Case(64, 1024, 7, 7, 13), "small_g2", 5.0),
     (Case(16, 3072, 12, 12, 13), "small_g2_even", 16.1), (Case(64, 512, 10, 10, 13), "small_g2_even", 5.1),
     (Case(64, 512, 14, 14, 27, channels_last=True), "small_g2_even_cl", 17.4),
     (Case(64, 1024, 7, 7, 13, channels_last=True), "small_g2_cl", 6.8)],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_small_layers_of_the_papers_get_these_kernels(plain: ModuleType, case: Case, name: str, us: float) -> None:
    """On an H200, by the model and ahead of every other family: the choice, and that the prediction stays."""
    plain.only("")
    plan = plain.plan(case.problem(), H200, -1)
    assert plan["name"] == name and plan["cycles"] / CYCLES_PER_US <= us
