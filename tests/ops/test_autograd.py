"""Derivatives of every order and mode, of the Functions (eager) and of the raw ops (registered gradients)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cases import ACTIVATIONS, LAYOUTS, Case, by_name, operands
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from replknet_ext import DepthwiseConv2dLargeFunction, depthwise_conv2d
from replknet_ext.operator.autograd import (
    DIFFERENTIABLE,
    DepthwiseConv2dLargeBackwardInput,
    DepthwiseConv2dLargeBackwardWeight,
)
from replknet_ext.operator.ops import RAW

TINY = [
    Case("tiny", 2, 2, 4, 5, 3, 3, (1, 1, 1, 1)),
    Case("tiny-even", 2, 2, 4, 4, 2, 4, (0, 1, 1, 2)),
    Case("tiny-crop", 1, 2, 6, 5, 3, 2, (-1, 2, 1, -1)),
]
LINEAR = ("ieee", "auto", "auto", -1)


def tiny(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, grad in float64, requiring gradients."""
    o = operands(case, "float64")
    return tuple(t.clone().requires_grad_() for t in (o.x, o.weight, o.bias, o.grad))  # type: ignore[return-value]


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, activation: str = "none") -> Tensor:
    """The public function, padding 1."""
    return depthwise_conv2d(x, w, b, padding=1, activation=activation)


def torch_conv(x: Tensor, w: Tensor, b: Tensor | None = None, activation: str = "none") -> Tensor:
    """The same by torch alone."""
    out = F.conv2d(x, w, b, padding=1, groups=x.shape[-3])
    return {"none": lambda t: t, "relu": F.relu, "gelu": F.gelu}[activation](out)


def close(actual: object, wanted: object) -> None:
    """float64 closeness of tensors or tuples of them."""
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


# ---- gradcheck of all three passes, eager Functions ----


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_forward_function(case: Case, activation: str) -> None:
    x, w, b, _ = tiny(case)

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return DIFFERENTIABLE.fwd(x, w, b, case.padding, activation, *LINEAR)

    assert gradcheck(f, (x, w, b), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, (x, w, b), check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_backward_functions(case: Case) -> None:
    x, w, _, g = tiny(case)

    def by_input(g: Tensor, w: Tensor) -> Tensor:
        return DIFFERENTIABLE.bwd_input(g, w, case.padding, *LINEAR)

    def by_weight(g: Tensor, x: Tensor) -> Tensor:
        return DIFFERENTIABLE.bwd_weight(g, x, case.padding, *LINEAR)

    for f, args in ((by_input, (g, w)), (by_weight, (g, x))):
        assert gradcheck(f, args, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
        assert gradgradcheck(f, args, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_raw_ops_reverse_mode(activation: str) -> None:
    case = TINY[1]
    x, w, b, g = tiny(case)
    for f, args in (
        (lambda x, w, b: RAW.fwd(x, w, b, case.padding, activation, *LINEAR), (x, w, b)),
        (lambda g, w: RAW.bwd_input(g, w, case.padding, *LINEAR), (g, w)),
        (lambda g, x: RAW.bwd_weight(g, x, case.padding, *LINEAR), (g, x)),
    ):
        assert gradcheck(f, args)
        assert gradgradcheck(f, args)


def test_third_derivative() -> None:
    x, w, b, _ = tiny(TINY[0])
    for activation in ACTIVATIONS:

        def third(f: Callable[..., Tensor], activation: str = activation) -> tuple[Tensor, ...]:
            y = f(x, w, b, activation).pow(3).sum()
            (g1,) = torch.autograd.grad(y, w, create_graph=True)
            (g2,) = torch.autograd.grad(g1.pow(2).sum(), x, create_graph=True)
            return torch.autograd.grad(g2.pow(2).sum(), (x, w, b))

        close(third(conv), third(torch_conv))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_torch(layout: str, activation: str) -> None:
    for case in by_name("batch3", "even-6x8", "width1", "kernel-exceeds-plane", "batch0"):
        o = operands(case, "float64")
        results = []
        for f in (depthwise_conv2d, _torch_conv):
            x, w, b = (t.detach().clone().requires_grad_() for t in (o.x, o.weight, o.bias))
            y = f(LAYOUTS[layout](x), w, b, padding="same", activation=activation)
            results.append((y.detach(), *torch.autograd.grad(y, (x, w, b), LAYOUTS[layout](o.grad))))
        close(results[0], results[1])


def _torch_conv(x: Tensor, w: Tensor, b: Tensor, padding: str, activation: str) -> Tensor:
    out = F.conv2d(x, w, b, padding=padding, groups=x.shape[1])
    return {"none": lambda t: t, "relu": F.relu, "gelu": F.gelu}[activation](out)


def test_relu_at_zero_and_nan_like_torch() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0, float("nan")]).view(1, 4, 1, 1)
    w = torch.ones(4, 1, 1, 1)
    for value in (x, -x):
        mine, theirs = (value.clone().requires_grad_() for _ in range(2))
        depthwise_conv2d(mine, w, activation="relu").sum().backward()
        F.relu(F.conv2d(theirs, w, groups=4)).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0, equal_nan=True)


