"""CPU kernels at the ends: numbers near the ends of float32, maps of millions of columns, sizes that nothing holds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
import reference
import torch
from cases import Operands, assert_same_bits
from torch import Tensor

from replknet_ext import _ext, depthwise_conv2d
from replknet_ext.operator.ops import RAW

pytestmark = pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")

Padding = tuple[int, int, int, int]


def passes(o: Operands, padding: Padding, algorithm: str) -> dict[str, Tensor]:
    """All passes by an algorithm."""
    rest = ("ieee", algorithm, "auto", -1)
    return {
        "fwd": RAW.fwd(o.x, o.weight, None, padding, "none", *rest),
        "bwd_input": RAW.bwd_input(o.grad, o.weight, padding, *rest),
        "bwd_weight": RAW.bwd_weight(o.grad, o.x, padding, *rest),
    }


def oracle(o: Operands, padding: Padding) -> dict[str, Tensor]:
    """All passes in float64; torch's would take gigabytes for a wide map."""
    return {
        "fwd": reference.fwd(o.x, o.weight, None, padding),
        "bwd_input": reference.bwd_input(o.grad, o.weight, padding),
        "bwd_weight": reference.bwd_weight(o.grad, o.x, padding),
    }


# ---- FFT: what overflows or is lost in float32 on the way to a result that is neither ----

#: n, c, h, w, k: one tile and several, a whole block of channels and a part of one, images in groups or not.
SHAPES = [(2, 3, 14, 14, 27), (1, 17, 56, 56, 31), (2, 2, 150, 40, 13), (3, 300, 9, 9, 5)]
#: Powers of ten of input, filter and gradient.
POWERS = [(36, -3, 0), (-3, 36, 0), (0, -3, 36), (36, 0, -30), (-35, 30, 30), (30, -35, 30), (-35, 4, -4), (0, -35, 35)]


def operands(n: int, c: int, h: int, w: int, k: int, dtype: torch.dtype = torch.float32) -> Operands:
    draw = torch.Generator().manual_seed(n * c * h + k)
    x, grad = (torch.randn(n, c, h, w, generator=draw).to(dtype) for _ in range(2))
    return Operands(x, torch.randn(c, 1, k, k, generator=draw).to(dtype), torch.zeros(c, dtype=dtype), grad)


def scaled(o: Operands, powers: tuple[int, int, int]) -> Operands:
    x, weight, grad = (t * 10.0**e for t, e in zip((o.x, o.weight, o.grad), powers, strict=True))
    return Operands(x, weight, o.bias, grad)


def check_fft(o: Operands, padding: Padding, tolerance: float) -> None:
    """Results by FFT in the norm of each channel, where those are numbers that float32 holds well."""
    checked = 0
    for (name, actual), wanted in zip(passes(o, padding, "fft").items(), oracle(o, padding).values(), strict=True):
        axes = (1, 2, 3) if name == "bwd_weight" else (0, 2, 3)
        norm = wanted.square().sum(axes).sqrt()
        if not (bool((norm < 1e36).all()) and bool((norm > 1e-30).all())):
            continue
        error = ((actual.double() - wanted).square().sum(axes).sqrt() / norm).max().item()
        assert error <= tolerance, f"{name}: {error:.3g}"
        checked += 1
    assert checked


