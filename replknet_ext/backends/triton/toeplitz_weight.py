"""bwd_weight as a matrix product per channel, whose sum runs over images and rows, and the bias gradient beside it.

M = G row offsets x BX output columns, N = R row offsets x BXI input columns: element ((g, x), (r, ix)) of a block of
G * R filter rows sums grad[y, x] * input[iy, ix] over all images and over all pairs of rows with iy - y fixed. The
filter gradient is the sums along the diagonals ix - x = const. Partial products go to a workspace, and a second kernel
adds their diagonals and the splits in a fixed order: the same bits on every run. The workspace has fewer than 2**31
floats.
"""

import triton
import triton.language as tl

from .toeplitz_fwd import rounded


@triton.jit
def toeplitz_weight(
    grad, x, part, part_bias,
    n, h, width_units, ho, wo_units, kh, top, first_channel,
    gsn, gsc, gsh, gsw, xsn, xsc, xsh, xsw,
    col_tiles, ky_blocks, splits, offset_units,
    UNIT: tl.constexpr, BI: tl.constexpr, BQ: tl.constexpr, G: tl.constexpr, R: tl.constexpr, BX: tl.constexpr,
    BXI: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One block of G * R filter rows of one channel, summed over one of `splits` ranges of the work.

    Args:
        grad, x: n, c and h strides, both widths and offset_units count UNIT elements.
        part: (splits, channels of this launch, ky_blocks, G * BX, R * BXI) float32.
        part_bias: (splits, channels of this launch) float32.
        offset_units: first input column less first output column of a column tile.
    """
    pid = tl.program_id(0)
    block = pid % ky_blocks
    split = pid // ky_blocks % splits
    local_c = pid // (ky_blocks * splits)
    c = first_channel + local_c.to(tl.int64)
    width, wo, offset = width_units * UNIT, wo_units * UNIT, offset_units * UNIT

    m = tl.arange(0, G * BX)
    g, xl = m // BX, m % BX
    column = tl.arange(0, R * BXI)
    r, il = column // BXI, column % BXI
    k = tl.arange(0, BQ * BI)
    q, i = k // BI, k % BI

    # In step s a group g sees output row s + q - R * g, and all of them input row s + q + block * G * R + r - top.
    start = block * (G * R) - top
    s_first = tl.maximum(0, -start - (R - 1))
    s_end = tl.minimum(ho + R * (G - 1), h - start)
    if HAS_BIAS:  # the first block must see every output row, reached by a tap or not
        s_first = tl.where(block == 0, 0, s_first)
        s_end = tl.where(block == 0, tl.maximum(ho, s_end), s_end)
    a_split = ((tl.maximum(0, s_end - s_first) + BQ - 1) // BQ + splits - 1) // splits * BQ
    s_first += split * a_split
    s_end = tl.minimum(s_first + a_split, s_end)

    acc = tl.zeros((G * BX, R * BXI), dtype=tl.float32)
    total = tl.zeros((G * BX,), dtype=tl.float32)
    long_gsh = (c - c + gsh) * UNIT  # int64, also of an argument that is a constant
    long_xsh = (c - c + xsh) * UNIT
    for tile in range(0, col_tiles * ((n + BI - 1) // BI)):
        # All that does not change from step to step is computed here, once.
        x0 = tile % col_tiles * BX
        image = tile // col_tiles * BI + i
        at = image.to(tl.int64) * gsn * UNIT + q * long_gsh
        from_grad = grad + c * gsc * UNIT + at[None, :] + ((x0 + xl) * gsw - g * R * long_gsh)[:, None]
        near_grad = (image < n)[None, :] & (x0 + xl < wo)[:, None]
        ix = x0 + offset + il
        at = image.to(tl.int64) * xsn * UNIT + (q + start) * long_xsh
        from_x = x + c * xsc * UNIT + at[:, None] + (r * long_xsh + ix * xsw)[None, :]
        near_x = (image < n)[:, None] & ((ix >= 0) & (ix < width))[None, :]
        for s in range(s_first, s_end, BQ):
            y = (s - R * g)[:, None] + q[None, :]
            iy = (s + start + q)[:, None] + r[None, :]
            a = tl.load(from_grad + s * long_gsh, mask=near_grad & (y >= 0) & (y < ho), other=0.0)
            b = tl.load(from_x + s * long_xsh, mask=near_x & (iy >= 0) & (iy < h), other=0.0)
            if INTERPRETED:  # see toeplitz_fwd.py
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
            if HAS_BIAS:
                total += tl.sum(a.to(tl.float32), axis=1)

    channels = tl.num_programs(0) // (ky_blocks * splits)
    place = (split * channels + local_c) * ky_blocks + block
    to = place * (G * BX * R * BXI) + m[:, None] * (R * BXI) + column[None, :]
    tl.store(part + to, acc)
    if HAS_BIAS:
        # Every group sees every row once: the first group is enough.
        value = tl.sum(tl.where(m < BX, total, 0.0), axis=0)
        tl.store(part_bias + split * channels + local_c, value, mask=block == 0)


@triton.jit
def add_diagonals(
    part, part_bias, grad_weight, grad_bias,
    kh, kw, channels, first_channel, splits, ky_blocks, diagonal,
    G: tl.constexpr, R: tl.constexpr, BX: tl.constexpr, BXI: tl.constexpr, BKX: tl.constexpr, HAS_BIAS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One row of a filter gradient: sums along il - xl = kx - diagonal, splits one after the other.

    Args:
        part, part_bias: as `toeplitz_weight` leaves them.
        grad_weight: (C, 1, kh, kw) contiguous; grad_bias: (C,).
        diagonal: the padding on the left plus the offset of a column tile's first input column.
    """
    pid = tl.program_id(0)
    ky = pid % kh
    local_c = pid // kh
    block, within = ky // (G * R), ky % (G * R)
    kx = tl.program_id(1) * BKX + tl.arange(0, BKX)
    xl = tl.arange(0, BX)
    il = xl[None, :] + kx[:, None] - diagonal
    inside = (kx < kw)[:, None] & (il >= 0) & (il < BXI)
    at = (within // R * BX + xl)[None, :] * (R * BXI) + within % R * BXI + il
    total = tl.zeros((BKX, BX), dtype=tl.float32)
    for split in range(0, splits):
        place = ((split * channels + local_c) * ky_blocks + block) * (G * BX * R * BXI)
        total += tl.load(part + place + at, mask=inside, other=0.0)
    row = ((first_channel + local_c) * kh + ky) * kw
    tl.store(
        grad_weight + row + kx, rounded(tl.sum(total, axis=1), grad_weight.dtype.element_ty, INTERPRETED), mask=kx < kw
    )
    if HAS_BIAS:
        value = tl.load(part_bias + local_c)
        for split in range(1, splits):
            value += tl.load(part_bias + split * channels + local_c)
        first = (ky == 0) & (tl.program_id(1) == 0)
        tl.store(
            grad_bias + first_channel + local_c, rounded(value, grad_bias.dtype.element_ty, INTERPRETED), mask=first
        )
