"""Compile budgets of fft: all passes by FFT. The block with the most FFMAs is a transform of one item."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; FFMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "fft_14 fwd": Budget((56, 56, 56, 48, 56, 56), 30, 0, 0, 0.36),
    "fft_20 fwd": Budget((54, 54, 54, 48, 55, 63), 12, 0, 0, 0.24),
    "fft_28 fwd": Budget((56, 56, 56, 56, 64, 64), 30, 0, 0, 0.35),
    "fft_36 fwd": Budget((62, 62, 62, 59, 63, 64), 44, 0, 0, 0.4),
    "fft_42 fwd": Budget((64, 64, 64, 62, 64, 64), 36, 0, 6, 0.33),
    "fft_56 fwd": Budget((79, 79, 79, 72, 77, 77), 30, 0, 0, 0.35),
    "fft_63 fwd": Budget((72, 72, 72, 79, 84, 84), 74, 0, 7, 0.42),
    "fft_72 fwd": Budget((79, 79, 79, 72, 72, 76), 44, 0, 0, 0.4),
    "fft_90 fwd": Budget((91, 91, 91, 93, 104, 106), 68, 0, 10, 0.27),
    "fft_112 fwd": Budget((64, 64, 64, 64, 62, 64), 74, 0, 7, 0.39),
    "fft_144 fwd": Budget((80, 80, 80, 70, 80, 80), 106, 0, 9, 0.43),
    "fft_176 fwd": Budget((80, 80, 80, 80, 80, 80), 202, 0, 11, 0.52),
    "fft_132 fwd": Budget((72, 72, 72, 71, 72, 72), 202, 0, 11, 0.52),
    "fft_14 weight": Budget((56, 56, 56, 56, 48, 48), 30, 0, 0, 0.35),
    "fft_20 weight": Budget((62, 62, 62, 62, 55, 54), 12, 0, 0, 0.23),
    "fft_28 weight": Budget((64, 64, 64, 64, 56, 56), 30, 0, 0, 0.35),
    "fft_36 weight": Budget((64, 64, 64, 64, 62, 62), 44, 0, 0, 0.4),
    "fft_42 weight": Budget((75, 75, 75, 78, 72, 75), 30, 0, 0, 0.35),
    "fft_56 weight": Budget((95, 95, 95, 95, 87, 89), 30, 0, 0, 0.35),
    "fft_63 weight": Budget((89, 87, 87, 87, 79, 79), 60, 0, 14, 0.31),
    "fft_72 weight": Budget((96, 96, 96, 103, 106, 106), 44, 0, 0, 0.4),
    "fft_90 weight": Budget((113, 113, 113, 113, 96, 96), 48, 0, 20, 0.18),
    "fft_112 weight": Budget((128, 128, 128, 127, 107, 107), 60, 0, 14, 0.31),
    "fft_144 weight": Budget((155, 155, 155, 151, 159, 159), 88, 0, 18, 0.35),
    "fft_132 weight": Budget((127, 127, 127, 120, 127, 127), 180, 0, 22, 0.46),
}


def variants() -> dict[tuple[str, int, int], str]:
    """(pass, q, p) of every line of the two tables of variants."""
    text = (CUDA / "fft/variants.h").read_text()
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
    "fft", {"fft/fwd.cu": ARCHS, "fft/weight.cu": ARCHS}, BUDGETS, variant_of, list(variants().values()), work="FFMA"
)
