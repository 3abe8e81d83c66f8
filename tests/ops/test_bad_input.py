"""Every wrong argument is a TypeError or ValueError that names it; every argument that conv2d takes is taken."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from replknet_ext import _ext, depthwise_conv2d, explain
from replknet_ext.backends import BACKENDS, Problem, select
from replknet_ext.backends.cuda import architecture_for
from replknet_ext.operator.problem import Geometry

X = torch.randn(2, 3, 8, 9)
W = torch.randn(3, 1, 3, 5)
B = torch.randn(3)

BAD: list[tuple[str, dict[str, object], type[Exception], str]] = [
    # id, changed arguments, error, words of the message: the argument first
    ("input-list", {"input": [1.0]}, TypeError, "input must be a torch.Tensor; got list"),
    ("input-none", {"input": None}, TypeError, "input must be a torch.Tensor"),
    ("input-2d", {"input": X[0, 0]}, ValueError, "input must be (N, C, H, W) or unbatched (C, H, W); got (8, 9)"),
    ("input-5d", {"input": X[None]}, ValueError, "input must be (N, C, H, W)"),
    ("input-int", {"input": X.int()}, TypeError, "input has dtype torch.int32; allowed: torch.float32"),
    ("input-bool", {"input": X > 0}, TypeError, "input has dtype torch.bool"),
    ("input-complex", {"input": X.to(torch.complex64)}, TypeError, "input has dtype torch.complex64"),
    ("input-float8", {"input": X.to(torch.float8_e4m3fn)}, TypeError, "input has dtype torch.float8_e4m3fn"),
    ("input-sparse", {"input": X.to_sparse()}, TypeError, "input must be a strided (dense) tensor"),
    ("input-no-rows", {"input": X[:, :, :0]}, ValueError, "input must have C, H, W >= 1"),
    ("input-no-columns", {"input": X[..., :0], "padding": 4}, ValueError, "input must have C, H, W >= 1"),
    ("input-no-channels", {"input": X[:, :0]}, ValueError, "input must have C, H, W >= 1"),
    ("input-unbatched-channels", {"input": X[0, :2]}, ValueError, "weight must have as many filters"),
    ("weight-array", {"weight": W.numpy()}, TypeError, "weight must be a torch.Tensor; got ndarray"),
    ("weight-3d", {"weight": W[:, 0]}, ValueError, "weight must be (C, 1, Kh, Kw)"),
    ("weight-dense", {"weight": W.expand(3, 3, 3, 5)}, ValueError, "weight must be (C, 1, Kh, Kw)"),
    ("weight-channels", {"weight": W[:2]}, ValueError, "weight must have as many filters as input has channels (3)"),
    ("weight-no-filters", {"weight": W[:0]}, ValueError, "weight must have C, Kh, Kw >= 1"),
    ("weight-no-taps", {"weight": W[..., :0]}, ValueError, "weight must have C, Kh, Kw >= 1"),
    ("weight-tall", {"weight": torch.ones(3, 1, 9, 3)}, ValueError, "larger than the padded input: kernel height"),
    ("weight-wide", {"weight": torch.ones(3, 1, 3, 12), "padding": 1}, ValueError, "input: kernel width 12"),
    ("weight-dilated", {"dilation": 4}, ValueError, "weight is larger than the padded input: kernel height 9 (dil"),
    ("weight-double", {"weight": W.double()}, TypeError, "weight must have the dtype of input (torch.float32); got"),
    ("weight-half", {"weight": W.half()}, TypeError, "weight must have the dtype of input"),
    ("weight-int", {"weight": W.to(torch.int8)}, TypeError, "weight has dtype torch.int8; allowed"),
    ("weight-device", {"weight": W.to("meta")}, ValueError, "weight must be on the device of input (cpu); got meta"),
    ("bias-number", {"bias": 1.0}, TypeError, "bias must be a torch.Tensor or None; got float"),
    ("bias-short", {"bias": B[:2]}, ValueError, "bias must have shape (3,)"),
    ("bias-2d", {"bias": B[None]}, ValueError, "bias must have shape (3,)"),
    ("bias-double", {"bias": B.double()}, TypeError, "bias must have the dtype of input"),
    ("bias-device", {"bias": B.to("meta")}, ValueError, "bias must be on the device of input"),
    ("bias-multiplier", {"weight": torch.ones(6, 1, 3, 3), "bias": B}, ValueError, "bias must have shape (6,)"),
    ("stride-zero", {"stride": 0}, ValueError, "stride must be >= 1; got 0"),
    ("stride-pair", {"stride": (1, -1)}, ValueError, "stride must be >= 1; got -1"),
    ("stride-triple", {"stride": (1, 1, 1)}, ValueError, "stride must be an int or a pair of ints"),
    ("stride-float", {"stride": 1.0}, TypeError, "stride must be an int"),
    ("stride-bool", {"stride": True}, TypeError, "stride must be an int"),
    ("stride-bools", {"stride": (True, True)}, TypeError, "stride must be an int"),
    ("stride-none", {"stride": None}, TypeError, "stride must be an int"),
    ("stride-string", {"stride": "1"}, TypeError, "stride must be an int"),
    ("padding-negative", {"padding": -1}, ValueError, "padding must be >= 0; got -1"),
    ("padding-negative-pair", {"padding": (1, -1)}, ValueError, "padding must be >= 0; got -1"),
    ("padding-four", {"padding": (1, 1, 1, 1)}, ValueError, "padding must be an int or a pair of ints; got 4"),
    ("padding-empty", {"padding": ()}, ValueError, "padding must be an int or a pair of ints; got 0"),
    ("padding-name", {"padding": "full"}, ValueError, 'padding must be an int >= 0, a pair of them, "same" or "valid"'),
    ("padding-upper", {"padding": "SAME"}, ValueError, '"same" or "valid"; got'),
    ("padding-float", {"padding": 1.5}, TypeError, "padding must be an int"),
    ("padding-float-pair", {"padding": (1.0, 1)}, TypeError, "padding must be an int"),
    ("padding-bool", {"padding": False}, TypeError, "padding must be an int"),
    ("padding-bools", {"padding": (False, True)}, TypeError, "padding must be an int"),
    ("padding-none", {"padding": None}, TypeError, "padding must be an int"),
    ("padding-same-strided", {"padding": "same", "stride": 2}, ValueError, 'padding="same" needs stride 1'),
    ("dilation-zero", {"dilation": 0}, ValueError, "dilation must be >= 1; got 0"),
    ("dilation-float", {"dilation": (1, 2.0)}, TypeError, "dilation must be an int"),
    ("activation-unknown", {"activation": "swish"}, ValueError, 'activation must be one of "none", "relu", "gelu"'),
    ("activation-nan", {"activation": float("nan")}, TypeError, "activation must be a string"),
    ("activation-nan-name", {"activation": "nan"}, ValueError, "activation must be one of"),
    ("activation-none", {"activation": None}, TypeError, "activation must be a string"),
    ("activation-list", {"activation": ["relu"]}, TypeError, "activation must be a string"),
    ("algorithm-unknown", {"algorithm": "winograd"}, ValueError, 'algorithm must be one of "auto", "direct", "fft";'),
    ("algorithm-fft", {"algorithm": "fft", "input": X.double(), "weight": W.double(), "bias": B.double()}, ValueError,
     "cpu: float64 is computed directly, not by FFT; cuda:"),
    ("precision-unknown", {"precision": "fp8"}, ValueError, 'precision must be one of "ieee", "tf32", "bf16x3"; got'),
    ("precision-type", {"precision": 32}, TypeError, "precision must be a string"),
    ("algorithm-number", {"algorithm": 1}, TypeError, "algorithm must be a string"),
    ("backend-unknown", {"backend": "cudnn"}, ValueError, 'backend must be one of "auto", "cpu"'),
    ("backend-none", {"backend": None}, TypeError, "backend must be a string"),
    ("backend-cuda", {"backend": "cuda"}, ValueError, 'backend="cuda" cannot run this problem: runs CUDA'),
    ("backend-triton", {"backend": "triton"}, ValueError, 'backend="triton" cannot run this problem: runs'),
]  # fmt: skip


@pytest.mark.parametrize("function", [depthwise_conv2d, explain])
@pytest.mark.parametrize(("change", "error", "text"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_argument(
    function: Callable[..., object], change: dict[str, object], error: type[Exception], text: str
) -> None:
    good: dict[str, object] = {"input": X, "weight": W, "bias": B}
    for _ in range(2):  # the second call after a good one: what good calls leave behind must not let a bad one in
        with pytest.raises(error, match=re.escape(text)) as caught:
            function(**{**good, **change})
        assert type(caught.value) is error
        for stride, padding in ((1, 0), (1, 1), ((1, 1), (0, 1)), (1, "same")):
            depthwise_conv2d(X, W, B, stride=stride, padding=padding)


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"stride": 2}, "only stride 1, not (2, 2)"),
        ({"dilation": (1, 2)}, "only dilation 1, not (1, 2)"),
        ({"weight": torch.ones(6, 1, 3, 3), "bias": None}, "only one filter per channel, not 6 filters for 3 channels"),
    ],
)
def test_a_named_backend_never_falls_back(change: dict[str, object], text: str) -> None:
    arguments = {"input": X, "weight": W, "bias": B, **change}
    with pytest.raises(ValueError, match=re.escape(f'backend="cpu" cannot run this problem: {text}')):
        depthwise_conv2d(**arguments, backend="cpu")
    depthwise_conv2d(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"stride": 2}, {"stride": (2, 1)}, {"stride": [1, 2]}, {"padding": 3}, {"padding": (0, 2)},
        {"padding": [2]},
        {"padding": (1,)}, {"padding": "same"}, {"padding": "valid"}, {"dilation": 2},
        {"dilation": (2, 1)}, {"dilation": 2, "padding": "same"}, {"stride": np.int64(2)},
        {"padding": (np.int32(1), 1)},
        {"stride": 2, "padding": 1, "dilation": (1, 2)}, {"padding": 50},
    ],
    ids=str,
)  # fmt: skip
def test_equals_conv2d(arguments: dict[str, object]) -> None:
    x, w, b = X.double(), torch.randn(3, 1, 3, 4).double(), B.double()
    wide = torch.randn(6, 1, 2, 3).double()
    for operands in ((x, w, b), (x, w, None), (x[0], w, b), (x, wide, torch.randn(6).double()), (x[:0], w, b)):
        wanted = F.conv2d(*operands, **arguments, groups=3)
        for backend in ("auto", "torch"):
            got = depthwise_conv2d(*operands, **arguments, backend=backend)
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
            assert got.dtype == wanted.dtype
            gelu = depthwise_conv2d(*operands, **arguments, activation="gelu", backend=backend)
            torch.testing.assert_close(gelu, F.gelu(wanted), rtol=1e-12, atol=1e-12)


def test_same_padding_puts_the_odd_pixel_at_the_end() -> None:
    x = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    for kh in range(1, 10):
        for kw in (1, 2, 5, 8):
            w = torch.randn(2, 1, kh, kw, dtype=torch.float64)
            wanted = F.conv2d(x, w, padding="same", groups=2)
            torch.testing.assert_close(depthwise_conv2d(x, w, padding="same"), wanted, rtol=1e-12, atol=1e-12)


def test_channels_last_stays_channels_last() -> None:
    x = X.contiguous(memory_format=torch.channels_last)
    y = depthwise_conv2d(x, W, padding="same")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    assert depthwise_conv2d(X, W, padding="same").is_contiguous()


def test_empty_batch_has_gradients() -> None:
    for activation in ("none", "relu", "gelu"):
        x = torch.randn(0, 3, 8, 9, requires_grad=True)
        w, b = W.clone().requires_grad_(), B.clone().requires_grad_()
        y = depthwise_conv2d(x, w, b, padding="same", activation=activation)
        assert y.shape == (0, 3, 8, 9)
        y.sum().backward()
        for t in (x, w, b):
            assert t.grad is not None
            assert t.grad.shape == t.shape
            assert not t.grad.any()


# ---- backends and explain ----


def problem(**change: object) -> Problem:
    """A small problem that every kernel could run."""
    about: dict[str, object] = {
        "input_shape": (2, 3, 8, 9), "weight_shape": (3, 1, 3, 3), "has_bias": True,
        "geometry": Geometry((1, 1), (1, 1, 1, 1), (1, 1)), "dtype": torch.float32, "device_type": "cpu",
    }  # fmt: skip
    return Problem(**{**about, **change})  # type: ignore[arg-type]


def test_auto_takes_the_first_that_can() -> None:
    assert select(problem()).name == ("cpu" if _ext.HAS_EXT else "torch")
    assert select(problem(geometry=Geometry((2, 2), (0, 0, 0, 0), (1, 1)))).name == "torch"
    assert select(problem(device_type="mps")).name == "torch"
    for backend in BACKENDS.values():
        reason = backend.supports(problem(device_type="xpu"))
        assert (reason is None) == (backend.devices is None)


def test_cuda_backend_is_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = BACKENDS["cuda"]
    monkeypatch.setattr(_ext, "WHY_NOT", None)
    monkeypatch.setattr(_ext, "CUDA_OPS", frozenset())
    assert cuda.supports(problem(device_type="cuda")) == "the extension was built without CUDA kernels"
    monkeypatch.setattr(_ext, "CUDA_OPS", frozenset({"dwconv2d"}))
    half = torch.bfloat16
    assert cuda.supports(problem(device_type="cuda", dtype=half)) is None
    assert "bwd_weight" in str(cuda.supports(problem(device_type="cuda", dtype=half, pass_="bwd_weight")))
    assert cuda.supports(problem(device_type="cuda")) is None
    assert cuda.supports(problem(device_type="cuda", dtype=torch.float64)) is None
    strided = Geometry((2, 2), (0, 0, 0, 0), (1, 1))
    assert "stride" in str(cuda.supports(problem(device_type="cuda", dtype=half, geometry=strided)))
    hopper = {"capability": 90, "multiprocessors": 132, "shared_per_block": 227 << 10, "shared_per_sm": 228 << 10}
    turing = {"capability": 75, "multiprocessors": 40, "shared_per_block": 64 << 10, "shared_per_sm": 64 << 10}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(_ext, "cuda_devices", lambda: (hopper, turing))
    if _ext.build_info().get("cuda_ops"):
        assert "7.5" in str(cuda.supports(problem(device_type="cuda", dtype=half)))
    monkeypatch.setattr(_ext, "WHY_NOT", "no extension here")
    assert cuda.supports(problem(device_type="cuda")) == "no extension here"


@pytest.mark.parametrize(
    ("capability", "archs", "code"),
    [
        (80, "8.0;8.6;9.0a;12.0+PTX", "8.0"),
        (90, "9.0a", "9.0a"),
        (100, "9.0a", None),
        (89, "8.0;8.6", "8.6"),
        (80, "8.6", None),
        (90, "8.0", None),
        (90, "8.0+PTX", "8.0+PTX"),
        (103, "10.0", "10.0"),
        (121, "9.0a;12.0+PTX", "12.0"),
        (130, "9.0;12.0+PTX", "12.0+PTX"),
        (100, "12.0+PTX", None),
        (90, "", None),
    ],
)
def test_architecture_that_a_gpu_runs(capability: int, archs: str, code: str | None) -> None:
    assert architecture_for(capability, archs) == code


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")
def test_explain_tells_what_runs() -> None:
    explanation = explain(X, W, B, padding="same", algorithm="direct")
    assert explanation.chosen == {"fwd": "cpu", "bwd_input": "cpu", "bwd_weight": "cpu"}
    text = str(explanation)
    for words in (
        "fwd: cpu",
        "no: runs CUDA tensors, not cpu",
        "could, not chosen",
        "algorithm direct",
        str(_ext.cpu_isa()),
    ):
        assert words in text
    strided = explain(X[0], W, stride=2, algorithm="direct")
    assert strided.chosen["bwd_weight"] == "torch"
    assert "only stride 1, not (2, 2)" in str(strided)
    assert "cannot be asked" in str(strided)
    assert explain(X, W, backend="torch").chosen["fwd"] == "torch"
    assert "float32 and round once" in str(explain(X.half(), W.half()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert explain(X, W).problem.dtype == torch.bfloat16
    meta = explain(X.to("meta"), W.to("meta"))
    assert meta.chosen["fwd"] == "torch"


def test_symbolic_sizes() -> None:
    def f(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return depthwise_conv2d(x, w, b, padding="same")

    make_fx = torch.fx.experimental.proxy_tensor.make_fx
    graph = make_fx(f, tracing_mode="symbolic")(torch.randn(5, 3, 11, 12), W, B)
    x = torch.randn(2, 3, 8, 30)
    torch.testing.assert_close(graph(x, W, B), f(x, W, B), rtol=0, atol=0)


def test_plans_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from replknet_ext import functional

    monkeypatch.setattr(functional, "_MAX_PLANS", 8)
    monkeypatch.setattr(functional, "_plans", {})
    for n in range(1, 30):
        depthwise_conv2d(torch.ones(n, 1, 3, 3), torch.ones(1, 1, 2, 2))
        assert 1 <= len(functional._plans) <= 8


@pytest.mark.parametrize(
    ("op", "first", "second", "rest"),
    [
        ("dwconv2d", "input", "weight", (None, [1, 1, 2, 2], "none")),
        ("dwconv2d_backward_input", "grad_output", "weight", ([1, 1, 2, 2],)),
        ("dwconv2d_backward_weight", "grad_output", "input", ([1, 1, 2, 2],)),
        ("dwconv2d_backward_weight_bias", "grad_output", "input", ([1, 1, 2, 2],)),
    ],
)
def test_raw_operands_on_cpu_and_meta(op: str, first: str, second: str, rest: tuple[object, ...]) -> None:
    """torch calls the fake kernel for them, which once answered with memory that nothing had been written to."""
    run = getattr(torch.ops.replknet_ext, op)
    other = X if second == "input" else W
    for a, b in ((X, other.to("meta")), (X.to("meta"), other)):
        with pytest.raises(RuntimeError, match=f"{op}: {first} and {second} must be on one device, got (cpu|meta) and"):
            run(a, b, *rest, "ieee", "auto", "auto", -1)
    if op == "dwconv2d":
        with pytest.raises(RuntimeError, match="input and bias must be on one device, got cpu and meta"):
            run(X, W, B.to("meta"), *rest[1:], "ieee", "auto", "auto", -1)
