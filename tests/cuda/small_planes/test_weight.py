"""Values of bwd_weight for small planes, on the emulator, against the float64 oracle."""

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

DTYPES = ("float16", "bfloat16")


def weight(*size: int, kernel: int | tuple[int, int], **more: object) -> Case:
    n, c, h, w = size
    return Case(n, c, h, w, kernel, pass_="bwd_weight", **{"bias": True, **more})  # type: ignore[arg-type]


#: A small problem for every variant: more groups of images than a block has room for, the last of them not full.
WEIGHT_CASES = {
    "small_weight_7x3": weight(83, 2, 13, 14, kernel=27),
    "small_weight_8x3": weight(83, 2, 16, 16, kernel=31),
    "small_weight_14x1": weight(83, 6, 7, 7, kernel=13),
}


def covered(h: int, w: int, ho: int, wo: int) -> bool:
    longest = max(h, w, ho, wo)
    return longest <= 8 or (longest <= 16 and w % 2 == wo % 2 == 0)


IN_TABLE = [case for case in table.CASES if case.n and covered(case.h, case.w, *case.output[2:])]


def weight_case(emulator: ModuleType, name: str, dtype: str = "bfloat16") -> Case:
    return WEIGHT_CASES[name].but(variant=emulator.variants("bwd_weight").index(name), dtype=dtype)


def test_every_variant_has_a_case(plain: ModuleType) -> None:
    assert list(WEIGHT_CASES) == [name for name in plain.variants("bwd_weight") if name.startswith("small_")]
    assert len(IN_TABLE) >= 6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", IN_TABLE, ids=lambda case: case.name)
