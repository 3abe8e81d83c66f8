"""Bugs planted in the kernels for small planes."""

from __future__ import annotations

from pathlib import Path

from emulator_harness import Case
from mutants import Mutants, keep_lines

# The two kernels of bwd_weight wait for a group with the same lines; what follows tells them apart.
GROUP = "      __syncthreads();\n"
AHEAD = """    }
    if (const int next = group + kAhead; next < a.toeplitz.jobs)
#pragma unroll 1
      for (int tensor = 0; tensor < 2; ++tensor)
"""
LOAD_PLANES = AHEAD + "        load_planes("
LOAD_RUNS = AHEAD + "        load_runs("

# name: (file, text, replacement)
BUGS = {
    "no barrier before the next unit": (
        "small_planes/fwd.cuh",
        "    if (unit >= first) __syncthreads();\n",
        "",
    ),
    "no wait for a run": ("small_planes/fwd.cuh", "      ptx::cp_async_wait<1>();\n", ""),
    "no barrier after a run's wait": (
        "small_planes/fwd.cuh",
        "ptx::cp_async_wait<1>();\n      __syncthreads();",
        "ptx::cp_async_wait<1>();",
    ),
    "no barrier before results take the place of inputs": (
        "small_planes/fwd.cuh",
        "s.sum(a, own);\n      __syncthreads();\n",
        "s.sum(a, own);\n",
    ),
    "no barrier before the stores": ("small_planes/fwd.cuh", "    __syncthreads();\n    store_runs", "    store_runs"),
    "the other buffer": (
        "small_planes/fwd.cuh",
        "smem + ((next - first) & (a.buffers - 1))",
        "smem + ((unit - first) & (a.buffers - 1))",
    ),
    "canvas of the channel before": (
        "small_planes/fwd.cuh",
        "      if (drawn != block)\n",
        "      if (drawn < 0)\n",
    ),
    "a neighbour's half word": ("small_planes/fwd.cuh", "(k >= skipped && k < pixels", "(k < pixels"),
    "a neighbour's last word": ("small_planes/fwd.cuh", "(k + 1 < pixels + skipped ?", "(k < pixels + skipped ?"),
    "half a step too few": ("small_planes/fwd.cuh", "if (all - k > 8) step<false, true>", "if (0) step<false, true>"),
    "last tile left out": ("small_planes/fwd.cuh", "if (j + 1 < kN || own == kN)", "if (j + 1 < kN)"),
    "shares shifted": ("small_planes/fwd.cuh", "part * least + min(part, more)", "part * least"),
    "pairs across rows": (
        "small_planes/fwd.cuh",
        "kEven ? 0 : place(a, k + 8 * h + t + 1)",
        "kEven ? 0 : low + 2",
    ),
    "columns of the wrong copy": ("small_planes/fwd.cuh", "a.copy_bytes + 2 * (e - 1)", "a.copy_bytes + 2 * e"),
    "flipped in rows only": ("small_planes/fwd.cuh", "ky = a.kh - 1 - ky, kx = a.kw - 1 - kx;", "ky = a.kh - 1 - ky;"),
    "last result of a plane over its neighbour": (
        "small_planes/fwd.cuh",
        "if (o + 1 < a.y.pixels) to[1]",
        "to[1]",
    ),
    "bias of the first channel": (
        "small_planes/fwd.cuh",
        "load_global(a.bias + channel0 + channel)",
        "load_global(a.bias + channel0)",
    ),
    "images past the batch": (
        "small_planes/tile.cuh",
        "const bool inside = first_image + i < n;",
        "const bool inside = true;",
    ),
    "stores past the batch": ("small_planes/tile.cuh", "i < images && first_image + i < n;", "i < images;"),
    "nothing behind a run": (
        "small_planes/tile.cuh",
        "for (int e = (inside ? elements : 0) + lane;",
        "for (int e = (inside ? 2 * t.pitch : 0) + lane;",
    ),
    "pitch a step short": ("small_planes/plan.cpp", "/ 2 + 8 * s.whole + 4 * s.half);", "/ 2 + 8 * s.whole);"),
    "runs of 8 bytes everywhere": ("small_planes/tile.cuh", "const int m = vec | elements * 2;", "const int m = 8;"),
    "last: no barrier before the products": (
        "small_planes/fwd.cuh",
        "share.channel * a.canvas_bytes);\n  __syncthreads();\n",
        "share.channel * a.canvas_bytes);\n",
    ),
    "last: no barrier before results take the place of inputs": (
        "small_planes/fwd.cuh",
        "s.sum(a, share.own);\n    __syncthreads();\n",
        "s.sum(a, share.own);\n",
    ),
    "last: no barrier before the stores": (
        "small_planes/fwd.cuh",
        "  __syncthreads();\n  move_pixels<true>",
        "  move_pixels<true>",
    ),
    "last: rounds share canvases": ("small_planes/fwd.cuh", "    s.smem += a.round_channels * a.canvas_bytes;\n", ""),
    "last: images past the batch": ("small_planes/tile.cuh", "first_image + i < n ? t.pixels : 0;", "t.pixels;"),
    "last: pixels past the plane are read": ("small_planes/tile.cuh", "if (pixel < pixels)", "if (pixels > 0)"),
    "last: pixels past the plane are stored": ("small_planes/tile.cuh", "if (2 * pair + h < t.pixels)", "if (true)"),
    "last: nothing behind a plane": (
        "small_planes/tile.cuh",
        "all = pieces * (t.plane / 2);",
        "all = pieces * ((t.pixels + 1) / 2);",
    ),
    "last: pixels exchanged": (
        "small_planes/tile.cuh",
        "(a[k] & 0xffff) | b[k] << 16;",
        "(b[k] & 0xffff) | a[k] << 16;",
    ),
    "last: unaligned tensors": ("small_planes/plan.cpp", "const uint64_t m = address | ", "const uint64_t m = "),
    "weight: no barrier of a group": (
        "small_planes/weight.cuh",
        GROUP + LOAD_PLANES,
        LOAD_PLANES,
    ),
    "weight: no wait for a group": (
        "small_planes/weight.cuh",
        "ptx::cp_async_wait<kAhead - 1>();",
        "ptx::cp_async_wait<kAhead>();",
    ),
    "weight: no barrier before the diagonals": (
        "small_planes/weight.cuh",
        "cp_async_wait<0>();\n  __syncthreads();\n  reinterpret_cast<float*>",
        "cp_async_wait<0>();\n  reinterpret_cast<float*>",
    ),
    "weight: ring a group short": (
        "small_planes/weight.cuh",
        "smem + next % kSmallStages * a.stage_bytes",
        "smem + next % kAhead * a.stage_bytes",
    ),
    "weight: columns behind a row not zero": (
        "small_planes/weight.cuh",
        "row < t.h ? t.w / 2 : 0; word < 8;",
        "row < t.h ? 8 : 0; word < 8;",
    ),
    "weight: row behind a plane not zero": (
        "small_planes/weight.cuh",
        "const int rows = t.h + (t.h & 1), all",
        "const int rows = t.h, all",
    ),
    "weight: images past the batch": ("small_planes/weight.cuh", "for (; i < min(16, left);", "for (; i < 16;"),
    "weight: images past the batch not zero": (
        "small_planes/weight.cuh",
        "for (; i < 16; i += 4, to += 4 * pitch)",
        "for (; i < 0;)",
    ),
    "weight: last row offset left out": (
        "small_planes/weight.cuh",
        "if (i < pairs && j < rows)",
        "if (i < pairs && j + 1 < rows)",
    ),
    "weight: bias of half the rows": ("small_planes/weight.cuh", "= bias[0] + bias[2];", "= bias[0];"),
    "weight: chunks exchanged": ("small_planes/weight.cuh", "acc[j][q - c + 1]", "acc[j][c - q + 1]"),
    "weight: lanes left over copy": (
        "small_planes/weight.cuh",
        "row < 4 ? (t.h - row + 3) / 4 : 0;",
        "(t.h - row + 3) / 4;",
    ),
    "weight: no barrier of a group of runs": (
        "small_planes/weight.cuh",
        GROUP + LOAD_RUNS,
        LOAD_RUNS,
    ),
    "weight: ring of runs a group short": (
        "small_planes/weight.cuh",
        "load_runs(smem + next % kSmallStages * a.stage_bytes",
        "load_runs(smem + next % kAhead * a.stage_bytes",
    ),
    "weight: columns of the next row": (
        "small_planes/weight.cuh",
        "g < wo && 2 * j < ho, second = g < wo &&",
        "2 * j < ho, second =",
    ),
    "weight: rows of the next plane": (
        "small_planes/weight.cuh",
        "second = g < wo && 2 * j + 1 < ho;",
        "second = g < wo;",
    ),
    "weight: images exchanged": (
        "small_planes/weight.cuh",
        "load_images(x + 8 * pitch[0], pitch[0], g < w)",
        "load_images(x, pitch[0], g < w)",
    ),
}

