"""Compile budgets of the stencil kernels: small filters, all passes and memory formats."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90a, 100, 120; FFMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "stencil_3_half": Budget((64, 64, 64, 71, 64, 64), 128, 0, 3, 0.19),
    "stencil_3_half_cl": Budget((96, 96, 96, 96, 94, 96), 224, 0, 6, 0.19),
    "stencil_5_half_cl": Budget((128, 128, 128, 128, 128, 128), 448, 0, 15, 0.29),
    "stencil_7_half_cl": Budget((161, 164, 164, 164, 164, 168), 784, 0, 28, 0.41),
    "stencil_3_f32": Budget((64, 64, 64, 70, 66, 66), 128, 0, 3, 0.23),
    "stencil_5_f32": Budget((90, 86, 86, 96, 96, 92), 256, 0, 10, 0.36),
    "stencil_7_f32": Budget((116, 120, 120, 120, 116, 112), 448, 0, 14, 0.48),
    "stencil_3_f32_cl": Budget((64, 64, 64, 64, 72, 80), 112, 0, 3, 0.24),
    "stencil_5_f32_cl": Budget((80, 80, 80, 80, 93, 92), 224, 0, 10, 0.36),
    "stencil_7_f32_cl": Budget((104, 104, 104, 112, 117, 111), 392, 0, 14, 0.48),
    "stencil_weight_3_half": Budget((60, 61, 61, 64, 67, 66), 72, 0, 3, 0.19),
    "stencil_weight_3_half_cl": Budget((87, 89, 89, 87, 87, 91), 126, 0, 6, 0.2),
    "stencil_weight_5_half_cl": Budget((122, 124, 124, 127, 121, 122), 350, 0, 10, 0.35),
    "stencil_weight_7_half_cl": Budget((181, 182, 182, 189, 189, 191), 686, 0, 14, 0.48),
    "stencil_weight_3_f32": Budget((64, 64, 64, 72, 79, 72), 72, 0, 6, 0.25),
    "stencil_weight_5_f32": Budget((93, 91, 91, 95, 96, 96), 200, 0, 10, 0.44),
    "stencil_weight_7_f32": Budget((121, 122, 122, 128, 128, 126), 392, 0, 14, 0.57),
    "stencil_weight_3_f32_cl": Budget((63, 63, 63, 64, 79, 79), 63, 0, 6, 0.28),
    "stencil_weight_5_f32_cl": Budget((91, 88, 88, 92, 91, 92), 175, 0, 10, 0.46),
    "stencil_weight_7_f32_cl": Budget((117, 120, 120, 120, 122, 121), 343, 0, 14, 0.59),
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
