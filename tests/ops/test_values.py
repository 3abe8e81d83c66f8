"""Values of the three raw ops: against the float64 oracle, bit for bit on exact inputs, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple
from functools import lru_cache
from pathlib import Path

import pytest
import reference
import torch
import torch.nn.functional as F
from cases import (
    ACTIVATIONS,
    AWKWARD,
    CASES,
    DTYPES,
    HALVES,
    LAYERS,
    LAYOUTS,
    PASSES,
    Case,
    Operands,
    assert_close,
    assert_format,
    assert_same_bits,
    by_name,
    expected,
    kind_of,
    magnitude,
    operands,
    rows,
    same,
)
from torch import Tensor

from replknet_ext import _ext
from replknet_ext.backends import BACKENDS, names

ops = torch.ops.replknet_ext
ISAS = ("base", "avx2", "avx512")

# A few cases that reach every branch of the kernels: several panels, tails, even and rectangular taps, crops.
COMPACT = by_name(
    "replknet31b-224-31x31-s1", "replknet31b-224-13x13-s4", "slak-t-wide-5x47-s3", "batch3", "odd-channels",
    "width1", "kernel-exceeds-plane", "even-6x8", "over-padded", "crop-and-pad",
)  # fmt: skip


def run(pass_: str, case: Case, o: Operands, activation: str = "none", algorithm: str = "direct") -> Tensor:
    """One raw op on the operands; tests/cpu/test_fft.py holds the FFTs and the choice to other bounds."""
    if pass_ == "fwd":
        return ops.dwconv2d(o.x, o.weight, o.bias, case.padding, activation, "ieee", algorithm, "auto", -1)
    if pass_ == "bwd_input":
        return ops.dwconv2d_backward_input(o.grad, o.weight, case.padding, "ieee", algorithm, "auto", -1)
    return ops.dwconv2d_backward_weight(o.grad, o.x, case.padding, "ieee", algorithm, "auto", -1)


def run_torch(pass_: str, case: Case, o: Operands, activation: str = "none") -> Tensor:
    """torch's own result in the dtype of the operands."""
    if pass_ == "fwd":
        return BACKENDS["torch"].fwd(o.x, o.weight, o.bias, case.padding, activation, "ieee", "auto", -1)
    if pass_ == "bwd_input":
        return BACKENDS["torch"].bwd_input(o.grad, o.weight, case.padding, "ieee", "auto", -1)
    return BACKENDS["torch"].bwd_weight(o.grad, o.x, case.padding, "ieee", "auto", -1)


@lru_cache(maxsize=512)
def oracle(pass_: str, case: Case, kind: str) -> tuple[Tensor, Tensor]:
    """(float64 result, sum of |x||w|), computed once for all dtypes and layouts of a case."""
    o = operands(case, kind)
    return expected(pass_, case, o), magnitude(pass_, case, o)


def laid_out(o: Operands, layout: str) -> Operands:
    """The operands in another layout; the filters too, where that makes a difference."""
    f = LAYOUTS[layout]
    return Operands(f(o.x), f(o.weight), LAYOUTS["columns"](o.bias[None, None, None])[0, 0, 0], f(o.grad))


def check(pass_: str, case: Case, dtype: torch.dtype, layout: str = "nchw") -> None:
    """One pass of one case against the oracle, values and memory format."""
    kind = kind_of(dtype)
    o = operands(case, kind).to(dtype)
    wanted, scale = oracle(pass_, case, kind)
    placed = laid_out(o, layout)
    actual = run(pass_, case, placed)
    assert actual.dtype == dtype
    assert_close(actual, wanted, scale=scale, torch_result=run_torch(pass_, case, o) if dtype in HALVES else None)
    assert_format(actual, pass_, placed)


# ---- the oracle itself ----


@pytest.mark.parametrize("case", AWKWARD + LAYERS[3:4], ids=lambda case: case.name)
def test_oracle_equals_torch_in_float64(case: Case) -> None:
    case = case.small()
    o = operands(case, "float64")
    top, bottom, left, right = case.padding
    x, w, b = (t.clone().requires_grad_() for t in (o.x, o.weight, o.bias))
    padded = F.pad(x, (max(left, 0), max(right, 0), max(top, 0), max(bottom, 0)))
    cropped = F.pad(padded, (min(left, 0), min(right, 0), min(top, 0), min(bottom, 0)))
    out = F.conv2d(cropped, w, b, groups=case.c)
    out.backward(o.grad)
    assert x.grad is not None
    assert w.grad is not None
    torch.testing.assert_close(expected("fwd", case, o), out.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected("bwd_input", case, o), x.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected("bwd_weight", case, o), w.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reference.fwd(o.x, o.weight, o.bias, case.padding, "gelu"), F.gelu(out.detach()))


