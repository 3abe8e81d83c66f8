"""float32 and float64 on a device: precisions, the FFT, whole training steps, explain(). Skipped without a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, PASSES, Case, assert_close, assert_same_bits, by_name, operands, same
from gpu_common import kernels_of, on_device, oracle, relative, run
from models_common import SMALL
from torch import Tensor, nn

import replknet_ext
from replknet_ext import DepthwiseConv2dLarge, _ext
from replknet_ext.models import RepLKNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("dwconv2d" not in _ext.CUDA_OPS, reason="the extension was built without CUDA kernels"),
]

FORMS = [("ieee", "direct"), ("ieee", "fft"), ("tf32", "direct"), ("bf16x3", "direct")]
#: ||error|| / ||result|| that a precision or algorithm may have; the long sums of bwd_weight four times as much.
NORM = {"direct": 1e-6, "fft": 1e-6, "tf32": 2e-3, "bf16x3": 2e-5}
FAMILY = {
    ("ieee", "direct"): "fma_",
    ("ieee", "fft"): "fft_",
    ("tf32", "direct"): "toeplitz",
    ("bf16x3", "direct"): "toeplitz",
}


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_keeps_its_bounds(case: Case, pass_: str) -> None:
    wanted = oracle(pass_, case, "float32")
    for precision, algorithm in FORMS:
        for layout in ("nchw", "nhwc"):
            o = on_device(operands(case, "float32"), layout)
            try:
                actual = run(pass_, case, o, precision=precision, algorithm=algorithm)
            except RuntimeError as error:
                assert algorithm == "fft", error  # maps that no transform length covers
                continue
            if wanted.numel():
                limit = NORM[algorithm if precision == "ieee" else precision] * (4 if pass_ == "bwd_weight" else 1)
                assert relative(actual, wanted) <= limit, (precision, algorithm, layout)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", by_name("batch3", "even-6x8", "crop-and-pad", "convnext-t-s1"), ids=lambda c: c.name)
def test_ieee_keeps_the_table_of_tolerances(case: Case, pass_: str) -> None:
    o = operands(case, "float32")
    positive = type(o)(*(t.abs() for t in (o.x, o.weight, o.bias, o.grad)))
    scale = run(
        pass_, case, type(o)(*(t.double() for t in (positive.x, positive.weight, positive.bias, positive.grad)))
    )
    for layout in ("nchw", "nhwc"):
        actual = run(pass_, case, on_device(o, layout)).cpu()
        assert_close(actual, oracle(pass_, case, "float32"), scale=scale)


@pytest.mark.parametrize("pass_", PASSES)
def test_float64(pass_: str) -> None:
    for case in by_name("batch3", "even-6x8", "crop-and-pad", "odd-channels"):
        for layout in ("nchw", "nhwc"):
            actual = run(pass_, case, on_device(operands(case, "float32").to(torch.float64), layout))
            assert relative(actual, oracle(pass_, case, "float32")) <= 1e-14


@pytest.mark.parametrize(("precision", "algorithm"), FORMS)
def test_the_kernels_that_were_asked_for(precision: str, algorithm: str) -> None:
    case = same("k", 8, 8, 56, 56, 31, 31)
    o = on_device(operands(case, "float32"))
    for pass_ in PASSES:
        names = kernels_of(lambda p=pass_: run(p, case, o, precision=precision, algorithm=algorithm))  # type: ignore[misc]
        assert FAMILY[precision, algorithm] in names, names


@pytest.mark.parametrize(("precision", "algorithm"), FORMS)
def test_same_bits_on_every_run(precision: str, algorithm: str) -> None:
    case = same("many", 20, 16, 28, 28, 29, 29)
    o = on_device(operands(case, "float32"))
    for pass_ in PASSES:
        first = run(pass_, case, o, precision=precision, algorithm=algorithm)
        for _ in range(5):
            assert_same_bits(run(pass_, case, o, precision=precision, algorithm=algorithm), first)


def test_bias_gradient_in_the_weights_pass() -> None:
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-14)):
        for layout in (torch.contiguous_format, torch.channels_last):
            g, x = (torch.randn(20, 24, 14, 14, device="cuda", dtype=dtype).to(memory_format=layout) for _ in range(2))
            rest = ((6, 6, 6, 6), "ieee", "auto", "auto", -1)
            weight, bias = torch.ops.replknet_ext.dwconv2d_backward_weight_bias(g, x, *rest)
            assert_same_bits(weight, torch.ops.replknet_ext.dwconv2d_backward_weight(g, x, *rest))
            assert relative(bias, g.double().cpu().sum((0, 2, 3))) <= limit


def _step(model: nn.Module, x: Tensor, target: Tensor) -> list[Tensor]:
    """Loss, every gradient and the logits of one training step, as float64 on the CPU."""
    logits = model(x)
    loss = nn.functional.cross_entropy(logits.float() if x.dtype != torch.float64 else logits, target)
    loss.backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None for g in grads)
    return [t.detach().double().cpu() for t in (loss, logits, *grads) if t is not None]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("precision", "limit"), [("ieee", 0.02), ("bf16x3", 0.02), ("tf32", 0.1), ("bfloat16", 0.4)])
def test_a_training_step_of_replknet(precision: str, limit: float, layout: torch.memory_format) -> None:
    """Against the float64 step on the CPU. A ReLU near zero may open in one and not in the other: limits are wide."""
    exact_model = RepLKNet(SMALL, num_classes=10).double().train()
    model = copy.deepcopy(exact_model).float().cuda().to(memory_format=layout)
    x, target = torch.randn(20, 3, 64, 64, dtype=torch.float64), torch.randint(0, 10, (20,))
    wanted = _step(exact_model, x, target)
    inputs = x.float().cuda().to(memory_format=layout)
    with torch.backends.cudnn.flags(allow_tf32=False):
        if precision == "bfloat16":
            with torch.autocast("cuda", dtype=torch.bfloat16):
                actual = _step(model, inputs, target.cuda())
        else:
            with replknet_ext.float32_precision(precision):
                assert any(
                    part in kernels_of(lambda: model(inputs)) for part in ("toeplitz_fwd", "fma_", "fft_", "stencil_")
                )
                model.zero_grad()
                actual = _step(model, inputs, target.cuda())
    assert len(actual) == len(wanted)
    errors = [(mine - exact).norm() for mine, exact in zip(actual, wanted, strict=True)]
    norms = [exact.norm() for exact in wanted]
    assert float(torch.stack(errors).norm() / torch.stack(norms).norm()) <= limit
    # one by one; BatchNorm makes some gradients vanish, so that only rounding is left of them
    assert max(float(e / max(n, 0.1 * max(norms))) for e, n in zip(errors, norms, strict=True)) <= 3 * limit


@pytest.mark.slow
def test_gradients_through_compile() -> None:
    module = DepthwiseConv2dLarge(16, 13, activation="relu").cuda()
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            eager = copy.deepcopy(module).to(dtype)
            compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
            x = torch.randn(4, 16, 28, 28, device="cuda", dtype=dtype).to(memory_format=layout)
            results = []
            for model in (eager, compiled):
                leaf = x.clone().requires_grad_()
                model(leaf).float().square().mean().backward()
                results.append([leaf.grad, *(p.grad for p in model.parameters())])
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(other, one)


def test_explain_names_the_kernels() -> None:
    x, weight = torch.ones(8, 8, 56, 56, device="cuda"), torch.ones(8, 1, 31, 31, device="cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for layout in (torch.contiguous_format, torch.channels_last):
            about = replknet_ext.explain(x.to(dtype).to(memory_format=layout), weight.to(dtype), padding="same")
            assert set(about.chosen.values()) == {"cuda"}
            assert all(kernel is not None and "family" in kernel for kernel in about.kernels.values())
    assert "fma_" in str(replknet_ext.explain(x, weight, padding="same", algorithm="direct"))
    strided = replknet_ext.explain(x, weight, stride=2)
    assert set(strided.chosen.values()) == {"torch"}
