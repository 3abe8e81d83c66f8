"""The convolution for eager callers: autograd Functions that are closed under every kind of derivative.

Forward and reverse mode in any order and depth, ``torch.func`` transforms and ``torch.vmap`` all end in the three raw
ops. `dwconv2d` is the entry: it hands compiled and exported code the raw op, whose own registered gradient uses the
same formulas (Dynamo cannot trace a Function that has a ``jvp``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad

from . import ops
from .ops import RAW, TRITON, Options, Passes, linear_options, needed, no_autocast, through_activation

_FORWARD_EXTRA = (None,) * 5
_LINEAR_EXTRA = (None,) * 4


def _sum(*terms: Tensor | None) -> Tensor:
    """Sum of the terms that are there (at least one is)."""
    present = [t for t in terms if t is not None]
    total = present[0]
    for term in present[1:]:
        total = total + term
    return total


class _Pass(torch.autograd.Function):
    """What the Functions have in common: ops that compute, and differentiable calls of them; `_differentiable_passes`
    sets both."""

    raw: ClassVar[Passes]
    calls: ClassVar[Passes]


class DepthwiseConv2dLargeFunction(_Pass):
    """``dwconv2d`` with bias and activation. Arguments of ``apply`` as in the raw op."""

    @classmethod
    def forward(
        cls, input: Tensor, weight: Tensor, bias: Tensor | None = None, padding: Sequence[int] = (0, 0, 0, 0),
        activation: str = "none", precision: str = "ieee", algorithm: str = "auto", variant: int = -1,
    ) -> Tensor:  # fmt: skip
        """input (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None -> (N, C, Ho, Wo)."""
        with torch._C._AutoDispatchBelowAutograd():
            return cls.raw.fwd(input, weight, bias, padding, activation, precision, algorithm, variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save the operands, and for an activation what its slope needs."""
        saved = ops.to_save(inputs, output)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.options = Options(*inputs[3:])

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients that are needed, by differentiable passes."""
        with no_autocast(grad.device.type):
            grads = ops.fwd_vjp(cls.calls, grad, ctx.saved_tensors, ctx.options, needed(ctx))
        return *grads, *_FORWARD_EXTRA

    @classmethod
    def jvp(cls, ctx: Any, d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None, *_: Any) -> Tensor:
        """Tangent of the output."""
        x, weight, bias, out = ctx.saved_tensors
        options: Options = ctx.options
        with no_autocast(x.device.type):
            tangent = _sum(
                cls.calls.fwd(d_input, weight, None, *options.plain) if d_input is not None else None,
                cls.calls.fwd(x, d_weight, None, *options.plain) if d_weight is not None else None,
            ) if d_input is not None or d_weight is not None else None  # fmt: skip
            if d_bias is not None:
                column = d_bias[None, :, None, None]
                tangent = tangent + column if tangent is not None else column.expand(_output_shape(x, weight, options))
            assert tangent is not None
            return through_activation(cls.calls, tangent, x, weight, bias, out, options)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """One call with the mapped dimension folded into N or C."""
        return ops.vmap_conv(cls.calls.fwd, info.batch_size, in_dims, *args)


class DepthwiseConv2dLargeBackwardInput(_Pass):
    """``dwconv2d_backward_input``: linear in grad_output and in weight."""

    @classmethod
    def forward(
        cls, grad_output: Tensor, weight: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
    ) -> Tensor:
        """grad_output (N, C, Ho, Wo), weight (C, 1, Kh, Kw) -> (N, C, H, W)."""
        with torch._C._AutoDispatchBelowAutograd():
            return cls.raw.bwd_input(grad_output, weight, padding, precision, algorithm, variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save both operands."""
        _save_linear(ctx, inputs)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients that are needed, by differentiable passes."""
        with no_autocast(grad.device.type):
            grads = ops.bwd_input_vjp(cls.calls, grad, ctx.saved_tensors, ctx.options, needed(ctx))
        return *grads, *_LINEAR_EXTRA

    @classmethod
    def jvp(cls, ctx: Any, d_grad: Tensor | None, d_weight: Tensor | None, *_: Any) -> Tensor:
        """Tangent of the output."""
        return _bilinear_jvp(cls.calls.bwd_input, ctx, d_grad, d_weight)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """One call with the mapped dimension folded into N or C."""
        return ops.vmap_conv(cls.calls.bwd_input, info.batch_size, in_dims, *args)


class DepthwiseConv2dLargeBackwardWeight(_Pass):
    """``dwconv2d_backward_weight``: linear in grad_output and in input."""

    @classmethod
    def forward(
        cls, grad_output: Tensor, input: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
    ) -> Tensor:
        """grad_output (N, C, Ho, Wo), input (N, C, H, W) -> (C, 1, Kh, Kw)."""
        with torch._C._AutoDispatchBelowAutograd():
            return cls.raw.bwd_weight(grad_output, input, padding, precision, algorithm, variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save both operands."""
        _save_linear(ctx, inputs)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients that are needed, by differentiable passes."""
        with no_autocast(grad.device.type):
            grads = ops.bwd_weight_vjp(cls.calls, grad, ctx.saved_tensors, ctx.options, needed(ctx))
        return *grads, *_LINEAR_EXTRA

    @classmethod
    def jvp(cls, ctx: Any, d_grad: Tensor | None, d_input: Tensor | None, *_: Any) -> Tensor:
        """Tangent of the output."""
        return _bilinear_jvp(cls.calls.bwd_weight, ctx, d_grad, d_input)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """One call with the mapped dimension folded into C."""
        return ops.vmap_bwd_weight(cls.calls.bwd_weight, info.batch_size, in_dims, *args)


def _save_linear(ctx: Any, inputs: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.save_for_forward(*inputs[:2])
    ctx.options = linear_options(*inputs[2:])


def _bilinear_jvp(run: Any, ctx: Any, d_first: Tensor | None, d_second: Tensor | None) -> Tensor:
    first, second = ctx.saved_tensors
    return _sum(
        run(d_first, second, *ctx.options.linear) if d_first is not None else None,
        run(first, d_second, *ctx.options.linear) if d_second is not None else None,
    )


def _output_shape(x: Tensor, weight: Tensor, options: Options) -> tuple[int, int, int, int]:
    return ops._fwd_size(x, weight, options.padding)


def _derivable(*tensors: Tensor | None) -> bool:
    """Whether a call on these tensors must be recorded for a derivative, outside functorch transforms."""
    return forward_ad._current_level >= 0 or (torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors))


def _differentiable(function: type[torch.autograd.Function], raw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function.apply`` without its cost where that is not needed.

    ``Function.apply`` binds its arguments to the signature of ``forward`` on every call, which takes longer than a
    small convolution: without functorch transforms the C++ ``apply`` below it does the same. Where nothing needs a
    derivative, the kernel is called directly.
    """
    apply_in_cpp = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def call(first: Tensor, second: Tensor, *rest: Any) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            return function.apply(first, second, *rest)  # type: ignore[no-any-return]
        # Backward of a torch.func.vjp may run after its transform has ended; its tensors are wrappers until then.
        first, second = unwrap_if_dead(first), unwrap_if_dead(second)
        if rest and isinstance(rest[0], Tensor):
            rest = (unwrap_if_dead(rest[0]), *rest[1:])
        if not _derivable(first, second, *rest[:1]):
            with torch._C._AutoDispatchBelowAutograd():
                return raw(first, second, *rest)
        return apply_in_cpp(first, second, *rest)  # type: ignore[no-any-return]

    return call


def _differentiable_passes(raw: Passes, fwd: Any, bwd_input: Any, bwd_weight: Any) -> Passes:
    """The ops ``raw`` with every kind of derivative by the three Functions, which are theirs from now on."""
    call_bwd_weight = _differentiable(bwd_weight, raw.bwd_weight)

    def call_bwd_weight_bias(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """Both gradients by one kernel, or where they are to be differentiated further by two differentiable calls."""
        if torch._C._are_functorch_transforms_active() or _derivable(grad, x):
            return call_bwd_weight(grad, x, *rest), grad.sum((0, 2, 3))
        with torch._C._AutoDispatchBelowAutograd():
            return raw.bwd_weight_bias(grad, x, *rest)

    calls = Passes(
        _differentiable(fwd, raw.fwd), _differentiable(bwd_input, raw.bwd_input), call_bwd_weight, call_bwd_weight_bias
    )
    for function in (fwd, bwd_input, bwd_weight):
        function.raw, function.calls = raw, calls
    return calls


_FUNCTIONS = (DepthwiseConv2dLargeFunction, DepthwiseConv2dLargeBackwardInput, DepthwiseConv2dLargeBackwardWeight)
DIFFERENTIABLE = _differentiable_passes(RAW, *_FUNCTIONS)
#: The same by the Triton kernels' own ops.
DIFFERENTIABLE_TRITON = _differentiable_passes(
    TRITON, *(type(f"{function.__name__}Triton", (function,), {}) for function in _FUNCTIONS)
)


def dwconv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int],
    activation: str, precision: str, algorithm: str, variant: int, *, triton: bool = False,
) -> Tensor:  # fmt: skip
    """The raw op with every kind of derivative, in eager and in compiled or exported code.

    Args:
        input: (N, C, H, W).
        weight: (C, 1, Kh, Kw), same dtype and device as input.
        bias: (C,) or None.
        padding: (top, bottom, left, right), negative crops.
        activation, precision, algorithm, variant: as in the raw op.
        triton: whether the Triton kernels' own op is meant.

    Returns:
        (N, C, Ho, Wo) in the memory format of input.
    """
    # A traced Function is a Python object that TorchScript can't save.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if traced:
        run = TRITON.fwd if triton else RAW.fwd
    else:
        run = DIFFERENTIABLE_TRITON.fwd if triton else DIFFERENTIABLE.fwd
    return run(input, weight, bias, padding, activation, precision, algorithm, variant)
