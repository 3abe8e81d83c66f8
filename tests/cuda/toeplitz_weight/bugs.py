"""Bugs planted in the tensor-core kernels of bwd_weight."""

from __future__ import annotations

from emulator_harness import Case
from mutants import SMALLEST, Mutants, keep_lines

KEPT = ("rtw_3x2_w", "rtw_3x4_t", "rtw_1x1_w", "rtw_3x2_w_bf16x3", "rtw_5x3_sq")

# name: (file, text, replacement)
BUGS = {
    "no barrier of a stage": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "      else ptx::cp_async_wait<1>();\n      __syncthreads();\n",
        "      else ptx::cp_async_wait<1>();\n",
    ),
    "no wait for a stage": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "      if (a.ahead == 1) ptx::cp_async_wait<0>();\n      else",
        "      if (0)",
    ),
    "waits for a stage too few": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "if (a.ahead == 1) ptx::cp_async_wait<0>();",
        "if (a.ahead == 1) ptx::cp_async_wait<1>();",
    ),
    "no barrier before the diagonals": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "  __syncthreads();\n  finish<",
        "  finish<",
    ),
    "no __syncwarp before the diagonals": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "= acc[j + i][d][k];\n    __syncwarp();\n",
        "= acc[j + i][d][k];\n",
    ),
    "no __syncwarp after the diagonals": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "    }\n    __syncwarp();\n  }\n}",
        "    }\n  }\n}",
    ),
    "no zeros beside the diagonals": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "reinterpret_cast<float4*>(tile)[i] = {0.f, 0.f, 0.f, 0.f};",
        "(void)i;",
    ),
    "no __syncwarp after the zeros": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "= {0.f, 0.f, 0.f, 0.f};\n  __syncwarp();\n",
        "= {0.f, 0.f, 0.f, 0.f};\n",
    ),
    "next job in the wrong group": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "a.split_groups + advance_tile(next_tile)",
        "advance_tile(next_tile)",
    ),
    "products of the next tile": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "      advance_tile(tile);\n",
        "      if (++tile == a.tiles) tile = 0;\n",
    ),
    "half of a diagonal lost": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "for (int k = 1; k < kSide; ++k)",
        "for (int k = 1; k < kSide - 1; ++k)",
    ),
    "ring a row short": (
        "toeplitz_weight/plan.cpp",
        "std::min<int64_t>(high - low, 1 << 24)",
        "std::min<int64_t>(high - low - 1, 1 << 24)",
    ),
    "ring does not wrap for a row": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "          if (at >= a.x_ring) at -= a.x_ring;\n",
        "",
    ),
    "ring does not wrap for a copy": (
        "toeplitz_weight/tile.cuh",
        "      if (item.to >= r.ring * row_bytes) item.to -= r.ring * row_bytes;\n",
        "",
    ),
    "grad ring a stage short": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "const int grad_stages = a.ahead + 1;",
        "const int grad_stages = a.ahead;",
    ),
    "last row offset lost": ("toeplitz_weight/plan.cpp", "r->dy_first + 1, last + 1);", "r->dy_first + 1, last);"),
    "images past the batch": (
        "toeplitz_weight/tile.cuh",
        "image < a.n && channel < a.c && ix >= 0",
        "channel < a.c && ix >= 0",
    ),
    "rows past the image": (
        "toeplitz_weight/tile.cuh",
        "static_cast<unsigned>(item.iy) < static_cast<unsigned>(t.h) ? item.columns : 0",
        "item.iy >= 0 ? item.columns : 0",
    ),
    "splits share partials": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "(static_cast<int64_t>(blockIdx.y) * a.c + channel)",
        "(static_cast<int64_t>(0) * a.c + channel)",
    ),
    "a split is not added": (
        "weight_sum.cu",
        "for (int s = 1; s < a.splits; ++s)",
        "for (int s = 2; s < a.splits; ++s)",
    ),
    "parts do not overlap": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "down * (row_offsets - kLine)",
        "down * row_offsets",
    ),
    "4x4 parts share one row offset": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "down * (row_offsets - kLine)",
        "down * (row_offsets - 1)",
    ),
    "rest of the padding lost": ("toeplitz_weight/tile.cuh", " - r.row_offset", ""),
    "a line's second row is its first": (
        "toeplitz_weight/tile.cuh",
        "if (half == 1) next_row();",
        "if (half == 1 && 0) next_row();",
    ),
    "squares of a 4x4 product swapped": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "(m / kSide * kLine + n / kSide) * kSquare",
        "(n / kSide * kLine + m / kSide) * kSquare",
    ),
    "a tap of half the squares": (
        "toeplitz_weight/toeplitz_weight.cuh",
        "lines % kLine == 0 && dy >= 0",
        "square % kLine == 0 && lines % kLine == 0 && dy >= 0",
    ),
    "bias of one row": ("toeplitz_weight/toeplitz_weight.cuh", "return sum[0] + sum[2];", "return sum[0];"),
    "bias by every part": ("toeplitz_weight/toeplitz_weight.cuh", "p.first = part == 0;", "p.first = true;"),
    "second channel of a pair lost": (
        "toeplitz_weight/tile.cuh",
        "v[0] >> 16 | (v[1] & 0xffff0000)",
        "v[0] >> 16 | v[1] << 16",
    ),
    "low half over the high": (
        "toeplitz_weight/tile.cuh",
        "*reinterpret_cast<uint2*>(to + half_bytes)",
        "*reinterpret_cast<uint2*>(to)",
    ),
}

TWO = (90, 2, 227 << 10, 228 << 10)  # few SMs: fewer splits than column tiles times groups
WEIGHT = Case(33, 1, 13, 14, 9, bias=True, pass_="bwd_weight", dtype="bfloat16")
CASES = [
    WEIGHT,
    WEIGHT.but(n=3, c=2, h=7, w=7, k=13, shift=1),
    WEIGHT.but(n=2, h=23, w=37, k=(9, 11)),
    WEIGHT.but(n=1, c=2, h=41, channels_last=True),
    WEIGHT.but(n=5, c=3, h=40, w=8, k=(60, 5), limits=SMALLEST),
    WEIGHT.but(n=5, dtype="float32", precision="bf16x3"),
    WEIGHT.but(n=17, c=8, channels_last=True),
    WEIGHT.but(n=33, c=2, h=13, w=12, k=13),  # in 4x4 tiles, like the next two
    WEIGHT.but(n=3, h=9, w=11, k=(8, 15), shift=1),
    WEIGHT.but(n=17, h=60, w=12, k=(55, 13), limits=SMALLEST),  # and in parts
    WEIGHT.but(n=72, h=15, w=16, k=15),  # in splits
    WEIGHT.but(n=3, c=1, h=24, w=150, k=5),  # splits take column tiles
    WEIGHT.but(n=100, c=1, h=8, w=100, k=5, limits=TWO),  # 4 tiles and 7 groups in turn by 7 splits
]

MUTANTS = Mutants(
    "toeplitz_weight", BUGS, CASES, keep_lines("toeplitz_weight/variants.h", "TOEPLITZ_WEIGHT_VARIANTS", KEPT)
)
