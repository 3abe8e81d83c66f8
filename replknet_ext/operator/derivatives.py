"""Derivative and vmap formulas of the passes, written once over a `Passes` triple.

The triple is the raw ops themselves (`replknet_ext.operator.ops`: compiled graphs and direct callers) or the autograd
Functions of `replknet_ext.operator.autograd` (eager).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from .problem import output_format

AUTO = -1  # the ops' argument variant: one is to be chosen


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
        return self.padding, self.precision, self.algorithm, self.backend, AUTO

    @property
    def plain(self) -> tuple[Any, ...]:
        """What ``dwconv2d`` without activation takes after its tensors."""
        return self.padding, "none", self.precision, self.algorithm, self.backend, AUTO


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


def _in_strides_of(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad`` (C, 1, Kh, Kw), contiguous, as a view with the strides of ``weight`` where that is channels_last.

    It is the same memory: they differ in the dimension of size 1 alone, which DistributedDataParallel compares, too.
    """
    if suggest_memory_format(weight) != torch.channels_last:
        return grad
    return grad.squeeze(1).unsqueeze(-1).movedim(-1, 1)


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
    functorch = torch._C._functorch
    if not (functorch.is_functorch_wrapped_tensor(grad) or functorch.is_legacy_batchedtensor(grad)):  # no formats there
        # The gradient of input has the memory format of the output, whatever grad has.
        grad = grad.contiguous(memory_format=output_format(x, weight))
    grad = through_activation(passes, grad, x, weight, bias, out, options)
    d_input = passes.bwd_input(grad, weight, *options.linear) if needs[0] else None
    if needs[1] and needs[2] and grad.is_cuda:  # one pass over grad; elsewhere torch's sum is as good
        d_weight, d_bias = passes.bwd_weight_bias(grad, x, *options.linear)
        return d_input, _in_strides_of(d_weight, weight), d_bias
    return (
        d_input,
        _in_strides_of(passes.bwd_weight(grad, x, *options.linear), weight) if needs[1] else None,
        grad.sum((0, 2, 3)) if needs[2] else None,
    )


def bwd_input_vjp(
    passes: Passes, grad: Tensor, saved: Sequence[Tensor], options: Options, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``dwconv2d_backward_input`` for grad_output and weight (``saved``)."""
    grad_output, weight = saved
    return (
        passes.fwd(grad, weight, None, *options.plain) if needs[0] else None,
        _in_strides_of(passes.bwd_weight(grad_output, grad, *options.linear), weight) if needs[1] else None,
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


def autocast_operands(device_type: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as autocast casts the operands of conv2d: floating tensors but float64 to the autocast dtype."""
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors
    )


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
