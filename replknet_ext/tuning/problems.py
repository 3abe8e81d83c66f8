"""The problems to tune: of a model, by one forward pass, or of a list of shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.overrides import TorchFunctionMode

from ..backends import Problem
from ..operator import checks
from ..operator.call import prepare
from ..operator.problem import outside_raw_ops

__all__ = ["of_model", "of_shapes"]


class _Recorder(TorchFunctionMode):
    """Notes the problem of every call of `depthwise_conv2d` that this thread makes in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[Problem] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "depthwise_conv2d":
            self.problems.append(prepare(*args, **(kwargs or {})).problem())
        return func(*args, **(kwargs or {}))


def of_model(model: nn.Module, input: Any, channels_last: bool = False) -> Counter[Problem]:
    """How often one forward pass of a model has each problem that kernels of ours can run.

    The model runs in eval mode without gradients, and is as it was afterwards.

    Args:
        model: any module.
        input: what it is called with: a tensor, a tuple or a dict of arguments, or the shape of a random tensor on
            device and in dtype of its first parameter.
        channels_last: memory format of that random tensor.

    Raises:
        TypeError: no input, or something else.
    """
    arguments, keywords = _arguments(model, input, channels_last)
    training = [(module, module.training) for module in model.modules()]
    recorder = _Recorder()
    try:
        model.eval()
        with torch.no_grad(), recorder:
            model(*arguments, **keywords)
    finally:
        for module, mode in training:
            module.training = mode
    return Counter(problem for problem in recorder.problems if outside_raw_ops(problem) is None)


def _arguments(model: nn.Module, input: Any, channels_last: bool) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(input, Tensor):
        return (input,), {}
    if isinstance(input, Mapping):
        return (), input
    if isinstance(input, (tuple, list)) and input:
        if not all(type(size) is int for size in input):
            return input, {}
        sizes = [checks.integer("input", size, 1) for size in input]
        like = next(model.parameters(), torch.empty(0))
        layout = torch.channels_last if channels_last and len(sizes) == 4 else torch.contiguous_format
        return (torch.rand(sizes, device=like.device, dtype=like.dtype).contiguous(memory_format=layout),), {}
    raise TypeError(
        "input must be what the model is called with: a tensor, a tuple or dict of arguments, or a shape such as "
        f"(64, 3, 224, 224); got {input!r}"
    )


def of_shapes(
    shapes: Iterable[Any], *, padding: Any, dtype: torch.dtype, device: torch.device, channels_last: bool, bias: bool,
    activation: str, algorithm: str, precision: str,
) -> Counter[Problem]:  # fmt: skip
    """The problems of pairs ((N, C, H, W), kernel), where a kernel is K, (Kh, Kw) or the weight's shape.

    Raises:
        TypeError, ValueError: something that is no such pair, or that the convolution does not take.
    """
    found: Counter[Problem] = Counter()
    for shape in shapes:
        try:
            size, kernel = shape
            n, c, h, w = (checks.integer("model_or_shapes", value, 1) for value in size)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"model_or_shapes must be a module or pairs ((N, C, H, W), kernel); got {shape!r} ({error})"
            ) from None
        if isinstance(kernel, (tuple, list)) and len(kernel) == 4:
            weight_shape = tuple(checks.integer("model_or_shapes", value, 1) for value in kernel)
        else:
            weight_shape = (c, 1, *checks.pair("model_or_shapes", kernel, 1))
        x, weight = (torch.empty(s, dtype=dtype, device="meta") for s in ((n, c, h, w), weight_shape))
        checks.tensors(x, weight, None)
        geometry = checks.geometry(1, padding, 1, (weight_shape[2], weight_shape[3]))
        checks.output_size(x, weight, geometry)
        layout = suggest_memory_format(x.contiguous(memory_format=torch.channels_last)) == torch.channels_last
        found[
            Problem(
                (n, c, h, w), weight_shape, bias, geometry, dtype, device.type, activation, algorithm, precision,
                channels_last=channels_last and layout,
            )
        ] += 1  # fmt: skip
    if not found:
        raise ValueError("model_or_shapes must not be empty")
    return found
