"""From the arguments of `depthwise_conv2d` to its operands as they are computed with, and to a `Problem`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import settings
from . import checks
from .derivatives import autocast_enabled, autocast_operands
from .problem import ACTIVATIONS, ALGORITHMS, PRECISIONS, Problem, output_format

__all__ = ["Call", "describe", "prepare"]


class Call(NamedTuple):
    """A call with its operands cast and batched and its settings filled in.

    Attributes:
        input, weight, bias: as autocast casts them; input (N, C, H, W).
        options: stride, padding, dilation, activation, algorithm, precision, as `describe` takes them.
        batched: whether the caller's input had a batch dimension.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    options: tuple[Any, ...]
    batched: bool

    @property
    def algorithm(self) -> str:
        """As given, or the setting in force."""
        return self.options[-2]  # type: ignore[no-any-return]

    @property
    def precision(self) -> str:
        """As given, or the setting in force."""
        return self.options[-1]  # type: ignore[no-any-return]

    def problem(self) -> Problem:
        """With the memory format."""
        problem = describe(self.input, self.weight, self.bias, *self.options)
        return replace(problem, channels_last=output_format(self.input, self.weight) == torch.channels_last)


def prepare(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *,
    activation: Any = "none", algorithm: Any = None, precision: Any = None, backend: Any = "auto",
) -> Call:  # fmt: skip
    """The call with these arguments of `depthwise_conv2d`."""
    checks.are_tensors(input, weight, bias)
    device_type = input.device.type
    if autocast_enabled(device_type):
        input, weight, bias = autocast_operands(device_type, input, weight, bias)  # type: ignore[assignment]
    batched = input.dim() != 3
    if algorithm is None:
        algorithm = settings.get_algorithm()
    if precision is None:
        precision = settings.get_float32_precision()
    options = (stride, padding, dilation, activation, algorithm, precision)
    return Call(input if batched else input.unsqueeze(0), weight, bias, options, batched)


def describe(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    activation: Any, algorithm: Any, precision: Any,
) -> Problem:  # fmt: skip
    """Checks every argument but the backend, and describes the call, without its memory format."""
    checks.name("activation", activation, ACTIVATIONS)
    checks.name("algorithm", algorithm, ALGORITHMS)
    checks.name("precision", precision, PRECISIONS)
    checks.tensors(input, weight, bias)
    kernel = (weight.shape[2], weight.shape[3])
    geometry = checks.geometry(stride, padding, dilation, kernel)
    checks.output_size(input, weight, geometry)
    return Problem(
        input_shape=tuple(input.shape),
        weight_shape=tuple(weight.shape),
        has_bias=bias is not None,
        geometry=geometry,
        dtype=input.dtype,
        device_type=input.device.type,
        device_index=input.device.index,
        activation=activation,
        algorithm=algorithm,
        precision=precision,
    )
