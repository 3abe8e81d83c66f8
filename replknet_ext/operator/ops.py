"""The raw ops as torch.library knows them: fake kernels, gradients, autocast, vmap, FLOP counts.

``torch.ops.replknet_ext.{dwconv2d, dwconv2d_backward_input, dwconv2d_backward_weight}`` are closed under
differentiation: each derivative of one is one of the others. ``dwconv2d_backward_weight_bias`` is the third with the
bias gradient from the same pass over memory. Their arguments ``backend`` and ``variant`` say what runs them, see
`replknet_ext.choices.query`. Schemas and compiled kernels come from the extension; without it `SCHEMAS` defines the ops here.
Backends that are written in Python are the kernel where a device has no compiled one, and otherwise of the op
``_python_`` + name, which the extension calls.

The derivative formulas are written once, over a `Passes` triple: the raw ops themselves (here, for compiled graphs
and direct callers) or the autograd Functions of `replknet_ext.operator.autograd` (eager).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils.flop_counter import register_flop_formula

from .. import _ext
from ..choices import query

NAMESPACE = _ext.NAMESPACE

#: The schemas, equal to those of csrc/bindings/schemas.cpp (a test compares them). padding is (top, bottom, left, right) and may be
#: negative, which crops: the derivative of a padded convolution needs that.
SCHEMAS = {
    "dwconv2d": "(Tensor input, Tensor weight, Tensor? bias, int[4] padding, str activation, str precision, "
    "str algorithm, str backend, int variant) -> Tensor",
    "dwconv2d_backward_input": "(Tensor grad_output, Tensor weight, int[4] padding, str precision, str algorithm, "
    "str backend, int variant) -> Tensor",
    "dwconv2d_backward_weight": "(Tensor grad_output, Tensor input, int[4] padding, str precision, str algorithm, "
    "str backend, int variant) -> Tensor",
    "dwconv2d_backward_weight_bias": "(Tensor grad_output, Tensor input, int[4] padding, str precision, "
    "str algorithm, str backend, int variant) -> (Tensor, Tensor)",
}

#: The method of a `Backend` for each op.
_METHODS = {
    "dwconv2d": "fwd",
    "dwconv2d_backward_input": "bwd_input",
    "dwconv2d_backward_weight": "bwd_weight",
    "dwconv2d_backward_weight_bias": "bwd_weight_bias",
}

# Registrations live as long as this object: keep it for the life of the process.
_lib = torch.library.Library(NAMESPACE, "FRAGMENT")


# ---- sizes, shared by the fake kernels and the Python kernels ----


def _check(condition: Any, message: str) -> None:
    torch._check(condition, lambda: message)


def _fwd_size(x: Tensor, weight: Tensor, padding: Sequence[int]) -> tuple[int, int, int, int]:
    _check(x.dim() == 4, "dwconv2d: input must be (N, C, H, W)")
    _check(weight.dim() == 4 and weight.shape[1] == 1, "dwconv2d: weight must be (C, 1, Kh, Kw)")
    _check(weight.shape[0] == x.shape[1], "dwconv2d: weight must have one filter for each channel of input")
    top, bottom, left, right = padding
    height = x.shape[2] + top + bottom - weight.shape[2] + 1
    width = x.shape[3] + left + right - weight.shape[3] + 1
    _check(height >= 1, "dwconv2d: weight is larger than the padded input (height)")
    _check(width >= 1, "dwconv2d: weight is larger than the padded input (width)")
    return x.shape[0], x.shape[1], height, width


def _bwd_input_size(grad: Tensor, weight: Tensor, padding: Sequence[int]) -> tuple[int, int, int, int]:
    _check(grad.dim() == 4, "dwconv2d_backward_input: grad_output must be (N, C, Ho, Wo)")
    _check(weight.dim() == 4 and weight.shape[1] == 1, "dwconv2d_backward_input: weight must be (C, 1, Kh, Kw)")
    _check(weight.shape[0] == grad.shape[1], "dwconv2d_backward_input: weight must have one filter for each channel")
    top, bottom, left, right = padding
    height = grad.shape[2] + weight.shape[2] - 1 - top - bottom
    width = grad.shape[3] + weight.shape[3] - 1 - left - right
    _check(height >= 1, "dwconv2d_backward_input: padding is larger than the input can be (height)")
    _check(width >= 1, "dwconv2d_backward_input: padding is larger than the input can be (width)")
    return grad.shape[0], grad.shape[1], height, width


def _bwd_weight_size(grad: Tensor, x: Tensor, padding: Sequence[int]) -> tuple[int, int, int, int]:
    _check(grad.dim() == 4, "dwconv2d_backward_weight: grad_output must be (N, C, Ho, Wo)")
    _check(x.dim() == 4, "dwconv2d_backward_weight: input must be (N, C, H, W)")
    _check(x.shape[0] == grad.shape[0], "dwconv2d_backward_weight: grad_output and input differ in N")
    _check(x.shape[1] == grad.shape[1], "dwconv2d_backward_weight: grad_output and input differ in C")
    top, bottom, left, right = padding
    height = x.shape[2] + top + bottom - grad.shape[2] + 1
    width = x.shape[3] + left + right - grad.shape[3] + 1
    _check(height >= 1, "dwconv2d_backward_weight: grad_output is larger than the padded input (height)")
    _check(width >= 1, "dwconv2d_backward_weight: grad_output is larger than the padded input (width)")
    return x.shape[1], 1, height, width


_SIZES: dict[str, Callable[..., tuple[int, int, int, int]]] = {
    "dwconv2d": _fwd_size,
    "dwconv2d_backward_input": _bwd_input_size,
    "dwconv2d_backward_weight": _bwd_weight_size,
    "dwconv2d_backward_weight_bias": _bwd_weight_size,
}


def _is_fwd(name: str) -> bool:
    return name == "dwconv2d"


# ---- kernels by backends that are written in Python ----


def _python_kernel(name: str) -> Callable[..., Any]:
    """The op by the backend that `choices.resolve` finds."""
    sizes, method = _SIZES[name], _METHODS[name]

    def run(first: Tensor, second: Tensor, *rest: Any) -> Any:
        bias, padding, activation = rest[:3] if _is_fwd(name) else (None, rest[0], "none")
        try:
            sizes(first, second, padding)
            backend, variant = query.resolve(method, first, second, bias, padding, activation, *rest[-4:])
            return getattr(backend, method)(first, second, *rest[:-2], variant)
        except Exception as error:
            query.note_failure(error)
            raise

    return run


def _fake_kernel(name: str) -> Callable[..., Any]:
    sizes, weight = _SIZES[name], name.startswith("dwconv2d_backward_weight")

    def fake(first: Tensor, second: Tensor, *rest: Any) -> Any:
        size = sizes(first, second, rest[1] if _is_fwd(name) else rest[0])
        layout = torch.contiguous_format if weight else suggest_memory_format(first)
        out = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=layout)
        return (out, first.new_empty(size[:1])) if name.endswith("_bias") else out

    return fake


def _bwd_weight_bias_on_cpu(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if rest[-2] not in ("auto", "cpu"):
        return torch.ops.replknet_ext._python_dwconv2d_backward_weight_bias.default(grad, x, *rest)  # type: ignore[no-any-return]
    return torch.ops.replknet_ext.dwconv2d_backward_weight.default(grad, x, *rest), grad.sum((0, 2, 3))


for _name, _schema in SCHEMAS.items():
    _kernel = _python_kernel(_name)
    if _ext.HAS_EXT:
        for _key in ("CPU", "CUDA"):
            _lib.impl(f"_python_{_name}", _kernel, _key)
    else:
        _lib.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
        _lib.impl(_name, _kernel, "CPU")
    if _name not in _ext.CUDA_OPS:
        _lib.impl(_name, _kernel, "CUDA")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake_kernel(_name), lib=_lib)
if _ext.HAS_EXT:
    _lib.impl("dwconv2d_backward_weight_bias", _bwd_weight_bias_on_cpu, "CPU")
query.register(_lib)


# ---- derivative formulas ----


class Passes(NamedTuple):
    """The passes as callables with the signatures of the raw ops, differentiable by their caller's means."""

    fwd: Callable[..., Tensor]
    bwd_input: Callable[..., Tensor]
    bwd_weight: Callable[..., Tensor]
    bwd_weight_bias: Callable[..., tuple[Tensor, Tensor]]


