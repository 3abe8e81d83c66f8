"""Compile budgets of the stencil kernels: small filters, all passes and memory formats."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90a, 100, 120; FFMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "stencil_3_half": Budget((62, 63, 63, 71, 64, 64), 128, 0, 3, 0.19),
    "stencil_3_half_cl": Budget((96, 94, 94, 96, 96, 96), 224, 0, 6, 0.19),
    "stencil_5_half_cl": Budget((128, 128, 128, 128, 128, 128), 448, 0, 15, 0.29),
    "stencil_7_half_cl": Budget((161, 165, 165, 165, 168, 168), 784, 0, 28, 0.41),
    "stencil_3_f32": Budget((64, 64, 64, 72, 80, 79), 128, 0, 3, 0.23),
    "stencil_5_f32": Budget((93, 92, 92, 96, 114, 114), 256, 0, 10, 0.37),
    "stencil_7_f32": Budget((126, 128, 128, 111, 124, 120), 448, 0, 14, 0.5),
    "stencil_3_f32_cl": Budget((64, 64, 64, 64, 80, 79), 112, 0, 3, 0.24),
    "stencil_5_f32_cl": Budget((80, 80, 80, 80, 96, 96), 224, 0, 10, 0.36),
    "stencil_7_f32_cl": Budget((101, 106, 106, 116, 121, 113), 392, 0, 14, 0.48),
    "stencil_weight_3_half": Budget((62, 60, 60, 64, 64, 68), 72, 0, 3, 0.19),
    "stencil_weight_3_half_cl": Budget((84, 87, 87, 85, 89, 86), 126, 0, 6, 0.19),
    "stencil_weight_5_half_cl": Budget((123, 125, 125, 126, 121, 122), 350, 0, 10, 0.35),
    "stencil_weight_7_half_cl": Budget((181, 183, 183, 191, 193, 193), 686, 0, 14, 0.47),
    "stencil_weight_3_f32": Budget((64, 64, 64, 72, 79, 79), 72, 0, 6, 0.3),
    "stencil_weight_5_f32": Budget((93, 91, 91, 96, 120, 108), 200, 0, 10, 0.49),
    "stencil_weight_7_f32": Budget((123, 121, 121, 128, 168, 162), 392, 0, 14, 0.61),
    "stencil_weight_3_f32_cl": Budget((63, 63, 63, 64, 80, 79), 63, 0, 6, 0.27),
    "stencil_weight_5_f32_cl": Budget((89, 88, 88, 92, 96, 92), 175, 0, 10, 0.45),
    "stencil_weight_7_f32_cl": Budget((117, 120, 120, 121, 124, 125), 343, 0, 14, 0.57),
}


def names() -> dict[tuple[str, ...], str]:
    """(bwd_weight, type, taps, channels_last) of every line of the variants table, as in a mangled name."""
    text = (CUDA / "stencil_variants.h").read_text()
    rows = re.findall(r'X\("(\w+)",\s*(\w+),\s*(\d), *(\w+),', text)
    kinds = {"uint16_t": "t", "float": "f", "false": "0", "true": "1"}
    return {
        (weight, kinds[type_], taps, kinds[last]): f"stencil_{weight}{name}"
        for weight in ("", "weight_")
        for name, type_, taps, last in rows
    }


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to."""
    found = re.search(r"stencil_(weight_)?kernelI(\w)Li(\d)ELb([01])E", symbol)
    return names()[(found[1] or "", *found.groups()[1:])] if found else None


# The loop counted is that of an input row with all of its paths: accesses of every width, every activation.
FAMILY = Family(
    "stencil",
    {"stencil_half.cu": ARCHS, "stencil_f32.cu": ARCHS},
    BUDGETS,
    variant_of,
    list(names().values()),
    work="FFMA",
    whole_loop=True,
)
