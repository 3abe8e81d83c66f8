"""Compile budgets of small: 16-bit planes of up to about 20x20, all passes."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; HMMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "small_g4_even": Budget((168, 168, 168, 168, 168, 167), 28, 0, 30, 0.28),
    "small_g4": Budget((168, 168, 168, 168, 168, 168), 28, 0, 44, 0.14),
    "small_g2_even": Budget((118, 118, 118, 118, 128, 128), 14, 0, 22, 0.19),
    "small_g2": Budget((126, 126, 126, 127, 126, 127), 14, 0, 36, 0.09),
    "small_g2_even_cl": Budget((107, 107, 107, 107, 127, 126), 14, 0, 22, 0.19),
    "small_g2_cl": Budget((121, 120, 120, 122, 128, 128), 14, 0, 36, 0.09),
    "small_g1_even_cl": Budget((72, 72, 72, 76, 86, 90), 7, 0, 18, 0.12),
    "small_g1_cl": Budget((117, 117, 117, 118, 124, 125), 7, 0, 32, 0.09),
    "small_weight_7x3": Budget((154, 154, 154, 153, 158, 156), 16, 1, 0, 0.64),
    "small_weight_8x3": Budget((168, 168, 168, 166, 166, 168), 16, 1, 0, 0.64),
    "small_weight_14x1": Budget((108, 108, 108, 110, 127, 127), 4, 0, 32, 0.03),
}


def variants() -> dict[tuple[str, ...], str]:
    """(pass, numbers of the line) of every line of the tables of variants."""
    text = (CUDA / "small_planes/variants.h").read_text()
    found = {}
    for pass_ in ("fwd", "weight"):
        lines = text.split(f"#define SMALL_{pass_.upper()}_VARIANTS(X)")[1].split("\n\n")[0]
        for name, rest in re.findall(r'X\("(\w+)",([\w\s,]+)\)', lines):
            numbers = [{"true": "1", "false": "0"}.get(word, word) for word in re.findall(r"\w+", rest)]
            found[(pass_, *numbers)] = name
    return found


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to."""
    found = re.search(r"small_(fwd|weight)_kernelILb\d((?:EL[bi]\d+)+)E", symbol)
    return variants()[(found[1], *re.findall(r"L[bi](\d+)", found[2]))] if found else None


# The block counted is 16 input pixels of the forward, or one input row of bwd_weight.
FAMILY = Family(
    "small_planes",
    {
        "small_planes/fwd_bf16.cu": ARCHS,
        "small_planes/weight_bf16.cu": ARCHS,
        "small_planes/fwd_f16.cu": ("90",),
        "small_planes/weight_f16.cu": ("90",),
    },
    BUDGETS,
    variant_of,
    list(variants().values()),
)