class Options(NamedTuple):
    """Arguments of ``dwconv2d`` after the tensors."""

    padding: Sequence[int]
    activation: str
    precision: str
    algorithm: str
    backend: str
    variant: int

    @property
    def linear(self) -> tuple[Any, ...]:
        """What the two backward ops take after their tensors: the same backend, whose variants are of one pass each."""
        return self.padding, self.precision, self.algorithm, self.backend, query.AUTO

    @property
    def plain(self) -> tuple[Any, ...]:
        """What ``dwconv2d`` without activation takes after its tensors."""
        return self.padding, "none", self.precision, self.algorithm, self.backend, query.AUTO


RAW = Passes(*(getattr(torch.ops.replknet_ext, name).default for name in SCHEMAS))


def through_activation(
    passes: Passes, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None, options: Options
) -> Tensor:
    """Multiply ``grad`` by the slope of the activation; serves the backward (cotangent) and forward-mode (tangent).

    relu takes its mask from the saved output; gelu computes its input again, which costs one forward pass and no
    memory. Differentiable twice.
    """
    if options.activation == "relu":
        assert out is not None
        # The mask has no derivative: detach, or a double backward would run a convolution on zeros.
        return torch.ops.aten.threshold_backward(grad, out.detach(), 0)  # type: ignore[no-any-return]
    if options.activation == "gelu":
        z = passes.fwd(x, weight, bias, *options.plain)
        return torch.ops.aten.gelu_backward(grad, z)  # type: ignore[no-any-return]
    return grad


