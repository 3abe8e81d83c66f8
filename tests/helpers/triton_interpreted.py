"""Runs the Triton kernels in triton's interpreter and prints a JSON object: check -> None or what went wrong.

    TRITON_INTERPRET=1 python tests/helpers/triton_interpreted.py GROUP

A process of its own, because the interpreter must be chosen before the kernels are imported. `test_values.py`
starts it, one process for each group of `GROUPS`, and makes a test of every check.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402
from cases import (  # noqa: E402
    CASES,
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
    kind_of,
    magnitude,
    operands,
    same,
)
from torch import Tensor  # noqa: E402

import replknet_ext  # noqa: E402
from replknet_ext.backends import BACKENDS  # noqa: E402
from replknet_ext.operator import ops  # noqa: E402

Check = tuple[str, Callable[[], None]]

#: Taps of a plane that the interpreter can afford.
LARGEST = 200_000


def few(case: Case) -> Case:
    """At most two channels and nine images; one channel of large planes."""
    channels = 1 if case.h * case.w * case.kh * case.kw > 20000 else 2
    return Case(case.name, min(case.n, 9), min(case.c, channels), case.h, case.w, case.kh, case.kw, case.padding)


def affordable(pass_: str, sizes: Any, dtype: str, precision: str) -> Any:
    """The choice of `configs`, but the form without tensor cores only for small problems: it takes minutes here."""
    from replknet_ext.backends.triton import tiles

    if pass_ != "fwd":
        return None
    t = tiles.sliding(sizes, dtype, False)
    programs = -(-sizes.ho // t.R) * -(-sizes.wo // t.Q) * -(-sizes.n // t.P) * sizes.c
    steps = programs * min(sizes.h, t.R + sizes.kh) * sizes.kw
    return t if precision == "ieee" and dtype == "float32" and steps <= 100 else tiles.toeplitz(sizes, dtype, precision)


def run(pass_: str, case: Case, o: Operands, activation: str = "none", precision: str = "ieee") -> Tensor:
    """A raw op of the Triton kernels."""
    if pass_ == "fwd":
        return ops.RAW.fwd(o.x, o.weight, o.bias, case.padding, activation, precision, "direct", "triton", -1)
    if pass_ == "bwd_input":
        return ops.RAW.bwd_input(o.grad, o.weight, case.padding, precision, "direct", "triton", -1)
    return ops.RAW.bwd_weight(o.grad, o.x, case.padding, precision, "direct", "triton", -1)


def placed(o: Operands, layout: str) -> Operands:
    """The operands in a layout, filters too."""
    f = LAYOUTS[layout]
    return Operands(f(o.x), f(o.weight), o.bias, f(o.grad))


def check_exact(case: Case, dtype: torch.dtype, layout: str, precision: str = "ieee") -> None:
    """Exact inputs: the bits of the float64 oracle, in the memory format of the input, and the bias gradient."""
    exact = operands(case, "exact")
    o = placed(exact.to(dtype), layout)
    for pass_ in ("fwd", "bwd_input"):
        actual = run(pass_, case, o, precision=precision)
        assert_same_bits(actual, expected(pass_, case, exact).to(dtype))
        assert_format(actual, pass_, o)
    grad_weight, grad_bias = ops.RAW.bwd_weight_bias(o.grad, o.x, case.padding, precision, "direct", "triton", -1)
    assert_same_bits(grad_weight, expected("bwd_weight", case, exact).to(dtype))
    assert_same_bits(grad_bias, exact.grad.double().sum((0, 2, 3)).to(dtype))


def work(case: Case) -> int:
    """Taps of a plane, about."""
    return case.h * case.w * min(case.kh, 2 * case.h) * min(case.kw, 2 * case.w)


def table() -> Iterator[Check]:
    """Cases with two of the kinds in turn, large ones with one, and layouts in turn; the GPU tests have all."""
    kinds = [(torch.float16, "ieee"), (torch.float32, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "tf32")]
    layouts = list(LAYOUTS)
    for i, case in enumerate(few(case) for case in CASES if work(case) <= LARGEST):
        every = 2 if work(case) <= 20_000 else 4
        for j, (dtype, precision) in enumerate(kinds):
            if (i + j) % every:
                continue
            layout = layouts[(i + j // 2) % len(layouts)]
            name = f"{case.name}-{str(dtype).removeprefix('torch.')}-{precision}-{layout}"
            yield name, lambda c=case, d=dtype, p=precision, x=layout: check_exact(c, d, x, p)


def check_tolerance(case: Case, dtype: torch.dtype, precision: str) -> None:
    """Random inputs keep the tolerances of the table; the interpreter computes tf32 and bf16x3 in float32."""
    kind = kind_of(dtype)
    o = operands(case, kind)
    for pass_ in PASSES:
        wanted = expected(pass_, case, o)
        actual = run(pass_, case, o.to(dtype), precision=precision)
        if dtype in HALVES:
            low = o.to(dtype)
            tensors = {"fwd": (low.x, low.weight, low.bias), "bwd_input": (low.grad, low.weight),
                       "bwd_weight": (low.grad, low.x)}[pass_]  # fmt: skip
            options = ("none", "ieee", "auto", -1) if pass_ == "fwd" else ("ieee", "auto", -1)
            theirs = getattr(BACKENDS["torch"], pass_)(*tensors, case.padding, *options)
            assert_close(actual, wanted, torch_result=theirs)
        else:
            assert_close(actual, wanted, scale=magnitude(pass_, case, o))


def check_activation(dtype: torch.dtype, activation: str) -> None:
    """Bias and activation in the same pass, by both forms of the forward pass."""
    for case in (same("act", 2, 2, 6, 7, 3, 3), same("act-16", 16, 1, 8, 8, 9, 9)):
        o = operands(case, kind_of(dtype)).to(dtype)
        wanted = expected("fwd", case, operands(case, kind_of(dtype)), activation)
        theirs = BACKENDS["torch"].fwd(o.x, o.weight, o.bias, case.padding, activation, "ieee", "auto", -1)
        assert_close(run("fwd", case, o, activation), wanted, scale=magnitude("fwd", case, o) + 1, torch_result=theirs)
        o.x[0, 0, 0, 0] = float("nan")
        assert run("fwd", case, o, activation)[0, 0, 0, 0].isnan(), "a NaN was lost"


def check_tile(case: Case, pass_: str, tile: object, dtype: torch.dtype = torch.float16) -> None:
    """One tile by hand, on strided operands without copies too."""
    from replknet_ext.backends.triton import launch

    exact = operands(case, "exact")
    for layout in ("nchw", "nhwc"):
        o = placed(exact.to(dtype), layout)
        if pass_ == "bwd_weight":
            actual = launch.correlate(o.grad, o.x, case.padding, "ieee", True, tile)[0]  # type: ignore[arg-type]
        else:
            actual = launch.convolve(o.x, o.weight, o.bias, case.padding, "none", "ieee", False, tile)  # type: ignore[arg-type]
        assert_same_bits(actual, expected(pass_, case, exact).to(dtype))


def tiles() -> Iterator[Check]:
    """Tiles that the small cases do not get by themselves: several of everything."""
    from replknet_ext.backends.triton.tiles import Sliding, Toeplitz, Weight

    case = same("tile", 5, 1, 11, 18, 5, 7)
    forward = [
        Toeplitz(4, 4, 2, 8, 2, 16, True, 4, 2),
        Toeplitz(4, 8, 1, 32, 1, 32, True, 4, 2),
        Toeplitz(8, 2, 4, 16, 4, 8, True, 4, 2),
        Toeplitz(16, 1, 4, 8, 4, 8, False, 4, 2),
        Toeplitz(2, 8, 2, 16, 1, 16, False, 4, 2),
    ]
    small = same("tile-small", 3, 3, 5, 5, 3, 2)
    for i, tile in enumerate((Sliding(4, 2, 4, 4), Sliding(8, 4, 8, 4), Sliding(2, 2, 4, 4))):
        yield f"sliding-{i}", lambda t=tile: check_tile(small, "fwd", t, torch.bfloat16)
    for i, tile in enumerate(forward):
        yield f"forward-{i}", lambda t=tile: check_tile(case, "fwd", t)
    weight = [
        Weight(4, 4, 2, 2, 8, 32, False, 1, 4, 2),
        Weight(4, 4, 4, 2, 16, 32, False, 3, 4, 2),
        Weight(16, 1, 2, 4, 32, 32, True, 2, 4, 2),
        Weight(1, 16, 1, 8, 32, 32, True, 4, 4, 2),
    ]
    for i, tile in enumerate(weight):
        yield f"weight-{i}", lambda t=tile: check_tile(case, "bwd_weight", t, torch.bfloat16)


def check_workspace_slices() -> None:
    """A workspace too small for all channels is used several times."""
    from replknet_ext.backends.triton import tiles

    case = same("slices", 2, 5, 6, 6, 3, 3)
    most = tiles.MAX_WORKSPACE
    try:
        tiles.MAX_WORKSPACE = 1
        check_exact(case, torch.float16, "nchw")
    finally:
        tiles.MAX_WORKSPACE = most


def check_same_bits_again() -> None:
    """Every pass twice."""
    case = same("again", 3, 2, 9, 9, 5, 5)
    o = operands(case, "half").to(torch.bfloat16)
    for pass_ in PASSES:
        assert_same_bits(run(pass_, case, o), run(pass_, case, o))


def check_images_apart(pass_: str) -> None:
    """A NaN image leaves the others their bits."""
    case = same("apart", 3, 1, 9, 9, 5, 5)
    o = operands(case, "half").to(torch.float16)
    clean = run(pass_, case, o)
    o.x[0], o.grad[0] = float("nan"), float("nan")
    assert_same_bits(run(pass_, case, o)[1:], clean[1:])


def values() -> Iterator[Check]:
    """Tolerances, activations, and what does not come from the table."""
    case = few(by_name("batch3")[0])
    for dtype, precision in [*((d, "ieee") for d in HALVES), *((torch.float32, p) for p in ("ieee", "tf32", "bf16x3"))]:
        name = f"{str(dtype).removeprefix('torch.')}-{precision}"
        yield f"tolerance-{name}", lambda d=dtype, p=precision: check_tolerance(case, d, p)
    for dtype in (torch.bfloat16, torch.float32):
        for activation in ("relu", "gelu"):
            name = f"{activation}-{str(dtype).removeprefix('torch.')}"
            yield name, lambda d=dtype, a=activation: check_activation(d, a)
    yield "workspace-slices", check_workspace_slices
    yield "same-bits-again", check_same_bits_again
    for pass_ in ("fwd", "bwd_input"):
        yield f"images-apart-{pass_}", lambda p=pass_: check_images_apart(p)
    empty = by_name("batch0")[0]
    yield "batch0", lambda: check_exact(empty, torch.float16, "nchw")
    yield "float64-is-refused", lambda: check_float64_refused(case)


def check_float64_refused(case: Case) -> None:
    """A raw op by name computes on that backend or says why not; nothing else takes its place."""
    try:
        run("fwd", case, operands(case, "float64"))
    except RuntimeError as error:
        assert "no Triton kernels for float64" in str(error), error
    else:
        raise AssertionError("float64 was not refused")


# ---- torch around the kernels ----


def _leaves(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 2, 6, 7), (2, 1, 3, 3), (2,))
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def _call(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "relu", backend: str = "triton") -> Tensor:
    return replknet_ext.depthwise_conv2d(x, weight, bias, padding="same", activation=activation, backend=backend)


def _spy() -> list[str]:
    """Names of the launches from here on."""
    from replknet_ext.backends.triton import launch

    seen: list[str] = []
    for name in ("convolve", "correlate"):
        inner = getattr(launch, name)
        setattr(launch, name, lambda *a, _n=name, _i=inner, **k: (seen.append(_n), _i(*a, **k))[1])
    return seen


def check_gradients(activation: str) -> None:
    """Eager gradients, first and second, equal torch's, and the kernels ran."""
    seen = _spy()
    results = []
    for backend in ("triton", "torch"):
        leaves = [leaf.requires_grad_() for leaf in _leaves()]
        out = _call(*leaves, activation, backend)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append([out, *first, *second])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert {"convolve", "correlate"} <= set(seen)


