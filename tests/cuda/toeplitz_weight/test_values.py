"""Values of the tensor-core kernels of bwd_weight, on the emulator, against the float64 oracle."""

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

from replknet_ext.backends.base import CYCLES_PER_US

SMALLEST = (86, 4, 48 << 10, 49 << 10)  # a device that grants no opt-in shared memory
HALVES = ("float16", "bfloat16")
#: dtype and precision of every kind of kernel
KINDS = [("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "tf32"), ("float32", "bf16x3")]


def weight(*size: int, kernel: int | tuple[int, int], **more: object) -> Case:
    n, c, h, w = size
    return Case(n, c, h, w, kernel, pass_="bwd_weight", **{"bias": True, **more})  # type: ignore[arg-type]


#: A small problem for every variant: more warps than one, a ragged last row, two groups of slots.
VARIANT_CASES = {
    "rtw_5x7_w": weight(17, 1, 13, 56, kernel=(9, 31)),
    "rtw_5x4_w": weight(17, 1, 13, 28, kernel=(9, 29)),
    "rtw_3x2_w": weight(17, 2, 13, 14, kernel=(17, 27)),
    "rtw_1x1_w": weight(17, 3, 7, 7, kernel=13),
    "rtw_5x6_t": weight(17, 1, 9, 67, kernel=(7, 31)),
    "rtw_3x4_t": weight(17, 1, 11, 45, kernel=(9, 13)),
    "rtw_5x7_w_tf32": weight(9, 1, 11, 50, kernel=(7, 31)),
    "rtw_3x2_w_tf32": weight(9, 2, 13, 14, kernel=(17, 27)),
    "rtw_1x1_w_tf32": weight(9, 3, 7, 7, kernel=13),
    "rtw_5x4_t_tf32": weight(9, 1, 9, 43, kernel=(7, 31)),
    "rtw_5x7_w_bf16x3": weight(17, 1, 9, 56, kernel=(7, 31)),
    "rtw_3x2_w_bf16x3": weight(17, 2, 13, 14, kernel=(9, 27)),
    "rtw_1x1_w_bf16x3": weight(17, 3, 7, 7, kernel=13),
    "rtw_5x4_t_bf16x3": weight(17, 1, 7, 43, kernel=(5, 31)),
    "rtw_5x3_w": weight(17, 1, 24, 24, kernel=27),
    "rtw_7x4_w": weight(9, 1, 19, 32, kernel=(11, 49)),
    "rtw_3x7_w": weight(9, 1, 19, 56, kernel=(11, 13)),
    "rtw_3x4_w": weight(9, 1, 19, 28, kernel=(11, 13)),
    "rtw_3x3_w": weight(9, 1, 19, 20, kernel=(11, 13)),
    "rtw_9x7_sq": weight(17, 1, 13, 28, kernel=(9, 29)),
    "rtw_7x7_sq": weight(17, 1, 14, 26, kernel=(8, 21)),
    "rtw_5x7_sq": weight(9, 1, 19, 28, kernel=(11, 13)),
    "rtw_9x5_sq": weight(17, 1, 20, 20, kernel=27),
    "rtw_5x5_sq": weight(9, 1, 19, 20, kernel=(13, 12)),
    "rtw_5x3_sq": weight(17, 2, 12, 12, kernel=13),
    "rtw_9x9_sq": weight(17, 1, 11, 36, kernel=(7, 29)),
    "rtw_9x11_sq": weight(17, 1, 11, 44, kernel=(7, 29)),
    "rtw_9x15_sq": weight(17, 1, 11, 60, kernel=(7, 31)),
    "rtw_3x14_sq": weight(17, 1, 30, 56, kernel=(27, 5)),
    "rtw_3x7_sq": weight(17, 1, 30, 28, kernel=(29, 5)),
    "rtw_3x4_sq": weight(17, 2, 14, 14, kernel=(27, 5)),
}
#: In 4x4 tiles: for NCHW alone.
SQUARE = {name for name in VARIANT_CASES if name.endswith("_sq")}


def variant_case(emulator: ModuleType, name: str, dtype: str = "bfloat16") -> Case:
    case = VARIANT_CASES[name].but(variant=emulator.variants("bwd_weight").index(name), dtype=dtype)
    precision = next((p for p in ("tf32", "bf16x3") if name.endswith(p)), None)
    return case.but(dtype="float32", precision=precision) if precision else case


def first_variant(emulator: ModuleType) -> int:
    return next(i for i, name in enumerate(emulator.variants("bwd_weight")) if name.startswith("rtw_"))


def family_plan(emulator: ModuleType, case: Case) -> dict[str, object]:
    """The family's own choice: its fastest variant, whatever other families there are."""
    best: dict[str, object] | None = None
    for number, name in enumerate(emulator.variants("bwd_weight")):
        if not name.startswith("rtw_") or emulator.supports(case.problem(), case.limits, number):
            continue
        plan = emulator.plan(case.problem(), case.limits, number)
        if best is None or plan["cycles"] < best["cycles"]:
            best = plan
    assert best is not None, case
    return best


def check(emulator: ModuleType, case: Case, seed: int = 0) -> dict[str, torch.Tensor]:
    """Exact data through the family's own choice."""
    if case.variant < 0:
        case = case.but(variant=family_plan(emulator, case)["variant"])
    return harness.check_exact(emulator, case, seed)


def test_every_variant_has_a_case(plain: ModuleType) -> None:
    assert list(VARIANT_CASES) == [name for name in plain.variants("bwd_weight") if name.startswith("rtw_")]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=lambda v: v)
@pytest.mark.parametrize("case", table.rows([case for case in table.CASES if case.n]))
def test_exact_on_the_table(
    plain: ModuleType, case: table.Case, dtype: str, precision: str, channels_last: bool
) -> None:
    launch = harness.from_table(case, dtype=dtype, precision=precision, channels_last=channels_last)
    check(plain, launch.but(pass_="bwd_weight", bias=True))


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [pytest.param(name, last, id=f"{name}-{'nhwc' if last else 'nchw'}") for name in VARIANT_CASES
     for last in (False, True) if not (last and name in SQUARE)],
)  # fmt: skip
def test_every_variant_is_exact(plain: ModuleType, name: str, channels_last: bool) -> None:
    case = variant_case(plain, name).but(channels_last=channels_last)
    assert plain.plan(case.problem(), case.limits, case.variant)["name"] == name
    harness.check_exact(plain, case)
    assert plain.take_counters()["ldmatrix_conflicts"] == 0
    harness.check_exact(plain, case.but(n=1, bias=False))  # row groups
    harness.check_exact(plain, case.but(n=3), seed=1)
    if case.dtype != "float32":
        harness.check_exact(plain, case.but(dtype="float16"), seed=2)


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_results_do_not_depend_on_the_schedule(plain: ModuleType, name: str) -> None:
    case = variant_case(plain, name)
    schedules = (("reversed", 0), ("lockstep", 0), ("random", 1), ("random", 2), ("ordered", 0))
    harness.check_schedule(plain, case, *schedules)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 8])