def test_oracle_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(1, 1, 2, 3)
    w = torch.tensor([[1.0, 10.0], [100.0, 1000.0]]).view(1, 1, 2, 2)
    wanted = torch.tensor([[5421.0, 6532.0]], dtype=torch.float64).view(1, 1, 1, 2)
    assert_same_bits(reference.fwd(x, w, None, (0, 0, 0, 0)), wanted)
    assert_same_bits(reference.fwd(x, w, None, (-1, 1, 0, -1)), torch.tensor([[[[54.0]]]], dtype=torch.float64))


def test_tolerances_refuse_a_wrong_tap() -> None:
    case = by_name("replknet31b-224-31x31-s1")[0]
    for dtype in DTYPES:
        o = operands(case, kind_of(dtype))
        wanted, scale = oracle("fwd", case, kind_of(dtype))
        shifted = Operands(o.x, o.weight.clone(), o.bias, o.grad)
        shifted.weight[:, :, 0, 0] = 0
        wrong = run("fwd", case, shifted.to(dtype))
        torch_result = run_torch("fwd", case, o.to(dtype))
        with pytest.raises(AssertionError, match="error"):
            assert_close(wrong, wanted, scale=scale, torch_result=torch_result)


# ---- every case x pass x dtype ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", rows(CASES))
def test_case(case: Case, pass_: str, dtype: torch.dtype) -> None:
    for layout in ("nchw", "nhwc"):
        check(pass_, case, dtype, layout)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("nchw", "nhwc")])
@pytest.mark.parametrize("case", by_name("batch3", "odd-channels", "width1", "even-6x8", "crop-and-pad", "batch0"),
                         ids=lambda case: case.name)  # fmt: skip
def test_layout(case: Case, layout: str) -> None:
    for pass_ in PASSES:
        for dtype in DTYPES:
            check(pass_, case, dtype, layout)


def test_mixed_layouts_and_an_expanded_gradient() -> None:
    case = by_name("batch3")[0]
    o = operands(case, "float32")
    nhwc = LAYOUTS["nhwc"]
    for mixed in (Operands(nhwc(o.x), o.weight, o.bias, o.grad), Operands(o.x, o.weight, o.bias, nhwc(o.grad))):
        for pass_ in PASSES:
            wanted, scale = oracle(pass_, case, "float32")
            assert_close(run(pass_, case, mixed), wanted, scale=scale)
    expanded = Operands(o.x, o.weight, o.bias, torch.ones(()).expand(case.output))
    for pass_ in ("bwd_input", "bwd_weight"):
        wanted, scale = expected(pass_, case, expanded), magnitude(pass_, case, expanded)
        assert_close(run(pass_, case, expanded), wanted, scale=scale)


# ---- exact inputs: the same bits as any other order of summation ----