def check_transforms() -> None:
    """torch.func.grad, jvp and vmap equal torch's."""
    x, weight, bias = _leaves()
    results = []
    for backend in ("triton", "torch"):

        def f(x: Tensor, weight: Tensor, bias: Tensor, backend: str = backend) -> Tensor:
            return _call(x, weight, bias, "none", backend)

        tangents = tuple(torch.ones_like(t) for t in (x, weight, bias))
        results.append([
            *torch.func.grad(lambda *a, f=f: f(*a).square().sum(), (0, 1, 2))(x, weight, bias),
            *torch.func.jvp(f, (x, weight, bias), tangents),
            torch.func.vmap(f, in_dims=(0, None, None))(torch.stack([x, 2 * x]), weight, bias),
            torch.func.vmap(f, in_dims=(None, 0, 0))(x, torch.stack([weight, -weight]), torch.stack([bias, bias])),
        ])  # fmt: skip
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def check_compile() -> None:
    """One graph that calls the op and does not look into it, forward and backward."""
    seen = _spy()
    compiled = torch.compile(_call, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, _call):
        leaves = [leaf.requires_grad_() for leaf in _leaves()]
        out = function(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert seen.count("convolve") >= 4


def check_opcheck() -> None:
    """torch's own checks of an operator: schema, gradient registration, fake kernel, dynamic shapes."""
    x, weight, bias = (leaf.requires_grad_() for leaf in _leaves())
    options = ((1, 1, 1, 1), "ieee", "auto", "triton", -1)
    forward = (x, weight, bias, options[0], "relu", *options[1:])
    torch.library.opcheck(torch.ops.replknet_ext.dwconv2d.default, forward)
    torch.library.opcheck(torch.ops.replknet_ext.dwconv2d_backward_input.default, (x, weight, *options))
    torch.library.opcheck(torch.ops.replknet_ext.dwconv2d_backward_weight.default, (x, x, *options))
    bias_op = torch.ops.replknet_ext.dwconv2d_backward_weight_bias.default
    torch.library.opcheck(bias_op, (x, x, *options))


def check_autocast() -> None:
    """As conv2d: the operands in the lower precision."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _call(*_leaves()).dtype == torch.bfloat16


def check_refusals() -> None:
    """What the kernels do not cover is an error by name, with the reason."""
    x, weight, _ = _leaves()
    for arguments, reason in (
        ({"stride": 2}, "only stride 1"),
        ({"algorithm": "fft"}, "not by FFT"),
    ):
        try:
            replknet_ext.depthwise_conv2d(x, weight, padding=1, backend="triton", **arguments)  # type: ignore[arg-type]
        except ValueError as error:  # noqa: PERF203
            assert reason in str(error), error
        else:
            raise AssertionError(f"{arguments} was not refused")
    explanation = replknet_ext.explain(x, weight, padding=1, backend="triton")
    assert set(explanation.chosen.values()) == {"triton"}
    assert "sliding_fwd" in str(explanation) and "toeplitz_weight" in str(explanation)


def around() -> Iterator[Check]:
    """The public function and the library around the kernels."""
    for activation in ("none", "relu", "gelu"):
        yield f"gradients-{activation}", lambda a=activation: check_gradients(a)
    yield "transforms", check_transforms
    yield "compile", check_compile
    yield "opcheck", check_opcheck
    yield "autocast", check_autocast
    yield "refusals", check_refusals


GROUPS: dict[str, Callable[[], Iterator[Check]]] = {"table": table, "tiles": tiles, "values": values, "around": around}


def main(group: str, only: str = "") -> None:
    """Run the checks of a group whose names contain `only`."""
    from replknet_ext.backends.triton import tiles

    tiles.override = affordable
    results: dict[str, str | None] = {}
    started = time.process_time()
    for name, check in GROUPS[group]():
        if only not in name:
            continue
        try:
            check()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()[-3000:]
    print(f"{group}: {time.process_time() - started:.1f} s", file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