@pytest.mark.parametrize("width", [56, 28, 14, 7, 9, 36, 33])
def test_rows_of_any_alignment(plain: ModuleType, width: int, shift: int, channels_last: bool) -> None:
    case = weight(2, 2, 9, width, kernel=5, shift=shift, channels_last=channels_last)
    check(plain, case)
    for precision in ("tf32", "bf16x3"):
        check(plain, case.but(dtype="float32", precision=precision))


@pytest.mark.parametrize("c", [1, 2, 3, 6, 8, 17])
def test_channels_of_channels_last(plain: ModuleType, c: int) -> None:
    for size in (7, 14):
        for dtype, precision in KINDS:
            check(plain, weight(3, c, size, size, kernel=7, channels_last=True, dtype=dtype, precision=precision))


@pytest.mark.parametrize("limits", [A100, RTX4090, RTX5090, SMALLEST], ids=lambda v: f"sm_{v[0]}")
@pytest.mark.parametrize(
    "case",
    [weight(1, 1, 40, 70, kernel=63), weight(2, 1, 24, 130, kernel=(9, 101)), weight(16, 1, 24, 56, kernel=31),
     weight(1, 1, 30, 96, kernel=(31, 29)), weight(1, 1, 90, 20, kernel=(81, 5)), weight(9, 1, 14, 14, kernel=27)],
    ids=str,
)  # fmt: skip
def test_small_devices_and_filters_in_parts(plain: ModuleType, case: Case, limits: tuple[int, int, int, int]) -> None:
    case = case.but(limits=limits)
    plan = family_plan(plain, case)
    assert plan["shared_bytes"] <= limits[2] and plan["blocks_per_sm"] * plan["shared_bytes"] <= limits[3]  # type: ignore[operator]
    check(plain, case)