@pytest.mark.parametrize("case", rows(CASES))
def test_exact_inputs_are_bit_equal(case: Case) -> None:
    o = operands(case, "exact")
    for pass_ in PASSES:
        wanted = expected(pass_, case, o)
        for dtype in DTYPES:
            if dtype in HALVES and wanted.numel() and wanted.abs().max() > torch.finfo(dtype).max:
                continue
            for layout in ("nchw", "nhwc"):
                actual = run(pass_, case, laid_out(o.to(dtype), layout), algorithm="direct")
                assert_same_bits(actual, wanted.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_and_activation(dtype: torch.dtype) -> None:
    for case in by_name("batch3", "odd-channels", "one-pixel", "even-6x8", "convnext-t-s4"):
        exact = operands(case, "exact")
        wanted = expected("fwd", case, exact, "relu").to(dtype)
        assert_same_bits(run("fwd", case, exact.to(dtype), "relu"), wanted)
        o = operands(case, kind_of(dtype))
        with_bias = magnitude("fwd", case, o)
        for activation in ACTIVATIONS:
            for layout in ("nchw", "nhwc"):
                actual = run("fwd", case, laid_out(o.to(dtype), layout), activation)
                # gelu's slope stays below 1.13, so it may lengthen the error a little; and it has one of its own.
                scale = with_bias * 1.2 + 1 if activation == "gelu" else with_bias
                torch_result = run_torch("fwd", case, o.to(dtype), activation) if dtype in HALVES else None
                assert_close(actual, expected("fwd", case, o, activation), scale=scale, torch_result=torch_result)


def test_nan_and_infinity_stay_in_their_receptive_field() -> None:
    for value in (float("nan"), float("inf")):
        for layout in ("nchw", "nhwc"):
            x = torch.randn(2, 3, 16, 40)
            x[1, 2, 5, 20] = value
            w = torch.rand(3, 1, 5, 7) + 0.1
            out = ops.dwconv2d(LAYOUTS[layout](x), w, None, (2, 2, 3, 3), "none", "ieee", "direct", "auto", -1)
            wanted = torch.zeros(2, 3, 16, 40, dtype=torch.bool)
            wanted[1, 2, 3:8, 17:24] = True
            assert torch.equal(~out.isfinite(), wanted)
            relu = ops.dwconv2d(LAYOUTS[layout](x), w, None, (2, 2, 3, 3), "relu", "ieee", "direct", "auto", -1)
            assert torch.equal(relu.isnan(), out.isnan()), "relu must pass NaN on"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7])
def test_rounding_of_sums_of_one_sign(value: float, dtype: torch.dtype) -> None:
    """What the docstring of `depthwise_conv2d` states; equal terms err in one direction: the worst there is."""
    for case in (same("one-sign", 4, 2, 56, 56, 31, 31), same("one-sign-small", 16, 2, 28, 28, 5, 5)):
        ones = Operands(*(torch.ones_like(t) for t in astuple(operands(case, "float64"))))
        rounded = torch.tensor(value, dtype=dtype)
        o = Operands(*(torch.full_like(t, value) for t in astuple(ones.to(dtype))))
        o.bias.zero_()
        for pass_ in PASSES:
            terms = expected(pass_, case, ones, with_bias=False)  # how many there are, exactly
            wanted = terms * rounded.double() ** 2
            error = (run(pass_, case, o).double() - wanted).abs() / wanted / torch.finfo(dtype).eps
            assert bool((error <= terms / 2 + 1).all()), f"{case.name} {pass_}: {error.max():.0f} eps"
            largest = 1320 if pass_ == "bwd_weight" else 110
            assert error.max().item() <= largest, f"{case.name} {pass_}: {error.max():.0f} eps"


def test_inputs_are_not_written() -> None:
    for case in by_name("batch3", "crop-and-pad"):
        for dtype in DTYPES:
            o = operands(case, kind_of(dtype)).to(dtype)
            before = [t.clone() for t in (o.x, o.weight, o.bias, o.grad)]
            for pass_ in PASSES:
                run(pass_, case, o, "relu")
            for tensor, copy in zip((o.x, o.weight, o.bias, o.grad), before, strict=True):
                assert_same_bits(tensor, copy)


# ---- determinism ----


