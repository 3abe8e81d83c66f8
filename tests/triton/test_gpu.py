"""The Triton kernels on a device: the table, streams, graphs, compile, sizes beyond 32 bits. Skipped without a GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, LAYOUTS, PASSES, Case, Operands, assert_same_bits, by_name, expected, operands, same
from torch import Tensor

from replknet_ext import depthwise_conv2d
from replknet_ext.backends.triton import backend
from replknet_ext.operator import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(backend.WHY_NOT is not None, reason=str(backend.WHY_NOT)),
]
KINDS = [(torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32")]


def run(pass_: str, case: Case, o: Operands, precision: str = "ieee") -> Tensor:
    """A raw op of the Triton kernels."""
    if pass_ == "fwd":
        return ops.RAW.fwd(o.x, o.weight, o.bias, case.padding, "none", precision, "direct", "triton", -1)
    if pass_ == "bwd_input":
        return ops.RAW.bwd_input(o.grad, o.weight, case.padding, precision, "direct", "triton", -1)
    return ops.RAW.bwd_weight(o.grad, o.x, case.padding, precision, "direct", "triton", -1)


def on_device(o: Operands, layout: str = "nchw") -> Operands:
    """The operands on the GPU in a layout, filters too."""
    f = LAYOUTS[layout]
    return Operands(f(o.x.cuda()), f(o.weight.cuda()), o.bias.cuda(), f(o.grad.cuda()))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_exact_inputs_are_bit_equal(case: Case, pass_: str) -> None:
    """Exact in tf32 too: the inputs have few bits."""
    exact = operands(case, "exact")
    wanted = expected(pass_, case, exact)
    for dtype, precision in KINDS:
        for layout in ("nchw", "nhwc"):
            actual = run(pass_, case, on_device(exact.to(dtype), layout), precision)
            assert_same_bits(actual.cpu(), wanted.to(dtype))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("nchw", "nhwc")])
def test_layouts(layout: str) -> None:
    for case in by_name("batch3", "odd-channels", "width1", "even-6x8", "convnext-t-s4"):
        exact = operands(case, "exact")
        for pass_ in PASSES:
            actual = run(pass_, case, on_device(exact.to(torch.bfloat16), layout))
            assert_same_bits(actual.cpu(), expected(pass_, case, exact).to(torch.bfloat16))


def test_the_explicit_backend_trains_as_torch_does() -> None:
    leaves = [torch.randn(4, 8, 14, 14), torch.randn(8, 1, 7, 7) / 7, torch.randn(8)]
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 4e-2)):
        results = []
        for name in ("triton", "torch"):
            inputs = [t.to("cuda", dtype).requires_grad_() for t in leaves]
            out = depthwise_conv2d(*inputs, padding="same", activation="relu", backend=name)
            results.append([out, *torch.autograd.grad(out.float().square().mean(), inputs)])
        for mine, theirs in zip(*results, strict=True):
            assert (mine - theirs).float().norm() <= limit * theirs.float().norm() + 1e-6


def test_same_bits_on_every_run() -> None:
    case = same("many", 20, 64, 28, 28, 29, 29)
    o = on_device(operands(case, "half").to(torch.bfloat16))
    for pass_ in PASSES:
        first = run(pass_, case, o)
        for _ in range(5):
            assert_same_bits(run(pass_, case, o), first)


def test_work_follows_the_current_stream_and_graphs_replay() -> None:
    case = same("graph", 8, 16, 28, 28, 13, 13)
    o = on_device(operands(case, "exact").to(torch.bfloat16))
    wanted = [run(pass_, case, o) for pass_ in PASSES]  # compiles, which a capture may not
    static = Operands(torch.zeros_like(o.x), o.weight, o.bias, torch.zeros_like(o.grad))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [run(pass_, case, static) for pass_ in PASSES]
    static.x.copy_(o.x)
    static.grad.copy_(o.grad)
    graph.replay()
    for result, right in zip(results, wanted, strict=True):
        assert_same_bits(result, right)
    late = Operands(torch.zeros_like(o.x), o.weight, o.bias, o.grad)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        late.x.copy_(o.x)
        result = run("fwd", case, late)
        torch.cuda.current_stream().synchronize()
    assert_same_bits(result, wanted[0])


@pytest.mark.slow
def test_compile_fullgraph() -> None:
    def f(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(x * 2, weight, bias, padding="same", activation="gelu", backend="triton") + 1

    leaves = [torch.randn(3, 6, 18, 20), torch.randn(6, 1, 7, 7), torch.randn(6)]
    results = []
    for function in (f, torch.compile(f, fullgraph=True)):
        inputs = [t.cuda().requires_grad_() for t in leaves]
        out = function(*inputs)
        results.append([out, *torch.autograd.grad(out.square().mean(), inputs)])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-4)


def test_more_elements_than_32_bits_count() -> None:
    n, c, size, kernel = 5400, 128, 56, 7
    elements = n * c * size * size
    assert elements > 2**31
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * 2 * elements:
        pytest.skip(f"needs {6 * elements / 2**30:.0f} GiB of free memory")
    x = torch.empty(n, c, size, size, device="cuda", dtype=torch.bfloat16).random_(-16, 17).div_(32)
    case = same("w", 1, c, 9, 9, kernel, kernel)
    weight = operands(case, "exact").weight.to(torch.bfloat16)
    pads = (kernel // 2,) * 4
    images, channels = [0, 1, n // 2, n - 2, n - 1], [0, 63, 127]
    wanted = F.conv2d(
        x[images][:, channels].cpu().double(), weight[channels].double(), padding=kernel // 2, groups=len(channels)
    )
    out = ops.RAW.fwd(x, weight.cuda(), None, pads, "none", "ieee", "direct", "triton", -1)
    assert_same_bits(out[images][:, channels].cpu(), wanted.to(torch.bfloat16))
