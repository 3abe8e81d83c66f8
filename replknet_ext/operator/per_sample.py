"""Per-sample gradients by torch's expanded weights, ``torch.nn.utils._per_sample_grad.call_for_per_sample_grads``.

They stand in for the parameters and know which function of theirs has which rule; this is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_IMPLEMENTATION = "torch.nn.utils._expanded_weights.expanded_weights_impl"


def register(function: Callable[..., Tensor]) -> None:
    """Makes `PerSampleGradients` the rule of ``function``, if this process can have expanded weights at all."""
    if _IMPLEMENTATION in sys.modules:
        sys.modules[_IMPLEMENTATION].HANDLED_FUNCTIONS.setdefault(function, PerSampleGradients)


class PerSampleGradients(torch.autograd.Function):
    """A call of `depthwise_conv2d` that leaves a gradient for each image in ``grad_sample`` of weight and bias."""

    @staticmethod
    def forward(ctx: Any, names: tuple[str, ...], function: Callable[..., Tensor], *values: Any) -> Tensor:
        """As torch calls it: names of the keyword arguments, the function, and the values of all arguments."""
        from torch.nn.utils._expanded_weights.expanded_weights_utils import forward_helper

        split = len(values) - len(names)
        arguments, options = values[:split], dict(zip(names, values[split:], strict=True))
        if arguments[0].dim() != 4:
            raise ValueError(
                f"input must be (N, C, H, W) for per-sample gradients; got {arguments[0].dim()} dimensions"
            )
        ctx.operands, ctx.input_needs = arguments[:3], arguments[0].requires_grad
        ctx.run = lambda x, weight, bias: function(x, weight, bias, *arguments[3:], **options)
        ctx.others = len(values) - 1
        return forward_helper(function, arguments, options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradient of input; those of the parameters are left in ``grad_sample``."""
        from torch.nn.utils._expanded_weights.expanded_weights_utils import (
            set_grad_sample_if_exists,
            unpack_expanded_weight_or_tensor,
        )

        x, *expanded = ctx.operands
        weight, bias = (unpack_expanded_weight_or_tensor(t) for t in expanded)

        def of_image(x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
            parameters = (weight,) if bias is None else (weight, bias)
            run = lambda weight, bias=None: ctx.run(x[None], weight, bias)  # noqa: E731
            return torch.func.vjp(run, *parameters)[1](grad[None])  # type: ignore[no-any-return]

        for parameter, gradients in zip(expanded, torch.func.vmap(of_image)(x, grad), strict=False):
            set_grad_sample_if_exists(parameter, lambda _, found=gradients: found)
        d_input = torch.func.vjp(lambda x: ctx.run(x, weight, bias), x)[1](grad)[0] if ctx.input_needs else None
        return None, None, d_input, *(None,) * ctx.others