def test_functional_paths_beyond_the_kernels_differentiate() -> None:
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return depthwise_conv2d(x, w, b, stride=(2, 1), padding=1, dilation=(1, 2), activation="gelu")

    assert gradcheck(f, (x, w, b), check_forward_ad=True)
    assert gradgradcheck(f, (x, w, b))


def test_unbatched() -> None:
    x, w, b, _ = tiny(TINY[0])
    assert gradcheck(conv, (x[0].detach().requires_grad_(), w, b), check_forward_ad=True)


# ---- only what is needed ----


class _Log(TorchDispatchMode):
    """Names of the raw ops that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "replknet_ext":
            self.names.append(func._opname.removeprefix("dwconv2d").removeprefix("_backward_"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("raw", [False, True], ids=["function", "raw"])
@pytest.mark.parametrize("needs", list(product([False, True], repeat=3)))
def test_unneeded_gradients_are_not_computed(needs: tuple[bool, ...], raw: bool) -> None:
    o = operands(TINY[0], "float64")
    x, w, b = (t.clone().requires_grad_(need) for t, need in zip((o.x, o.weight, o.bias), needs, strict=True))
    fwd = RAW.fwd if raw else DIFFERENTIABLE.fwd
    with _Log() as log:
        y = fwd(x, w, b, (1, 1, 1, 1), "relu", *LINEAR)
        assert y.requires_grad == any(needs)
        if any(needs):
            y.sum().backward()
    assert log.names == [""] + ["input"] * needs[0] + ["weight"] * needs[1]
    assert [t.grad is not None for t in (x, w, b)] == list(needs)


@pytest.mark.parametrize("raw", [False, True], ids=["function", "raw"])
def test_gradients_that_the_engine_drops_are_not_computed(raw: bool) -> None:
    x, w, b, g = tiny(TINY[0])
    passes = RAW if raw else DIFFERENTIABLE
    wanted = torch.autograd.grad(torch_conv(x, w, b), (x, w, b), g)
    for leaf in (True, False):
        inputs = (x, w, b) if leaf else tuple(t * 1 for t in (x, w, b))
        for i, names in enumerate((["", "input"], ["", "weight"], [""])):
            with _Log() as log:
                y = passes.fwd(*inputs, (1, 1, 1, 1), "none", *LINEAR)
                (got,) = torch.autograd.grad(y, inputs[i], g, retain_graph=True)
            close(got, wanted[i])
            assert log.names == names
    y = passes.fwd(x, w, b, (1, 1, 1, 1), "none", *LINEAR)
    with _Log() as log:
        y.backward(g, inputs=[w, b])
    close((x.grad, w.grad, b.grad), (None, *wanted[1:]))
    assert log.names == ["weight"]


def test_double_backward_through_relu_spends_nothing_on_the_mask() -> None:
    x, w, b, _ = tiny(TINY[0])
    with _Log() as log:
        (gx,) = torch.autograd.grad(conv(x, w, b, "relu").sum(), x, create_graph=True)
        torch.autograd.grad(gx.pow(2).sum(), w)
    assert log.names == ["", "input", "weight"]


def test_no_graph_and_no_memory_kept_without_need() -> None:
    x, w, b, _ = tiny(TINY[0])
    with torch.no_grad():
        assert conv(x, w, b).grad_fn is None
    with torch.inference_mode():
        assert conv(x, w, b).is_inference()
    assert type(conv(x, w, b).grad_fn).__name__ == "DepthwiseConv2dLargeFunctionBackward"
    for activation in ACTIVATIONS:
        gc.collect()
        gc.disable()
        try:
            y = conv(x, w, b, activation)
            alive = weakref.ref(y)
            del y
            assert alive() is None, "the output is in a reference cycle"
        finally:
            gc.enable()


def test_tensors_changed_after_the_call_are_noticed() -> None:
    x, w, b, _ = tiny(TINY[0])
    y = conv(x, w * 1, b)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_settings_of_the_forward_hold_for_its_backward() -> None:
    seen: list[object] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.namespace == "replknet_ext":
                seen.append(args[-3])
            return func(*args, **(kwargs or {}))

    x, w, b, _ = tiny(TINY[0])
    y = depthwise_conv2d(x, w, b, padding=1, algorithm="direct")
    with Spy():
        y.sum().backward()
    assert seen == ["direct", "direct"]


# ---- torch.func ----


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_func_transforms_equal_torch(activation: str) -> None:
    x, w, b, _ = (t.detach() for t in tiny(TINY[0]))

    def loss(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, b: f(x, w, b, activation).pow(2).sum()

    mine, theirs = loss(conv), loss(torch_conv)
    close(grad(mine, (0, 1, 2))(x, w, b), grad(theirs, (0, 1, 2))(x, w, b))
    tangents = tuple(torch.randn_like(t) for t in (x, w, b))
    for i in range(3):  # one tangent at a time, then all together
        at, along = ((x, w, b)[i],), (tangents[i],)
        results = [
            jvp(lambda t, f=f, i=i: f(*(t if j == i else v for j, v in enumerate((x, w, b))), activation), at, along)
            for f in (conv, torch_conv)
        ]
        close(*results)
    close(jvp(mine, (x, w, b), tangents), jvp(theirs, (x, w, b), tangents))
    out, pull = vjp(mine, x, w, b)
    out_t, pull_t = vjp(theirs, x, w, b)
    close((out, *pull(torch.ones_like(out))), (out_t, *pull_t(torch.ones_like(out))))
    for jac in (jacrev, jacfwd):
        close(jac(conv, 1)(x, w, b, activation), jac(torch_conv, 1)(x, w, b, activation))
        close(jac(grad(mine, 1), 0)(x, w, b), jac(grad(theirs, 1), 0)(x, w, b))
    close(hessian(mine, 1)(x, w, b), hessian(theirs, 1)(x, w, b))
    close(
        grad(lambda w: grad(mine, 1)(x, w, b).pow(2).sum())(w), grad(lambda w: grad(theirs, 1)(x, w, b).pow(2).sum())(w)
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_vjp_called_after_its_transform_ended(activation: str) -> None:
    x, w, b, g = tiny(TINY[0])

    def results(f: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        # The tensors that the pullback saved are wrappers of a level that is gone.
        _, pull = vjp(lambda x, w: f(x, w, b, activation), x, w)
        gx, gw = pull(g)
        second = torch.autograd.grad(gx.pow(2).sum() + gw.pow(2).sum(), (x, w, g), allow_unused=True)
        _, pull = vjp(lambda w: grad(lambda x: f(x, w, b, activation).pow(2).sum())(x.detach()), w.detach())
        return gx, gw, *second, *pull(x.detach())

    close(results(conv), results(torch_conv))


IN_DIMS = [
    dims for dims in product((0, 1, None), (0, 2, None), (0, 1, None)) if any(d is not None for d in dims)
]  # fmt: skip


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
@pytest.mark.parametrize("raw", [False, True], ids=["function", "raw"])
def test_vmap_equals_a_loop(in_dims: tuple[int | None, ...], raw: bool) -> None:
    o = operands(TINY[0], "float64")
    size = 3
    args = [
        t if d is None else torch.stack([t * (i + 1) for i in range(size)], d)
        for t, d in zip((o.x, o.weight, o.bias), in_dims, strict=True)
    ]

    def pick(i: int) -> list[Tensor]:
        return [t if d is None else t.select(d, i) for t, d in zip(args, in_dims, strict=True)]

    fwd = RAW.fwd if raw else DIFFERENTIABLE.fwd

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return fwd(x, w, b, (1, 1, 1, 1), "relu", *LINEAR)

    with _Log() as log:
        actual = vmap(f, in_dims)(*args)
    close(actual, torch.stack([f(*pick(i)) for i in range(size)]))
    assert log.names == [""], "vmap must fold, not loop"


@pytest.mark.parametrize("raw", [False, True], ids=["function", "raw"])
@pytest.mark.parametrize("dims", [(0, 0), (1, None), (None, 2)], ids=str)
def test_vmap_of_the_backward_ops(dims: tuple[int | None, int | None], raw: bool) -> None:
    o = operands(TINY[0], "float64")
    passes = RAW if raw else DIFFERENTIABLE
    for run, first, second in ((passes.bwd_input, o.grad, o.weight), (passes.bwd_weight, o.grad, o.x)):
        args = [
            t if d is None else torch.stack([t, 2 * t, t - 1], d) for t, d in zip((first, second), dims, strict=True)
        ]
        wanted = [
            run(*(t if d is None else t.select(d, i) for t, d in zip(args, dims, strict=True)), (1, 1, 1, 1), *LINEAR)
            for i in range(3)
        ]
        actual = vmap(lambda a, b, run=run: run(a, b, (1, 1, 1, 1), *LINEAR), dims)(*args)
        close(actual, torch.stack(wanted))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_per_sample_gradients(activation: str) -> None:
    o = operands(by_name("batch3")[0], "float64")

    def loss(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
            return f(x, w, b, activation).pow(2).sum()

        return of

    w = o.weight[:, :, :3, :3].contiguous()
    mine = vmap(grad(loss(conv), (0, 1)), (None, None, 0))(w, o.bias, o.x)
    theirs = vmap(grad(loss(torch_conv), (0, 1)), (None, None, 0))(w, o.bias, o.x)
    close(mine, theirs)
    nested = vmap(vmap(conv, (None, 0)), (0, None))(o.x[:, None], torch.stack([w, w + 1]))
    assert nested.shape[:2] == (3, 2)
    close(nested[2, 1], conv(o.x[2:3], w + 1))


def test_ensemble_of_modules() -> None:
    weights = torch.randn(4, 2, 1, 3, 3, dtype=torch.float64)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(weights[0].clone())
    module.forward = lambda x: conv(x, module.weight)  # type: ignore[method-assign]
    actual = vmap(lambda w: functional_call(module, {"weight": w}, (x,)))(weights)
    close(actual, torch.stack([torch_conv(x, w) for w in weights]))


def test_dual_tensors() -> None:
    x, w, b, _ = (t.detach() for t in tiny(TINY[0]))
    tangent = torch.randn_like(w)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(w, tangent)
        primal, got = forward_ad.unpack_dual(conv(x, dual, b, "gelu"))
        _, wanted = forward_ad.unpack_dual(torch_conv(x, dual, b, "gelu"))
        assert got is not None
        close(got, wanted)
        with torch.no_grad():
            assert forward_ad.unpack_dual(conv(x, dual, b)).tangent is not None
    assert primal.shape == x.shape


# ---- other users of autograd ----


def test_checkpoint_and_saved_tensor_hooks() -> None:
    x, w, b, _ = tiny(TINY[0])
    wanted = torch.autograd.grad(conv(x, w, b, "relu").sum(), (x, w, b))
    y = torch.utils.checkpoint.checkpoint(conv, x, w, b, "relu", use_reentrant=False)
    close(torch.autograd.grad(y.sum(), (x, w, b)), wanted)
    with torch.autograd.graph.save_on_cpu():
        y = conv(x, w, b, "relu")
    close(torch.autograd.grad(y.sum(), (x, w, b)), wanted)


def test_apply_of_the_public_function_class() -> None:
    x, w, b, g = tiny(TINY[0])
    y = DepthwiseConv2dLargeFunction.apply(x, w, b, (1, 1, 1, 1))
    close(y, torch_conv(x, w, b))
    close(DepthwiseConv2dLargeFunction.apply(x, w), F.conv2d(x, w, groups=2))
    gx = DepthwiseConv2dLargeBackwardInput.apply(g, w, (1, 1, 1, 1), *LINEAR)
    gw = DepthwiseConv2dLargeBackwardWeight.apply(g, x, (1, 1, 1, 1), *LINEAR)
    close((gx, gw), torch.autograd.grad(torch_conv(x, w, b), (x, w), g))


def test_autograd_in_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    x, w, b, _ = (t.detach() for t in tiny(TINY[0]))

    def work(scale: float) -> Tensor:
        v = (w * scale).requires_grad_()
        return torch.autograd.grad(conv(x, v, b, "gelu").sum(), v)[0]

    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(work, [1.0, 2.0, 3.0, 4.0] * 5))
    close(parallel, [work(s) for s in [1.0, 2.0, 3.0, 4.0] * 5])
