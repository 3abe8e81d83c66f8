"""Compile budgets of toeplitz_ring: fwd and bwd_input on tensor cores, rows stream through."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; HMMA, LDSM, LDS, share; of the products of one row pair
BUDGETS: dict[str, Budget] = {
    "ring_5x7_w": Budget((117, 120, 120, 116, 108, 114), 29, 0, 5, 0.78),
    "ring_5x6_w": Budget((120, 118, 118, 118, 110, 110), 24, 0, 5, 0.77),
    "ring_5x5_w": Budget((112, 112, 112, 112, 101, 98), 19, 0, 5, 0.73),
    "ring_5x4_w_g2": Budget((121, 113, 113, 120, 111, 120), 28, 0, 5, 0.75),
    "ring_5x3_w_g2": Budget((114, 114, 114, 114, 108, 108), 18, 0, 5, 0.72),
    "ring_5x12_w": Budget((121, 121, 121, 111, 119, 114), 54, 0, 5, 0.84),
    "ring_5x10_w": Budget((114, 112, 112, 120, 112, 106), 44, 0, 5, 0.86),
    "ring_5x8_w": Budget((128, 118, 118, 121, 113, 120), 34, 0, 5, 0.81),
    "ring_3x7_w": Budget((126, 124, 124, 121, 114, 114), 19, 0, 3, 0.76),
    "ring_3x4_w_g2": Budget((117, 116, 116, 123, 111, 118), 20, 0, 3, 0.74),
    "ring_9x7_w": Budget((112, 109, 109, 108, 94, 92), 43, 0, 9, 0.79),
    "ring_7x4_w": Budget((100, 100, 100, 100, 100, 95), 16, 0, 7, 0.64),
    "ring_5x4_t": Budget((114, 118, 118, 115, 105, 109), 20, 0, 5, 0.71),
    "ring_5x5_t": Budget((116, 116, 116, 113, 108, 112), 25, 0, 5, 0.75),
    "ring_5x6_t": Budget((128, 122, 122, 124, 112, 116), 30, 0, 5, 0.76),
    "ring_3x6_t": Budget((124, 128, 128, 124, 112, 116), 18, 0, 3, 0.75),
    "ring_9x7_sq": Budget((110, 108, 108, 105, 94, 92), 43, 4, 9, 0.65),
    "ring_7x7_sq": Budget((106, 106, 106, 106, 94, 85), 37, 4, 7, 0.63),
    "ring_5x7_sq": Budget((100, 100, 100, 104, 92, 87), 29, 4, 5, 0.6),
    "ring_3x7_sq": Budget((96, 96, 96, 103, 92, 89), 19, 4, 3, 0.52),
    "ring_5x5_sq": Budget((84, 84, 84, 86, 80, 78), 19, 0, 5, 0.73),
    "ring_5x3_sq": Budget((80, 80, 80, 83, 80, 75), 9, 0, 5, 0.56),
    "ring_3x4_sq": Budget((92, 92, 92, 98, 92, 92), 10, 0, 3, 0.66),
    "ring_9x9_sq": Budget((107, 112, 112, 107, 103, 90), 61, 0, 9, 0.84),
    "ring_9x11_sq": Budget((118, 108, 108, 102, 102, 104), 79, 6, 9, 0.74),
    "ring_9x13_sq": Budget((122, 107, 107, 110, 106, 104), 97, 0, 9, 0.87),
    "ring_3x7_t_sq": Budget((126, 120, 120, 122, 117, 122), 21, 0, 3, 0.75),
    "ring_3x5_t_sq": Budget((116, 116, 116, 115, 113, 110), 15, 0, 3, 0.75),
}


def variant_names() -> dict[tuple[int, ...], str]:
    """Template arguments (line, offsets, pairs, groups, chunks, whole) of every line of the variants table."""
    text = (CUDA / "toeplitz_ring/variants.h").read_text()
    rows = re.findall(r'X\("(\w+)",\s*(\d+), (\d+), (\d+), (\d+), (\d+),\s*(true|false)\)', text)
    return {(*map(int, row[1:6]), int(row[6] == "true")): row[0] for row in rows}


def variant_of(symbol: str) -> str:
    """The variant that a mangled kernel name belongs to."""
    return variant_names()[tuple(int(v) for v in re.findall(r"L[ib](\d+)E", symbol)[1:7])]


# Registers are of the bf16 kernels; the fp16 ones are the same code but for one instruction's type.
FAMILY = Family(
    "toeplitz_ring",
    {"toeplitz_ring/bf16.cu": ARCHS, "toeplitz_ring/f16.cu": ("90",)},
    BUDGETS,
    variant_of,
    list(variant_names().values()),
)
