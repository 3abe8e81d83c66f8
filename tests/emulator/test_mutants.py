"""Bugs planted in the CUDA sources: the values or the race check must notice each one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # when run as a program
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import emulator_build
import emulator_harness as harness
import pytest
from emulator_harness import Case

# name: (file, text, replacement)
MUTANTS = {
    "no barrier before the table": ("rt_fwd.cuh", "    __syncthreads();\n    build_table", "    build_table"),
    "no barrier after the table": (
        "rt_fwd.cuh",
        "    ptx::cp_async_wait<0>();\n    __syncthreads();\n",
        "    ptx::cp_async_wait<0>();\n",
    ),
    "no wait for the input": ("rt_fwd.cuh", "    ptx::cp_async_wait<0>();\n", ""),
    "no barrier between filter parts": ("rt_fwd.cuh", "    if (pass > 0) __syncthreads();", "    "),
    "transpose read too early": (
        "rt_fwd_tile.cuh",
        "column * 2) = ptx::from_float<kBf16>(activate(acc[c][e] + bias, a.activation));\n  __syncwarp();\n",
        "column * 2) = ptx::from_float<kBf16>(activate(acc[c][e] + bias, a.activation));\n",
    ),
    "transpose overwritten too early": (
        "rt_fwd_tile.cuh",
        "  __syncwarp();\n#pragma unroll\n  for (int c = 0; c < kChunks; ++c)",
        "#pragma unroll\n  for (int c = 0; c < kChunks; ++c)",
    ),
    "warps share a scratch": ("rt_fwd.cuh", "scratch + warp * transpose_bytes(kChunks)", "scratch"),
    "quad order": ("rt_fwd_tile.cuh", "make_uint4(here, before, after, here)", "make_uint4(here, after, before, here)"),
    "filter not flipped along x": ("rt_fwd_tile.cuh", "row[a.flip ? a.kw - 1 - kx : kx]", "row[kx]"),
    "row groups start too low": (
        "rt_fwd_plan.cpp",
        "-(slots - 1) * pairs, ceil_div(h",
        "-(slots - 2) * pairs, ceil_div(h",
    ),
    "rotation off by one": (
        "rt_fwd.cuh",
        "t.multiply(i, v[(u - i + kPairs) % kPairs]);\n        }",
        "t.multiply(i, v[u]);\n        }",
    ),
    "last filter row lost": (
        "rt_fwd_plan.cpp",
        "const int rows = (kh - r.ky0) / 2 + 1;",
        "const int rows = (kh - r.ky0) / 2;",
    ),
    "plane one pair too small": ("rt_fwd_plan.cpp", "t.pairs + t.pass_rows - 1);", "t.pairs + t.pass_rows - 2);"),
    "odd rows keep a neighbour": ("rt_fwd_tile.cuh", "e + 1 < columns;", "e + 1 <= columns;"),
    "half a row too many": (
        "rt_fwd_tile.cuh",
        "if (e < columns) *reinterpret_cast<uint32_t*>(dst + e)",
        "*reinterpret_cast<uint32_t*>(dst + e)",
    ),
    "bias after the activation": (
        "rt_fwd_tile.cuh",
        "activate(acc[c][e] + bias, a.activation)",
        "activate(acc[c][e], a.activation) + bias",
    ),
    "channels share a filter": (
        "rt_fwd_tile.cuh",
        "static_cast<size_t>(channel) * a.kh * a.kw",
        "static_cast<size_t>(0) * a.kh * a.kw",
    ),
}

# Of bwd_weight, likewise; each is looked for with the cases of its pass.
WEIGHT_MUTANTS = {
    "rtw: no barrier of a stage": (
        "rt_weight.cuh",
        "      __syncthreads();  // the stage's rows have arrived, those before it are free\n",
        "",
    ),
    "rtw: no wait for a stage": (
        "rt_weight.cuh",
        "      if (a.ahead == 1) ptx::cp_async_wait<0>();\n      else",
        "      if (0)",
    ),
    "rtw: waits for a stage too few": (
        "rt_weight.cuh",
        "if (a.ahead == 1) ptx::cp_async_wait<0>();",
        "if (a.ahead == 1) ptx::cp_async_wait<1>();",
    ),
    "rtw: no barrier before the diagonals": (
        "rt_weight.cuh",
        "  __syncthreads();  // shared memory now holds tiles and sums\n",
        "",
    ),
    "rtw: no __syncwarp before the diagonals": (
        "rt_weight.cuh",
        "make_float2(acc[j][d][2 * h], acc[j][d][2 * h + 1]);\n      __syncwarp();\n",
        "make_float2(acc[j][d][2 * h], acc[j][d][2 * h + 1]);\n",
    ),
    "rtw: no __syncwarp after the diagonals": (
        "rt_weight.cuh",
        "        }\n      __syncwarp();\n    }\n  }\n}",
        "        }\n    }\n  }\n}",
    ),
    "rtw: half of a diagonal lost": ("rt_weight.cuh", "for (int m = 0; m < 8; ++m)", "for (int m = 0; m < 7; ++m)"),
    "rtw: ring a row short": (
        "rt_weight_plan.cpp",
        "std::min<int64_t>(high - low, 1 << 24)",
        "std::min<int64_t>(high - low - 1, 1 << 24)",
    ),
    "rtw: ring does not wrap for a row": ("rt_weight.cuh", "          if (at >= a.x_ring) at -= a.x_ring;\n", ""),
    "rtw: ring does not wrap for a copy": (
        "rt_weight_tile.cuh",
        "      if (item.to >= r.ring * row_bytes) item.to -= r.ring * row_bytes;\n",
        "",
    ),
    "rtw: grad ring a stage short": (
        "rt_weight.cuh",
        "const int grad_stages = a.ahead + 1;",
        "const int grad_stages = a.ahead;",
    ),
    "rtw: last row offset lost": ("rt_weight_plan.cpp", "static_cast<int>(p.kh) + 1);", "static_cast<int>(p.kh));"),
    "rtw: images past the batch": (
        "rt_weight_tile.cuh",
        "image < a.n && channel < a.c && ix >= 0",
        "channel < a.c && ix >= 0",
    ),
    "rtw: rows past the image": (
        "rt_weight_tile.cuh",
        "static_cast<unsigned>(item.iy) < static_cast<unsigned>(t.h) ? item.columns : 0",
        "item.iy >= 0 ? item.columns : 0",
    ),
    "rtw: splits share partials": (
        "rt_weight.cuh",
        "(static_cast<int64_t>(blockIdx.y) * a.c + channel)",
        "(static_cast<int64_t>(0) * a.c + channel)",
    ),
    "rtw: a split is not added": (
        "rt_weight_launch.cu",
        "for (int s = 1; s < a.splits; ++s)",
        "for (int s = 2; s < a.splits; ++s)",
    ),
    "rtw: parts do not overlap": ("rt_weight.cuh", "down * (row_offsets - 1)", "down * row_offsets"),
    "rtw: bias of one row": ("rt_weight.cuh", "return sum[0] + sum[2];", "return sum[0];"),
    "rtw: bias by every part": ("rt_weight.cuh", "p.first = part == 0;", "p.first = true;"),
    "rtw: second channel of a pair lost": (
        "rt_weight_tile.cuh",
        "v[0] >> 16 | (v[1] & 0xffff0000)",
        "v[0] >> 16 | v[1] << 16",
    ),
    "rtw: low half over the high": (
        "rt_weight_tile.cuh",
        "*reinterpret_cast<uint2*>(to + half_bytes)",
        "*reinterpret_cast<uint2*>(to)",
    ),
}

EVERY = bool(os.environ.get("REPLKNET_EXT_ALL_MUTANTS"))  # by hand; otherwise a few of bwd_weight

# Lines of the variants table that the mutants keep, so that each builds in seconds.
KEPT = ("rt_3x2_w", "rt_3x4_t", "rt_1x1_w", "rtw_3x2_w", "rtw_3x4_t", "rtw_1x1_w", "rtw_3x2_w_bf16x3")
TABLES = (("rt_fwd_variants.h", "RT_FWD_VARIANTS"), ("rt_weight_variants.h", "RT_WEIGHT_VARIANTS"))
SMALLEST = (86, 1, 48 << 10, 49 << 10)
CASES = [
    Case(9, 2, 13, 14, 9, bias=True, activation="relu"),
    Case(1, 1, 23, 14, 5, flip=True),
    Case(2, 1, 30, 35, (31, 30), limits=SMALLEST),
    Case(3, 1, 7, 7, 5, shift=1),
    Case(2, 1, 9, 13, 4, shift=1),
    Case(2, 2, 12, 26, 5, shift=2),
]
WEIGHT = Case(33, 1, 13, 14, 9, bias=True, pass_="bwd_weight", dtype="bfloat16")
WEIGHT_CASES = [
    WEIGHT,
    WEIGHT.but(n=3, c=2, h=7, w=7, k=13, shift=1),
    WEIGHT.but(n=2, h=23, w=37, k=(9, 11)),
    WEIGHT.but(n=1, c=2, h=41, channels_last=True),
    WEIGHT.but(n=5, c=3, h=40, w=8, k=(60, 5), limits=SMALLEST),
    WEIGHT.but(n=5, dtype="float32", precision="bf16x3"),
    WEIGHT.but(n=17, c=8, channels_last=True),
    WEIGHT.but(n=72, h=15, w=16, k=15),  # in splits
]


def sources(folder: Path, mutant: tuple[str, str, str] | None) -> Path:
    """A copy of csrc with few variants and at most one bug; returns its cuda folder."""
    shutil.copytree(emulator_build.CUDA.parent, folder / "csrc", ignore=shutil.ignore_patterns("cpu"))
    cuda = folder / "csrc" / "cuda"
    for header, macro in TABLES:
        table = cuda / header
        head, rest = table.read_text().split(f"#define {macro}(X)", 1)
        lines, tail = rest.split("\nnamespace", 1)
        rows = [line.split("/*")[0].rstrip(" \\") for line in lines.split("\n") if 'X("' in line]
        kept = [row for row in rows if row.split('"')[1] in KEPT]
        table.write_text(f"{head}#define {macro}(X) {' '.join(kept)}\n\nnamespace{tail}")
    if mutant is not None:
        name, text, replacement = mutant
        path = cuda / name
        source = path.read_text()
        assert source.count(text) == 1, f"{name} has {source.count(text)} places like {text!r}"
        path.write_text(source.replace(text, replacement))
    return cuda


def findings(emulator: ModuleType, cases: list[Case]) -> list[str]:
    """What goes wrong in the cases."""
    found = []
    for case in cases:
        for schedule, seed in (("ordered", 0), ("reversed", 0), ("random", 1), ("random", 2)):
            emulator.set_options(schedule, seed)
            try:
                harness.check_exact(emulator, case)
            except AssertionError as error:
                found.append(str(error).split("): ", 1)[-1])
    return found


def notice(folder: Path, mutant: str | None) -> list[str]:
    """Builds and runs in a process of its own: a mutant may crash, and Python loads a module name once."""
    why = emulator_build.missing()
    if why is not None:
        pytest.skip(why)
    every = {**MUTANTS, **WEIGHT_MUTANTS}
    emulator_build.build_module("race")  # objects that every build shares
    emulator_build.build_module("race", folder / "build", sources(folder, every[mutant] if mutant else None))
    passes = ["weight" if mutant in WEIGHT_MUTANTS else "fwd"] if mutant else ["fwd", "weight"]
    done = subprocess.run([sys.executable, __file__, str(folder), *passes], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else [f"crash: {done.returncode} {done.stderr[-300:]}"]


def test_the_unchanged_sources_have_no_finding(tmp_path: Path) -> None:
    assert notice(tmp_path, None) == []


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [*MUTANTS, *(WEIGHT_MUTANTS if EVERY else list(WEIGHT_MUTANTS)[::4])])
def test_every_mutant_is_noticed(tmp_path: Path, mutant: str) -> None:
    found = notice(tmp_path, mutant)
    assert found, "nothing noticed the bug"
    assert not any("Error" in text for text in found), found  # the harness itself must not be what fails


if __name__ == "__main__":
    place = Path(sys.argv[1])
    module = emulator_build.load("race", place / "build", place / "csrc" / "cuda")
    asked = [case for name in sys.argv[2:] for case in (CASES if name == "fwd" else WEIGHT_CASES)]
    print(json.dumps(findings(module, asked)))
