"""The CUDA kernels on a device: values, streams, graphs, compile, layouts, every variant. Skipped without a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import (
    ACTIVATIONS,
    CASES,
    DTYPES,
    HALVES,
    LAYOUTS,
    PASSES,
    Case,
    Operands,
    assert_close,
    assert_format,
    assert_same_bits,
    by_name,
    expected,
    operands,
    same,
)
from gpu_common import kernels_of, on_device, oracle, relative, run, run_torch
from torch import Tensor, nn

from benchmarks import gpu_cases, gpu_plan
from benchmarks.shapes import NUMBERS
from replknet_ext import DepthwiseConv2dLarge, _ext, depthwise_conv2d

ops = torch.ops.replknet_ext

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("dwconv2d" not in _ext.CUDA_OPS, reason="the extension was built without CUDA kernels"),
]


# ---- the table ----


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_exact_inputs_are_bit_equal(case: Case, pass_: str) -> None:
    o = operands(case, "exact")
    wanted = oracle(pass_, case, "exact")
    for dtype in DTYPES:
        for layout in ("nchw", "nhwc"):
            actual = run(pass_, case, on_device(o.to(dtype), layout))
            assert_same_bits(actual.cpu(), wanted.to(dtype))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_halves_keep_the_tolerances(case: Case, pass_: str) -> None:
    wanted = oracle(pass_, case, "half")
    for dtype in HALVES:
        o = operands(case, "half").to(dtype)
        for layout in ("nchw", "nhwc"):
            placed = on_device(o, layout)
            actual = run(pass_, case, placed)
            assert actual.dtype == dtype
            assert_close(actual.cpu(), wanted, torch_result=run_torch(pass_, case, o))
            assert_format(actual, pass_, placed)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("nchw", "nhwc")])
@pytest.mark.parametrize(
    "case", by_name("batch3", "odd-channels", "width1", "even-6x8", "convnext-t-s4"), ids=lambda c: c.name
)
def test_layouts_and_misaligned_views(case: Case, layout: str) -> None:
    o = operands(case, "exact")
    for dtype in HALVES:
        for pass_ in PASSES:
            actual = run(pass_, case, on_device(o.to(dtype), layout))
            assert_same_bits(actual.cpu(), oracle(pass_, case, "exact").to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_bias_and_activation(dtype: torch.dtype) -> None:
    for case in by_name("batch3", "odd-channels", "one-pixel", "even-6x8", "convnext-t-s4", "batch20"):
        exact = operands(case, "exact")
        wanted = expected("fwd", case, exact, "relu").to(dtype)
        assert_same_bits(run("fwd", case, on_device(exact.to(dtype)), "relu").cpu(), wanted)
        o = operands(case, "half").to(dtype)
        for activation in ACTIVATIONS:
            actual = run("fwd", case, on_device(o), activation)
            wanted = expected("fwd", case, operands(case, "half"), activation)
            assert_close(actual.cpu(), wanted, torch_result=run_torch("fwd", case, o, activation))


def test_kernels_are_ours() -> None:
    case = by_name("convnext-t-s1")[0]
    o = on_device(operands(case, "half").to(torch.bfloat16))
    for pass_ in PASSES:
        names = kernels_of(lambda p=pass_: run(p, case, o))  # type: ignore[misc]
        ours = ("toeplitz_weight",) if pass_ == "bwd_weight" else ("toeplitz_fwd", "toeplitz_ring")
        assert any(name in names for name in ours), names
        assert "conv_depthwise2d" not in names, names


def test_same_bits_on_every_run() -> None:
    case = same("many", 20, 64, 28, 28, 29, 29)
    o = on_device(operands(case, "half").to(torch.bfloat16))
    for pass_ in PASSES:
        first = run(pass_, case, o)
        for _ in range(5):
            assert_same_bits(run(pass_, case, o), first)


# ---- variants ----


def variants() -> list[tuple[str, str]]:
    """(pass, name) of the variants; none where the planner can't be compiled."""
    try:
        return [(pass_, name) for pass_ in ("fwd", "bwd_weight") for name in gpu_plan.variants(pass_)]
    except gpu_plan.PlannerUnavailableError:
        return []


