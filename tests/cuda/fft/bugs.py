"""Bugs planted in the FFT kernels."""

from __future__ import annotations

from types import ModuleType

from emulator_harness import Case
from mutants import Mutants

from .harness import check_close, cut_variants, fft

# name: (file, text, replacement)
BUGS = {
    "no barrier after the load": (
        "fft/fft.cuh",
        "      __syncthreads();\n      f.rows_first(w, which",
        "      f.rows_first(w, which",
    ),
    "no wait for the load": ("fft/fft.cuh", "    ptx::cp_async_wait<0>();\n", ""),
    "no barrier between the parts of rows": (
        "fft/fft.cuh",
        "Transform::skew(w, now));\n      __syncthreads();\n",
        "Transform::skew(w, now));\n",
    ),
    "no barrier before the columns": (
        "fft/fft.cuh",
        "      f.rows_second(w, which);\n      __syncthreads();\n",
        "      f.rows_second(w, which);\n",
    ),
    "no barrier before the inverse over columns": (
        "fft/fft.cuh",
        "      __syncthreads();\n      f.template columns<1>(tables->in_y[2]);",
        "      f.template columns<1>(tables->in_y[2]);",
    ),
    "no barrier before the inverse over rows": (
        "fft/fft.cuh",
        "      __syncthreads();\n      f.rows_inverse_second(a.to);",
        "      f.rows_inverse_second(a.to);",
    ),
    "no barrier before the store": (
        "fft/fft.cuh",
        "      f.rows_inverse_second(a.to);\n      __syncthreads();\n",
        "      f.rows_inverse_second(a.to);\n",
    ),
    "columns outside the window are read": ("fft/transform.cuh", "if (x < w.columns) v[q] =", "v[q] ="),
    "rows outside the window are read": ("fft/transform.cuh", "if (kSign > 0 || (mask >> q & 1)) v[q]", "v[q]"),
    "untangled with the wrong mirror": (
        "fft/transform.cuh",
        "untangle(u[k], v[(kP - k) % kP], column_of(k));",
        "untangle(u[k], v[k], column_of(k));",
    ),
    "filter not conjugate": ("fft/fft.cuh", "-a.scale * v[k].im}", "a.scale * v[k].im}"),
    "gradient not conjugate": (
        "fft/fft.cuh",
        "sum[round][k].im += v[k].im * g.re - v[k].re * g.im;",
        "sum[round][k].im += v[k].im * g.re + v[k].re * g.im;",
    ),
    "no zeros outside the image": ("fft/transform.cuh", "          else *reinterpret_cast<uint32_t*>(to) = 0;\n", ""),
    "rows of the store swapped": ("fft/transform.cuh", "(column[c] < kHalf ? first", "(column[c] >= kHalf ? first"),
    "one row too many": ("fft/transform.cuh", "if (row1 < rows)", "if (row1 <= rows)"),
    "taps that nothing meets are left out": (
        "fft/fft.cuh",
        "column >= a.to.columns) fft_write<type>(a.out, out + i, 0.f);",
        "column >= a.to.columns) continue;",
    ),
    "tiles start too low": (
        "fft/plan.cpp",
        "static_cast<int>(low), static_cast<int>(step),",
        "static_cast<int>(low + 1), static_cast<int>(step),",
    ),
    "length one too short": ("fft/plan.cpp", "std::max(high + out, in - low)", "std::max(high + out, in - low) - 1"),
    "filter not flipped along x": ("fft/plan.cpp", "sign * p_.kw, sign,", "sign * p_.kw, 1,"),
    "splits overlap": ("fft/launch.cu", "a.out_split = elements;", "a.out_split = elements - 1;"),
    "last split left out": (
        "weight_sum.cu",
        "for (int s = 1; s < a.splits; ++s)",
        "for (int s = 2; s < a.splits; ++s)",
    ),
    "bias gradient of the wrong channel": (
        "weight_sum.cu",
        "channel * a.bias_channel :",
        "0 * a.bias_channel :",
    ),
    "bias after the activation": (
        "fft/fft.cuh",
        "activate(v + bias, a.activation)",
        "activate(v, a.activation) + bias",
    ),
    "bfloat16 taken for float16": (
        "fft/transform.cuh",
        "ptx::to_float<kType == FftDType::bf16>",
        "ptx::to_float<kType != FftDType::bf16>",
    ),
    "tiles that start at an odd column": ("fft/transform.cuh", " & (w.unit - 1);", " & 0;"),
    "words of odd rows": ("fft/launch.cu", "width % 2 == 0", "width % 2 < 2"),
    "partial sums of 16 bit": ("fft/launch.cu", "in_splits ? FftDType::f32 : a.dtype;", "a.dtype;"),
    "sums in the wrong dtype": ("weight_sum.cu", "sum, a.dtype);", "sum, 0);"),
    "turn the wrong way": (
        "fft/codelets.cuh",
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
    fft(1, 1, 9, 40, k=(3, 15), dtype="bfloat16", limits=ONE_SM),
    fft(20, 2, 5, 5, k=3, bias=True, pass_="bwd_weight", dtype="float16"),
]


def check(emulator: ModuleType, case: Case) -> None:
    """Random data within the tolerance."""
    check_close(emulator, case)


MUTANTS = Mutants("fft", BUGS, CASES, cut_variants, check)
