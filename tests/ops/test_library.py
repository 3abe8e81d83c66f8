"""The raw ops as citizens of torch.library: schema, opcheck, fake, autocast, FLOPs, compile, export, no extension."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import ACTIVATIONS, DTYPES, LAYOUTS, PASSES, Case, Operands, assert_same_bits, by_name, kind_of, operands
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import replknet_ext
from replknet_ext import _ext, depthwise_conv2d
from replknet_ext.operator import ops

raw = torch.ops.replknet_ext
ROOT = Path(__file__).parents[2]
OPCHECK = by_name("batch3", "even-6x8", "width1", "crop-and-pad", "one-channel", "batch0")


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments(pass_: str, case: Case, o: Operands, activation: str = "none", bias: bool = True) -> tuple[object, ...]:
    """(op, arguments) of a pass."""
    options = ("ieee", "auto", "auto", -1)
    if pass_ == "fwd":
        return raw.dwconv2d, (o.x, o.weight, o.bias if bias else None, case.padding, activation, *options)
    if pass_ == "bwd_input":
        return raw.dwconv2d_backward_input, (o.grad, o.weight, case.padding, *options)
    op = raw.dwconv2d_backward_weight_bias if pass_ == "bwd_weight_bias" else raw.dwconv2d_backward_weight
    return op, (o.grad, o.x, case.padding, *options)


def test_schemas_are_those_written_in_python() -> None:
    for name, schema in ops.SCHEMAS.items():
        wanted = torch._C.parse_schema(f"replknet_ext::{name}{schema}")
        assert str(getattr(raw, name).default._schema) == str(wanted)
    assert [f"dwconv2d_backward_{of}" for of in ("input", "weight", "weight_bias")] == list(ops.SCHEMAS)[1:]


@pytest.mark.parametrize("case", OPCHECK, ids=lambda case: case.name)
@pytest.mark.parametrize("pass_", (*PASSES, "bwd_weight_bias"))
def test_opcheck(pass_: str, case: Case) -> None:
    for layout in ("nchw", "nhwc"):
        for needs_grad in (False, True):
            o = operands(case, "float32")
            placed = Operands(*(LAYOUTS[layout](t) for t in (o.x, o.weight)), o.bias, LAYOUTS[layout](o.grad))
            if needs_grad:
                placed = Operands(
                    *(t.detach().requires_grad_() for t in (placed.x, placed.weight, o.bias, placed.grad))
                )
            op, args = arguments(pass_, case, placed)
            tests = ("test_schema", "test_faketensor", "test_autograd_registration")
            torch.library.opcheck(op, args, test_utils=tests)
            if case.name in ("batch3", "crop-and-pad") and needs_grad:
                torch.library.opcheck(op, args, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_opcheck_activations(activation: str) -> None:
    case = by_name("batch3")[0]
    o = operands(case, "float32")
    o = Operands(*(t.requires_grad_() for t in (o.x, o.weight, o.bias, o.grad)))
    for bias in (True, False):
        torch.library.opcheck(*arguments("fwd", case, o, activation, bias))


@pytest.mark.parametrize("pass_", PASSES)
def test_fake_equals_real(pass_: str) -> None:
    for case in by_name(
        "batch3", "even-6x8", "width1", "one-pixel", "one-channel", "crop-and-pad", "batch0", "valid-to-one"
    ):
        for dtype in DTYPES:
            for name, layout in LAYOUTS.items():
                o = operands(case, kind_of(dtype)).to(dtype)
                o = Operands(layout(o.x), layout(o.weight), o.bias, layout(o.grad))
                op, args = arguments(pass_, case, o)
                real = op(*args)  # type: ignore[operator]
                with FakeTensorMode() as mode:
                    fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))  # type: ignore[operator]
                about = (real.shape, real.stride(), real.dtype, real.device)
                assert (fake.shape, fake.stride(), fake.dtype, fake.device) == about, (case.name, name, dtype)


def test_fake_refuses_what_the_kernel_refuses() -> None:
    x, w = torch.empty(2, 3, 6, 6, device="meta"), torch.empty(3, 1, 7, 3, device="meta")
    options = ("none", "ieee", "auto", "auto", -1)
    for bad in ((x, w), (x[0], w), (x, w[:2]), (x, w.expand(3, 2, 7, 3))):
        with pytest.raises(RuntimeError):
            raw.dwconv2d(*bad, None, (0, 0, 0, 0), *options)
    assert raw.dwconv2d(x, w, None, (3, 3, 1, 1), *options).shape == (2, 3, 6, 6)
    assert depthwise_conv2d(x, w, padding="same").device.type == "meta"


# ---- autocast ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_like_conv2d(dtype: torch.dtype) -> None:
    o = operands(by_name("batch3")[0], "float32")
    low = o.to(dtype)
    calls = {
        "function": lambda x, w, b: depthwise_conv2d(x, w, b, padding="same"),
        "raw": lambda x, w, b: raw.dwconv2d(x, w, b, (4, 4, 4, 4), "none", "ieee", "auto", "auto", -1),
    }
    for call in calls.values():
        x, w, b = (t.clone().requires_grad_() for t in (o.x, o.weight, o.bias))
        with torch.autocast("cpu", dtype=dtype):
            y = call(x, w, b)
            mixed = call(low.x, w, low.bias)
            assert F.conv2d(x, w, b, padding=4, groups=5).dtype == y.dtype == dtype
        assert_same_bits(y, calls["function"](low.x, low.weight, low.bias))
        assert_same_bits(mixed, y)
        y.sum().backward()
        for t in (x, w, b):
            assert t.grad is not None
            assert t.grad.dtype == torch.float32
        with torch.autocast("cpu", dtype=dtype, enabled=False):
            assert call(o.x, o.weight, o.bias).dtype == torch.float32


def test_autocast_leaves_float64_alone_and_stays_out_of_backward() -> None:
    o = operands(by_name("batch3")[0], "float64")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert depthwise_conv2d(o.x, o.weight, o.bias).dtype == torch.float64
        with pytest.raises(TypeError, match="weight must have the dtype of input"):
            depthwise_conv2d(o.x, o.weight.float())
    single = o.to(torch.float32)
    for call in (
        lambda x, w: depthwise_conv2d(x, w, activation="gelu"),
        lambda x, w: raw.dwconv2d(x, w, None, (0, 0, 0, 0), "gelu", "ieee", "auto", "auto", -1),
    ):
        x, w = (t.clone().requires_grad_() for t in (single.x, single.weight))
        wanted = torch.autograd.grad(call(x, w).sum(), (x, w))
        y = call(x, w)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = torch.autograd.grad(y.sum(), (x, w))
        for a, b in zip(got, wanted, strict=True):
            assert_same_bits(a, b)


# ---- torch.compile ----


class Net(nn.Module):
    """Two of our convolutions between pointwise ones."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 1, 7, 7) / 7)
        self.b = nn.Parameter(torch.randn(6, 1, 4, 5) / 4)
        self.bias = nn.Parameter(torch.randn(6))
        self.mix = nn.Conv2d(6, 6, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = depthwise_conv2d(x, self.a, self.bias, padding="same", activation=self.activation)
        return depthwise_conv2d(self.mix(x), self.b, padding=(2, 1)) * 2


def step(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output and all gradients."""
    x = x.detach().requires_grad_()
    y = net(x)
    return (y.detach(), *torch.autograd.grad(y.pow(2).sum(), (x, *net.parameters())))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compile_fullgraph(activation: str, layout: str) -> None:
    net = Net(activation)
    x = LAYOUTS[layout](torch.randn(2, 6, 11, 12))
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    for a, b in zip(step(compiled, x), step(net, x), strict=True):
        torch.testing.assert_close(a, b)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same_bits(compiled(x), net(x))


@pytest.mark.slow  # Inductor compiles C++ for 18 seconds
def test_compile_inductor() -> None:
    weight = nn.Parameter(torch.randn(6, 1, 7, 7) / 7)
    x = torch.randn(2, 6, 11, 12).contiguous(memory_format=torch.channels_last)

    def f(x: Tensor) -> Tensor:
        return depthwise_conv2d(x * 2, weight, padding="same", activation="relu") + 1

    def results(f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        y = f(x)
        return y.detach(), torch.autograd.grad(y.pow(2).sum(), weight)[0]

    torch.testing.assert_close(results(torch.compile(f, fullgraph=True)), results(f), rtol=1e-4, atol=1e-4)


def test_compile_keeps_the_op_whole() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    net = Net("relu")
    torch.compile(net, fullgraph=True, backend=backend)(torch.randn(2, 6, 9, 9))
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    assert targets.count("replknet_ext.dwconv2d.default") == 2


def test_compile_does_not_recompile_across_batches_and_sizes() -> None:
    net = Net("relu")
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    step(compiled, torch.randn(2, 6, 11, 12))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n, h, w in ((3, 11, 12), (5, 11, 12), (4, 13, 17), (7, 20, 9)):
            x = torch.randn(n, 6, h, w)
            for a, b in zip(step(compiled, x), step(net, x), strict=True):
                torch.testing.assert_close(a, b)
    torch._dynamo.reset()
    automatic = torch.compile(net, fullgraph=True, backend="aot_eager")  # becomes dynamic by itself
    automatic(torch.randn(2, 6, 11, 12))
    automatic(torch.randn(3, 6, 11, 12))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (4, 5, 9):
            assert automatic(torch.randn(n, 6, 11, 12)).shape[0] == n


def test_compiled_code_follows_the_settings() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        seen.extend(str(n.args[6]) for n in graph.graph.nodes if "dwconv2d" in str(n.target))
        return graph.forward

    x, w = torch.randn(1, 2, 8, 8), torch.randn(2, 1, 3, 3)
    f = torch.compile(lambda x: depthwise_conv2d(x, w), fullgraph=True, backend=backend)
    f(x)
    with replknet_ext.algorithm("direct"):
        f(x)
    f(x)
    assert seen == ["auto", "direct"]


def test_compile_of_what_goes_to_torch() -> None:
    x, w, b = torch.randn(2, 3, 9, 8), torch.randn(6, 1, 3, 4), torch.randn(6)

    def f(x: Tensor) -> Tensor:
        y = depthwise_conv2d(x, w, b, stride=2, padding=1, dilation=(1, 2), activation="gelu")
        return y + depthwise_conv2d(x[0], w[:3], padding="valid", backend="torch").mean()

    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


def test_compile_under_autocast() -> None:
    net = Net("relu")
    x = torch.randn(2, 6, 11, 12)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = compiled(x), net(x)
    assert got.dtype == torch.bfloat16
    assert_same_bits(got, wanted)


def test_compile_reports_bad_input() -> None:
    f = torch.compile(lambda x, w: depthwise_conv2d(x, w), backend="aot_eager")
    with pytest.raises(Exception, match="larger than the padded input"):
        f(torch.randn(1, 2, 4, 4), torch.randn(2, 1, 5, 5))


# ---- torch.export, make_fx, fx ----


@pytest.mark.parametrize("strict", [False, True])
def test_export_dynamic(strict: bool) -> None:
    net = Net("relu").eval()
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    program = torch.export.export(net, (torch.randn(2, 6, 11, 12),), dynamic_shapes=({**dims},), strict=strict)
    assert "replknet_ext.dwconv2d" in str(program.graph)
    again = program.run_decompositions()
    assert "replknet_ext.dwconv2d" in str(again.graph)
    for shape in ((1, 6, 11, 12), (5, 6, 9, 20)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert_same_bits(program.module()(x), net(x))


def test_export_saves_and_loads(tmp_path: Path) -> None:
    net = Net("gelu").eval()
    x = torch.randn(2, 6, 11, 12)
    program = torch.export.export(net, (x,))
    torch.export.save(program, tmp_path / "net.pt2")
    with torch.no_grad():
        assert_same_bits(torch.export.load(tmp_path / "net.pt2").module()(x), net(x))


def test_fx_tracers_keep_the_call() -> None:
    net = Net("none")
    traced = torch.fx.symbolic_trace(net)
    assert [n.target for n in traced.graph.nodes].count(depthwise_conv2d) == 2
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(traced(x), net(x))
    graph = torch.fx.experimental.proxy_tensor.make_fx(net)(x)
    assert "replknet_ext.dwconv2d" in graph.code
    torch.testing.assert_close(graph(x), net(x))


def test_tensor_subclasses_and_function_modes_see_the_call() -> None:
    class Sub(Tensor):
        pass

    y = depthwise_conv2d(torch.randn(1, 2, 5, 5).as_subclass(Sub), torch.randn(2, 1, 3, 3))
    assert type(y) is Sub
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        depthwise_conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3))
    assert depthwise_conv2d in seen


# ---- loading ----


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, from the checkout."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )


def test_without_the_extension_everything_runs_on_torch() -> None:
    result = python("""
        import sys, json
        sys.modules["replknet_ext._C"] = None  # an import of it now fails as if it were not there
        import torch, replknet_ext as r
        from replknet_ext import _ext
        from replknet_ext.operator import ops
        assert not r.HAS_EXT and _ext.cpu_isa() is None and _ext.build_info() == {}
        x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
        w = torch.randn(3, 1, 4, 3, dtype=torch.float64, requires_grad=True)
        b = torch.randn(3, dtype=torch.float64)
        wanted = torch.nn.functional.gelu(torch.nn.functional.conv2d(x, w, b, padding="same", groups=3))
        got = r.depthwise_conv2d(x, w, b, padding="same", activation="gelu")
        torch.testing.assert_close(got, wanted)
        raw = torch.ops.replknet_ext.dwconv2d
        for layout in (torch.contiguous_format, torch.channels_last):
            xl = x.detach().contiguous(memory_format=layout).requires_grad_()
            args = (xl, w, b, (1, 2, 1, 1), "gelu", "ieee", "auto", "auto", -1)
            got = raw(*args)
            torch.testing.assert_close(got, wanted)
            theirs = torch.autograd.grad(wanted.sum(), (x, w), retain_graph=True)
            torch.testing.assert_close(torch.autograd.grad(got.sum(), (xl, w)), theirs)
            torch.library.opcheck(raw, args)
            for grad in (torch.randn(2, 3, 9, 8).contiguous(memory_format=layout), torch.randn(0, 3, 9, 8)):
                xs = torch.randn(grad.shape[0], 3, 9, 8)
                o = ((1, 2, 1, 1), "ieee", "auto", "auto", -1)
                torch.library.opcheck(torch.ops.replknet_ext.dwconv2d_backward_input, (grad, w.detach().float(), *o))
                torch.library.opcheck(torch.ops.replknet_ext.dwconv2d_backward_weight, (grad, xs, *o))
        try:
            raw(x, w[:2], b, (0, 0, 0, 0), "none", "ieee", "auto", "auto", -1)
        except RuntimeError as error:
            assert "one filter for each channel" in str(error)
        else:
            raise AssertionError
        for name, schema in ops.SCHEMAS.items():
            op = getattr(torch.ops.replknet_ext, name).default
            assert str(op._schema) == str(torch._C.parse_schema(f"replknet_ext::{name}{schema}"))
        e = r.explain(x, w, b)
        assert e.chosen["fwd"] == "torch" and "not installed" in str(e), str(e)
        try:
            r.depthwise_conv2d(x, w, backend="cpu")
        except ValueError as error:
            assert "not installed" in str(error)
        else:
            raise AssertionError
        print("fine")
    """)
    assert result.stdout.strip() == "fine", result.stderr[-3000:]


def test_a_second_copy_is_refused_before_it_can_crash() -> None:
    result = python("""
        import torch
        lib = torch.library.Library("replknet_ext", "FRAGMENT")
        lib.define("dwconv2d(Tensor x) -> Tensor")
        import replknet_ext
    """)
    assert result.returncode == 1, "a crash gives another code"
    assert "ImportError" in result.stderr
    assert "another copy" in result.stderr


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")
def test_a_broken_extension_is_reported(tmp_path: Path) -> None:
    result = python("""
        import sys, warnings
        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "replknet_ext._C":
                    raise ImportError("undefined symbol: nonesuch")
        sys.meta_path.insert(0, Broken())
        import replknet_ext as r
        assert not r.HAS_EXT
    """)
    assert result.returncode == 0, result.stderr
    assert "RuntimeWarning" in result.stderr
    assert "undefined symbol: nonesuch" in result.stderr


def test_import_needs_no_optional_package_and_stays_light() -> None:
    result = python("""
        import sys
        for name in ("triton", "torchvision", "timm", "onnx", "mmpretrain"):
            sys.modules[name] = None
        import replknet_ext, json
        heavy = ("matplotlib", "rich", "typer", "sklearn", "torch._dynamo", "torch.distributed.tensor")
        print(json.dumps(sorted({*heavy} & {*sys.modules})))
    """)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")
def test_build_info() -> None:
    info = _ext.build_info()
    assert set(info["cuda_ops"]) <= set(ops.SCHEMAS)
    assert _ext.cpu_isa() in ("base", "avx2", "avx512")


# ---- CUDA tensors ----


@pytest.mark.gpu
def test_cuda_tensors_run() -> None:
    o = operands(by_name("batch3")[0], "float32")
    wanted = depthwise_conv2d(o.x, o.weight, o.bias, padding="same", activation="relu")
    got = depthwise_conv2d(o.x.cuda(), o.weight.cuda(), o.bias.cuda(), padding="same", activation="relu")
    torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-4)
    for pass_ in PASSES:
        cuda = Operands(o.x.cuda(), o.weight.cuda(), o.bias.cuda(), o.grad.cuda())
        op, args = arguments(pass_, by_name("batch3")[0], cuda)
        torch.library.opcheck(op, args)


def test_cuda_key_has_a_kernel_for_every_op() -> None:
    for name in ops.SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"replknet_ext::{name}", "CUDA")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"replknet_ext::{name}", "CPU")