@pytest.fixture
def threads() -> object:
    """Restore the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_every_run_and_thread_count(dtype: torch.dtype) -> None:
    for case in by_name("replknet31b-224-29x29-s2", "batch3", "batch20", "odd-channels", "tall", "slak-t-tall-49x5-s2"):
        for layout in ("nchw", "nhwc"):
            o = laid_out(operands(case, kind_of(dtype)).to(dtype), layout)
            for pass_ in PASSES:
                torch.set_num_threads(1)
                first = run(pass_, case, o)
                assert_same_bits(run(pass_, case, o), first)
                for count in (2, 3):
                    torch.set_num_threads(count)
                    assert_same_bits(run(pass_, case, o), first)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_an_image_does_not_depend_on_its_batch(layout: str) -> None:
    for dtype in DTYPES:
        for case in by_name("batch3", "batch20", "odd-channels", "replknet31b-224-27x27-s3"):
            o = laid_out(operands(case, kind_of(dtype)).to(dtype), layout)
            for pass_ in ("fwd", "bwd_input"):
                together = run(pass_, case, o)
                for i in range(case.n):
                    alone = Operands(o.x[i : i + 1], o.weight, o.bias, o.grad[i : i + 1])
                    assert_same_bits(run(pass_, case, alone), together[i : i + 1])
                poisoned = Operands(o.x.clone(), o.weight, o.bias, o.grad.clone())
                poisoned.x[0], poisoned.grad[0] = float("nan"), float("nan")
                assert_same_bits(run(pass_, case, poisoned)[1:], together[1:])


# ---- instruction sets ----


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("pass_", PASSES)
def test_compact_suite(pass_: str) -> None:
    """What every instruction set must pass; `test_isa` runs it in processes of their own."""
    cap = os.environ.get("REPLKNET_EXT_CPU_ISA")
    if cap and _ext.HAS_EXT:
        assert _ext.cpu_isa() == cap
    for case in COMPACT:
        exact = operands(case, "exact")
        for dtype in DTYPES:
            for layout in ("nchw", "nhwc"):
                check(pass_, case, dtype, layout)
                o = laid_out(operands(case, kind_of(dtype)).to(dtype), layout)
                results = []
                for count in (2, 3, 1):  # torch's own convolutions after this one stay on 1
                    torch.set_num_threads(count)
                    results.append(run(pass_, case, o))
                assert_same_bits(results[1], results[0])
                assert_same_bits(results[2], results[0])
                if dtype not in HALVES:
                    actual = run(pass_, case, laid_out(exact.to(dtype), layout), algorithm="direct")
                    assert_same_bits(actual, expected(pass_, case, exact).to(dtype))


def _in_process(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REPLKNET_EXT_CPU_ISA": isa}
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")
@pytest.mark.parametrize("isa", ISAS)
def test_isa(isa: str) -> None:
    probe = _in_process(isa, "-c", "from replknet_ext import _ext; print(_ext.cpu_isa())")
    assert probe.returncode == 0, probe.stderr
    if probe.stdout.strip() != isa:
        pytest.skip(f"this CPU has no {isa}: the kernels chose {probe.stdout.strip()}")
    result = _in_process(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
                         f"{__file__}::test_compact_suite")  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert f"{len(PASSES)} passed" in result.stdout


# ---- errors of the raw ops ----


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"padding": (0, 0, 0)}, "padding|4"),
        ({"padding": (-(2**63 - 1), 2**63 - 1, 0, 0)}, "padding must lie between"),
        ({"padding": (0, 2**41, 0, 0)}, "padding must lie between"),
        ({"activation": "swish"}, "activation"),
        ({"precision": "half"}, "precision"),
        ({"algorithm": "winograd"}, "algorithm"),
        ({"variant": 99}, "variant 99 is one of a backend"),
        ({"variant": 99, "backend": "cpu"}, "variant 99 can't run this"),
        ({"variant": 2**32}, "variant must be"),
        ({"backend": "nope"}, f"backend must be one of {', '.join(map(repr, names()))}; got 'nope'"),
        ({"weight": torch.ones(4, 1, 3, 3)}, "weight"),
        ({"weight": torch.ones(3, 3, 3, 3)}, "weight"),
        ({"weight": torch.ones(3, 1, 9, 3)}, "weight|padded"),
        ({"weight": torch.ones(3, 1, 3, 3, dtype=torch.float64)}, "dtype"),
        ({"bias": torch.ones(4)}, "bias"),
        ({"input": torch.ones(3, 6, 6)}, "input|dim"),
        ({"input": torch.ones(2, 3, 6, 6, dtype=torch.int32)}, "input|float"),
    ],
)
@pytest.mark.skipif(not _ext.HAS_EXT, reason="the messages of the compiled extension")
def test_raw_op_refuses(change: dict[str, object], text: str) -> None:
    arguments = {
        "input": torch.ones(2, 3, 6, 6), "weight": torch.ones(3, 1, 3, 3), "bias": None, "padding": (0, 0, 0, 0),
        "activation": "none", "precision": "ieee", "algorithm": "auto", "backend": "auto", "variant": -1,
    }  # fmt: skip
    ops.dwconv2d(**arguments)
    with pytest.raises(RuntimeError, match=text):
        ops.dwconv2d(**{**arguments, **change})
