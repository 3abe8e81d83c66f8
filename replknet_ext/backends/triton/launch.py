"""The three passes by Triton kernels, with the signatures of the raw ops. Importing this module imports triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from ...operator.problem import mirrored, output_format
from . import sliding_fwd, tiles, toeplitz_fwd, toeplitz_weight
from .device import shared_bytes
from .tiles import Sizes, Sliding, Toeplitz, Weight, cdiv, power_of_2

#: Whether kernels run in triton's interpreter, on CPU tensors (TRITON_INTERPRET=1 when this module is imported).
INTERPRETED = not isinstance(toeplitz_fwd.toeplitz_fwd, triton.JITFunction)

#: triton's default changes between versions; given explicitly it means the same in all of them.
COMMON: dict[str, Any] = {"enable_fp_fusion": True}


def _unit(element: int, sizes: Sequence[int]) -> int:
    """The largest divisor of all sizes, up to 16 bytes of elements: what the compiler may know of their alignment."""
    return math.gcd(16 // element, *sizes)


def _scaled(strides: Sequence[int], unit: int) -> list[int]:
    """Strides of n, c and h in units, that of w in elements."""
    return [*(stride // unit for stride in strides[:3]), strides[3]]


def _on(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _precision(dtype: torch.dtype, precision: str) -> str:
    """`input_precision` of tl.dot. AMD's list is another, and the interpreter has only float32."""
    plain = dtype != torch.float32 or torch.version.hip is not None or INTERPRETED
    return "ieee" if plain else precision


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.stride(3) != 1 and tensor.shape[3] > 1 and tensor.stride(1) == 1


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], activation: str, precision: str, flip: bool,
    tile: Toeplitz | Sliding | None = None, variant: int = -1,
) -> Tensor:  # fmt: skip
    """A forward convolution, with the filter reversed if `flip`.

    Args:
        x: (N, C, H, W) of any strides.
        weight: (C, 1, Kh, Kw) of any strides.
        bias: (C,) or None.
        padding: (top, bottom, left, right).
        activation, precision: as in the raw ops.
        flip: whether to reverse the filter.
        tile: the kernel and its tile, None for that of `variant`.
        variant: see `tiles.forward`.

    Returns:
        (N, C, Ho, Wo), channels_last if x or weight is.
    """
    n, c, h, w = x.shape
    kh, kw = weight.shape[2:]
    top, bottom, left, right = padding
    size = n, c, h + top + bottom - kh + 1, w + left + right - kw + 1
    layout = output_format(x, weight)
    if n == 0:
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
    if layout == torch.channels_last:
        x = x.contiguous(memory_format=layout)
    sizes = Sizes(n, c, h, w, kh, kw, size[2], size[3], top, left)
    last = _is_channels_last(x)
    if tile is None:
        tile = tiles.forward(sizes, _name(x.dtype), precision, last, shared_bytes(x.device), variant)
        if isinstance(tile, Toeplitz) and x.stride(3) != 1:
            # Rows that are not contiguous would be read, and written, element by element: copies are cheaper.
            x = x.contiguous()
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
    target = torch.empty(size, dtype=x.dtype, device=x.device) if x.is_contiguous() and last else out
    with _on(x):
        run = _toeplitz if isinstance(tile, Toeplitz) else _sliding
        run(x, weight, bias, target, sizes, tile, activation, precision, flip)
    return out if target is out else out.copy_(target)


def _toeplitz(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, s: Sizes, t: Any, activation: str, precision: str,
    flip: bool,
) -> None:  # fmt: skip
    element = x.element_size()
    row = tiles.table_row(s.kw)
    filters = weight
    if t.TABLE:
        filters = torch.empty(s.c * s.kh * 8 * row, dtype=x.dtype, device=x.device)
        toeplitz_fwd.filter_table[(cdiv(filters.numel(), 1024),)](
            weight, filters, s.c, s.kh, s.kw, weight.stride(0), weight.stride(2), weight.stride(3),
            FLIP=flip, JL=row, Q0=tiles.table_origin(s.kw), BLOCK=1024, num_warps=4, **COMMON,
        )  # fmt: skip
    unit = _unit(element, (*x.stride()[:3], s.w))
    out_unit = _unit(element, (*out.stride()[:3], s.wo))
    row_tiles, col_tiles, image_tiles = cdiv(s.ho, t.R * t.G), cdiv(s.wo, t.BX), cdiv(s.n, t.BI)
    toeplitz_fwd.toeplitz_fwd[(s.c * row_tiles * col_tiles * image_tiles,)](
        x, filters, bias if bias is not None else x, out,
        s.n, s.h, s.w // unit, s.ho, s.wo // out_unit, s.kh, s.kw, s.top, s.left,
        *_scaled(x.stride(), unit), weight.stride(0), weight.stride(2), weight.stride(3),
        *_scaled(out.stride(), out_unit), row_tiles, col_tiles, image_tiles,
        UNIT=unit, OUT_UNIT=out_unit, BI=t.BI, G=t.G, R=t.R, BX=t.BX, KR=t.KR, BXI=t.BXI, TABLE=t.TABLE, JL=row,
        Q0=tiles.table_origin(s.kw), FLIP=flip, HAS_BIAS=bias is not None, ACTIVATION=activation,
        PRECISION=_precision(x.dtype, precision), INTERPRETED=INTERPRETED,
        num_warps=t.num_warps, num_stages=t.num_stages, **COMMON,
    )  # fmt: skip


