"""Random problems: every pass against the oracle, and the public function against conv2d.

The same 500 problems a test on every run; `make fuzz` tries 10,000 new ones. A failure prints its problem, to be kept
as an `@example`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import (
    ACTIVATIONS,
    DTYPES,
    HALVES,
    LAYOUTS,
    PASSES,
    Case,
    Operands,
    assert_close,
    assert_close_by_fft,
    assert_same_bits,
    expected,
    kind_of,
    magnitude,
    operands,
)
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from replknet_ext import _ext, depthwise_conv2d

from .test_values import run, run_torch

ops = torch.ops.replknet_ext

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


@dataclass(frozen=True)
class How:
    """What the raw ops are told besides the problem, and on how many threads."""

    algorithm: str = "auto"
    variant: int = -1
    activation: str = "none"
    threads: int = 1


@st.composite
def ways(draw: st.DrawFn) -> How:
    """Any algorithm; the planner's choice or any kernel of this build, fit for the problem or not."""
    return How(
        draw(st.sampled_from(("auto", "direct", "fft"))), draw(st.integers(-1, 3)), draw(st.sampled_from(ACTIVATIONS)),
        draw(st.integers(1, 3)),
    )  # fmt: skip


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def call(pass_: str, case: Case, o: Operands, how: How) -> Tensor:
    """One raw op on so many threads."""
    with threads(how.threads):
        tail = (case.padding, "ieee", how.algorithm, "auto" if how.variant < 0 else "cpu", how.variant)
        if pass_ == "fwd":
            return ops.dwconv2d(o.x, o.weight, o.bias, case.padding, how.activation, *tail[1:])
        if pass_ == "bwd_input":
            return ops.dwconv2d_backward_input(o.grad, o.weight, *tail)
        return ops.dwconv2d_backward_weight(o.grad, o.x, *tail)


def plan(pass_: str, case: Case, dtype: torch.dtype, how: How) -> dict[str, Any]:
    """What the CPU backend plans to run; its family does not depend on the memory format that is asked here."""
    (_, _, ho, wo), (top, _, left, _) = case.output, case.padding
    sizes = [case.n, case.c, case.h, case.w, case.kh, case.kw, ho, wo, top, left]
    if pass_ == "bwd_input":
        sizes = [case.n, case.c, ho, wo, case.kh, case.kw, case.h, case.w, case.kh - 1 - top, case.kw - 1 - left]
    return _ext.cpu_plan(sizes, dtype, pass_, how.algorithm, how.threads, how.variant)


def check_values(pass_: str, case: Case, o: Operands, low: Operands, how: How, actual: Tensor) -> None:
    """A result against the oracle, by the tolerance of what may have run."""
    activation = how.activation if pass_ == "fwd" else "none"
    wanted = expected(pass_, case, o, activation)
    scale = magnitude(pass_, case, o)
    if activation == "gelu":  # its slope stays below 1.13, and it has an error of its own
        scale = scale * 1.2 + 1
    if actual.dtype in HALVES:
        assert_close(actual, wanted, torch_result=run_torch(pass_, case, low, activation))
    elif actual.dtype == torch.float32 and how.algorithm != "direct":
        assert_close_by_fft(actual, wanted, scale)
    else:
        assert_close(actual, wanted, scale=scale)


@given(problems(), st.sampled_from(DTYPES), layouts, layouts, ways())
@example(Case("tall", 1, 17, 24, 1, 35, 1, (17, 17, 0, 0)), torch.float32, "nhwc", "columns", How())
@example(Case("an FFT's lengths", 4, 1, 17, 1, 1, 1, (0, 14, 0, 0)), torch.float32, "nchw", "nchw", How("fft"))
@example(Case("the oracle rounds", 3, 17, 23, 9, 19, 16, (0, 1, 5, 19)), torch.float64, "nchw", "nchw", How())
def test_passes(case: Case, dtype: torch.dtype, first: str, second: str, how: How) -> None:
    o = operands(case, kind_of(dtype))
    low = o.to(dtype)
    placed = Operands(LAYOUTS[first](low.x), LAYOUTS[second](low.weight), low.bias, LAYOUTS[second](low.grad))
    for pass_ in PASSES:
        planned = plan(pass_, case, dtype, how)
        if "unsupported" in planned:
            with pytest.raises(RuntimeError, match="can't run this"):
                call(pass_, case, placed, how)
            continue
        actual = call(pass_, case, placed, how)
        check_values(pass_, case, o, low, how, actual)
        if how.threads > 1:
            assert_same_bits(call(pass_, case, placed, replace(how, threads=1)), actual)
        if pass_ != "bwd_weight" and case.n > 1:
            alone = Operands(placed.x[1:2], placed.weight, placed.bias, placed.grad[1:2])
            assert_same_bits(call(pass_, replace(case, n=1), alone, how), actual[1:2])


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
