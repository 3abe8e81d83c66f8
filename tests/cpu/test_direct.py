"""The direct CPU kernels: every remainder of packing, the kernel of narrow filters beside the tiles, erf."""

from __future__ import annotations

import os

import pytest
import torch
from cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    PASSES,
    Case,
    Operands,
    assert_close,
    assert_same_bits,
    expected,
    magnitude,
    operands,
    same,
)
from torch import Tensor

from replknet_ext import _ext

ops = torch.ops.replknet_ext
pytestmark = pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")

VARIANTS: dict[str, list[str]] = _ext.build_info().get("cpu_variants", {"fwd": [], "bwd_weight": []})
NARROW = [
    case.small(channels=19)
    for case in CASES
    if case.kw in (3, 5, 7, 9, 11) and case.n and case.kh * case.kw * case.h * case.w < 300_000
] + [
    same("narrow-9", 2, 33, 9, 29, 9, 9),
    same("narrow-11", 1, 16, 15, 14, 11, 11),
    same("many-rows", 2, 2, 101, 90, 3, 3),
    same("many-columns", 1, 1, 5, 200, 5, 5),
    same("whole-vectors", 1, 2, 9, 32, 5, 5),
    Case("narrow-valid", 2, 3, 20, 33, 3, 3, (0, 0, 0, 0)),
    Case("narrow-uneven", 2, 3, 14, 37, 5, 5, (0, 4, 4, 1)),
]


def number(pass_: str, name: str) -> int:
    """The variant of that name in a pass."""
    return VARIANTS["bwd_weight" if pass_ == "bwd_weight" else "fwd"].index(name)


def kernels(case: Case, pass_: str, dtype: torch.dtype = torch.float32) -> list[tuple[str, str]]:
    """The kernels of narrow filters that take a case, each with a layout."""
    found = [("nchw", "direct_small"), ("nhwc", "direct_small")]
    n, c, ho, wo = case.output
    top, _, left, _ = case.padding
    sizes = [n, c, case.h, case.w, case.kh, case.kw, ho, wo, top, left]
    if pass_ == "bwd_input":
        sizes = [n, c, ho, wo, case.kh, case.kw, case.h, case.w, case.kh - 1 - top, case.kw - 1 - left]
    plan = _ext.cpu_plan(sizes, dtype, pass_, "direct", 1, number(pass_, "direct_plane"))
    return found + ([] if "unsupported" in plan else [("nchw", "direct_plane")])


def run(pass_: str, case: Case, o: Operands, name: str, activation: str = "none") -> Tensor:
    """One raw op on the kernel of that name."""
    tail = ("ieee", "direct", "cpu", number(pass_, name))
    result: Tensor
    if pass_ == "fwd":
        result = ops.dwconv2d(o.x, o.weight, o.bias, case.padding, activation, *tail)
    elif pass_ == "bwd_input":
        result = ops.dwconv2d_backward_input(o.grad, o.weight, case.padding, *tail)
    else:
        result = ops.dwconv2d_backward_weight(o.grad, o.x, case.padding, *tail)
    return result


def laid_out(o: Operands, layout: str) -> Operands:
    f = LAYOUTS[layout]
    return Operands(f(o.x), o.weight, o.bias, f(o.grad))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_remainder_is_packed_and_unpacked(dtype: torch.dtype, layout: str) -> None:
    for pixels in (*range(1, 36), 49, 64, 65, 81):
        for channels in (1, 3, 8, 16, 17, 31):
            x = torch.arange(2 * channels * pixels, dtype=torch.float32).remainder(251).sub(125).to(dtype)
            x = LAYOUTS[layout](x.view(2, channels, 1, pixels))
            weight = torch.ones(channels, 1, 1, 1, dtype=dtype)
            assert_same_bits(ops.dwconv2d(x, weight, None, [0] * 4, "none", "ieee", "direct", "auto", -1), x)