def test_exact_on_the_table(plain: ModuleType, case: table.Case, dtype: str) -> None:
    harness.check_exact(plain, harness.from_table(case, dtype=dtype, pass_="bwd_weight", bias=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WEIGHT_CASES)
def test_every_variant_is_exact(plain: ModuleType, name: str, dtype: str) -> None:
    case = weight_case(plain, name, dtype).but(bias=False)
    plan = plain.plan(case.problem(), case.limits, case.variant)
    assert plan["name"] == name and plan["family"] == "small_planes" and plan["workspace_bytes"] == 0
    harness.check_exact(plain, case)
    counters = plain.take_counters()
    assert counters["mma"] == plan["mmas"] and counters["ldmatrix_conflicts"] == 0
    harness.check_exact(plain, case.but(n=1, c=1, bias=True))
    harness.check_exact(plain, case.but(n=17, bias=True), seed=1)


@pytest.mark.parametrize("schedule", [("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2)], ids=str)
def test_results_do_not_depend_on_the_schedule(plain: ModuleType, schedule: tuple[str, int]) -> None:
    case = weight_case(plain, "small_weight_7x3")
    harness.check_schedule(plain, case, schedule)


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16])
def test_rows_of_any_alignment(plain: ModuleType, width: int, shift: int) -> None:
    harness.check_exact(plain, weight(3, 6, 8, width, kernel=5, shift=shift))


@settings(max_examples=60)
@given(data=st.data())
def test_any_shape(plain_build: ModuleType, data: st.DataObject) -> None:
    plain_build.set_options()
    size = st.integers
    kh, kw = data.draw(size(1, 40)), data.draw(size(1, 40))
    n, c, longest, step = data.draw(size(1, 70)), data.draw(size(1, 6)), *data.draw(st.sampled_from([(16, 2), (8, 1)]))
    h, w, ho, wo = (data.draw(size(1, longest // s)) * s for s in (1, step, 1, step))
    top, left = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    pad = (top, ho + kh - 1 - h - top, left, wo + kw - 1 - w - left)
    case = weight(n, c, h, w, kernel=(kh, kw), pad=pad, dtype=data.draw(st.sampled_from(DTYPES)),
                  bias=data.draw(st.booleans()), shift=data.draw(size(0, 2)))  # fmt: skip
    assert case.out == (ho, wo)
    harness.check_exact(plain_build, case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_data_is_within_the_table_of_tolerances(plain: ModuleType, dtype: str) -> None:
    case = weight_case(plain, "small_weight_7x3", dtype)
    inputs = harness.random_inputs(case)
    got, want = harness.run(plain, case, inputs), harness.reference(case, inputs)
    torchs = torch.nn.grad.conv2d_weight(
        inputs["x"].float(), (case.c, 1, *case.kernel), inputs["grad"].float(), padding=13, groups=case.c
    )
    table.assert_close(got["out"], want["out"], torch_result=torchs[:, 0].to(got["out"].dtype))
    biases = inputs["grad"].float().sum((0, 2, 3)).to(got["out"].dtype)
    table.assert_close(got["grad_bias"], want["grad_bias"], torch_result=biases)


@pytest.mark.parametrize("tensor", ["x", "grad"])
@pytest.mark.parametrize("name", ["small_weight_7x3", "small_weight_14x1"])
def test_non_finite_values_reach_their_taps_and_no_other_channel(plain: ModuleType, name: str, tensor: str) -> None:
    case = weight_case(plain, name).but(c=3, h=7, k=5)
    inputs = harness.exact_inputs(case)
    inputs = {key: torch.where(value == 0, 1, value) for key, value in inputs.items()}
    before = harness.run(plain, case, inputs)["out"]
    poisoned = {**inputs, tensor: inputs[tensor].clone()}
    poisoned[tensor][82, 1, 3, 3] = float("nan")
    after = harness.run(plain, case, poisoned)["out"]
    assert not after[1].isfinite().any()  # a value in the middle is seen by every tap
    assert torch.equal(after[::2], before[::2])


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31(plain: ModuleType) -> None:
    """More than 2^31 elements: only the last block runs, and only its memory is touched."""
    number = plain.variants("bwd_weight").index("small_weight_7x3")
    case = weight(17, 650_000, 14, 14, kernel=3, variant=number, dtype="float16")
    assert case.n * case.c * 196 > 1 << 31
    x = torch.empty(case.n, case.c, 14, 14, dtype=torch.float16)
    grad, out = torch.empty_like(x), torch.empty(case.c, 3, 3, dtype=torch.float16)
    x[:, -1], grad[:, -1] = torch.randint(-2, 3, (17, 14, 14)), torch.randint(-1, 2, (17, 14, 14))
    plain.set_options(first_block=case.c - 1)
    tensors = {"x": x.data_ptr(), "grad": grad.data_ptr(), "out": out.data_ptr()}
    assert plain.launch(case.problem(), tensors, number, case.limits) == ""
    want = oracle.bwd_weight(grad[:, -1:], x[:, -1:], case.padding)
    assert torch.equal(out[-1].double(), want[0, 0])


def test_refusals_say_why(plain: ModuleType) -> None:
    number = plain.variants("bwd_weight").index("small_weight_7x3")
    problem = weight(2, 2, 8, 8, kernel=3).problem()
    assert plain.supports(problem, H200, number) is None
    assert "channels_last" in plain.supports({**problem, "channels_last": True}, H200, number)
    assert "float16 and bfloat16" in plain.supports({**problem, "dtype": "float32"}, H200, number)
    runs = plain.variants("bwd_weight").index("small_weight_14x1")
    assert "8 rows and columns" in plain.supports(weight(2, 2, 9, 7, kernel=3).problem(), H200, runs)
    assert "even width" in plain.supports(weight(2, 2, 7, 7, kernel=3).problem(), H200, number)
    assert "16 rows" in plain.supports(weight(2, 2, 20, 20, kernel=3).problem(), H200, number)
    assert "row offsets" in plain.supports(weight(2, 2, 16, 16, kernel=31).problem(), H200, number)
    small = (86, 1, 48 << 10, 49 << 10)
    assert "shared memory" in plain.supports(weight(2, 2, 14, 14, kernel=3).problem(), small, number)


@pytest.mark.parametrize("limits", [A100, H200, RTX4090, RTX5090], ids=lambda v: f"sm_{v[0]}")
def test_plans_fit_every_device(plain: ModuleType, limits: tuple[int, int, int, int]) -> None:
    for size in (2, 8, 10, 14, 16):
        plan = plain.plan(weight(64, 512, size, size, kernel=13).problem(), limits, -1)
        assert plan["shared_bytes"] <= limits[2] and plan["blocks_per_sm"] * plan["shared_bytes"] <= limits[3]


def test_layers_of_the_papers_get_these_kernels(plain: ModuleType) -> None:
    """On an H200, by the model and ahead of toeplitz_weight; where batches are small that family is."""
    plain.only("")
    for n, name in ((64, "small_weight_7x3"), (256, "small_weight_7x3"), (8, "rtw_3x2_w")):
        assert plain.plan(weight(n, 512, 14, 14, kernel=27).problem(), H200, -1)["name"] == name
    assert plain.plan(weight(64, 1024, 7, 7, kernel=13).problem(), H200, -1)["name"] == "small_weight_14x1"