@pytest.mark.parametrize("powers", POWERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fft_of_large_and_small_numbers(shape: tuple[int, ...], powers: tuple[int, int, int]) -> None:
    check_fft(scaled(operands(*shape), powers), (shape[4] // 2,) * 4, 2e-6)


@pytest.mark.parametrize("powers", POWERS[:4], ids=str)
def test_fft_of_large_and_small_bfloat16(powers: tuple[int, int, int]) -> None:
    check_fft(scaled(operands(*SHAPES[0], dtype=torch.bfloat16), powers), (13,) * 4, 6e-3)


def test_fft_with_flushed_denormals() -> None:
    o = scaled(operands(*SHAPES[1]), (0, -35, 0))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        actual = depthwise_conv2d(o.x, o.weight, padding=15, algorithm="fft")
    finally:
        torch.set_flush_denormal(False)
    wanted = oracle(o, (15,) * 4)["fwd"]  # that of the direct kernels is off by 9e-6: taps below 1.2e-38 are zeros
    assert ((actual.double() - wanted).norm() / wanted.norm()).item() < 2e-5


def test_channels_of_different_size_by_fft() -> None:
    """Each channel of a block has a factor of its own."""
    o = operands(*SHAPES[1])
    sizes = 10.0 ** torch.arange(-34, 34, 4.0)[:, None, None]
    check_fft(Operands(o.x * sizes, o.weight / sizes[:, None], o.bias, o.grad), (15,) * 4, 2e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_power_of_two_changes_no_bit_of_an_fft(shape: tuple[int, ...]) -> None:
    padding: Padding = (shape[4] // 2,) * 4  # type: ignore[assignment]
    o, up = operands(*shape), 2.0**100
    plain = passes(o, padding, "fft")
    large = passes(Operands(o.x * up, o.weight / up, o.bias, o.grad), padding, "fft")
    assert_same_bits(large["fwd"], plain["fwd"])
    assert_same_bits(large["bwd_input"] * up, plain["bwd_input"])
    assert_same_bits(large["bwd_weight"] / up, plain["bwd_weight"])


def test_inf_and_nan_stay_what_they_are_by_fft() -> None:
    o = scaled(operands(*SHAPES[0]), (36, -3, 0))
    o.x[0, 1, 3, 3], o.x[1, 2, 0, 0] = float("inf"), float("nan")
    result = passes(o, (13,) * 4, "fft")["fwd"]
    bad = torch.zeros(2, 3, dtype=torch.bool)
    bad[0, 1] = bad[1, 2] = True
    assert torch.equal(~torch.isfinite(result).all(-1).all(-1), bad)


# ---- wide maps ----

WIDE: list[tuple[int, int, int, int, int, int, Padding]] = [
    (1, 3, 5, 9000, 3, 3, (1, 1, 1, 1)),
    (2, 17, 6, 9001, 5, 31, (2, 2, 15, 15)),
    (1, 1, 5, 20000, 31, 31, (15, 15, 15, 15)),
    (1, 2, 3, 20000, 3, 9, (1, 0, -2, 7)),
    (1, 1, 4, 50, 3, 3, (1, 1, 20000, 20000)),
    (1, 1, 2, 20000, 3, 5, (1, 1, 30000, -19000)),
    (2, 1, 1, 100000, 1, 7, (0, 0, 3, 3)),
]
DTYPES = {torch.float32: 4e-5, torch.float64: 1e-13, torch.bfloat16: 6e-3}


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_wide_maps_in_strips(case: Any) -> None:
    n, c, h, w, kh, kw, padding = case
    top, bottom, left, right = padding
    draw = torch.Generator().manual_seed(w)
    x, weight = torch.randn(n, c, h, w, generator=draw), torch.randn(c, 1, kh, kw, generator=draw)
    grad = torch.randn(n, c, h + top + bottom - kh + 1, w + left + right - kw + 1, generator=draw)
    threads = torch.get_num_threads()
    rounded = {dtype: Operands(*(t.to(dtype) for t in (x, weight, torch.zeros(c), grad))) for dtype in DTYPES}
    exact = {dtype: oracle(rounded[dtype], padding) for dtype in (torch.float32, torch.bfloat16)}
    exact[torch.float64] = exact[torch.float32]  # the operands are the same numbers
    for dtype, channels_last in itertools.product(DTYPES, (False, True)):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        o = rounded[dtype]
        o = Operands(o.x.contiguous(memory_format=layout), o.weight, o.bias, o.grad.contiguous(memory_format=layout))
        try:
            torch.set_num_threads(1)
            results = passes(o, padding, "direct")
            torch.set_num_threads(3)
            for name, result in passes(o, padding, "direct").items():
                assert_same_bits(result, results[name])
        finally:
            torch.set_num_threads(threads)
        for name, result in results.items():
            error = ((result.double() - exact[dtype][name]).norm() / exact[dtype][name].norm().clamp_min(1e-30)).item()
            assert error < DTYPES[dtype], f"{name} {dtype} {layout}: {error:.3g}"


@pytest.mark.parametrize("pass_", ["fwd", "bwd_input", "bwd_weight"])
@pytest.mark.parametrize("kernel", [3, 11, 31])
@pytest.mark.parametrize("channels_last", [False, True])
def test_scratch_does_not_grow_with_the_map(pass_: str, kernel: int, channels_last: bool) -> None:
    k, half, w = kernel, kernel // 2, 1 << 21
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for variant in range(len(_ext.variant_names("cpu_variants", pass_))):
            plan = _ext.cpu_plan(
                [1, 1, 31, w, k, k, 31, w, half, half], dtype, pass_, "auto", 2, variant, channels_last=channels_last
            )
            if "unsupported" not in plan:
                assert plan["scratch_bytes"] <= 9 << 20, plan
                assert plan["shared_bytes"] <= 64 << 20, plan


MEMORY = """
import resource, torch, replknet_ext
x, w = torch.randn(1, 1, 31, 1 << 20), torch.randn(1, 1, 31, 31)
replknet_ext.depthwise_conv2d(x[..., :64].contiguous(), w, padding=15, algorithm="direct")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
replknet_ext.depthwise_conv2d(x[..., : 1 << 17].contiguous(), w, padding=15, algorithm="direct")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_of_a_wide_map() -> None:
    """16 MB of input, as much output and scratch for each thread; 670 MB when the scratch held whole rows."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 1024 + 9 * 1024 * torch.get_num_threads() + 64 * 1024


# ---- sizes without end: a plan takes no longer for them ----

LONG = 1 << 27


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("pass_", ["fwd", "bwd_weight"])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1 << 40, 1, 31, 1, 1 << 40, 0, 15),
        (1, 1, 1 << 40, 1, 31, 1, 1 << 40, 1, 15, 0),
        (1, 1, 9, 9, 3, 3, 7, 7 + 2 * (1 << 31), 0, 1 << 31),
        (1, 1, 1, LONG, 1, LONG, 1, LONG, 0, LONG // 2),
        (1, 1, LONG, 1, LONG, 1, LONG, 1, LONG // 2, 0),
        (1, 1, 9, 9, 1, 1 << 39, 9, 9, 0, 1 << 39),
    ],
    ids=str,
)
def test_plans_of_endless_sizes(sizes: tuple[int, ...], pass_: str, dtype: str) -> None:
    """Each of these took minutes to years when plans counted tile by tile; none can be run."""
    h200 = [90, 132, 232448, 233472]
    for channels_last in (False, True):
        plan = json.loads(torch.ops.replknet_ext._cpu_plan(sizes, dtype, channels_last, pass_, "auto", 2, -1))
        assert plan["scratch_bytes"] > 0
        torch.ops.replknet_ext._cuda_plan(sizes, dtype, channels_last, pass_, "ieee", "auto", h200, -1)


def test_what_cannot_be_allocated_is_an_error() -> None:
    x, weight = torch.randn(1, 1, 8, 9), torch.randn(1, 1, 3, 3)
    with pytest.raises(RuntimeError, match=r"allocate|2\^48"):
        depthwise_conv2d(x, weight, padding=(0, 1 << 40))
    with pytest.raises(RuntimeError, match=r"the output for this padding would have more than 2\^48 elements"):
        RAW.fwd(x, weight, None, (1 << 39, 1 << 39, 1 << 39, 1 << 39), "none", "ieee", "auto", "auto", -1)
    with pytest.raises(RuntimeError, match=r"2\^48"):
        torch.ops.replknet_ext._cpu_plan(
            [1 << 40] * 4 + [3, 3] + [1 << 40] * 2 + [1, 1], "float32", False, "fwd", "auto", 1, -1
        )