@pytest.mark.parametrize(("pass_", "name"), variants())
def test_every_variant_by_number(pass_: str, name: str) -> None:
    number = gpu_plan.variants(pass_).index(name)
    tried = 0
    for layer in gpu_cases.CASES:
        for numbers in NUMBERS.values():
            for layout in ("nchw", "nhwc"):
                how = {"channels_last": layout == "nhwc", "precision": numbers.precision}
                if tried == 4 or number not in gpu_plan.supported(layer, pass_, numbers.dtype, **how):
                    continue
                tried += 1  # a few cases tell; the emulator runs them all
                case = same(layer.name, layer.n, layer.c, layer.h, layer.w, layer.kh, layer.kw)
                dtype = getattr(torch, numbers.dtype)
                o = on_device(operands(case, "exact").to(dtype), layout)
                for one in ("fwd", "bwd_input") if pass_ == "fwd" else (pass_,):
                    wanted = oracle(one, case, "exact").to(dtype)
                    actual = run(one, case, o, variant=number, precision=numbers.precision, algorithm="auto").cpu()
                    if name.startswith("fft"):
                        rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
                        assert relative(actual, wanted.double()) <= 1e-6 + rounding
                    else:
                        assert_same_bits(actual, wanted)
    assert tried


def test_variants_that_do_not_fit_are_errors() -> None:
    case = same("28 wide", 2, 3, 9, 28, 29, 29)
    o = on_device(operands(case, "exact").to(torch.float16))
    number = gpu_plan.variants().index("rt_5x7_w")
    for wrong in (number, len(gpu_plan.variants()), -2):
        with pytest.raises(RuntimeError, match="variant"):
            run("fwd", case, o, variant=wrong)
    torch.cuda.synchronize()


# ---- streams, graphs, devices ----


@pytest.mark.parametrize("pass_", PASSES)
def test_work_follows_the_current_stream(pass_: str) -> None:
    """The input is written on a side stream, late: a kernel on another stream would read what was there before."""
    case = same("stream", 8, 32, 56, 56, 31, 31)
    o = on_device(operands(case, "exact").to(torch.bfloat16))
    wanted = run(pass_, case, o)
    late = Operands(torch.full_like(o.x, 7), o.weight, o.bias, torch.full_like(o.grad, 7))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        late.x.copy_(o.x)
        late.grad.copy_(o.grad)
        result = run(pass_, case, late)
        after = result + 0
    assert not side.query(), "the sleep was too short to tell"
    side.synchronize()
    assert_same_bits(result, wanted)
    assert_same_bits(after, wanted)