def fwd_vjp(
    passes: Passes, grad: Tensor, saved: Sequence[Tensor | None], options: Options, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``dwconv2d`` for input, weight and bias, those that ``needs`` asks for.

    Args:
        passes: how to compute.
        grad: (N, C, Ho, Wo).
        saved: input, weight, bias (gelu only), output (relu only).
        options: of the forward call.
        needs: three flags.
    """
    x, weight, bias, out = saved
    assert x is not None
    assert weight is not None
    grad = through_activation(passes, grad, x, weight, bias, out, options)
    d_input = passes.bwd_input(grad, weight, *options.linear) if needs[0] else None
    if needs[1] and needs[2] and grad.is_cuda:  # one pass over grad; elsewhere torch's sum is as good
        return d_input, *passes.bwd_weight_bias(grad, x, *options.linear)
    return (
        d_input,
        passes.bwd_weight(grad, x, *options.linear) if needs[1] else None,
        grad.sum((0, 2, 3)) if needs[2] else None,
    )


def bwd_input_vjp(
    passes: Passes, grad: Tensor, saved: Sequence[Tensor], options: Options, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``dwconv2d_backward_input`` for grad_output and weight (``saved``)."""
    grad_output, weight = saved
    return (
        passes.fwd(grad, weight, None, *options.plain) if needs[0] else None,
        passes.bwd_weight(grad_output, grad, *options.linear) if needs[1] else None,
    )


def bwd_weight_vjp(
    passes: Passes, grad: Tensor, saved: Sequence[Tensor], options: Options, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``dwconv2d_backward_weight`` for grad_output and input (``saved``)."""
    grad_output, x = saved
    return (
        passes.fwd(x, grad, None, *options.plain) if needs[0] else None,
        passes.bwd_input(grad_output, grad, *options.linear) if needs[1] else None,
    )


def bwd_weight_bias_vjp(
    passes: Passes, grads: Sequence[Tensor], saved: Sequence[Tensor], options: Options, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``dwconv2d_backward_weight_bias`` for grad_output and input (``saved``), from both cotangents."""
    d_grad, d_input = bwd_weight_vjp(passes, grads[0], saved, options, needs)
    return (d_grad + grads[1][None, :, None, None] if d_grad is not None else None), d_input


def to_save(inputs: Sequence[Any], output: Tensor) -> tuple[Tensor | None, ...]:
    """What `fwd_vjp` needs of a ``dwconv2d`` call: bias only for gelu, the output only for relu."""
    x, weight, bias, _, activation = inputs[:5]
    return x, weight, bias if activation == "gelu" else None, output if activation == "relu" else None


def linear_options(padding: Sequence[int], *rest: Any) -> Options:
    """The `Options` of a call of one of the two backward ops."""
    return Options(padding, "none", *rest)


def needed(ctx: Any) -> tuple[bool, ...]:
    """``ctx.needs_input_grad`` less the gradients that this run of the engine throws away.

    ``torch.autograd.grad(y, x)`` asks a Python Function for the gradients of all inputs that require any; C++ nodes,
    conv2d among them, compute only those on the way to ``x``. This gives ours the same economy.
    """
    needs: tuple[bool, ...] = ctx.needs_input_grad
    if sum(needs) < 2:
        return needs
    # Tensor arguments come first in all our ops, and next_functions has an entry for each of them.
    nodes = [node for node, _ in ctx.next_functions]
    return tuple(need and (i >= len(nodes) or _engine_runs(nodes[i])) for i, need in enumerate(needs))


def _engine_runs(node: Any) -> bool:
    try:
        return node is None or torch._C._will_engine_execute_node(node)
    except RuntimeError:  # outside the engine, or a leaf whose gradient was asked for by name
        return True


_NOTHING: AbstractContextManager[None] = nullcontext()


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Keep autocast out of a backward pass: its dtypes were settled by the forward pass."""
    if autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return _NOTHING


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for this device; False for a device that has no autocast."""
    if device_type not in ("cpu", "cuda") and not torch.amp.is_autocast_available(device_type):
        return False
    return torch.is_autocast_enabled(device_type)


def _fwd_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*to_save(inputs, output))
    ctx.options = Options(*inputs[3:])


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = linear_options(*inputs[2:])


def _backward(formula: Callable[..., tuple[Tensor | None, ...]], extra: int) -> Callable[..., tuple[Any, ...]]:
    """``formula`` over the raw ops as a backward function for register_autograd; ``extra`` non-tensor arguments."""

    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        with no_autocast(grads[0].device.type):
            grad = grads[0] if len(grads) == 1 else grads
            return *formula(RAW, grad, ctx.saved_tensors, ctx.options, needed(ctx)), *(None,) * extra

    return backward


for _name, _formula, _setup, _extra in (
    ("dwconv2d", fwd_vjp, _fwd_setup, 6),
    ("dwconv2d_backward_input", bwd_input_vjp, _linear_setup, 5),
    ("dwconv2d_backward_weight", bwd_weight_vjp, _linear_setup, 5),
    ("dwconv2d_backward_weight_bias", bwd_weight_bias_vjp, _linear_setup, 5),
):
    torch.library.register_autograd(
        f"{NAMESPACE}::{_name}", _backward(_formula, _extra), setup_context=_setup, lib=_lib
    )


# ---- autocast: like conv2d, the forward op runs in the lower precision ----


def autocast_operands(device_type: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as autocast casts the operands of conv2d: floating tensors but float64 to the autocast dtype."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )


def _autocast_kernel(device_type: str, key: str) -> Callable[..., Tensor]:
    # torch.library.register_autocast fixes the dtype at registration; conv2d takes that of the context.
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return RAW.fwd(*autocast_operands(device_type, input, weight, bias), *rest)

    return kernel


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _lib.impl("dwconv2d", _autocast_kernel(_device, _key), _key)


# ---- vmap ----


def _leading(tensor: Tensor, dim: int | None, batch: int, to: int) -> Tensor:
    """Bring the vmapped dimension to position ``to``, expanding a tensor that has none."""
    return tensor.movedim(dim, to) if dim is not None else tensor.unsqueeze(to).expand(
        *tensor.shape[:to], batch, *tensor.shape[to:]
    )  # fmt: skip


def vmap_conv(
    run: Callable[..., Tensor], batch: int, in_dims: Sequence[int | None], x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    """vmap of ``dwconv2d`` and ``dwconv2d_backward_input`` in one call: fold the new dimension into N or into C.

    Args:
        run: the pass, called as ``run(x, weight, *rest)``.
        batch: size of the vmapped dimension.
        in_dims: its place in each argument; rest[0] may be a bias.
        x: (N, C, H, W) and the vmapped dimension, if it has one.
        weight: (C, 1, Kh, Kw) likewise.
        rest: the other arguments.
    """
    bias, bias_dim = (rest[0], in_dims[2]) if rest and isinstance(rest[0], Tensor) else (None, None)
    if in_dims[1] is None and bias_dim is None:
        # One filter bank for all: a larger batch.
        folded = _leading(x, in_dims[0], batch, 0)
        out = run(folded.flatten(0, 1), weight, *rest)
        return out.unflatten(0, (batch, folded.shape[1])), 0
    folded = _leading(x, in_dims[0], batch, 1)
    filters = _leading(weight, in_dims[1], batch, 0).flatten(0, 1)
    if bias is not None:
        rest = (_leading(bias, bias_dim, batch, 0).flatten(0, 1), *rest[1:])
    out = run(folded.flatten(1, 2), filters, *rest)
    return out.unflatten(1, (batch, folded.shape[2])), 1


def vmap_bwd_weight(
    run: Callable[..., Any], batch: int, in_dims: Sequence[int | None], grad: Tensor, x: Tensor, *rest: Any
) -> tuple[Any, Any]:
    """vmap of ``dwconv2d_backward_weight`` (``_bias``): fold the new dimension into C, as the sum runs over N."""
    folded_grad = _leading(grad, in_dims[0], batch, 1)
    folded = _leading(x, in_dims[1], batch, 1)
    out = run(folded_grad.flatten(1, 2), folded.flatten(1, 2), *rest)
    if isinstance(out, Tensor):
        return out.unflatten(0, (batch, folded.shape[2])), 0
    return tuple(t.unflatten(0, (batch, folded.shape[2])) for t in out), (0, 0)


def _register_vmap(name: str, rule: Callable[..., tuple[Any, Any]], run: Callable[..., Any]) -> None:
    def mapped(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        return rule(run, info.batch_size, in_dims, *args)

    torch.library.register_vmap(f"{NAMESPACE}::{name}", mapped, lib=_lib)


for _name, _run in zip(SCHEMAS, RAW, strict=True):
    _register_vmap(_name, vmap_bwd_weight if "weight" in _name else vmap_conv, _run)


# ---- FLOP counts: two per multiply-add of the nominal taps, as torch counts conv2d ----


@register_flop_formula(torch.ops.replknet_ext.dwconv2d)
def _fwd_flops(x: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    n, c, height, width = map(int, out_shape)
    return 2 * n * c * height * width * weight[2] * weight[3]


@register_flop_formula(torch.ops.replknet_ext.dwconv2d_backward_input)
def _bwd_input_flops(grad: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Any = None, **kw: Any) -> int:
    n, c, height, width = grad
    return 2 * n * c * height * width * weight[2] * weight[3]


@register_flop_formula(torch.ops.replknet_ext.dwconv2d_backward_weight)
def _bwd_weight_flops(grad: Sequence[int], x: Sequence[int], *args: Any, out_shape: Any = None, **kw: Any) -> int:
    n, c, height, width = grad
    return 2 * n * c * height * width * int(out_shape[2]) * int(out_shape[3])


@register_flop_formula(torch.ops.replknet_ext.dwconv2d_backward_weight_bias)
def _bwd_weight_bias_flops(grad: Sequence[int], x: Sequence[int], *args: Any, out_shape: Any = None, **kw: Any) -> int:
    return _bwd_weight_flops(grad, x, out_shape=out_shape[0])
