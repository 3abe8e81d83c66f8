"""FFT on the CPU, and the choice between the CPU's algorithms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import (
    CASES,
    HALVES,
    LAYOUTS,
    PASSES,
    Case,
    Operands,
    assert_close,
    assert_close_by_fft,
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

from replknet_ext import _ext, depthwise_conv2d, explain
from replknet_ext.operator.ops import RAW
from tests.ops.test_values import ISAS, run, run_torch

pytestmark = pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")

#: Rows of every kind of window: one tile and several, with and without padding, odd and even, longer than a vector.
TILED = [
    same("fft-tiles", 1, 3, 150, 61, 31, 7),
    same("fft-tiles-odd", 2, 17, 131, 133, 5, 4, quick=True),
    Case("fft-tiles-crop", 1, 2, 200, 190, 9, 9, (-3, 5, 7, -11)),
    Case("fft-valid", 1, 2, 180, 40, 51, 40, (0, 0, 0, 0)),
]
LARGE = same("fft-512", 1, 2, 512, 512, 31, 31)
COMPACT = [
    *by_name("replknet31b-224-31x31-s1", "replknet31b-224-27x27-s3", "odd-channels", "kernel-63", "crop-and-pad"),
    *by_name("cropped-away", "height1", "width1", "even-6x8", "slak-t-wide-5x47-s3"),
    TILED[1],
]


def laid(o: Operands, layout: str) -> Operands:
    """The operands in another layout."""
    f = LAYOUTS[layout]
    return Operands(f(o.x), o.weight, o.bias, f(o.grad))


def check(pass_: str, case: Case, layouts: tuple[str, ...] = ("nchw", "nhwc")) -> None:
    """float32 by FFT against the oracle: of the plane's largest sum, and in the norm."""
    o = operands(case, "float32")
    wanted, scale = expected(pass_, case, o), magnitude(pass_, case, o)
    for layout in layouts:
        actual = run(pass_, case, laid(o, layout), algorithm="fft")
        assert_close_by_fft(actual, wanted, scale)
        assert (actual.double() - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("case", rows([*CASES, *TILED]))
def test_case(case: Case) -> None:
    for pass_ in PASSES:
        check(pass_, case)


def test_a_map_of_512_pixels() -> None:
    o = operands(LARGE, "float32")
    x, w, g = (t.double().requires_grad_() for t in (o.x, o.weight, o.grad))
    size = (542, 542)  # by torch's float64 FFT: a direct sum takes a minute
    full = torch.fft.irfft2(torch.fft.rfft2(x, s=size) * torch.fft.rfft2(w.flip((2, 3))[:, 0], s=size), s=size)
    y = full[..., 15:527, 15:527] + o.bias.double()[:, None, None]
    y.backward(g)
    assert x.grad is not None
    assert w.grad is not None
    for pass_, wanted in (("fwd", y), ("bwd_input", x.grad), ("bwd_weight", w.grad)):
        actual = run(pass_, LARGE, o, algorithm="fft").double()
        assert (actual - wanted).norm() <= 1e-6 * wanted.norm(), pass_


@pytest.mark.parametrize("pass_", PASSES)
def test_compact_suite(pass_: str) -> None:
    """What every instruction set must pass; `test_isa` runs it in processes of their own."""
    for case in COMPACT:
        check(pass_, case)
        for dtype in HALVES:
            o = operands(case, "half")
            wanted = expected(pass_, case, o)
            by_torch = run_torch(pass_, case, o.to(dtype))
            assert_close(run(pass_, case, o.to(dtype), algorithm="fft"), wanted, torch_result=by_torch)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_isa(isa: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["REPLKNET_EXT_CPU_ISA"] = isa
    probe = [sys.executable, "-c", "from replknet_ext import _ext; print(_ext.cpu_isa())"]
    root = Path(__file__).parents[2]
    found = subprocess.run(probe, env=environment, capture_output=True, text=True, check=True, cwd=root)
    if found.stdout.strip() != isa:
        pytest.skip(f"this CPU has no {isa}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(
        [*command, f"{__file__}::test_compact_suite"], env=environment, capture_output=True, text=True, timeout=300,
        check=False, cwd=root,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert f"{len(PASSES)} passed" in result.stdout


def test_bias_and_activation() -> None:
    for case in by_name("batch3", "odd-channels", "replknet31b-224-27x27-s3"):
        o = operands(case, "float32")
        for activation in ("none", "relu", "gelu"):
            wanted = expected("fwd", case, o, activation)
            for layout in ("nchw", "nhwc"):
                actual = run("fwd", case, laid(o, layout), activation, algorithm="fft")
                assert_close_by_fft(actual, wanted, magnitude("fwd", case, o) * 1.2 + 1)


def test_same_bits_on_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        # few channel blocks and many tiles: the weight's gradient is summed in groups
        for case in (*by_name("batch20", "odd-channels", "replknet31b-224-27x27-s3"), TILED[0]):
            o = operands(case, "float32")
            for pass_ in PASSES:
                torch.set_num_threads(1)
                first = run(pass_, case, o, algorithm="fft")
                for count in (2, 3):
                    torch.set_num_threads(count)
                    assert_same_bits(run(pass_, case, o, algorithm="fft"), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("algorithm", ["fft", "auto"])
def test_an_image_does_not_depend_on_its_batch(algorithm: str) -> None:
    for case in by_name("batch3", "odd-channels", "replknet31b-224-27x27-s3", "replknet31b-224-31x31-s1"):
        o = operands(case, "float32")
        poison = torch.tensor([float("nan"), float("inf"), 1e30])
        for pass_ in ("fwd", "bwd_input"):
            together = run(pass_, case, o, algorithm=algorithm)
            for i in range(case.n):
                alone = Operands(o.x[i : i + 1], o.weight, o.bias, o.grad[i : i + 1])
                assert_same_bits(run(pass_, case, alone, algorithm=algorithm), together[i : i + 1])
            for value in poison:
                bad = Operands(o.x.clone(), o.weight, o.bias, o.grad.clone())
                bad.x[0], bad.grad[0] = value, value
                assert_same_bits(run(pass_, case, bad, algorithm=algorithm)[1:], together[1:])


def test_nan_and_infinity_fill_their_plane_and_no_other() -> None:
    for value in (float("nan"), float("inf")):
        x, w = torch.randn(2, 17, 20, 20), torch.randn(17, 1, 9, 9)
        x[1, 16, 3, 4] = value
        out = depthwise_conv2d(x, w, padding="same", algorithm="fft")
        bad = torch.zeros(2, 17, dtype=torch.bool)
        bad[1, 16] = True
        assert torch.equal(out.isfinite().all((-2, -1)), ~bad)
        assert not out[1, 16].isfinite().any()


def test_denormals_and_large_numbers() -> None:
    case = by_name("replknet31b-224-27x27-s3")[0]
    o = operands(case, "float32")
    for scale in (1e-36, 1e30):
        scaled = Operands(o.x * scale, o.weight, o.bias * 0, o.grad)
        wanted, sums = expected("fwd", case, scaled), magnitude("fwd", case, scaled)
        actual = run("fwd", case, scaled, algorithm="fft").double()
        largest = sums.amax((-2, -1), keepdim=True)
        assert ((actual - wanted).abs() <= 1e-6 * largest + 1e-43).all()


# ---- the choice ----


def plan(case: Case, pass_: str, algorithm: str = "auto", threads: int = 1, variant: int = -1) -> dict[str, object]:
    """`_ext.cpu_plan` of a fwd or bwd_weight pass in float32."""
    sizes = [case.n, case.c, case.h, case.w, case.kh, case.kw, *case.output[2:], case.padding[0], case.padding[2]]
    return _ext.cpu_plan(sizes, torch.float32, pass_, algorithm, threads, variant)


def test_auto_runs_what_the_plan_says() -> None:
    chosen = set()
    for case in by_name("replknet31b-224-31x31-s1", "replknet31b-224-13x13-s4", "convnext-t-s4"):
        o = operands(case, "float32")
        for pass_ in ("fwd", "bwd_weight"):
            p = plan(case, pass_)
            chosen.add(p["family"])
            auto = run(pass_, case, o, algorithm="auto")
            if pass_ == "fwd":
                named = RAW.fwd(o.x, o.weight, o.bias, case.padding, "none", "ieee", "auto", "cpu", p["variant"])
            else:
                named = RAW.bwd_weight(o.grad, o.x, case.padding, "ieee", "auto", "cpu", p["variant"])
            assert_same_bits(named, auto)
            assert_same_bits(run(pass_, case, o, algorithm=str(p["family"])), auto)
    assert chosen == {"direct", "fft"}


def test_the_choice_looks_neither_at_threads_nor_at_the_batch() -> None:
    for h in (7, 14, 20, 28, 56, 96):
        for k in (3, 5, 7, 9, 11, 13, 27):
            for pass_ in ("fwd", "bwd_weight"):
                chosen = {
                    plan(same("", n, 40, h, h, k, k), pass_, threads=threads)["variant"]
                    for n in (1, 2, 8, 64) for threads in (1, 2, 64)
                }  # fmt: skip
                assert len(chosen) == 1, (h, k, pass_)


def test_variants_by_number() -> None:
    lists = _ext.build_info()["cpu_variants"]
    case = by_name("replknet31b-224-13x13-s4")[0]
    for pass_ in ("fwd", "bwd_weight"):
        for number, name in enumerate(lists[pass_]):
            p = plan(case, pass_, variant=number)
            assert "unsupported" in p or (p["variant"], p["name"]) == (number, name)
        assert "no variant" in str(plan(case, pass_, variant=len(lists[pass_]))["unsupported"])
        fft = lists[pass_].index("fft")
        assert "'direct' was asked for" in str(plan(case, pass_, "direct", variant=fft)["unsupported"])
        assert plan(case, pass_, "fft")["variant"] == fft


def test_what_an_fft_cannot_do_it_says() -> None:
    x, w = torch.ones(1, 2, 160, 9), torch.ones(2, 1, 151, 3)
    for bad, why in ((x.double(), "float64"), (x, "longer than the FFTs")):
        weight = w.to(bad.dtype)
        with pytest.raises(ValueError, match=why):
            depthwise_conv2d(bad, weight, padding=(75, 1), algorithm="fft")
        with pytest.raises(RuntimeError, match=f"algorithm 'fft' can't run this: .*{why}"):
            torch.ops.replknet_ext.dwconv2d(bad, weight, None, (75, 75, 1, 1), "none", "ieee", "fft", "auto", -1)
    with pytest.raises(RuntimeError, match="variant 99 can't run this"):
        torch.ops.replknet_ext.dwconv2d(x, w, None, (75, 75, 1, 1), "none", "ieee", "auto", "cpu", 99)
    assert "fft" in str(explain(torch.ones(1, 1, 56, 56), torch.ones(1, 1, 31, 31), padding="same"))


def test_gradients_by_fft_agree_with_direct() -> None:
    def gradients(algorithm: str) -> list[Tensor]:
        torch.manual_seed(0)
        x, w, b = (t.requires_grad_() for t in (torch.randn(2, 5, 19, 21), torch.randn(5, 1, 11, 8), torch.randn(5)))
        y = depthwise_conv2d(x, w, b, padding="same", activation="gelu", algorithm=algorithm)
        first = torch.autograd.grad(y.square().sum(), (x, w, b), create_graph=True)
        return [y, *first, *torch.autograd.grad(first[0].sum() + first[1].square().sum(), (x, w, b))]

    for by_fft, direct in zip(gradients("fft"), gradients("direct"), strict=True):
        assert (by_fft - direct).norm() <= 1e-5 * direct.norm()
        assert kind_of(by_fft.dtype) == "float32"
