"""Compile budgets of fft: all passes of float32 by FFT. The block with the most FFMAs is a transform of one item."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90a, 100, 120; FFMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "fft_14 fwd": Budget((54, 54, 54, 56, 48, 48), 30, 0, 8, 0.3),
    "fft_20 fwd": Budget((56, 56, 56, 61, 58, 58), 12, 0, 6, 0.19),
    "fft_28 fwd": Budget((48, 48, 48, 48, 55, 55), 30, 0, 8, 0.3),
    "fft_36 fwd": Budget((57, 57, 57, 63, 56, 56), 44, 0, 10, 0.33),
    "fft_42 fwd": Budget((61, 61, 61, 60, 64, 64), 36, 0, 6, 0.33),
    "fft_56 fwd": Budget((72, 72, 72, 71, 72, 72), 30, 0, 8, 0.29),
    "fft_63 fwd": Budget((64, 62, 62, 64, 63, 63), 74, 0, 7, 0.4),
    "fft_72 fwd": Budget((72, 72, 72, 71, 72, 72), 44, 0, 10, 0.35),
    "fft_90 fwd": Budget((107, 107, 107, 106, 117, 117), 68, 0, 10, 0.27),
    "fft_112 fwd": Budget((128, 121, 121, 123, 126, 128), 72, 0, 16, 0.17),
    "fft_14 weight": Budget((55, 55, 55, 56, 48, 48), 30, 0, 8, 0.3),
    "fft_20 weight": Budget((56, 56, 56, 52, 60, 60), 12, 0, 6, 0.18),
    "fft_28 weight": Budget((63, 63, 63, 62, 48, 49), 30, 0, 8, 0.29),
    "fft_36 weight": Budget((61, 61, 61, 61, 61, 61), 44, 0, 10, 0.33),
    "fft_42 weight": Budget((77, 77, 77, 80, 79, 79), 30, 0, 8, 0.31),
    "fft_56 weight": Budget((94, 94, 94, 96, 96, 96), 30, 0, 8, 0.31),
    "fft_63 weight": Budget((89, 89, 89, 80, 80, 80), 44, 0, 10, 0.34),
    "fft_72 weight": Budget((128, 128, 128, 128, 108, 110), 44, 0, 10, 0.34),
    "fft_90 weight": Budget((115, 115, 115, 116, 115, 115), 44, 0, 10, 0.35),
    "fft_112 weight": Budget((121, 121, 121, 119, 108, 108), 44, 0, 7, 0.37),
}


def variants() -> dict[tuple[str, int, int], str]:
    """(pass, q, p) of every line of the two tables of variants."""
    text = (CUDA / "fft_variants.h").read_text()
    found = {}
    for pass_ in ("fwd", "weight"):
        table = text.split(f"#define FFT_{pass_.upper()}_VARIANTS(X)")[1].split("\n\n")[0]
        for name, q, p in re.findall(r'X\("(\w+)",\s*(\d+),\s*(\d+),', table):
            found[pass_, int(q), int(p)] = f"{name} {pass_}"
    return found


def variant_of(symbol: str) -> str | None:
    """Variant of a kernel's mangled name; None: the reduction of bwd_weight's splits."""
    found = re.search(r"fft_(fwd|weight)_kernelILi(\d+)ELi(\d+)E", symbol)
    return variants()[found[1], int(found[2]), int(found[3])] if found else None


FAMILY = Family(
    "fft", {"fft_fwd.cu": ARCHS, "fft_weight.cu": ARCHS}, BUDGETS, variant_of, list(variants().values()), work="FFMA"
)
