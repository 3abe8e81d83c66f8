"""Compile budgets of toeplitz_fwd: fwd and bwd_input on tensor cores."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; HMMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "rt_5x7_w": Budget((133, 133, 133, 125, 173, 176), 116, 8, 10, 0.85),
    "rt_5x4_w": Budget((103, 99, 99, 97, 126, 126), 56, 4, 10, 0.77),
    "rt_3x2_w": Budget((74, 68, 68, 65, 80, 79), 16, 2, 6, 0.61),
    "rt_1x1_w": Budget((48, 48, 48, 50, 63, 62), 4, 2, 2, 0.4),
    "rt_3x7_w": Budget((121, 116, 116, 118, 127, 127), 76, 8, 6, 0.82),
    "rt_3x4_w": Budget((91, 91, 91, 90, 123, 115), 40, 4, 6, 0.76),
    "rt_5x3_w": Budget((92, 90, 90, 85, 116, 116), 36, 4, 10, 0.69),
    "rt_5x5_w": Budget((113, 109, 109, 108, 126, 126), 76, 6, 10, 0.8),
    "rt_5x6_w": Budget((121, 118, 118, 117, 127, 127), 96, 6, 10, 0.84),
    "rt_5x10_w": Budget((167, 167, 167, 178, 208, 210), 176, 10, 10, 0.88),
    "rt_5x12_w": Budget((190, 190, 190, 193, 227, 227), 216, 12, 10, 0.9),
    "rt_9x7_w": Budget((113, 109, 109, 108, 123, 122), 43, 0, 9, 0.79),
    "rt_7x4_w": Budget((118, 114, 114, 111, 127, 127), 64, 4, 14, 0.76),
    "rt_3x4_t": Budget((116, 126, 126, 116, 126, 127), 48, 6, 6, 0.76),
    "rt_5x4_t": Budget((128, 128, 128, 128, 127, 127), 80, 8, 10, 0.78),
    "rt_3x6_t": Budget((128, 128, 128, 128, 128, 128), 72, 8, 6, 0.8),
    "rt_5x6_t": Budget((168, 168, 168, 168, 215, 217), 120, 10, 10, 0.83),
    "rt_5x7_w_p4": Budget((229, 230, 230, 224, 253, 253), 464, 16, 20, 0.92),
    "rt_3x2_w_p4": Budget((115, 110, 110, 107, 127, 128), 64, 4, 12, 0.78),
    "rt_5x3_w_g2": Budget((123, 118, 118, 115, 128, 127), 72, 8, 10, 0.77),
    "rt_3x3_w": Budget((87, 87, 87, 97, 111, 110), 28, 4, 6, 0.7),
    "rt_3x5_w": Budget((97, 97, 97, 98, 121, 120), 52, 6, 6, 0.78),
    "rt_3x6_w": Budget((111, 107, 107, 104, 126, 126), 64, 6, 6, 0.82),
    "rt_7x7_w": Budget((147, 147, 147, 158, 192, 188), 148, 8, 14, 0.86),
    "rt_9x7_sq": Budget((161, 158, 158, 157, 167, 167), 172, 8, 18, 0.86),
    "rt_7x7_sq": Budget((146, 148, 148, 143, 166, 166), 148, 8, 14, 0.86),
    "rt_5x7_sq": Budget((132, 127, 127, 126, 161, 161), 116, 8, 10, 0.85),
    "rt_3x7_sq": Budget((120, 115, 115, 120, 127, 127), 76, 8, 6, 0.82),
    "rt_9x5_sq": Budget((142, 143, 143, 138, 167, 167), 100, 6, 18, 0.79),
    "rt_5x5_sq": Budget((112, 111, 111, 110, 127, 127), 76, 6, 10, 0.8),
    "rt_5x3_sq": Budget((90, 90, 90, 86, 117, 115), 36, 4, 10, 0.69),
    "rt_9x9_sq": Budget((96, 96, 96, 96, 121, 109), 61, 0, 9, 0.84),
    "rt_9x11_sq": Budget((108, 106, 106, 103, 124, 123), 79, 0, 9, 0.87),
    "rt_9x13_sq": Budget((115, 111, 111, 122, 127, 127), 97, 0, 9, 0.89),
    "rt_9x15_sq": Budget((119, 123, 123, 118, 128, 128), 115, 0, 9, 0.91),
    "rt_3x14_sq": Budget((121, 121, 121, 121, 127, 127), 40, 0, 3, 0.88),
    "rt_3x4_sq": Budget((90, 90, 90, 90, 123, 115), 40, 4, 6, 0.76),
}


def variant_names() -> dict[tuple[int, ...], str]:
    """(line, offsets, pairs, groups, chunks, whole, rotate) of every line of the variants table."""
    text = (CUDA / "toeplitz_fwd/variants.h").read_text()
    rows = re.findall(r'X\("(\w+)",\s*(\d+), (\d+), (\d+), (\d+), (\d+),\s*(true|false),\s*(true|false),', text)
    return {(*map(int, row[1:6]), int(row[6] == "true"), int(row[7] == "true")): row[0] for row in rows}


def variant_of(symbol: str) -> str:
    """The variant that a mangled kernel name belongs to."""
    numbers = [int(v) for v in re.findall(r"L[ib](\d+)E", symbol)]  # the line is the last
    return variant_names()[(numbers[-1], *numbers[1:7])]


# Registers are of the bf16 kernels; the fp16 ones are the same code but for one instruction's type.
FAMILY = Family(
    "toeplitz_fwd",
    {"toeplitz_fwd/bf16.cu": ARCHS, "toeplitz_fwd/f16.cu": ("90",)},
    BUDGETS,
    variant_of,
    list(variant_names().values()),
)
