"""Argument checks of the public function. Every message names the argument and says what is allowed.

Wrong type, dtype -> TypeError; wrong value, shape, device -> ValueError.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from .problem import ALGORITHMS, DTYPES, PRECISIONS, Geometry


def name(argument: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``allowed``; else raise, naming ``argument``."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be a string, one of {_quote(allowed)}; got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {_quote(allowed)}; got {value!r}")
    return value


def flag(argument: str, value: Any) -> bool:
    """Return ``value`` if it is a bool; else raise, naming ``argument``."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False; got {value!r} ({type(value).__name__})")
    return value


def choices(algorithm: Any, precision: Any) -> None:
    """Check two options that may be None, "the setting in force"."""
    if algorithm is not None:
        name("algorithm", algorithm, ALGORITHMS)
    if precision is not None:
        name("precision", precision, PRECISIONS)


def _quote(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{n}"' for n in names)


def integer(argument: str, value: Any, low: int) -> int:
    """Return ``value`` as an int >= ``low``. Booleans and floats are not integers here; torch.SymInt is."""
    if isinstance(value, torch.SymInt):
        number: Any = value
    elif isinstance(value, (bool, float, str)) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument} must be an int or a pair of ints; got {value!r} ({type(value).__name__})")
    else:
        number = operator.index(value)
    if number < low:
        raise ValueError(f"{argument} must be >= {low}; got {number}")
    return number  # type: ignore[no-any-return]


def pair(argument: str, value: Any, low: int) -> tuple[int, int]:
    """Return an int, a 1-sequence or a 2-sequence of ints as a pair, each >= ``low``."""
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, 2):
            raise ValueError(f"{argument} must be an int or a pair of ints; got {len(value)} values: {value!r}")
        return integer(argument, value[0], low), integer(argument, value[-1], low)
    number = integer(argument, value, low)
    return number, number


def geometry(stride: Any, padding: Any, dilation: Any, kernel: tuple[int, int]) -> Geometry:
    """Normalise stride, padding and dilation by the rules of ``torch.nn.functional.conv2d``.

    ``"same"`` with an even extent puts the odd pixel at the bottom and right, as torch does.
    """
    stride = pair("stride", stride, 1)
    dilation = pair("dilation", dilation, 1)
    if isinstance(padding, str):
        if padding == "valid":
            pads = (0, 0, 0, 0)
        elif padding == "same":
            if stride != (1, 1):
                raise ValueError(f'padding="same" needs stride 1; got stride {stride}')
            total_h, total_w = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
            pads = (total_h // 2, total_h - total_h // 2, total_w // 2, total_w - total_w // 2)
        else:
            raise ValueError(f'padding must be an int >= 0, a pair of them, "same" or "valid"; got {padding!r}')
    else:
        pad_h, pad_w = pair("padding", padding, 0)
        pads = (pad_h, pad_h, pad_w, pad_w)
    return Geometry(stride, pads, dilation)


def are_tensors(input: Any, weight: Any, bias: Any) -> None:
    """Raise TypeError unless input and weight are tensors and bias is a tensor or None."""
    for argument, value in (("input", input), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{argument} must be a torch.Tensor; got {type(value).__name__}")
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"bias must be a torch.Tensor or None; got {type(bias).__name__}")


def tensors(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Check rank, layout, dtype, device and channels of the operands (input already 4-D).

    Raises:
        TypeError: dtype that no kernel has, or dtypes that differ; sparse or other non-strided tensors.
        ValueError: devices that differ, or shapes that do not fit together.
    """
    operands = [("input", input), ("weight", weight)] + ([("bias", bias)] if bias is not None else [])
    for argument, tensor in operands:
        if tensor.layout != torch.strided:
            raise TypeError(f"{argument} must be a strided (dense) tensor; got layout {tensor.layout}")
        if tensor.is_quantized:
            raise TypeError(
                f"{argument} is quantised ({tensor.dtype}), and these kernels are of floating point: "
                "replknet_ext.restore(model) before quantising it"
            )
        if tensor.dtype not in DTYPES:
            allowed = ", ".join(str(d) for d in DTYPES)
            raise TypeError(f"{argument} has dtype {tensor.dtype}; allowed: {allowed}")
    for argument, tensor in operands[1:]:
        if tensor.dtype != input.dtype:
            raise TypeError(f"{argument} must have the dtype of input ({input.dtype}); got {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"{argument} must be on the device of input ({input.device}); got {tensor.device}")
    if input.dim() != 4:
        raise ValueError(f"input must be (N, C, H, W) or unbatched (C, H, W); got {_shape(input)}")
    if weight.dim() != 4 or weight.shape[1] != 1:
        raise ValueError(f"weight must be (C, 1, Kh, Kw), one filter plane a channel; got {_shape(weight)}")
    channels, filters = input.shape[1], weight.shape[0]
    if channels < 1 or input.shape[2] < 1 or input.shape[3] < 1:
        raise ValueError(f"input must have C, H, W >= 1 (only the batch may be empty); got {_shape(input)}")
    if filters < 1 or weight.shape[2] < 1 or weight.shape[3] < 1:
        raise ValueError(f"weight must have C, Kh, Kw >= 1; got {_shape(weight)}")
    if filters % channels != 0:
        raise ValueError(
            f"weight must have as many filters as input has channels ({channels}), or a multiple of that; got {filters}"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != filters):
        raise ValueError(f"bias must have shape ({filters},), one value a filter of weight; got {_shape(bias)}")


def output_size(input: Tensor, weight: Tensor, where: Geometry) -> tuple[int, int]:
    """Output height and width.

    Raises:
        ValueError: the kernel is larger than the padded input.
    """
    top, bottom, left, right = where.padding
    sizes = []
    axes = (("height", 2, top + bottom), ("width", 3, left + right))
    for axis, (axis_name, dim, pad) in enumerate(axes):
        extent = where.dilation[axis] * (weight.shape[dim] - 1) + 1
        padded = input.shape[dim] + pad
        if padded < extent:
            raise ValueError(
                f"weight is larger than the padded input: kernel {axis_name} {extent} (dilation included), "
                f"padded input {axis_name} {padded} (input {input.shape[dim]} + padding {pad}); "
                "use a smaller kernel or more padding"
            )
        sizes.append((padded - extent) // where.stride[axis] + 1)
    return sizes[0], sizes[1]


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}"