def test_parts_down_and_along(plain: ModuleType) -> None:
    case = weight(1, 1, 150, 60, kernel=(120, 63))
    assert family_plan(plain, case)["parts"] >= 4  # type: ignore[operator]
    check(plain, case)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 16, 20, 33])
def test_row_groups_of_small_batches(plain: ModuleType, n: int) -> None:
    groups = set()
    for h in (7, 16, 33, 56):
        case = weight(n, 1, h, 14, kernel=9)
        groups.add(family_plan(plain, case)["row_groups"])
        check(plain, case)
    assert n >= 16 or max(groups) > 1  # type: ignore[type-var,operator]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=lambda v: v)
def test_a_batch_in_splits(plain: ModuleType, dtype: str, precision: str, channels_last: bool) -> None:
    """Few channels: blocks share the batch, and their partial sums are added by a second kernel."""
    case = weight(72, 2, 21, 28, kernel=21, dtype=dtype, precision=precision, channels_last=channels_last)
    plan = family_plan(plain, case)
    assert plan["workspace_bytes"] >= 2 * 4 * 2 * (21 * 21 + 1)  # type: ignore[operator]
    check(plain, case)
    check(plain, case.but(bias=False), seed=1)


@settings(max_examples=120)
@given(data=st.data())
def test_any_shape(plain_build: ModuleType, data: st.DataObject) -> None:
    plain_build.set_options()
    size = st.integers
    kh, kw = data.draw(size(1, 40)), data.draw(size(1, 40))
    n, c, h, w = data.draw(size(1, 18)), data.draw(size(1, 3)), data.draw(size(1, 40)), data.draw(size(1, 70))
    top, left = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = data.draw(size(-3, kh + 2)), data.draw(size(-3, kw + 2))
    bottom, right = max(bottom, kh - h - top), max(right, kw - w - left)  # at least one output
    dtype, precision = data.draw(st.sampled_from(KINDS))
    case = Case(n, c, h, w, (kh, kw), (top, bottom, left, right), dtype=dtype, precision=precision,
                pass_="bwd_weight", bias=data.draw(st.booleans()), shift=data.draw(size(0, 2)),
                channels_last=data.draw(st.booleans()),
                limits=data.draw(st.sampled_from([H200, A100, RTX4090, SMALLEST])))  # fmt: skip
    check(plain_build, case)


def errors(emulator: ModuleType, case: Case) -> dict[str, float]:
    """||out - ref|| / ||ref|| by output, on normal data."""
    inputs = harness.random_inputs(case)
    got, want = harness.run(emulator, case, inputs), harness.reference(case, inputs)
    return {key: float((got[key].double() - want[key]).norm() / want[key].norm()) for key in want}


@pytest.mark.parametrize(
    ("name", "bound"),
    [("rtw_5x4_w", 2.0**-8), ("rtw_3x2_w_tf32", 2.0**-10.5), ("rtw_3x2_w_bf16x3", 2.0**-16),
     ("rtw_1x1_w_bf16x3", 2.0**-16)],
)  # fmt: skip
def test_random_data_is_within_the_bound_of_the_precision(plain: ModuleType, name: str, bound: float) -> None:
    """tf32 rounds operands to 11 bits, bf16x3 to 16 or more; 16-bit results to their own 8 (here) or 11."""
    case = variant_case(plain, name).but(n=9)
    found = errors(plain, case)
    assert found["out"] <= bound
    if case.dtype == "float32":
        assert found["grad_bias"] <= 2.0**-16  # tf32 too: its sums do not round


@pytest.mark.parametrize("dtype", HALVES)
def test_random_data_is_within_the_table_of_tolerances(plain: ModuleType, dtype: str) -> None:
    case = variant_case(plain, "rtw_5x4_w", dtype)
    inputs = harness.random_inputs(case)
    got, want = harness.run(plain, case, inputs), harness.reference(case, inputs)
    top, _, left, _ = case.padding
    kh, kw = case.kernel
    _, torchs, _ = torch.ops.aten.convolution_backward(
        inputs["grad"], inputs["x"], torch.zeros(case.c, 1, kh, kw, dtype=inputs["x"].dtype), None, [1, 1], [top, left],
        [1, 1], False, [0, 0], case.c, [False, True, False],
    )  # fmt: skip
    table.assert_close(got["out"], want["out"], torch_result=torchs[:, 0])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "grad"])
