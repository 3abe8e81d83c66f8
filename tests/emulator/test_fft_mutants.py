"""Bugs planted in the FFT sources: the values or the race check must notice each one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # when run as a program
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import emulator_build
import pytest
from fft_harness import check_close, cut_variants, fft

# name: (file, text, replacement)
MUTANTS = {
    "no barrier after the load": (
        "fft.cuh",
        "    __syncthreads();\n    f.rows_first(w, which);",
        "    f.rows_first(w, which);",
    ),
    "no wait for the load": ("fft.cuh", "    ptx::cp_async_wait<0>();\n", ""),
    "no barrier between the parts of rows": (
        "fft.cuh",
        "    f.rows_first(w, which);\n    __syncthreads();\n",
        "    f.rows_first(w, which);\n",
    ),
    "next image loaded too early": (
        "fft.cuh",
        "    f.rows_second(w, which);\n    __syncthreads();\n",
        "    f.rows_second(w, which);\n",
    ),
    "no barrier before the inverse over columns": (
        "fft.cuh",
        "    __syncthreads();\n    f.template columns<1>(tables->in_y[2]);",
        "    f.template columns<1>(tables->in_y[2]);",
    ),
    "no barrier before the inverse over rows": (
        "fft.cuh",
        "    __syncthreads();\n    f.rows_inverse_second(a.to);",
        "    f.rows_inverse_second(a.to);",
    ),
    "no barrier before the store": (
        "fft.cuh",
        "    f.rows_inverse_second(a.to);\n    __syncthreads();\n",
        "    f.rows_inverse_second(a.to);\n",
    ),
    "columns outside the window are read": ("fft.cuh", "        if (mask >> q & 1) v[q] =", "        v[q] ="),
    "rows outside the window are read": ("fft.cuh", "if (kSign > 0 || (mask >> q & 1)) v[q]", "v[q]"),
    "untangled with the wrong mirror": (
        "fft.cuh",
        "const Complex mirror = v[(kP - k) % kP];",
        "const Complex mirror = v[k];",
    ),
    "filter not conjugate": ("fft.cuh", "-a.scale * filter[round][k].im", "a.scale * filter[round][k].im"),
    "gradient not conjugate": (
        "fft.cuh",
        "sum[round][k].im += v[k].im * g.re - v[k].re * g.im;",
        "sum[round][k].im += v[k].im * g.re + v[k].re * g.im;",
    ),
    "no zeros outside the image": ("fft.cuh", "          else to[p * (2 * kZs) + place[c]] = 0.f;\n", ""),
    "rows of the store swapped": ("fft.cuh", "(column[c] < kHalf ? first", "(column[c] >= kHalf ? first"),
    "one row too many": ("fft.cuh", "if (row1 < rows)", "if (row1 <= rows)"),
    "taps that nothing meets are left out": (
        "fft.cuh",
        "column >= a.to.columns) out[i] = 0.f;",
        "column >= a.to.columns) continue;",
    ),
    "tiles start too low": (
        "fft_plan.cpp",
        "static_cast<int>(low), static_cast<int>(step),",
        "static_cast<int>(low + 1), static_cast<int>(step),",
    ),
    "length one too short": ("fft_plan.cpp", "std::max(high + out, in - low)", "std::max(high + out, in - low) - 1"),
    "filter not flipped along x": ("fft_plan.cpp", "sign * p_.kw, sign,", "sign * p_.kw, 1,"),
    "splits overlap": ("fft_launch.cu", "a.out_split = elements;", "a.out_split = elements - 1;"),
    "last split left out": (
        "fft_weight.cu",
        "for (int s = 1; s < a.splits; ++s) sum += a.partial[",
        "for (int s = 2; s < a.splits; ++s) sum += a.partial[",
    ),
    "bias gradient of the wrong channel": (
        "fft_weight.cu",
        "static_cast<int64_t>(a.channels) + i]",
        "static_cast<int64_t>(a.channels)]",
    ),
    "bias after the activation": (
        "fft.cuh",
        "fft_activate(v + bias, a.activation)",
        "fft_activate(v, a.activation) + bias",
    ),
    "turn the wrong way": (
        "fft_codelets.cuh",
        "v[k + 1] = {even.re - odd.im, even.im + odd.re};",
        "v[k + 1] = {even.re + odd.im, even.im - odd.re};",
    ),
}

ONE_SM = (90, 1, 227 << 10, 1000)  # one block, which takes all images
CASES = [
    fft(3, 2, 7, 7, k=5, bias=True, activation="relu", limits=ONE_SM),
    fft(2, 1, 9, 12, k=(6, 4), flip=True, limits=ONE_SM),
    fft(2, 1, 23, 31, k=(4, 5), limits=ONE_SM),
    fft(2, 1, 14, 11, k=1, channels_last=True),
    fft(1, 1, 11, 11, k=9, limits=ONE_SM),  # the circle of 14 is one too short
    fft(3, 2, 7, 8, k=5, bias=True, pass_="bwd_weight", limits=ONE_SM),
    fft(20, 2, 5, 5, k=3, bias=True, pass_="bwd_weight"),
    fft(1, 1, 3, 4, k=13, pass_="bwd_weight"),
]


def sources(folder: Path, mutant: tuple[str, str, str] | None) -> Path:
    """A copy of csrc with this family alone, few variants and at most one bug; returns its cuda folder."""
    shutil.copytree(emulator_build.CUDA.parent, folder / "csrc", ignore=shutil.ignore_patterns("cpu"))
    cuda = folder / "csrc" / "cuda"
    for path in cuda.iterdir():
        if path.suffix in (".cu", ".cpp") and not path.name.startswith(("fft", "launch", "dispatch")):
            path.unlink()
    family, launch = cuda / "family.h", cuda / "launch.cu"
    family.write_text(re.sub(r"(#define REPLKNET_EXT_FAMILIES\(X\))(.*\\\n)*.*", r"\1 X(fft)", family.read_text()))
    launch.write_text(re.sub(r"&launch_\w+", "&launch_fft", launch.read_text()))
    cut_variants(cuda)
    if mutant is not None:
        name, text, replacement = mutant
        path = cuda / name
        source = path.read_text()
        assert text in source, f"{name} has no {text!r}"
        path.write_text(source.replace(text, replacement))
    return cuda


def findings(emulator: ModuleType) -> list[str]:
    """What goes wrong in the cases."""
    found = []
    for case in CASES:
        for schedule, seed in (("ordered", 0), ("reversed", 0), ("random", 1), ("random", 2)):
            emulator.set_options(schedule, seed)
            try:
                check_close(emulator, case)
            except AssertionError as error:
                found.append(str(error).split("): ", 1)[-1])
    return found


def notice(folder: Path, mutant: str | None) -> list[str]:
    """Builds and runs in a process of its own: a mutant may crash, and Python loads a module name once."""
    why = emulator_build.missing()
    if why is not None:
        pytest.skip(why)
    emulator_build.build_module("race")  # objects that every build shares
    emulator_build.build_module("race", folder / "build", sources(folder, MUTANTS[mutant] if mutant else None))
    done = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else [f"crash: {done.returncode} {done.stderr[-300:]}"]


def test_the_unchanged_sources_have_no_finding(tmp_path: Path) -> None:
    assert notice(tmp_path, None) == []


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_noticed(tmp_path: Path, mutant: str) -> None:
    found = notice(tmp_path, mutant)
    assert found, "nothing noticed the bug"
    assert not any("Error" in text for text in found), found  # the harness itself must not be what fails


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps(findings(emulator_build.load("race", place / "build", place / "csrc" / "cuda"))))
