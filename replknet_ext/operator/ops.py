"""The raw ops as torch.library knows them: fake kernels, gradients, autocast, vmap, FLOP counts.

``torch.ops.replknet_ext.{dwconv2d, dwconv2d_backward_input, dwconv2d_backward_weight}`` are closed under
differentiation: each derivative of one is one of the others. ``dwconv2d_backward_weight_bias`` is the third with the
bias gradient from the same pass over memory. Their arguments ``backend`` and ``variant`` say what runs them, see
`replknet_ext.choices.query`. Schemas and compiled kernels come from the extension; without it `SCHEMAS` defines the ops
here.
Backends that are written in Python are the kernel where a device has no compiled one, and otherwise of the op
``_python_`` + name, which the extension calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .. import _ext
from ..choices import query
from . import flops
from .derivatives import (
    Options,
    Passes,
    autocast_operands,
    bwd_input_vjp,
    bwd_weight_bias_vjp,
    bwd_weight_vjp,
    fwd_vjp,
    linear_options,
    needed,
    no_autocast,
    to_save,
    vmap_bwd_weight,
    vmap_conv,
)
from .problem import output_format

NAMESPACE = _ext.NAMESPACE

#: The schemas, equal to those of csrc/bindings/schemas.cpp (a test compares them). padding is (top, bottom, left,
#: right) and may be negative, which crops: the derivative of a padded convolution needs that.
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

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: As csrc/bindings/arguments.cpp: what is computed of sizes and paddings fits 64 bits.
LARGEST_PADDING = 2**40

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
    """The op by the backend that `choices.query.resolve` finds."""
    sizes, method, empty = _SIZES[name], _METHODS[name], _fake_kernel(name)

    def run(first: Tensor, second: Tensor, *rest: Any) -> Any:
        bias, padding, activation = rest[:3] if _is_fwd(name) else (None, rest[0], "none")
        try:
            _check_operands(name, padding, first, second, bias)
            sizes(first, second, padding)
            backend, variant = query.resolve(method, first, second, bias, padding, activation, *rest[-4:])
            if first.shape[0] == 0:
                return tree_map(torch.zero_, empty(first, second, *rest))
            return getattr(backend, method)(first, second, *rest[:-2], variant)
        except Exception as error:
            query.note_failure(error)
            raise

    return run


#: The tensor arguments of each op.
_OPERANDS = {
    "dwconv2d": ("input", "weight", "bias"),
    "dwconv2d_backward_input": ("grad_output", "weight"),
    "dwconv2d_backward_weight": ("grad_output", "input"),
    "dwconv2d_backward_weight_bias": ("grad_output", "input"),
}


def _check_operands(name: str, padding: Sequence[int], first: Tensor, *others: Tensor | None) -> None:
    """What the compiled kernels check, too: padding, and that all operands are on one device and have one dtype.

    torch calls the fake kernel where any of them is on meta.
    """
    names = _OPERANDS[name]
    if first.dtype not in DTYPES:
        raise RuntimeError(f"{name}: {names[0]} must be float64, float32, float16 or bfloat16, got {first.dtype}")
    for other, operand in zip(names[1:], others, strict=False):
        if operand is not None and operand.device != first.device:
            devices = f"{first.device} and {operand.device}"
            raise RuntimeError(f"{name}: {names[0]} and {other} must be on one device, got {devices}")
        if operand is not None and operand.dtype != first.dtype:
            dtypes = f"{first.dtype} and {operand.dtype}"
            raise RuntimeError(f"{name}: {names[0]} and {other} must have one dtype, got {dtypes}")
    if len(padding) != 4:
        raise RuntimeError(f"{name}: padding must be (top, bottom, left, right), got {len(padding)} values")
    for pad in padding:
        if isinstance(pad, int) and abs(pad) > LARGEST_PADDING:
            raise RuntimeError(f"{name}: padding must lie between -2^40 and 2^40, got {pad}")


def _fake_kernel(name: str) -> Callable[..., Any]:
    sizes, weight = _SIZES[name], name.startswith("dwconv2d_backward_weight")

    def fake(first: Tensor, second: Tensor, *rest: Any) -> Any:
        bias, padding = rest[:2] if _is_fwd(name) else (None, rest[0])
        _check_operands(name, padding, first, second, bias)
        size = sizes(first, second, padding)
        layout = torch.contiguous_format if weight else output_format(first, second)
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


# ---- gradients ----


RAW = Passes(*(getattr(torch.ops.replknet_ext, name).default for name in SCHEMAS))


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


def _register_vmap(name: str, rule: Callable[..., tuple[Any, Any]], run: Callable[..., Any]) -> None:
    def mapped(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        return rule(run, info.batch_size, in_dims, *args)

    torch.library.register_vmap(f"{NAMESPACE}::{name}", mapped, lib=_lib)


for _name, _run in zip(SCHEMAS, RAW, strict=True):
    _register_vmap(_name, vmap_bwd_weight if "weight" in _name else vmap_conv, _run)


flops.register()