ONE_SM = (90, 1, 227 << 10, 1000)  # that holds one block, which has several channels ...
LITTLE = (90, 1, 32 << 10, 33 << 10)  # ... or several units
FWD = Case(5, 5, 7, 7, 7, bias=True, dtype="bfloat16")
WEIGHT = Case(83, 1, 5, 14, 9, bias=True, dtype="bfloat16", pass_="bwd_weight")
CASES = [
    FWD,
    FWD.but(n=3, h=5, w=6, k=(9, 11), flip=True),
    FWD.but(n=200, c=2, h=7, w=8, k=5, limits=LITTLE),
    FWD.but(n=3, c=9, h=7, w=8, k=5, limits=LITTLE),
    FWD.but(n=2, c=14, limits=ONE_SM),
    FWD.but(n=3, c=9, h=7, w=8, k=5, limits=ONE_SM),
    FWD.but(n=2, c=1, h=14, w=14, k=27),
    FWD.but(n=2, c=3, h=3, w=5, k=3, shift=1),
    FWD.but(n=17, c=21, channels_last=True, activation="relu"),
    FWD.but(n=17, c=16, h=7, w=14, k=5, channels_last=True, limits=ONE_SM),  # several rounds
    FWD.but(n=2, c=6, h=5, w=6, k=3, channels_last=True, shift=1),
    WEIGHT,
    WEIGHT.but(n=18, c=2, h=4, w=12, k=3, shift=1),
    WEIGHT.but(n=17, h=14, w=14, k=27),
    WEIGHT.but(n=83, c=6, h=7, w=7, k=13, limits=ONE_SM),
]


def cut(cuda: Path) -> None:
    keep_lines("small_planes/variants.h", "SMALL_FWD_VARIANTS", ("small_g4_even", "small_g4", "small_g1_cl"))(cuda)
    keep_lines("small_planes/variants.h", "SMALL_WEIGHT_VARIANTS", ("small_weight_7x3", "small_weight_14x1"))(cuda)


MUTANTS = Mutants("small_planes", BUGS, CASES, cut)