def _sliding(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, s: Sizes, t: Any, activation: str, precision: str,
    flip: bool,
) -> None:  # fmt: skip
    last = _is_channels_last(x)
    if last:  # lanes hold channels, so the taps of neighbouring channels must lie side by side
        weight = weight.contiguous().view(s.c, -1).t().contiguous().t().view(s.c, 1, s.kh, s.kw)
        col_tiles, outer = cdiv(s.wo, t.P), s.n * cdiv(s.c, t.Q)
    else:
        col_tiles, outer = cdiv(s.wo, t.Q), s.c * cdiv(s.n, t.P)
    row_tiles = cdiv(s.ho, t.R)
    sliding_fwd.sliding_fwd[(row_tiles * col_tiles * outer,)](
        x, weight, bias if bias is not None else x, out,
        s.n, s.c, s.h, s.w, s.ho, s.wo, s.kh, s.kw, s.top, s.left,
        *x.stride(), weight.stride(0), weight.stride(2), weight.stride(3), *out.stride(),
        row_tiles, col_tiles, cdiv(s.n, t.P),
        R=t.R, P=t.P, Q=t.Q, CHANNELS_LAST=last, FLIP=flip, HAS_BIAS=bias is not None, ACTIVATION=activation,
        INTERPRETED=INTERPRETED, num_warps=t.num_warps, **COMMON,
    )  # fmt: skip


def fwd(
    input: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int],
    activation: str, precision: str, algorithm: str, variant: int,
) -> Tensor:  # fmt: skip
    """Raw op ``dwconv2d``. Shapes as there."""
    return convolve(input, weight, bias, padding, activation, precision, flip=False, variant=variant)


def bwd_input(
    grad_output: Tensor, weight: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
) -> Tensor:
    """Raw op ``dwconv2d_backward_input``: a convolution with the flipped filter and mirrored padding."""
    pads = mirrored(padding, weight.shape[2:])
    return convolve(grad_output, weight, None, pads, "none", precision, flip=True, variant=variant)


def bwd_weight(
    grad_output: Tensor, input: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
) -> Tensor:
    """Raw op ``dwconv2d_backward_weight``; (C, 1, Kh, Kw) contiguous."""
    return correlate(grad_output, input, padding, precision, with_bias=False, variant=variant)[0]


def bwd_weight_bias(
    grad_output: Tensor, input: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
) -> tuple[Tensor, Tensor]:
    """`bwd_weight` and the sum of grad_output over images, rows and columns, (C,), from the same pass."""
    grad_weight, grad_bias = correlate(grad_output, input, padding, precision, with_bias=True, variant=variant)
    assert grad_bias is not None
    return grad_weight, grad_bias


def correlate(
    grad: Tensor,
    x: Tensor,
    padding: Sequence[int],
    precision: str,
    with_bias: bool,
    tile: Weight | None = None,
    variant: int = -1,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the filter and, if asked for, of the bias.

    Args:
        grad: (N, C, Ho, Wo) of any strides.
        x: (N, C, H, W) of any strides.
        padding: of the forward pass.
        precision: of float32.
        with_bias: whether to sum `grad` as well.
        tile: None for that of `variant`.
        variant: see `tiles.weight`.
    """
    n, c, h, w = x.shape
    ho, wo = grad.shape[2:]
    top, bottom, left, right = padding
    kh, kw = h + top + bottom - ho + 1, w + left + right - wo + 1
    grad_weight = torch.empty((c, 1, kh, kw), dtype=x.dtype, device=x.device)
    grad_bias = torch.empty((c,), dtype=x.dtype, device=x.device) if with_bias else None
    if n == 0:
        return grad_weight.zero_(), grad_bias.zero_() if grad_bias is not None else None
    s = Sizes(n, c, h, w, kh, kw, ho, wo, top, left)
    if tile is None:
        tile = tiles.weight(s, _name(x.dtype), precision, shared_bytes(x.device), variant)
        # Rows that are not contiguous would be read element by element: copies are cheaper.
        grad, x = (v if v.stride(3) == 1 else v.contiguous() for v in (grad, x))
    t = tile
    unit = _unit(x.element_size(), (*x.stride()[:3], *grad.stride()[:3], w, wo))
    ky_blocks, offset = cdiv(kh, t.G * t.R), tiles.weight_offset(s, t)
    floats = tiles.weight_workspace(s, t)
    slice_ = max(1, min(c, tiles.MAX_WORKSPACE // (4 * floats)))
    part = torch.empty(slice_ * floats, dtype=torch.float32, device=x.device)
    part_bias = torch.empty(slice_ * t.splits, dtype=torch.float32, device=x.device) if with_bias else part
    bkx = min(64, power_of_2(kw))
    with _on(x):
        for first in range(0, c, slice_):
            channels = min(slice_, c - first)
            toeplitz_weight.toeplitz_weight[(channels * ky_blocks * t.splits,)](
                grad, x, part, part_bias, n, h, w // unit, ho, wo // unit, kh, top, first,
                *_scaled(grad.stride(), unit), *_scaled(x.stride(), unit),
                1 if t.whole else cdiv(wo, t.BX), ky_blocks, t.splits, offset // unit,
                UNIT=unit, BI=t.BI, BQ=t.BQ, G=t.G, R=t.R, BX=t.BX, BXI=t.BXI, HAS_BIAS=with_bias,
                PRECISION=_precision(x.dtype, precision), INTERPRETED=INTERPRETED,
                num_warps=t.num_warps, num_stages=t.num_stages, **COMMON,
            )  # fmt: skip
            toeplitz_weight.add_diagonals[(channels * kh, cdiv(kw, bkx))](
                part, part_bias, grad_weight, grad_bias if grad_bias is not None else grad_weight,
                kh, kw, channels, first, t.splits, ky_blocks, left + offset,
                G=t.G, R=t.R, BX=t.BX, BXI=t.BXI, BKX=bkx, HAS_BIAS=with_bias, INTERPRETED=INTERPRETED,
                num_warps=1, **COMMON,
            )  # fmt: skip
    return grad_weight, grad_bias
