"""Bugs planted in the Toeplitz kernels of fwd and bwd_input."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import emulator_harness as harness
import torch
from emulator_harness import Case
from mutants import SMALLEST, Mutants, keep_lines

ONE_SM = (90, 1, 227 << 10, 228 << 10)  # several turns or channels a block even where there is little to do
KEPT = ("rt_3x2_w", "rt_3x4_t", "rt_1x1_w", "rt_5x3_sq")

# name: (file, text, replacement)
BUGS = {
    "no barrier before the table": (
        "toeplitz_fwd/toeplitz_fwd.cuh",
        "    __syncthreads();\n    build_table",
        "    build_table",
    ),
    "no barrier after the table": (
        "toeplitz_fwd/toeplitz_fwd.cuh",
        "    ptx::cp_async_wait<0>();\n    __syncthreads();\n",
        "    ptx::cp_async_wait<0>();\n",
    ),
    "no wait for the input": ("toeplitz_fwd/toeplitz_fwd.cuh", "    ptx::cp_async_wait<0>();\n", ""),
    "no barrier between filter parts": ("toeplitz_fwd/toeplitz_fwd.cuh", "    if (pass > 0) __syncthreads();", "    "),
    "transpose read too early": (
        "toeplitz_fwd/tile.cuh",
        "pixel * 2) = ptx::from_float<kBf16>(activate(acc[c][e] + bias, a.activation));\n  __syncwarp();\n",
        "pixel * 2) = ptx::from_float<kBf16>(activate(acc[c][e] + bias, a.activation));\n",
    ),
    "transpose overwritten too early": (
        "toeplitz_fwd/tile.cuh",
        "  __syncwarp();\n#pragma unroll\n  for (int c = 0; c < kChunks; ++c)",
        "#pragma unroll\n  for (int c = 0; c < kChunks; ++c)",
    ),
    "warps share a scratch": ("toeplitz_fwd/toeplitz_fwd.cuh", "scratch + warp * transpose_bytes(kChunks)", "scratch"),
    "quad order": (
        "toeplitz_fwd/tile.cuh",
        "make_uint4(here, before, after, here)",
        "make_uint4(here, after, before, here)",
    ),
    "filter not flipped along x": ("toeplitz_fwd/tile.cuh", "row[a.flip ? a.kw - 1 - kx : kx]", "row[kx]"),
    "row groups start too low": (
        "toeplitz_fwd/geometry.cpp",
        "-(ceil_div(all_pairs, pairs) - 1) * pairs,",
        "-(ceil_div(all_pairs, pairs) - 2) * pairs,",
    ),
    "rotation off by one": (
        "toeplitz_fwd/toeplitz_fwd.cuh",
        "t.multiply(i, v[(u - i + kPairs) % kPairs]);\n        }",
        "t.multiply(i, v[u]);\n        }",
    ),
    "last filter row lost": (
        "toeplitz_fwd/geometry.cpp",
        "const int rows = (kh - r.ky0 + of_pair - 2) / of_pair + 1;",
        "const int rows = (kh - r.ky0 + of_pair - 2) / of_pair;",
    ),
    "plane one pair too small": ("toeplitz_fwd/plan.cpp", ": t.part_rows) - 1);", ": t.part_rows) - 2);"),
    "odd rows keep a neighbour": ("toeplitz_fwd/tile.cuh", "e + 1 < columns;", "e + 1 <= columns;"),
    "half a row too many": (
        "toeplitz_fwd/tile.cuh",
        "if (e < columns) *reinterpret_cast<uint32_t*>(dst + e)",
        "*reinterpret_cast<uint32_t*>(dst + e)",
    ),
    "bias after the activation": (
        "toeplitz_fwd/tile.cuh",
        "activate(acc[c][e] + bias, a.activation)",
        "activate(acc[c][e], a.activation) + bias",
    ),
    "channels share a filter": (
        "toeplitz_fwd/tile.cuh",
        "static_cast<size_t>(channel) * a.kh * a.kw",
        "static_cast<size_t>(0) * a.kh * a.kw",
    ),
    "first row of a 4x4 table too low": (
        "toeplitz_fwd/geometry.cpp",
        "r.shift = floor_div(pad - offset + of_pair - 1, of_pair);",
        "r.shift = floor_div(pad - offset + 1, of_pair);",
    ),
    "rows of a 4x4 fragment lost": (
        "toeplitz_fwd/tile.cuh",
        "(in / kColumns - out / kColumns + kLine - 1) * kWidth",
        "(kLine - 1) * kWidth",
    ),
    "a line's second row is its first": ("toeplitz_fwd/tile.cuh", "a.row_offset + in_line;", "a.row_offset;"),
    "rows of a line swapped": ("toeplitz_fwd/tile.cuh", "u[row * kWords + i]", "u[(kLine - 1 - row) * kWords + i]"),
    "a row below the plane stored": (
        "toeplitz_fwd/tile.cuh",
        "if (row == 0 || oy + row < a.ho) store_piece",
        "store_piece",
    ),
    "no barrier before a staged table": (
        "toeplitz_fwd/staged.cuh",
        "stage_filter(channel0);\n          __syncthreads();\n",
        "stage_filter(channel0);\n",
    ),
    "no barrier after a staged table": (
        "toeplitz_fwd/staged.cuh",
        "      __syncthreads();\n      if constexpr (Element::kFloat) {\n        if (turn",
        "      if constexpr (Element::kFloat) {\n        if (turn",
    ),
    "outputs staged over input in use": (
        "toeplitz_fwd/staged.cuh",
        "__syncthreads();\n      if (!works ||",
        "if (!works ||",
    ),
    "stored before all is staged": (
        "toeplitz_fwd/staged.cuh",
        "    __syncthreads();\n    with_access",
        "    with_access",
    ),
    "next images before the store": ("toeplitz_fwd/staged.cuh", "if (turn > 0) __syncthreads();", ""),
    "the last turn goes too far": (
        "toeplitz_fwd/staged.cuh",
        "(blockIdx.y * turns + turn)",
        "(blockIdx.y * turns + turn + 1)",
    ),
    "channels share an input": (
        "toeplitz_fwd/staged.cuh",
        "smem + input_at + (member * a.block_groups + group) * a.plane +\n                ((q",
        "smem + input_at + group * a.plane +\n                ((q",
    ),
    "halves of tf32 swapped": ("toeplitz_fwd/staged.cuh", "&b[in][2 * part]", "&b[in][2 - 2 * part]"),
    "lo of the input lost": ("toeplitz_fwd/staged.cuh", "&b[in][part == 1 ? 2 : 0]", "&b[in][0]"),
    "lo of the filter lost": ("toeplitz_fwd/staged.cuh", "v[2 * d + (part == 2)]", "v[2 * d]"),
    "channels of a pixel swapped": ("toeplitz_fwd/staged_tile.cuh", "i % 2 == 0 ? (left", "i % 2 == 1 ? (left"),
    "a channel too few": ("toeplitz_fwd/staged.cuh", "min(a.block_channels, a.c - channel0)", "a.block_channels"),
    "access wider than the channels allow": (
        "toeplitz_fwd/launch.h",
        "taken = (p.c | a.block_channels) * bytes",
        "taken = a.block_channels * bytes",
    ),
    "odd slots not swapped": ("toeplitz_fwd/staged_tile.cuh", "(e & 1 ^ swap)", "(e & 1)"),
    "part of the filter cleared": ("toeplitz_fwd/staged.cuh", "if (pass == 0) t.clear();", "t.clear();"),
    "input of the first part only": (
        "toeplitz_fwd/staged.cuh",
        "step > 0 && !a.load_once",
        "step > 99 && !a.load_once",
    ),
    "columns beyond the image kept": (
        "toeplitz_fwd/staged_tile.cuh",
        "inside ? width - x : 0};\n  return",
        "inside ? 8 : 0};\n  return",
    ),
}

CASES = [
    Case(9, 2, 13, 14, 9, bias=True, activation="relu"),
    Case(1, 1, 23, 14, 5, flip=True),
    Case(2, 1, 30, 35, (31, 30), limits=SMALLEST),
    Case(3, 1, 7, 7, 5, shift=1),
    Case(2, 1, 9, 13, 4, shift=1),
    Case(2, 2, 12, 26, 5, shift=2),
    Case(9, 2, 13, 12, 13, bias=True, limits=ONE_SM),  # in 4x4 tiles, like the next
    Case(1, 1, 25, 11, (11, 14), shift=1, limits=ONE_SM),
    Case(9, 11, 9, 14, 9, bias=True, channels_last=True, limits=ONE_SM),
    Case(2, 8, 5, 13, 5, channels_last=True, limits=ONE_SM),
    Case(1, 2, 12, 20, (25, 37), channels_last=True, limits=SMALLEST),
    Case(1, 1, 12, 20, (35, 45), dtype="float32", precision="tf32", limits=SMALLEST),
    Case(25, 1, 9, 14, 5, dtype="float32", precision="tf32", limits=ONE_SM, bias=True),
    Case(9, 6, 6, 14, 5, dtype="float32", precision="tf32", channels_last=True, limits=ONE_SM),
    Case(17, 1, 6, 14, 5, dtype="float32", precision="bf16x3", limits=ONE_SM),
]


def cut(cuda: Path) -> None:
    """Leaves the lines of KEPT, staged or not."""
    keep_lines("toeplitz_fwd/variants.h", "TOEPLITZ_FWD_VARIANTS", KEPT)(cuda)
    staged = cuda / "toeplitz_fwd/staged_variants.h"
    lines = [line for line in staged.read_text().split("\n") if 'X("' not in line or line.split('"')[1] in KEPT]
    staged.write_text("\n".join(lines).replace("\\\n\n", "\n\n") + "\n")


def check_both_halves(emulator: ModuleType, case: Case) -> None:
    """Multiples of 257, which take hi and lo, on either side: the products of bf16x3 are exact all the same."""
    inputs = harness.exact_inputs(case)
    for name in ("x", "w"):
        scaled = {**inputs, name: inputs[name] * 257}
        got, want = harness.run(emulator, case, scaled)["out"], harness.reference(case, scaled)["out"]
        assert torch.equal(got.double(), want), "lo is lost"


def check(emulator: ModuleType, case: Case) -> None:
    """Exact, and in bf16x3 with values that take both halves."""
    harness.check_exact(emulator, case)
    if case.precision == "bf16x3":
        check_both_halves(emulator, case)


MUTANTS = Mutants("toeplitz_fwd", BUGS, CASES, cut, check)
