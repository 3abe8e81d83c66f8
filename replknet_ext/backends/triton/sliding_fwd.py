"""The forward pass and bwd_input without tensor cores: strict float32 (ieee), and small filters in any type.

A program slides down the input rows. It loads a row once for each kx, moved by kx, and adds its products with the
R filter rows that reach it to R rows of sums, which stay in registers.
"""

import triton
import triton.language as tl

from .toeplitz_fwd import activated, rounded


@triton.jit
def sliding_fwd(
    x, w, bias, out,
    n, channels, h, width, ho, wo, kh, kw, top, left,
    xsn, xsc, xsh, xsw, wsc, wsh, wsw, osn, osc, osh, osw,
    row_tiles, col_tiles, image_tiles,
    R: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, CHANNELS_LAST: tl.constexpr, FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """R output rows of P images x Q columns of a channel, or, CHANNELS_LAST, of P columns x Q channels of an image.

    Strides count elements; image_tiles are tiles of n, or of the channels times n if CHANNELS_LAST.
    """
    pid = tl.program_id(0)
    tiles = row_tiles * col_tiles
    y0 = pid // col_tiles % row_tiles * R
    outer = pid // tiles
    p = tl.arange(0, P)[:, None]
    q = tl.arange(0, Q)[None, :]
    if CHANNELS_LAST:
        blocks = (channels + Q - 1) // Q
        image = (outer // blocks).to(tl.int64)
        channel = (outer % blocks * Q + q).to(tl.int64)
        column = pid % col_tiles * P + p
        lane = (channel < channels) & (column < wo)
    else:
        channel = (outer // image_tiles).to(tl.int64)
        image = (outer % image_tiles * P + p).to(tl.int64)
        column = pid % col_tiles * Q + q
        lane = (image < n) & (column < wo)
    base = image * xsn + channel * xsc + (column - left).to(tl.int64) * xsw
    filters = channel * wsc
    r = tl.arange(0, R)[:, None, None]

    acc = tl.zeros((R, P, Q), dtype=tl.float32)
    u_first = tl.maximum(0, top - y0)
    u_end = tl.minimum(R + kh - 1, h + top - y0)
    for u in range(u_first, u_end):
        row = base + (y0 + u - top).to(tl.int64) * xsh
        ky = u - r
        tap = (ky >= 0) & (ky < kh)
        if FLIP:
            ky = kh - 1 - ky
        for kx in range(0, kw):
            ix = column + kx - left
            value = tl.load(x + row + kx * xsw, mask=lane & (ix >= 0) & (ix < width), other=0.0).to(tl.float32)
            wx = kx
            if FLIP:
                wx = kw - 1 - kx
            if CHANNELS_LAST:
                near = tap & (channel < channels)[None, :, :]
                weight = tl.load(w + filters[None, :, :] + ky * wsh + wx * wsw, mask=near, other=0.0).to(tl.float32)
            else:
                weight = tl.load(w + filters + ky * wsh + wx * wsw, mask=tap, other=0.0).to(tl.float32)
            acc += weight * value[None, :, :]

    if HAS_BIAS:
        if CHANNELS_LAST:
            acc += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :, :]
        else:
            acc += tl.load(bias + channel).to(tl.float32)
    acc = activated(acc, ACTIVATION)
    y = y0 + r
    to = (image * osn + channel * osc + column.to(tl.int64) * osw)[None, :, :] + y.to(tl.int64) * osh
    tl.store(out + to, rounded(acc, out.dtype.element_ty, INTERPRETED), mask=lane[None, :, :] & (y < ho))