def test_no_call_waits_for_the_device() -> None:
    case = same("async", 8, 8, 14, 14, 27, 27)
    o = on_device(operands(case, "exact").to(torch.bfloat16))
    for pass_ in PASSES:
        run(pass_, case, o)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    for pass_ in PASSES:
        run(pass_, case, o)
    assert not torch.cuda.current_stream().query(), "a call waited until the device was idle"
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_graph_capture_and_replay(dtype: torch.dtype) -> None:
    case = same("graph", 9, 16, 28, 28, 29, 29)
    o = on_device(operands(case, "exact").to(dtype))
    static = Operands(torch.zeros_like(o.x), o.weight, o.bias, torch.zeros_like(o.grad))
    for pass_ in PASSES:
        run(pass_, case, static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [run(pass_, case, static) for pass_ in PASSES]
    for turn in range(3):
        static.x.copy_(o.x.roll(turn, 0))
        static.grad.copy_(o.grad.roll(turn, 0))
        graph.replay()
        moved = Operands(o.x.roll(turn, 0), o.weight, o.bias, o.grad.roll(turn, 0))
        for pass_, result in zip(PASSES, results, strict=True):
            assert_same_bits(result, run(pass_, case, moved))


def test_first_call_may_be_in_a_capture() -> None:
    """A shape that no call has planned yet, and dynamic shared memory that no launch has asked for."""
    case = same("first", 3, 5, 41, 43, 15, 15)
    o = on_device(operands(case, "exact").to(torch.float16))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run("fwd", case, o)
    graph.replay()
    assert_same_bits(result.cpu(), expected("fwd", case, operands(case, "exact")).to(torch.float16))


def test_training_step_in_a_graph() -> None:
    module = DepthwiseConv2dLarge(16, 13).cuda().bfloat16()
    x = torch.randn(8, 16, 14, 14, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    reference = copy.deepcopy(module)
    graphed = torch.cuda.make_graphed_callables(module, (x,))
    fresh = torch.randn_like(x)
    results = []
    for step in (graphed, reference):
        leaf = fresh.clone().requires_grad_()
        step(leaf).square().mean().backward()
        results.append([leaf.grad, step.weight.grad, step.bias.grad])
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_current() -> None:
    case = by_name("batch3")[0]
    o = operands(case, "exact").to(torch.bfloat16)
    other = Operands(*(t.to("cuda:1") for t in (o.x, o.weight, o.bias, o.grad)))
    with torch.cuda.device(0):
        for pass_ in PASSES:
            result = run(pass_, case, other)
            assert result.device.index == 1
            assert torch.cuda.current_device() == 0
            assert_same_bits(result.cpu(), oracle(pass_, case, "exact").to(torch.bfloat16))


def test_operands_on_different_devices_are_refused() -> None:
    x, weight = torch.ones(1, 3, 8, 8, device="cuda", dtype=torch.float16), torch.ones(3, 1, 3, 3, dtype=torch.float16)
    with pytest.raises(ValueError, match="weight must be on the device of input"):
        depthwise_conv2d(x, weight)
    with pytest.raises(RuntimeError):
        ops.dwconv2d(x, weight, None, (0, 0, 0, 0), "none", "ieee", "auto", "auto", -1)
    torch.cuda.synchronize()


# ---- sizes ----


def test_more_elements_than_32_bits_count() -> None:
    n, c, size, kernel = 5400, 128, 56, 7
    elements = n * c * size * size
    assert elements > 2**31
    free, _ = torch.cuda.mem_get_info()
    if free < 2.5 * 2 * elements:
        pytest.skip(f"needs {5 * elements / 2**30:.0f} GiB of free memory")
    x = torch.empty(n, c, size, size, device="cuda", dtype=torch.bfloat16).random_(-16, 17).div_(32)
    weight = operands(same("w", 1, c, 9, 9, kernel, kernel), "exact").weight.to(torch.bfloat16)
    pads = (kernel // 2,) * 4
    images, channels = [0, 1, n // 2, n - 2, n - 1], [0, 63, 127]
    wanted = F.conv2d(
        x[images][:, channels].cpu().double(), weight[channels].double(), padding=kernel // 2, groups=len(channels)
    )
    for pass_ in ("fwd", "bwd_input"):
        if pass_ == "fwd":
            out = ops.dwconv2d(x, weight.cuda(), None, pads, "none", "ieee", "direct", "auto", -1)
        else:
            out = ops.dwconv2d_backward_input(x, weight.cuda().flip(2, 3), pads, "ieee", "direct", "auto", -1)
        assert_same_bits(out[images][:, channels].cpu(), wanted.to(torch.bfloat16))
        del out


def test_empty_batch() -> None:
    module = DepthwiseConv2dLarge(4, 7).cuda().half()
    x = torch.empty(0, 4, 9, 9, device="cuda", dtype=torch.float16, requires_grad=True)
    out = module(x)
    assert out.shape == (0, 4, 9, 9)
    out.sum().backward()
    assert x.grad is not None
    assert module.weight.grad is not None
    assert not module.weight.grad.any()


def test_large_maps_and_kernels_in_tiles() -> None:
    for case in (same("wide", 1, 2, 40, 700, 63, 63), same("map", 2, 2, 200, 131, 31, 31)):
        o = operands(case, "exact")
        for pass_ in PASSES:
            wanted = oracle(pass_, case, "exact").to(torch.bfloat16)
            assert_same_bits(run(pass_, case, on_device(o.to(torch.bfloat16))).cpu(), wanted)


# ---- values that are not finite ----


@pytest.mark.parametrize("n", [1, 9])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_inputs_spill_no_further_than_a_tile(value: float, n: int) -> None:
    case = same("nan", n, 2, 40, 56, 11, 11)
    o = operands(case, "exact")
    x, weight = o.x.to(torch.bfloat16), torch.ones_like(o.weight, dtype=torch.bfloat16)
    x[n - 1, 1, 20, 30] = value
    clean = run("fwd", case, on_device(Operands(o.x.to(torch.bfloat16), weight, o.bias.bfloat16(), o.grad.bfloat16())))
    out = run("fwd", case, on_device(Operands(x, weight, o.bias.bfloat16(), o.grad.bfloat16()))).cpu()
    bad = ~out.isfinite()
    seen, spill = torch.zeros_like(bad), torch.zeros_like(bad)
    seen[n - 1, 1, 15:26, 25:36] = True
    spill[n - 1, 1, 14:27, 25 - 14 : 36 + 14] = True
    assert bad[seen].all(), "an output that sees the value is finite"
    assert not bad[~spill].any(), "it spilled further than a tile"
    assert_same_bits(out[~bad], clean.cpu()[~bad])


def test_images_do_not_influence_each_other() -> None:
    for n in (2, 3, 9, 20):
        case = same(f"images{n}", n, 3, 28, 28, 29, 29)
        for dtype in (torch.bfloat16, torch.float32):
            for algorithm in ("direct", "fft"):
                for pass_ in ("fwd", "bwd_input"):
                    o = operands(case, "half").to(dtype)
                    clean = run(pass_, case, on_device(o), algorithm=algorithm)
                    o.x[0], o.grad[0] = float("nan"), float("nan")
                    assert_same_bits(run(pass_, case, on_device(o), algorithm=algorithm)[1:], clean[1:])


# ---- torch around it ----


def _gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    leaf = x.detach().clone().requires_grad_()
    out = module(leaf)
    (out.float().square().mean()).backward()
    assert leaf.grad is not None
    grads = [out.detach(), leaf.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    return [g.double().cpu() for g in grads]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autograd_through_the_module(dtype: torch.dtype) -> None:
    module = DepthwiseConv2dLarge(24, 13).cuda()
    plain = nn.Conv2d(24, 24, 13, padding="same", groups=24).double().cuda()
    plain.load_state_dict(module.state_dict())
    x = torch.randn(4, 24, 20, 22, device="cuda")
    ours = _gradients(copy.deepcopy(module).to(dtype), x.to(dtype))
    theirs = _gradients(plain, x.double())
    assert len(ours) == len(theirs) == 4
    for mine, exact in zip(ours, theirs, strict=True):
        assert relative(mine, exact) < (2e-2 if dtype == torch.bfloat16 else 3e-3)


def test_autocast_runs_our_kernel() -> None:
    module = DepthwiseConv2dLarge(8, 13).cuda()
    x = torch.randn(2, 8, 14, 14, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = module(x)
        assert any(family in kernels_of(lambda: module(x)) for family in ("toeplitz_fwd", "toeplitz_ring", "small_fwd"))
    assert out.dtype == torch.bfloat16
    plain = copy.deepcopy(module).double().cpu()
    exact = F.conv2d(x.double().cpu(), plain.weight, plain.bias, padding=6, groups=8)
    assert relative(out.detach(), exact.detach()) < 1e-2
    out.float().sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic: bool) -> None:
    def f(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(x * 2, weight, bias, padding="same", activation="relu") + 1

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for n in (2, 5) if dynamic else (3,):
        leaves = [
            torch.randn(n, 6, 18, 20, device="cuda", dtype=torch.bfloat16),
            torch.randn(6, 1, 7, 7, device="cuda", dtype=torch.bfloat16),
            torch.randn(6, device="cuda", dtype=torch.bfloat16),
        ]
        results = []
        for function in (f, compiled):
            inputs = [leaf.clone().requires_grad_() for leaf in leaves]
            out = function(*inputs)
            out.float().square().mean().backward()
            results.append([out.detach(), *(i.grad for i in inputs)])
        for eager, traced in zip(*results, strict=True):
            assert eager is not None
            assert traced is not None
            torch.testing.assert_close(traced, eager, rtol=3e-2, atol=3e-2)


@pytest.mark.slow
def test_opcheck() -> None:
    case = by_name("batch3")[0]
    for dtype in (torch.bfloat16, torch.float32):
        o = on_device(operands(case, "half").to(dtype))
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        for layout in ("nchw", "nhwc"):
            placed = on_device(operands(case, "half").to(dtype), layout)
            arguments = (placed.x, placed.weight, placed.bias, case.padding, "none", "ieee", "auto", "auto", -1)
            torch.library.opcheck(ops.dwconv2d.default, arguments, test_utils=tests)
        torch.library.opcheck(
            ops.dwconv2d_backward_input.default,
            (o.grad, o.weight, case.padding, "ieee", "auto", "auto", -1),
            test_utils=tests,
        )
