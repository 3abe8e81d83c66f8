"""The convolution for eager callers: autograd Functions that are closed under every kind of derivative.

Forward and reverse mode in any order and depth, ``torch.func`` transforms and ``torch.vmap`` all end in the three raw
ops. `dwconv2d` is the entry: it hands compiled and exported code the raw op, whose own registered gradient uses the
same formulas (Dynamo cannot trace a Function that has a ``jvp``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad

from . import derivatives, ops
from .derivatives import Options, Passes, linear_options, needed, no_autocast, through_activation
from .ops import RAW

_FORWARD_EXTRA = (None,) * 6  # gradients of the arguments that are no tensors
_LINEAR_EXTRA = (None,) * 5


def _sum(*terms: Tensor | None) -> Tensor:
    """Sum of the terms that are not None (at least one is not)."""
    present = [t for t in terms if t is not None]
    total = present[0]
    for term in present[1:]:
        total = total + term
    return total


class DepthwiseConv2dLargeFunction(torch.autograd.Function):
    """``dwconv2d`` with bias and activation. Arguments of ``apply`` as in the raw op."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, padding: Sequence[int] = (0, 0, 0, 0),
        activation: str = "none", precision: str = "ieee", algorithm: str = "auto", backend: str = "auto",
        variant: int = -1,
    ) -> Tensor:  # fmt: skip
        """input (N, C, H, W), weight (C, 1, Kh, Kw), bias (C,) or None -> (N, C, Ho, Wo)."""
        with torch._C._AutoDispatchBelowAutograd():
            return RAW.fwd(input, weight, bias, padding, activation, precision, algorithm, backend, variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save the operands, and for an activation what its slope needs."""
        saved = derivatives.to_save(inputs, output)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.options = Options(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients that are needed, by differentiable passes."""
        with no_autocast(grad.device.type):
            grads = derivatives.fwd_vjp(DIFFERENTIABLE, grad, ctx.saved_tensors, ctx.options, needed(ctx))
        return *grads, *_FORWARD_EXTRA

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None, *_: Any) -> Tensor:
        """Tangent of the output."""
        x, weight, bias, out = ctx.saved_tensors
        options: Options = ctx.options
        with no_autocast(x.device.type):
            tangent = _sum(
                DIFFERENTIABLE.fwd(d_input, weight, None, *options.plain) if d_input is not None else None,
                DIFFERENTIABLE.fwd(x, d_weight, None, *options.plain) if d_weight is not None else None,
            ) if d_input is not None or d_weight is not None else None  # fmt: skip
            if d_bias is not None:
                column = d_bias[None, :, None, None]
                tangent = tangent + column if tangent is not None else column.expand(_output_shape(x, weight, options))
            assert tangent is not None
            return through_activation(DIFFERENTIABLE, tangent, x, weight, bias, out, options)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """One call with the mapped dimension folded into N or C."""
        return derivatives.vmap_conv(DIFFERENTIABLE.fwd, info.batch_size, in_dims, *args)


class DepthwiseConv2dLargeBackwardInput(torch.autograd.Function):
    """``dwconv2d_backward_input``: linear in grad_output and in weight."""

    @staticmethod
    def forward(
        grad_output: Tensor, weight: Tensor, padding: Sequence[int], precision: str, algorithm: str, backend: str,
        variant: int,
    ) -> Tensor:  # fmt: skip
        """grad_output (N, C, Ho, Wo), weight (C, 1, Kh, Kw) -> (N, C, H, W)."""
        with torch._C._AutoDispatchBelowAutograd():
            return RAW.bwd_input(grad_output, weight, padding, precision, algorithm, backend, variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save both operands."""
        _save_linear(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients that are needed, by differentiable passes."""
        with no_autocast(grad.device.type):
            grads = derivatives.bwd_input_vjp(DIFFERENTIABLE, grad, ctx.saved_tensors, ctx.options, needed(ctx))
        return *grads, *_LINEAR_EXTRA

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_weight: Tensor | None, *_: Any) -> Tensor:
        """Tangent of the output."""
        return _bilinear_jvp(DIFFERENTIABLE.bwd_input, ctx, d_grad, d_weight)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """One call with the mapped dimension folded into N or C."""
        return derivatives.vmap_conv(DIFFERENTIABLE.bwd_input, info.batch_size, in_dims, *args)


class DepthwiseConv2dLargeBackwardWeight(torch.autograd.Function):
    """``dwconv2d_backward_weight``: linear in grad_output and in input."""

    @staticmethod
    def forward(
        grad_output: Tensor, input: Tensor, padding: Sequence[int], precision: str, algorithm: str, backend: str,
        variant: int,
    ) -> Tensor:  # fmt: skip
        """grad_output (N, C, Ho, Wo), input (N, C, H, W) -> (C, 1, Kh, Kw)."""
        with torch._C._AutoDispatchBelowAutograd():
            return RAW.bwd_weight(grad_output, input, padding, precision, algorithm, backend, variant)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save both operands."""
        _save_linear(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients that are needed, by differentiable passes."""
        with no_autocast(grad.device.type):
            grads = derivatives.bwd_weight_vjp(DIFFERENTIABLE, grad, ctx.saved_tensors, ctx.options, needed(ctx))
        return *grads, *_LINEAR_EXTRA

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_input: Tensor | None, *_: Any) -> Tensor:
        """Tangent of the output."""
        return _bilinear_jvp(DIFFERENTIABLE.bwd_weight, ctx, d_grad, d_input)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """One call with the mapped dimension folded into C."""
        return derivatives.vmap_bwd_weight(DIFFERENTIABLE.bwd_weight, info.batch_size, in_dims, *args)


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


_bwd_weight = _differentiable(DepthwiseConv2dLargeBackwardWeight, RAW.bwd_weight)


def _bwd_weight_bias(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Both gradients by one kernel, or where they are to be differentiated further by two differentiable calls."""
    if torch._C._are_functorch_transforms_active() or _derivable(grad, x):
        return _bwd_weight(grad, x, *rest), grad.sum((0, 2, 3))
    with torch._C._AutoDispatchBelowAutograd():
        return RAW.bwd_weight_bias(grad, x, *rest)  # type: ignore[no-any-return]


#: The passes with every kind of derivative.
DIFFERENTIABLE = Passes(
    _differentiable(DepthwiseConv2dLargeFunction, RAW.fwd),
    _differentiable(DepthwiseConv2dLargeBackwardInput, RAW.bwd_input),
    _bwd_weight,
    _bwd_weight_bias,
)


def dwconv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int],
    activation: str, precision: str, algorithm: str, backend: str = "auto", variant: int = -1,
) -> Tensor:  # fmt: skip
    """The raw op with every kind of derivative, in eager and in compiled or exported code.

    Args:
        input: (N, C, H, W).
        weight: (C, 1, Kh, Kw), same dtype and device as input.
        bias: (C,) or None.
        padding: (top, bottom, left, right), negative crops.
        activation, precision, algorithm, backend, variant: as in the raw op.

    Returns:
        (N, C, Ho, Wo), channels_last if input or weight is.
    """
    # A traced Function is a Python object that TorchScript can't save.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    run = RAW.fwd if traced else DIFFERENTIABLE.fwd
    return run(input, weight, bias, padding, activation, precision, algorithm, backend, variant)