@pytest.mark.parametrize("case", NARROW, ids=lambda case: case.name)
def test_narrow_filters(case: Case) -> None:
    o, exact = operands(case, "float32"), operands(case, "exact")
    for pass_ in PASSES:
        for layout, name in kernels(case, pass_):
            actual = run(pass_, case, laid_out(o, layout), name)
            assert_close(actual, expected(pass_, case, o), scale=magnitude(pass_, case, o))
            if pass_ != "bwd_weight":  # one order of sums
                assert_same_bits(actual, run(pass_, case, laid_out(o, layout), "direct_tile"))
            bits = run(pass_, case, laid_out(exact, layout), name)
            assert_same_bits(bits, expected(pass_, case, exact).to(torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_filters_in_16_bits(dtype: torch.dtype) -> None:
    for case in NARROW[::4]:
        exact = operands(case, "exact")
        for pass_ in PASSES:
            wanted = expected(pass_, case, exact)
            for layout, name in kernels(case, pass_, dtype):
                assert_same_bits(run(pass_, case, laid_out(exact.to(dtype), layout), name), wanted.to(dtype))


def test_narrow_filters_do_not_depend_on_threads() -> None:
    before = torch.get_num_threads()
    try:
        for case in (NARROW[0], same("few-channels", 1, 3, 20, 31, 7, 7), same("many", 3, 70, 9, 14, 5, 5)):
            for dtype in (torch.float32, torch.bfloat16):
                for pass_ in PASSES:
                    for layout, name in kernels(case, pass_, dtype):
                        o = laid_out(operands(case, "half").to(dtype), layout)
                        torch.set_num_threads(1)
                        first = run(pass_, case, o, name)
                        for count in (2, 3, 5):
                            torch.set_num_threads(count)
                            assert_same_bits(run(pass_, case, o, name), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kw", [3, 7])
def test_narrow_filters_keep_nan_and_infinity_in_their_receptive_field(kw: int) -> None:
    case = same("local", 2, 20, 9, 31, 3, kw)
    for value in (float("nan"), float("inf")):
        x = torch.randn(2, 20, 9, 31)
        x[1, 17, 4, 20] = value
        w = torch.rand(20, 1, 3, kw) + 0.1
        wanted = torch.zeros(2, 20, 9, 31, dtype=torch.bool)
        wanted[1, 17, 3:6, 20 - kw // 2 : 21 + kw // 2] = True
        for layout, name in kernels(case, "fwd"):
            o = laid_out(Operands(x, w, torch.zeros(20), torch.ones_like(x)), layout)
            assert torch.equal(~run("fwd", case, o, name).isfinite(), wanted)
            grad = run("bwd_weight", case, o, name)
            assert torch.equal(~grad.isfinite().all((1, 2, 3)), torch.arange(20) == 17)


def test_plans_say_what_is_narrow() -> None:
    def plan(k: int, dtype: torch.dtype, name: str = "", *, channels_last: bool = True) -> dict:
        sizes = [8, 96, 28, 28, k, k, 28, 28, k // 2, k // 2]
        number = VARIANTS["fwd"].index(name) if name else -1
        return _ext.cpu_plan(sizes, dtype, "fwd", "direct", 2, number, channels_last=channels_last)

    assert "11 columns" in plan(13, torch.float32, "direct_small")["unsupported"]
    assert "float64" in plan(7, torch.float64, "direct_small")["unsupported"]
    assert plan(7, torch.float32)["name"] == "direct_small"
    assert "NCHW" in plan(3, torch.float32, "direct_plane")["unsupported"]
    assert "float32" in plan(3, torch.float64, "direct_plane", channels_last=False)["unsupported"]
    assert "3x3" in plan(9, torch.float32, "direct_plane", channels_last=False)["unsupported"]
    assert plan(3, torch.float32, channels_last=False)["name"] == "direct_plane"
    assert plan(31, torch.float32)["name"] == plan(7, torch.float64)["name"] == "direct_tile"
    assert plan(11, torch.float32, "direct_small")["scratch_bytes"] < 1 << 20


def gelu(x: Tensor) -> Tensor:
    """Of a 1x1 filter of ones: the activation alone."""
    one = torch.ones(1, 1, 1, 1)
    result: Tensor = ops.dwconv2d(x.view(1, 1, 1, -1), one, None, [0] * 4, "gelu", "ieee", "direct", "auto", -1)
    return result.view(-1)


def test_gelu_is_accurate_to_float() -> None:
    x = torch.cat([torch.linspace(-7, 7, 100_001), torch.logspace(-30, 1, 2001), -torch.logspace(-30, 1, 2001)])
    exact = torch.nn.functional.gelu(x.double())
    # erf to 4e-7 is gelu to 2e-7 of |x|; the rest is the rounding of the result itself.
    assert ((gelu(x).double() - exact).abs() <= 2.2e-7 * x.double().abs() + 1.2e-7 * exact.abs()).all()
    special = torch.tensor([float("-inf"), float("nan"), 0.0, -0.0, 1e30, -1e30])
    torch.testing.assert_close(gelu(special), torch.nn.functional.gelu(special), rtol=0, atol=0, equal_nan=True)
    assert gelu(torch.full((16,), float("inf")))[3] == float("inf")  # torch's own is nan or inf by its build


@pytest.mark.slow
@pytest.mark.skipif("REPLKNET_EXT_CPU_ISA" in os.environ, reason="runs the others")
@pytest.mark.parametrize("isa", ["base", "avx2"])
def test_other_instruction_sets(isa: str) -> None:
    from tests.ops.test_values import _in_process

    probe = _in_process(isa, "-c", "from replknet_ext import _ext; print(_ext.cpu_isa())")
    if probe.stdout.strip() != isa:
        pytest.skip(f"this CPU has no {isa}")
    result = _in_process(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__)
    assert result.returncode == 0, result.stdout + result.stderr
