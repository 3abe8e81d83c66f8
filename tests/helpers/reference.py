"""float64 oracle of the three passes: a loop over the taps in NumPy, sharing no code with torch or the package."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Padding = Sequence[int]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).contiguous().numpy()


def _pad(x: np.ndarray, padding: Padding) -> np.ndarray:
    """Zeros around the last two axes of x; negative amounts crop."""
    top, bottom, left, right = padding
    height, width = x.shape[2] + top + bottom, x.shape[3] + left + right
    out = np.zeros((*x.shape[:2], height, width))
    rows = slice(max(top, 0), max(min(height, top + x.shape[2]), max(top, 0)))
    cols = slice(max(left, 0), max(min(width, left + x.shape[3]), max(left, 0)))
    out[:, :, rows, cols] = x[:, :, rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    return out


def fwd(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Padding, activation: str = "none") -> Tensor:
    """out[n, c, i, j] = act(bias[c] + sum over taps of padded[n, c, i + a, j + b] * weight[c, 0, a, b])."""
    padded, w = _pad(_array(x), padding), _array(weight)
    kh, kw = w.shape[2:]
    height, width = padded.shape[2] - kh + 1, padded.shape[3] - kw + 1
    out = np.zeros((*padded.shape[:2], height, width))
    for a in range(kh):
        for b in range(kw):
            out += padded[:, :, a : a + height, b : b + width] * w[None, :, 0, a, b, None, None]
    if bias is not None:
        out += _array(bias)[None, :, None, None]
    if activation == "relu":
        out = np.maximum(out, 0)
    elif activation == "gelu":
        out = 0.5 * out * (1 + _erf(out / math.sqrt(2))) if out.size else out
    return torch.from_numpy(out)


def bwd_input(grad: Tensor, weight: Tensor, padding: Padding) -> Tensor:
    """Gradient for the input: every output gradient is scattered back over its taps."""
    g, w = _array(grad), _array(weight)
    kh, kw = w.shape[2:]
    height, width = g.shape[2:]
    padded = np.zeros((*g.shape[:2], height + kh - 1, width + kw - 1))
    for a in range(kh):
        for b in range(kw):
            padded[:, :, a : a + height, b : b + width] += g * w[None, :, 0, a, b, None, None]
    return torch.from_numpy(_pad(padded, [-p for p in padding]))


def bwd_weight(grad: Tensor, x: Tensor, padding: Padding) -> Tensor:
    """Gradient for the weight: correlation of the padded input with the output gradient, summed over the batch."""
    g, padded = _array(grad), _pad(_array(x), padding)
    height, width = g.shape[2:]
    kh, kw = padded.shape[2] - height + 1, padded.shape[3] - width + 1
    out = np.zeros((g.shape[1], 1, kh, kw))
    for a in range(kh):
        for b in range(kw):
            out[:, 0, a, b] = (g * padded[:, :, a : a + height, b : b + width]).sum((0, 2, 3))
    return torch.from_numpy(out)