@pytest.mark.parametrize(("dtype", "precision"), KINDS, ids=lambda v: v)
def test_non_finite_values_reach_every_tap_that_sees_them(
    plain: ModuleType, dtype: str, precision: str, where: str, value: float
) -> None:
    for n, size, k in ((2, 20, 5), (17, 14, 9), (1, 60, 7)):
        case = weight(n, 2, size, size, kernel=k, dtype=dtype, precision=precision)
        case = case.but(variant=family_plan(plain, case)["variant"])
        inputs = harness.exact_inputs(case)
        other = "grad" if where == "x" else "x"
        inputs[other][inputs[other] == 0] = 1  # no zero hides it
        at = {key: torch.zeros_like(t) for key, t in inputs.items()}
        at[where][n - 1, 1, size // 2, 1], at[other] = 1, torch.ones_like(at[other])
        seen = harness.reference(case, at)["out"][1] != 0
        before = harness.run(plain, case, inputs)
        inputs[where][n - 1, 1, size // 2, 1] = value
        after = harness.run(plain, case, inputs)
        assert torch.equal(after["out"][0], before["out"][0]), "another channel has changed"
        assert seen.any() and not after["out"][1][seen].isfinite().any()
        assert bool(after["grad_bias"][1].isfinite()) == (where == "x")


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31(plain: ModuleType) -> None:
    """More than 2^31 elements: only the last block runs, and only its memory is touched."""
    for channels_last in (False, True):
        case = Case(17, 1000, 360, 360, 3, pass_="bwd_weight", channels_last=channels_last)
        case = case.but(variant=family_plan(plain, case)["variant"])
        assert case.n * case.c * case.h * case.w > 1 << 31
        plan = plain.plan(case.problem(), case.limits, case.variant)
        if channels_last:  # a sum over every page of the tensors would be slow: look at the plan only
            continue
        x = torch.empty(case.n, case.c, case.h, case.w, dtype=torch.float16)
        grad = torch.empty_like(x)
        out = torch.full((case.c, 3, 3), float("nan"), dtype=torch.float16)
        # the last channels of the images of the last group
        for t, most in ((x, 3), (grad, 2)):
            t[:, -8:] = 0
            t[-1, -8:, :9, :9] = torch.randint(-1, most, (8, 9, 9)).half()
        splits = max(1, int(plan["workspace_bytes"]) // (4 * case.c * 10))
        blocks = int(plan["blocks"])
        workspace = torch.zeros(max(1, int(plan["workspace_bytes"]) // 4))
        plain.set_options(first_block=blocks // splits - 1)
        tensors = {"x": x.data_ptr(), "grad": grad.data_ptr(), "out": out.data_ptr(),
                   "workspace": workspace.data_ptr()}  # fmt: skip
        assert plain.launch(case.problem(), tensors, case.variant, case.limits) == ""
        small = case.but(c=1, h=10, w=10)
        want = harness.reference(small, {"x": x[:, -1:, :10, :10], "grad": grad[:, -1:, :10, :10]})["out"][0]
        got = (
            out[-1].double()
            if splits == 1
            else workspace.view(splits, case.c, 10)[:, -1, :9].double().sum(0).view(3, 3)
        )
        assert torch.equal(got, want)


def test_refusals_say_why(plain: ModuleType) -> None:
    case = weight(2, 2, 8, 8, kernel=3)
    problem, number = case.problem(), first_variant(plain)
    assert "FFT" in plain.supports({**problem, "algorithm": "fft"}, H200, number)
    assert "8.0" in plain.supports(problem, (75, 40, 64 << 10, 64 << 10), number)
    assert "tf32 or bf16x3" in plain.supports({**problem, "dtype": "float32"}, H200, number)
    assert "float64" in plain.supports({**problem, "dtype": "float64"}, H200, number)
    assert "another dtype" in plain.supports({**problem, "dtype": "float32", "precision": "tf32"}, H200, number)
    assert "narrower" in plain.supports(weight(2, 2, 8, 80, kernel=3).problem(), H200, number)
    names = plain.variants("bwd_weight")
    split = weight(16, 2, 56, 56, kernel=31, dtype="float32", precision="bf16x3").problem()
    assert "shared memory" in plain.supports(split, SMALLEST, names.index("rtw_5x7_w_bf16x3"))
    assert "another dtype" in plain.supports(split, H200, names.index("rtw_5x7_w_tf32"))  # less exact than asked for
    assert plain.supports({**split, "precision": "tf32"}, H200, names.index("rtw_5x7_w_bf16x3")) is None


def test_plans_fit_every_device_and_keep_the_workspace_small(plain: ModuleType) -> None:
    rng = random.Random(0)
    for _ in range(60):
        k = rng.choice([1, 3, 7, 13, 31, 51, 63])
        size = rng.choice([7, 14, 28, 56, 57, 96, 300])
        dtype, precision = rng.choice(KINDS)
        case = weight(rng.choice([1, 4, 8, 64, 256]), rng.choice([1, 64, 512]), size, size, kernel=k, dtype=dtype,
                      precision=precision, channels_last=rng.random() < 0.5)  # fmt: skip
        for limits in (A100, H200, RTX4090, RTX5090):
            plan = family_plan(plain, case.but(limits=limits))
            assert 0 < plan["shared_bytes"] <= limits[2] and 1 <= plan["warps"] <= 16  # type: ignore[operator]
            partials = 4 * case.c * (k * k + 1)
            assert plan["workspace_bytes"] % partials == 0  # type: ignore[operator]
            assert plan["workspace_bytes"] // partials <= 8 * limits[1]  # type: ignore[operator]


def test_batch_of_a_row_needs_no_workspace_where_channels_fill_the_gpu(plain: ModuleType) -> None:
    assert family_plan(plain, weight(64, 512, 14, 14, kernel=27))["workspace_bytes"] == 0


@pytest.mark.parametrize(
    ("case", "name", "share", "most_us"),
    [(weight(64, 128, 56, 56, kernel=31), "rtw_5x7_w", 0.78, 98),
     (weight(64, 256, 28, 28, kernel=29), "rtw_9x7_sq", 0.82, 32),
     (weight(64, 1024, 20, 20, kernel=27), "rtw_9x5_sq", 0.78, 52),
     (weight(64, 1024, 12, 12, kernel=13), "rtw_5x3_sq", 0.7, 13),
     (weight(64, 124, 56, 56, kernel=(51, 5)), "rtw_3x14_sq", 0.39, 58),
     (weight(64, 512, 14, 14, kernel=27), "rtw_3x2_w", 0.76, 16),
     (weight(64, 1024, 7, 7, kernel=13), "rtw_1x1_w", 0.66, 10),
     (weight(64, 128, 96, 96, kernel=31), "rtw_5x6_t", 0.76, 330)],
    ids=lambda v: str(v) if isinstance(v, str) else "",
)  # fmt: skip
def test_layers_of_the_papers_get_their_variant(
    plain: ModuleType, case: Case, name: str, share: float, most_us: float
) -> None:
    """The share of tensor work that is a valid tap, and the model's prediction for an H200."""
    plan = family_plan(plain, case.but(dtype="bfloat16"))
    (kh, kw), (ho, wo) = case.kernel, case.out

    def taps(extent: int, k: int, pad: int, out: int) -> int:
        return sum(min(extent, o - pad + k) - max(0, o - pad) for o in range(out))

    valid = case.n * case.c * taps(case.h, kh, kh // 2, ho) * taps(case.w, kw, kw // 2, wo)
    assert plan["name"] == name
    assert valid / (plan["mmas"] * 2048) >= share  # type: ignore[operator]
    assert plan["cycles"] / CYCLES_PER_US <= most_us  # type: ignore[operator]


@pytest.mark.parametrize("name", VARIANT_CASES)
def test_the_plan_counts_products(plain: ModuleType, name: str) -> None:
    case = variant_case(plain, name).but(bias=False)
    plan = plain.plan(case.problem(), case.limits, case.variant)
    harness.run(plain, case, harness.exact_inputs(case))
    assert plain.take_counters()["mma"] == pytest.approx(plan["mmas"], rel=0.1)
