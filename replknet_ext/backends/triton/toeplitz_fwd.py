"""The forward pass and, with the filter flipped, bwd_input as one matrix product per channel.

For a channel, rows of the product are M = images x row groups, columns are N = R output rows x BX output columns, and
the sum runs over input pixels: KR input rows x BXI columns per step. The left operand is the input as it is in memory.
The right operand is a Toeplitz matrix, element (pixel (u, ix), output (r, x)) = w[u - r, ix - x + left].

The Toeplitz operand is read with 16-byte loads from a table of the filter (see `filter_table`), which a first kernel
writes: eight copies of each reversed filter row, copy s moved by s elements, so that every row of a Toeplitz matrix
starts at a multiple of eight elements of one of them.
"""

import triton
import triton.language as tl


@triton.jit
def filter_table(
    w, table, channels, kh, kw, wsc, wsh, wsw,
    FLIP: tl.constexpr, JL: tl.constexpr, Q0: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """table[c, ky, s, j] = w[c, ky, Q0 + s - j], zero outside the filter; FLIP reverses both axes of w."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = index // (8 * JL)  # (channel, ky)
    s = index // JL % 8
    kx = Q0 + s - index % JL
    inside = (row < channels * kh) & (kx >= 0) & (kx < kw)
    c, ky = row // kh, row % kh
    if FLIP:
        ky = kh - 1 - ky
        kx = kw - 1 - kx
    value = tl.load(w + c * wsc + ky * wsh + kx * wsw, mask=inside, other=0.0)
    tl.store(table + index, value, mask=row < channels * kh)


@triton.jit
def activated(value, ACTIVATION: tl.constexpr):
    """relu keeps NaN, gelu is the erf form."""
    if ACTIVATION == "relu":
        value = tl.where(value < 0, 0.0, value)
    if ACTIVATION == "gelu":
        value = 0.5 * value * (1.0 + tl.math.erf(value * 0.7071067811865476))
    return value


@triton.jit
def rounded(value, TYPE: tl.constexpr, BY_HAND: tl.constexpr):
    """float32 to the nearest value of TYPE. BY_HAND: triton's interpreter cuts off what bfloat16 can't hold."""
    if BY_HAND and TYPE == tl.bfloat16:  # noqa: SIM300
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value.to(TYPE)


@triton.jit
def toeplitz_fwd(
    x, w, bias, out,
    n, h, width_units, ho, wo_units, kh, kw, top, left,
    xsn, xsc, xsh, xsw, wsc, wsh, wsw, osn, osc, osh, osw,
    row_tiles, col_tiles, image_tiles,
    UNIT: tl.constexpr, OUT_UNIT: tl.constexpr, BI: tl.constexpr, G: tl.constexpr, R: tl.constexpr, BX: tl.constexpr,
    KR: tl.constexpr, BXI: tl.constexpr, TABLE: tl.constexpr, JL: tl.constexpr, Q0: tl.constexpr, FLIP: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile (BI images x G row groups) x (R rows x BX columns) of one channel.

    Args:
        x: input; xsn, xsc, xsh and the width count UNIT elements, so that the compiler knows what divides them.
        w: the table of `filter_table` (TABLE), else the filter itself with its strides.
        bias: (C,), or any tensor if not HAS_BIAS.
        out: osn, osc, osh and its width count OUT_UNIT elements.
    """
    pid = tl.program_id(0)
    tile = pid % (row_tiles * col_tiles * image_tiles)
    c = (pid // (row_tiles * col_tiles * image_tiles)).to(tl.int64)
    x0 = tile % col_tiles * BX
    y0 = tile // col_tiles % row_tiles * R
    n0 = tile // (col_tiles * row_tiles) * BI
    width, wo = width_units * UNIT, wo_units * OUT_UNIT

    m = tl.arange(0, BI * G)
    image = n0 + m % BI
    row_m = y0 + m // BI * (R * row_tiles)  # first output row of this row group
    column = tl.arange(0, R * BX)
    r, xl = column // BX, column % BX
    k = tl.arange(0, KR * BXI)
    kr, il = k // BXI, k % BXI

    # Input rows and columns that any tap of this tile meets; row u stands for input row (first output row) - top + u.
    u_first = tl.maximum(0, top - y0 - (G - 1) * (R * row_tiles))
    u_end = tl.minimum(R + kh - 1, h + top - y0)
    ix_first = tl.maximum(0, x0 - left) // UNIT * UNIT
    ix_end = tl.minimum(width, tl.minimum(x0 + BX, wo) + kw - 1 - left)

    acc = tl.zeros((BI * G, R * BX), dtype=tl.float32)
    images = (image < n)[:, None]
    long_xsh = (c - c + xsh) * UNIT  # int64, also of an argument that is a constant
    base = image.to(tl.int64) * xsn * UNIT + (row_m - top).to(tl.int64) * xsh * UNIT
    for ix0 in range(ix_first, ix_end, BXI):
        # All that does not change from step to step is computed here, once.
        ix = ix0 + il
        near = images & (ix < width)[None, :]
        from_x = x + (base + c * xsc * UNIT)[:, None] + (kr.to(tl.int64) * xsh * UNIT + ix * xsw)[None, :]
        shift = ix0 - x0 + left  # ix - x + left of the first column
        if TABLE:
            from8 = (il + shift + 64) // 8 * 8 - 64  # of a sum that is not negative
            copy = (il + shift + 64) % 8
            j = xl[None, :] - from8[:, None] + Q0
            taps = (j >= 0) & (j < JL)
            from_w = w + (c * kh * 8 + copy[:, None]) * JL + j
            step_w = 8 * JL
        else:
            kx = il[:, None] - xl[None, :] + shift
            taps = (kx >= 0) & (kx < kw)
            from_w = w + c * wsc
            step_w = wsh
            if FLIP:
                from_w += (kh - 1) * wsh
                kx = kw - 1 - kx
                step_w = -wsh
            from_w += kx * wsw
        from_w += (kr[:, None] - r[None, :]) * step_w
        for u0 in range(u_first, u_end, KR):
            iy = (row_m - top + u0)[:, None] + kr[None, :]
            ky = (u0 + kr)[:, None] - r[None, :]
            a = tl.load(from_x + u0 * long_xsh, mask=near & (iy >= 0) & (iy < h), other=0.0)
            b = tl.load(from_w + u0 * step_w, mask=taps & (ky >= 0) & (ky < kh), other=0.0)
            if INTERPRETED:  # whose products of bfloat16 are wrong
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    if HAS_BIAS:
        acc += tl.load(bias + c).to(tl.float32)
    acc = activated(acc, ACTIVATION)
    y = row_m[:, None] + r[None, :]
    to = image.to(tl.int64)[:, None] * osn * OUT_UNIT + c * osc * OUT_UNIT
    to = to + y.to(tl.int64) * osh * OUT_UNIT + ((x0 + xl) * osw)[None, :]
    inside = (image < n)[:, None] & (y < ho) & (x0 + xl < wo)[None, :]
    tl.store(out + to, rounded(acc, out.dtype.element_ty, INTERPRETED), mask=inside)
