"""Every registered backend that is written in Python and runs CPU tensors: values of all passes, gradients, compiled.

A new one is tested here as soon as it stands in the registry. Triton's, which needs a GPU or its interpreter, has its
own tests.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    HALVES,
    LAYOUTS,
    PASSES,
    Operands,
    assert_close,
    assert_close_by_fft,
    assert_format,
    by_name,
    expected,
    kind_of,
    magnitude,
    operands,
)
from torch import Tensor

from replknet_ext import HAS_EXT, depthwise_conv2d, explain
from replknet_ext.backends import BACKENDS
from replknet_ext.backends.torch import TorchBackend
from replknet_ext.operator.problem import problem_of

ops = torch.ops.replknet_ext
CASES = by_name(
    "batch0", "one-pixel", "odd-channels", "width1", "even-6x8", "kernel-exceeds-plane", "rect-3x32", "over-padded",
    "cropped-away", "crop-and-pad",
)  # fmt: skip
backends = pytest.mark.parametrize(
    "backend", [name for name, b in BACKENDS.items() if not b.compiled and (b.devices is None or "cpu" in b.devices)]
)


def call(pass_: str, o: Operands, padding: Any, backend: str) -> tuple[str | None, Any]:
    """Why the backend does not run a pass, and the pass as a function without arguments."""
    first, second = {"fwd": (o.x, o.weight), "bwd_input": (o.grad, o.weight), "bwd_weight": (o.grad, o.x)}[pass_]
    bias = o.bias if pass_ == "fwd" else None
    why = BACKENDS[backend].supports(problem_of(pass_, first, second, bias, padding, "none", "ieee", "auto"))
    options = (padding, "ieee", "auto", backend, -1)
    if pass_ == "fwd":
        return why, lambda: ops.dwconv2d(first, second, bias, padding, "none", *options[1:])
    op = ops.dwconv2d_backward_input if pass_ == "bwd_input" else ops.dwconv2d_backward_weight
    return why, lambda: op(first, second, *options)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_values(backend: str, dtype: torch.dtype) -> None:
    """Against the oracle; a backend may refuse cases and dtypes, but not all of float32."""
    refused = []
    for case in CASES:
        o = operands(case, kind_of(dtype))
        for pass_ in PASSES:
            wanted, scale = expected(pass_, case, o), magnitude(pass_, case, o)
            for layout in ("nchw", "nhwc"):
                placed = Operands(*(LAYOUTS[layout](t) if t.dim() == 4 else t for t in vars(o.to(dtype)).values()))
                why, run = call(pass_, placed, case.padding, backend)
                if why is not None:
                    refused.append(why)
                    continue
                actual = run()
                assert actual.dtype == dtype
                if dtype in HALVES:
                    assert_close(actual, wanted, torch_result=call(pass_, placed, case.padding, "torch")[1]())
                else:
                    assert_close_by_fft(actual, wanted, scale)  # whose bound direct sums keep, too
                assert_format(actual, pass_, placed)
    if len(refused) == len(CASES) * len(PASSES) * 2:
        assert dtype != torch.float32, f"{backend} refuses every case in float32: {refused[0]}"
        pytest.skip(refused[0])


@backends
def test_gradients_eager_and_compiled(backend: str) -> None:
    x, w, b = torch.randn(2, 3, 9, 8), torch.randn(3, 1, 5, 4), torch.randn(3)
    padding = (2, 2, 1, 2)

    def loss(x: Tensor, w: Tensor, b: Tensor, backend: str = backend) -> Tensor:
        return ops.dwconv2d(x, w, b, padding, "gelu", "ieee", "auto", backend, -1).square().sum()

    why, _ = call("fwd", Operands(x, w, b, x), padding, backend)
    assert why is None, why
    given = [t.requires_grad_() for t in (x, w, b)]
    exact = [t.detach().double().requires_grad_() for t in given]
    out = torch.nn.functional.conv2d(exact[0], exact[1], exact[2], padding="same", groups=3)
    wanted = torch.autograd.grad(torch.nn.functional.gelu(out).square().sum(), exact)
    torch._dynamo.reset()
    for run in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        for actual, expect in zip(torch.autograd.grad(run(*given), given), wanted, strict=True):
            torch.testing.assert_close(actual.double(), expect, rtol=1e-5, atol=1e-4)


class Other(TorchBackend):
    """torch's result, by the raw ops."""

    name = "other"
    differentiable = False


@pytest.mark.skipif(not HAS_EXT, reason="the compiled extension is not installed")
def test_what_explain_says_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An FFT that the compiled kernels refuse goes to a backend that takes it, as `explain` says."""
    x, w = torch.randn(2, 3, 9, 8).double().requires_grad_(), torch.randn(3, 1, 5, 3).double()
    for other in BACKENDS.values():
        if not other.compiled and other.name != "torch":
            monkeypatch.setattr(other, "supports", lambda problem: "not in this test")
    with pytest.raises(ValueError, match="torch: torch's convolution has no FFT"):
        depthwise_conv2d(x, w, algorithm="fft")
    monkeypatch.setitem(BACKENDS, Other.name, Other())
    monkeypatch.setattr(Other, "supports", lambda self, problem: None)
    assert set(explain(x, w, algorithm="fft").chosen.values()) == {"other"}
    out, wanted = depthwise_conv2d(x, w, algorithm="fft"), depthwise_conv2d(x, w, backend="torch")
    torch.testing.assert_close(out, wanted)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(wanted.square().sum(), x)[0])


def test_the_compiled_ones_stand_first() -> None:
    """The ops of a device call them without asking the registry: `select` and `explain` must find them first, too."""
    compiled = [backend.compiled for backend in BACKENDS.values()]
    assert compiled == sorted(compiled, reverse=True)
    assert all(name == backend.name for name, backend in BACKENDS.items())
