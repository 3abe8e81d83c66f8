"""Source lines that ``ptx_run --per 4`` does not reach in some kernel entries: how many entries, and why.

A line is named by its file below csrc/cuda, or the name of another file, and a part of its text, so that it may move.
NEVER: no launch can reach it. "needs ...": what a problem would have to have; the problems of `cases.cpp` lack it.
"""

from __future__ import annotations

import functools
from pathlib import Path

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"

_DTYPE = "NEVER: the dtype of the result is an argument, but each of these entries is launched for one dtype only"
_TURNS = "needs float32 in NCHW and several turns of a block, which the planner takes for larger batches"
_PIXEL = "needs a multiple of 8 (for 8 bytes: 4) 16-bit channels in a block"
_PIXEL_FLOAT = "needs a multiple of 4 float32 channels in a block"
_STEPS = "needs several channels in a block, or a filter in parts"
_WIDTH = "needs rows of a multiple of 16 bytes: these entries take few widths, and the table has none such for them"
_FWD, _STAGED = "toeplitz_fwd/tile.cuh", "toeplitz_fwd/staged_tile.cuh"

#: (file, a part of the line) -> number of entries that do not reach it, reason. The first that fits counts.
REASONS: dict[tuple[str, str], tuple[int, str]] = {
    ("weight_sum.cuh", "dtype == 1 ? ptx::from_float<false>(v)"): (18, _DTYPE),
    ("weight_sum.cuh", "<no line>"): (18, _DTYPE),
    ("cuda_bf16.hpp", ""): (23, _DTYPE),
    ("cuda_fp16.hpp", ""): (27, _DTYPE),
    ("toeplitz_weight/toeplitz_weight.cuh", "return;"): (
        6,
        "NEVER: small_planes splits no batch, so has no partial sums",
    ),
    ("fft/transform.cuh", "from += next, to += step * element;"): (1, "NEVER: 14 columns, 16 lanes along a row"),
    (_STAGED, "* a.c + channel) * pixels + pixel, 1,"): (12, "NEVER: 16-bit entries run channels_last alone, of c > 1"),
    ("toeplitz_fwd/staged.cuh", "prefetch_rows("): (6, _TURNS),
    ("ptx.cuh", "prefetch.global.L2"): (6, _TURNS),
    (_STAGED, "for (int g = 0; g < a.block_groups; ++g) {"): (6, _TURNS),
    (_STAGED, "const int s = (first_group + g) * 8 + slot,"): (6, _TURNS),
    (_STAGED, "if (image >= a.n) continue;"): (6, _TURNS),
    (_STAGED, "const int top = (s - (image << a.split_log2))"): (6, _TURNS),
    (_STAGED, "const int64_t begin ="): (6, _TURNS),
    (_STAGED, "const int64_t end ="): (6, _TURNS),
    (_STAGED, "const float* plane ="): (6, _TURNS),
    (_STAGED, "ptx::prefetch_l2(plane + i);"): (6, _TURNS),
    ("toeplitz_fwd/staged.cuh", "begin(pass + 1 < passes"): (3, _STEPS),
    ("toeplitz_fwd/staged.cuh", "stage_filter(channel0 + (pass"): (3, _STEPS),
    (_STAGED, "const uint4 u = *static_cast<const uint4*>(p);"): (12, _PIXEL),
    (_STAGED, "const uint2 u = *static_cast<const uint2*>(p);"): (8, _PIXEL),
    (_STAGED, "*static_cast<uint4*>(p) = make_uint4"): (12, _PIXEL),
    (_STAGED, "*static_cast<uint2*>(p) = make_uint2"): (8, _PIXEL),
    (_STAGED, "++i, to += plane"): (4, _PIXEL_FLOAT),
    (_STAGED, "++i, from += plane"): (4, _PIXEL_FLOAT),
    (_STAGED, "ToeplitzFwdAlong::pixel, 16>"): (4, _PIXEL_FLOAT),
    (_FWD, "if (columns > 0) ptx::cp_async<16>(dst, src);"): (16, _WIDTH),
    (_FWD, "*reinterpret_cast<uint4*>(dst) = make_uint4(u[0]"): (16, _WIDTH),
    ("toeplitz_weight/tile.cuh", "kBytes == 16) ptx::store_shared"): (2, _WIDTH),
    ("stencil/tile.cuh", "if (i < columns) ptx::store_global"): (1, _WIDTH),
    ("stencil/tile.cuh", "ptx::store_global(reinterpret_cast<uint4*>(to)"): (1, _WIDTH),
    ("ptx.cuh", "cp.async.cg.shared.global"): (16, _WIDTH),
    ("ptx.cuh", "*p = v;"): (2, _WIDTH),
    ("ptx.cuh", "<no line>"): (2, _WIDTH),
    ("sm_32_intrinsics.hpp", "<line 131>"): (5, _WIDTH),
    ("sm_32_intrinsics.hpp", "<line 124>"): (2, "needs channels_last and two 16-bit channels that are read together"),
}


@functools.cache
def _lines(path: Path) -> list[str]:
    return path.read_text().split("\n")


def reason_of(place: str) -> tuple[str, str] | None:
    """The key in REASONS of ``file:line``, as the report of ptx_run names a place, or None."""
    name, _, number = place.rpartition(":")
    text = f"<line {number}>" if number != "0" else "<no line>"  # of files that are not the project's
    if number != "0" and (CUDA / name).exists():
        text = _lines(CUDA / name)[int(number) - 1]
    return next((key for key in REASONS if key[0] == name and key[1] in text), None)
