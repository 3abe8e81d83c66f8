"""Random problems: every pass against the oracle, and the public function against conv2d."""

from __future__ import annotations

import reference
import torch
import torch.nn.functional as F
from cases import DTYPES, HALVES, LAYOUTS, Case, Operands, assert_close, assert_same_bits, expected, magnitude, operands
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_ops_values import run, run_torch

from replknet_ext import depthwise_conv2d

sizes = st.integers(1, 24)
kernels = st.one_of(st.integers(1, 8), st.integers(1, 35))
pads = st.integers(-6, 20)


@st.composite
def problems(draw: st.DrawFn) -> Case:
    """A problem of the raw ops: any size, kernel and padding with an output."""
    h, w, kh, kw = draw(sizes), draw(sizes), draw(kernels), draw(kernels)
    case = Case(
        "random", draw(st.integers(0, 4)), draw(st.sampled_from((1, 2, 3, 5, 8, 16, 17, 33))), h, w, kh, kw,
        (draw(pads), draw(pads), draw(pads), draw(pads)),
    )  # fmt: skip
    top, bottom, left, right = case.padding
    assume(h + top + bottom >= kh and w + left + right >= kw)
    assume(case.c * max(case.n, 1) * case.output[2] * case.output[3] * kh * kw < 5e6)
    return case


layouts = st.sampled_from(sorted(LAYOUTS))


@given(problems(), st.sampled_from(DTYPES), layouts, layouts)
@example(Case("tall", 1, 17, 24, 1, 35, 1, (17, 17, 0, 0)), torch.float32, "nhwc", "columns")
def test_passes(case: Case, dtype: torch.dtype, first: str, second: str) -> None:
    o = operands(case, "half" if dtype in HALVES else str(dtype).removeprefix("torch."))
    low = o.to(dtype)
    placed = Operands(LAYOUTS[first](low.x), LAYOUTS[second](low.weight), low.bias, LAYOUTS[second](low.grad))
    for pass_ in ("fwd", "bwd_input", "bwd_weight"):
        by_torch = run_torch(pass_, case, low) if dtype in HALVES else None
        scale = None if dtype in HALVES else magnitude(pass_, case, o)
        assert_close(run(pass_, case, placed), expected(pass_, case, o), scale=scale, torch_result=by_torch)


@given(problems(), st.sampled_from(DTYPES), layouts)
def test_exact_inputs(case: Case, dtype: torch.dtype, layout: str) -> None:
    o = operands(case, "exact")
    low = o.to(dtype)
    placed = Operands(LAYOUTS[layout](low.x), low.weight, low.bias, LAYOUTS[layout](low.grad))
    for pass_ in ("fwd", "bwd_input", "bwd_weight"):
        activation = "relu" if pass_ == "fwd" else "none"
        wanted = expected(pass_, case, o, activation)
        assert_same_bits(run(pass_, case, placed, activation, "direct"), wanted.to(dtype))


@given(problems())
def test_passes_are_adjoint(case: Case) -> None:
    o = operands(case, "float64")
    no_bias = Operands(o.x, o.weight, torch.zeros_like(o.bias), o.grad)
    y = (run("fwd", case, no_bias) * o.grad).sum()
    gx = (run("bwd_input", case, o) * o.x).sum()
    gw = (run("bwd_weight", case, o) * o.weight).sum()
    scale = (reference.fwd(o.x.abs(), o.weight.abs(), None, case.padding) * o.grad.abs()).sum().item() + 1e-300
    assert abs(y - gx).item() <= 1e-14 * scale
    assert abs(y - gw).item() <= 1e-14 * scale


strides = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))
paddings = st.one_of(
    st.just("same"), st.just("valid"), st.integers(0, 6), st.tuples(st.integers(0, 6), st.integers(0, 6))
)


@given(
    st.tuples(st.integers(0, 3), st.integers(1, 4), sizes, sizes), st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 2), strides, paddings, strides, st.booleans(), st.booleans(),
)  # fmt: skip
def test_public_function(
    shape: tuple[int, ...], kernel: tuple[int, int], multiplier: int, stride: object, padding: object, dilation: object,
    with_bias: bool, batched: bool,
) -> None:  # fmt: skip
    x = torch.randn(shape, dtype=torch.float64)
    if not batched:
        assume(shape[0] > 0)
        x = x[0]
    filters = shape[1] * multiplier
    w = torch.randn(filters, 1, *kernel, dtype=torch.float64)
    b = torch.randn(filters, dtype=torch.float64) if with_bias else None
    arguments = {"stride": stride, "padding": padding, "dilation": dilation}
    try:
        wanted = F.conv2d(x, w, b, **arguments, groups=shape[1])
    except (RuntimeError, ValueError):
        wanted = None
    if wanted is None:
        try:
            depthwise_conv2d(x, w, b, **arguments)
        except ValueError:
            return
        raise AssertionError("conv2d refuses what depthwise_conv2d accepts")
    got = depthwise_conv2d(x, w, b, **arguments)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
