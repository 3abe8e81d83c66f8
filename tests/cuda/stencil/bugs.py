"""Bugs planted in the stencil kernels."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import emulator_harness as harness
from emulator_harness import H200, Case
from mutants import SMALLEST, Mutants, keep_lines

# name: (file, text, replacement)
BUGS = {
    "no barrier after the filter": (
        "stencil/stencil.cuh",
        "  __syncthreads();\n  const int number", "  const int number",
    ),
    "no barrier after the ring": ("stencil/stencil.cuh", "  __syncthreads();\n  if ((thread", "  if ((thread"),
    "no barrier between the sums": (
        "stencil/stencil.cuh",
        "  __syncthreads();\n  const int taps = rows",
        "  const int taps = rows",
    ),
    "threads share a ring": ("stencil/stencil.cuh", "(smem) + threadIdx.x;", "(smem) + (threadIdx.x & ~1u);"),
    "the ring is too short": ("stencil/variants.h", "return rows == 3 ? 3", "return rows == 3 ? 2"),
    "the ring turns too late": ("stencil/stencil.cuh", "turned + 1 < kRing ?", "turned < kRing ?"),
    "the ring turns the wrong way": ("stencil/stencil.cuh", "turned - ago + kRing", "turned - ago + kRing - 1"),
    "sums are not passed on": ("stencil/stencil.cuh", "j > 0 ? sums[j - 1][i][v] : bias[v];", "sums[j][i][v];"),
    "sums start with the last": (
        "stencil/stencil.cuh",
        "sums[j - 1][i][v] : bias[v];", "sums[j - 1][i][v] : sums[0][i][v];",
    ),
    "a row of the tile is skipped": (
        "stencil/stencil.cuh",
        "static_cast<unsigned>(met_rows)) con",
        "static_cast<unsigned>(met_rows - 1)) con",
    ),
    "rows below the image are skipped": ("stencil/stencil.cuh", "met = met || __ballot", "met = __ballot"),
    "the next row is read twice": ("stencil/stencil.cuh", "    ++y, in += a.in.row;\n", "    ++y;\n"),
    "rows below the output are stored": (
        "stencil/stencil.cuh",
        "step - (kTaps - 1) < a.out.h)",
        "step - (kTaps - 1) < a.out.h + 1)",
    ),
    "columns past the output are stored": ("stencil/tile.cuh", "if (i < columns) *to", "if (i <= columns) *to"),
    "pairs past the output are stored": ("stencil/tile.cuh", "      if (i >= columns) continue;\n", ""),
    "pieces past the output are stored": ("stencil/tile.cuh", "if (2 * i < columns) ptx", "ptx"),
    "an absent channel is stored": ("stencil/tile.cuh", "if (second) to[1]", "to[1]"),
    "an absent channel is read": ("stencil/tile.cuh", "if (second) words", "words"),
    "channels past the last are read": ("stencil/stencil.cuh", "item.exists && channel < a.c;", "item.exists;"),
    "columns outside are read": ("stencil/tile.cuh", "if (mask >> kAt & 1) v", "v"),
    "the first column is off by one": (
        "stencil/tile.cuh",
        "kSkip = kHalo - kTaps / 2;",
        "kSkip = kHalo - kTaps / 2 + (kLast ? 0 : 1);",
    ),
    "unaligned tensors": ("stencil/launch.cu", "reinterpret_cast<uint64_t>(at) | ", ""),
    "unaligned rows": ("stencil/launch.cu", "static_cast<uint64_t>((last ? c : w) * size) | ", ""),
    "filter not flipped": ("stencil/stencil.cuh", "a.flip ? a.kh * a.kw - 1 - own_tap : own_tap", "own_tap"),
    "filter at the wrong column": ("stencil/stencil.cuh", "at / kChannels - a.left, c", "at / kChannels, c"),
    "gradient at the wrong column": ("stencil/stencil.cuh", "tap % a.kw + a.left;", "tap % a.kw;"),
    "a smaller filter starts at the top": ("stencil/stencil.cuh", "(row - a.top) * a.kw", "row * a.kw"),
    "a smaller filter is met too early": ("stencil/stencil.cuh", "step = a.top; step", "step = 0; step"),
    "sums pass a smaller filter's missing rows": (
        "stencil/stencil.cuh",
        "min(a.tile_rows, step + 1 - a.top)", "a.tile_rows",
    ),
    "a part starts too early": ("stencil/stencil.cuh", "= part * a.part_rows", "= part * a.part_rows / 2"),
    "a part lacks a row": ("stencil/stencil.cuh", "max(0, step - rows + 1)", "max(0, step - rows + 2)"),
    "parts see the same rows": ("stencil/stencil.cuh", "item.y - a.pad_top + filter_row;", "item.y - a.pad_top;"),
    "parts share their place": ("stencil/stencil.cuh", "all_taps : filter_row * a.kw + tap;", "all_taps : tap;"),
    "too few parts": ("stencil/plan.cpp", "weight ? ceil_div(p.kh, v.rows) : 1;", "1;"),
    "channels share a filter": ("stencil/stencil.cuh", "load_quad(filter + own * kPitch", "load_quad(filter"),
    "bias after the activation": (
        "stencil/stencil.cuh",
        "activate(sums[kTaps - 1][i][v], a.activation)",
        "activate(sums[kTaps - 1][i][v] - bias[v], a.activation) + bias[v]",
    ),
    "no bias where rows are skipped": ("stencil/stencil.cuh", "[i] = bias[i % kChannels];", "[i] = 0;"),
    "bias of the first channel": (
        "stencil/stencil.cuh",
        "load_stored<T>(a.bias, channel + v",
        "load_stored<T>(a.bias, channel",
    ),
    "halves are swapped": (
        "stencil/tile.cuh",
        "half % 2 ? word & 0xffff0000 : word << 16",
        "half % 2 ? word << 16 : word & 0xffff0000",
    ),
    "bf16 read as fp16": ("stencil/tile.cuh", "if (!kHalf || dtype == 2) unpack", "if (!kHalf) unpack"),
    "bias' gradient lacks rows": ("stencil/stencil.cuh", "- lost) || (j > 0 && !meets))", "- lost) || !meets)"),
    "a turn is lost": ("stencil/stencil.cuh", "turn < a.turns; ++turn", "turn + (a.turns > 1) < a.turns; ++turn"),
    "lanes are not summed": (
        "stencil/stencil.cuh",
        "for (int bit = lanes; bit < 32", "for (int bit = 2 * lanes; bit < 32",
    ),
    "a warp is not summed": (
        "stencil/stencil.cuh",
        "w < kStencilThreads / 32; ++w", "w < kStencilThreads / 32 - 1; ++w",
    ),
    "splits share partials": (
        "stencil/stencil.cuh",
        "static_cast<int64_t>(split) * a.c", "static_cast<int64_t>(0) * a.c",
    ),
    "splits are not summed": ("stencil/launch.cu", "if (plan.splits == 1) return 0;", "return 0;"),
    "tiles lack the last rows": ("stencil/plan.cpp", "count(ceil_div(p.ho, tile_rows))", "count(p.ho / tile_rows)"),
    "strips lack the last columns": (
        "stencil/plan.cpp",
        "strips_ = ceil_div(p.wo, v.columns());",
        "strips_ = std::max<int64_t>(1, p.wo / v.columns());",
    ),
    "the workspace is too small": ("stencil/plan.cpp", "(p_.kh * p_.kw + 1) * 4; }", "p_.kh * p_.kw * 4; }"),
}  # fmt: skip

HALF = Case(20, 3, 9, 20, 3, bias=True, dtype="bfloat16", limits=SMALLEST)  # one SM: threads of several rows
LAST = Case(3, 5, 9, 15, 3, bias=True, channels_last=True, limits=SMALLEST)
FLOAT = Case(20, 2, 13, 21, 5, bias=True, dtype="float32", limits=SMALLEST)
CASES = [
    HALF.but(activation="relu", flip=True),
    HALF.but(n=2, w=16, k=(2, 3), limits=H200),
    HALF.but(w=15, shift=1, k=(3, 2), pad=(1, 1, 0, 2)),
    HALF.but(pass_="bwd_weight", k=(3, 2), pad=(1, 1, 0, 2)),
    HALF.but(pass_="bwd_weight", n=40, w=16, limits=H200),
    LAST,
    LAST.but(c=70, k=(2, 3), pad=(2, 0, 1, 0), dtype="bfloat16", limits=H200),
    LAST.but(c=6, pass_="bwd_weight", n=40, shift=1, limits=H200),
    LAST.but(c=6, pass_="bwd_weight", k=(3, 2), n=60),  # threads with several items
    FLOAT,
    FLOAT.but(n=3, w=12, k=(4, 5), flip=True),
    FLOAT.but(pass_="bwd_weight", n=3),
    FLOAT.but(pass_="bwd_weight", n=40, h=5),
    FLOAT.but(pass_="bwd_weight", h=9, n=9, pad=(6, 0, 2, 2)),
    FLOAT.but(w=16, n=2, pad=(1, 4, 2, 2), limits=H200),
]


def cut(cuda: Path) -> None:
    """Leaves three lines; bwd_weight of 5 x 5 goes in parts, and its ring is no power of two."""
    keep_lines("stencil/variants.h", "STENCIL_HALF_VARIANTS", ("3_half", "3_half_cl"))(cuda)
    keep_lines("stencil/variants.h", "STENCIL_FLOAT_VARIANTS", ("5_f32",))(cuda)
    table = cuda / "stencil/variants.h"
    text, count = re.subn(r'(X\("5_f32",.*?), 5, (\d+)\)', r"\1, 3, \2)", table.read_text())
    assert count == 1 and "rows == 3 ? 4" in text
    table.write_text(text.replace("rows == 3 ? 4", "rows == 3 ? 3"))


def more(emulator: ModuleType) -> list[str]:
    """NaN keeps to the outputs that see it, also where the filter has fewer rows than the kernel."""
    for k in (3, (2, 3)):
        case = LAST.but(bias=False, k=k, n=60)  # tiles of several rows
        inputs = harness.exact_inputs(case)
        inputs["w"] += 3
        inputs["x"][0, 0, 4, 4] = float("nan")
        got, want = harness.run(emulator, case, inputs)["out"], harness.reference(case, inputs)["out"]
        if not (got.isnan().equal(want.isnan()) and got.nan_to_num().double().equal(want.nan_to_num())):
            return ["NaN left its receptive field"]
    return []


MUTANTS = Mutants("stencil", BUGS, CASES, cut, more=more)
