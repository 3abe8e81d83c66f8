"""Bugs planted in the FMA kernels."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import emulator_harness as harness
from emulator_harness import Case
from mutants import SMALLEST, Mutants

NAN = float("nan")

# name: (file, text, replacement)
BUGS = {
    "no wait for the input": ("fma/fma.cuh", "    ptx::cp_async_wait<0>();\n", ""),
    "no barrier after the load": ("fma/fma.cuh", "wait<0>();\n    __syncthreads();\n", "wait<0>();\n"),
    "no barrier between rounds": ("fma/fma.cuh", "    if (round > 0) __syncthreads();", "    "),
    "no barrier before the slices": (
        "fma/fma.cuh",
        "    __syncthreads();\n    if (warp >= items",
        "    if (warp >= items",
    ),
    "no barrier after the slices": (
        "fma/fma.cuh",
        "= sums.acc[i / 4][i % 4];\n    __syncthreads();",
        "= sums.acc[i / 4][i % 4];",
    ),
    "no barrier before the bias gradient's sum": (
        "fma/fma.cuh",
        "      input[threadIdx.x] = grad_sum;\n      __syncthreads();\n",
        "      input[threadIdx.x] = grad_sum;\n",
    ),
    "a slice is lost": (
        "fma/fma.cuh",
        "for (int slice = 1; slice < a.slices",
        "for (int slice = 1; slice + 1 < a.slices",
    ),
    "a slice starts too high": (
        "fma/fma.cuh",
        "item / items * a.slice_rows, f",
        "item / items * (a.slice_rows + 1), f",
    ),
    "an image is lost": ("fma/fma.cuh", "for (int bit = channels; bit", "for (int bit = 2 * channels; bit"),
    "sums are not cleared": ("fma/fma.cuh", "if (!kWeight && round == 0) sums.clear();", ""),
    "no zero rows for merged groups": ("fma/fma.cuh", "(a.merge - 1) * kRows;", "0;"),
    "the last row is clipped": ("fma/fma.cuh", "rows - 1, a.h + above - y0)", "rows - 1, a.h + above - y0 - 1)"),
    "the first window is clipped": (
        "fma/fma.cuh",
        "max(t0, low_window - (group_x0",
        "max(t0, low_window + 1 - (group_x0",
    ),
    "the last window is clipped": ("fma/fma.cuh", "min(t_end - 1, high_window - ", "min(t_end - 1, high_window - 1 - "),
    "the row order repeats a group": ("fma/fma.cuh", "groups / 2 - (i + 1) / 2", "groups / 2 - i / 2"),
    "ragged rows are stored": ("fma/fma.cuh", "if (y + i < a.oh) ", ""),
    "ragged columns are stored": ("ptx.cuh", "if (i < count) to[i * stride]", "to[i * stride]"),
    "bias after the activation": (
        "fma/fma.cuh",
        "activate(sums.acc[i / 4][i % 4] + bias, a.activation)",
        "activate(sums.acc[i / 4][i % 4], a.activation) + bias",
    ),
    "channels share a filter": ("fma/fma.cuh", "w.plane & (channels - 1)) * a.f_plane", "0) * a.f_plane"),
    "an edge row too many": ("fma/tile.cuh", "max(0, p.k - f_rows + 1), high", "max(0, p.k - f_rows), high"),
    "an edge row too few": ("fma/tile.cuh", "high = min(rows - 1, p.k);", "high = min(rows - 1, p.k - 1);"),
    "rotation off by one": ("fma/tile.cuh", "w[(u - i + kRows) % kRows]", "w[(u - i + 1 + kRows) % kRows]"),
    "the first filter rows are not passed on": ("fma/tile.cuh", "w[u + 1] = ptx", "w[u] = ptx"),
    "the last filter rows are mixed up": ("fma/tile.cuh", "w[i - u - 1]);", "w[i - u]);"),
    "a missing tap multiplies": ("fma/tile.cuh", "else if (high == 4) part<1, 4>", "else if (high == 4) part<0, 4>"),
    "a tap is lost": ("fma/tile.cuh", "else if (high == 2) part<0, 2>", "else if (high == 2) part<0, 1>"),
    "the border is not cleared": ("fma/tile.cuh", "else target[x] = T(0);", ""),
    "the tail of zeros is missing": ("fma/tile.cuh", "p.rows + (p.tail > 0)", "p.rows"),
    "a batch's end is read": ("fma/tile.cuh", "image + n < image_end && ", ""),
    "relu drops NaN": ("activation.cuh", "v > T(0) || v != v", "v > T(0)"),
    "filter not flipped along x": ("fma/launch.cu", "-p.kw, -1}", "-p.kw, 1}"),
    "splits are not summed": ("fma/launch.cu", "if (!split) return 0;", "return 0;"),
    "unaligned rows": ("fma/launch.cu", " && a.ow % 4 == 0", ""),
    "unaligned tensors": ("fma/launch.cu", " && reinterpret_cast<uint64_t>(a.out) % 16 == 0", ""),
    "plane one row too small": ("fma/plan.cpp", "* v.rows + t.part_rows - 1);", "* v.rows + t.part_rows - 2);"),
    "rows share a border that is not zeros": ("fma/work.h", "+ origin + 3 < 0 &&", "+ origin < 0 &&"),
}

CASES = [
    case.but(dtype="float32")
    for case in [
        Case(9, 2, 16, 13, 11, bias=True, activation="relu", flip=True),
        Case(2, 3, 30, 9, (4, 6), bias=True, channels_last=True),
        Case(1, 1, 20, 40, (35, 46), limits=SMALLEST),
        Case(1, 1, 56, 9, 9),
        Case(2, 1, 9, 13, 3, shift=1),
        Case(3, 1, 9, 8, 5, shift=2),
        Case(3, 1, 9, 8, 6),
        Case(3, 1, 9, 8, 4, (2, 1, 2, 5), limits=SMALLEST),
        Case(3, 1, 21, 24, 15),
        Case(1, 1, 21, 9, 15, pass_="bwd_weight"),
        Case(5, 2, 16, 13, (11, 9), bias=True, pass_="bwd_weight"),
        Case(9, 3, 17, 10, 5, bias=True, pass_="bwd_weight", channels_last=True),
        Case(3, 1, 60, 61, 5, limits=SMALLEST, bias=True, pass_="bwd_weight"),
    ]
]


def cut(cuda: Path) -> None:
    """Leaves one line of float32."""
    path = cuda / "fma/variants.h"
    before, after = path.read_text().split("#define FMA_VARIANTS(X)", 1)
    path.write_text(before + '#define FMA_VARIANTS(X) X("7x4", float, 7, 16, 1)\n\n' + after.split("\n\n", 1)[1])


def more(emulator: ModuleType) -> list[str]:
    """NaN keeps to its receptive field."""
    found: list[str] = []
    case = Case(2, 1, 12, 12, 7, dtype="float32", activation="relu")
    inputs = harness.exact_inputs(case)
    inputs["w"] += 3
    inputs["x"][0, 0, 4, 4] = NAN
    if not harness.run(emulator, case, inputs)["out"].double().equal(harness.reference(case, inputs)["out"]):
        got, want = harness.run(emulator, case, inputs)["out"], harness.reference(case, inputs)["out"]
        if not (got.isnan().equal(want.isnan()) and got.nan_to_num().double().equal(want.nan_to_num())):
            found.append("NaN left its receptive field")
    return found


MUTANTS = Mutants("fma", BUGS, CASES, cut, more=more)
