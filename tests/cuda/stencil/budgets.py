"""Compile budgets of the stencil kernels: small filters, all passes and memory formats."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; FFMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "stencil_3_half": Budget((64, 64, 64, 72, 72, 64), 128, 0, 3, 0.19),
    "stencil_3_half_cl": Budget((96, 96, 96, 96, 94, 96), 224, 0, 6, 0.19),
    "stencil_5_half_cl": Budget((128, 128, 128, 128, 128, 128), 448, 0, 15, 0.29),
    "stencil_7_half_cl": Budget((165, 165, 165, 164, 164, 168), 784, 0, 28, 0.4),
    "stencil_9_half_cl": Budget((205, 218, 218, 230, 222, 218), 1232, 0, 45, 0.52),
    "stencil_11_half_cl": Budget((242, 254, 254, 246, 244, 244), 1792, 0, 66, 0.59),
    "stencil_3_f32": Budget((64, 64, 64, 70, 72, 66), 128, 0, 3, 0.22),
    "stencil_5_f32": Budget((90, 90, 90, 95, 95, 92), 256, 0, 10, 0.35),
    "stencil_7_f32": Budget((118, 124, 124, 120, 116, 113), 448, 0, 14, 0.48),
    "stencil_3_f32_cl": Budget((63, 64, 64, 64, 72, 79), 112, 0, 3, 0.23),
    "stencil_5_f32_cl": Budget((80, 80, 80, 80, 94, 94), 224, 0, 10, 0.35),
    "stencil_7_f32_cl": Budget((112, 108, 108, 110, 115, 113), 392, 0, 14, 0.48),
    "stencil_9_f32": Budget((136, 132, 132, 140, 137, 138), 704, 0, 27, 0.57),
    "stencil_11_f32": Budget((161, 160, 160, 161, 153, 159), 1024, 0, 33, 0.66),
    "stencil_9_f32_cl": Budget((128, 127, 127, 127, 123, 126), 616, 0, 27, 0.57),
    "stencil_11_f32_cl": Budget((150, 155, 155, 155, 159, 159), 896, 0, 33, 0.66),
    "stencil_weight_3_half": Budget((63, 61, 61, 64, 64, 68), 72, 0, 3, 0.18),
    "stencil_weight_3_half_cl": Budget((85, 87, 87, 85, 89, 91), 126, 0, 6, 0.19),
    "stencil_weight_5_half_cl": Budget((123, 125, 125, 124, 120, 122), 350, 0, 10, 0.32),
    "stencil_weight_7_half_cl": Budget((187, 187, 187, 199, 195, 195), 686, 0, 14, 0.47),
    "stencil_weight_9_half_cl": Budget((183, 185, 185, 197, 201, 201), 630, 0, 10, 0.46),
    "stencil_weight_11_half_cl": Budget((231, 233, 233, 241, 241, 241), 924, 0, 12, 0.54),
    "stencil_weight_3_f32": Budget((64, 64, 64, 72, 77, 71), 72, 0, 6, 0.24),
    "stencil_weight_5_f32": Budget((91, 89, 89, 95, 95, 94), 200, 0, 10, 0.43),
    "stencil_weight_7_f32": Budget((117, 120, 120, 128, 127, 123), 392, 0, 14, 0.56),
    "stencil_weight_3_f32_cl": Budget((70, 71, 71, 72, 80, 72), 63, 0, 6, 0.27),
    "stencil_weight_5_f32_cl": Budget((87, 94, 94, 92, 92, 96), 175, 0, 10, 0.44),
    "stencil_weight_7_f32_cl": Budget((125, 119, 119, 117, 128, 115), 343, 0, 14, 0.56),
    "stencil_weight_9_f32": Budget((160, 158, 158, 154, 157, 155), 648, 0, 18, 0.65),
    "stencil_weight_11_f32": Budget((244, 200, 200, 208, 202, 202), 968, 0, 22, 0.72),
    "stencil_weight_9_f32_cl": Budget((159, 153, 153, 157, 254, 215), 567, 0, 18, 0.66),
    "stencil_weight_11_f32_cl": Budget((199, 199, 199, 205, 251, 253), 847, 0, 22, 0.72),
}


def names() -> dict[tuple[str, ...], str]:
    """(bwd_weight, type, taps, channels_last) of every line of the variants table, as in a mangled name."""
    text = (CUDA / "stencil/variants.h").read_text()
    rows = re.findall(r'X\("(\w+)",\s*(\w+),\s*(\d+), *(\w+),', text)
    kinds = {"uint16_t": "t", "float": "f", "false": "0", "true": "1"}
    return {
        (weight, kinds[type_], taps, kinds[last]): f"stencil_{weight}{name}"
        for weight in ("", "weight_")
        for name, type_, taps, last in rows
    }


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to."""
    found = re.search(r"stencil_(weight_)?kernelI(\w)Li(\d+)E(?:Li\d+E)?Lb([01])E", symbol)
    return names()[(found[1] or "", *found.groups()[1:])] if found else None


# The loop counted is that of an input row with all of its paths: accesses of every width, every activation.
FAMILY = Family(
    "stencil",
    {"stencil/half.cu": ARCHS, "stencil/f32.cu": ARCHS},
    BUDGETS,
    variant_of,
    list(names().values()),
    work="FFMA",
    whole_loop=True,
)
