"""Compile budgets of toeplitz_weight: bwd_weight on tensor cores."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; HMMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "rtw_5x7_w": Budget((128, 128, 128, 128, 128, 124), 29, 4, 0, 0.63),
    "rtw_5x4_w": Budget((126, 128, 128, 128, 128, 120), 14, 2, 0, 0.51),
    "rtw_3x2_w": Budget((122, 122, 122, 121, 126, 126), 4, 1, 0, 0.3),
    "rtw_1x1_w": Budget((105, 105, 105, 105, 91, 90), 1, 1, 1, 0.07),
    "rtw_5x6_t": Budget((126, 126, 126, 128, 126, 122), 30, 5, 0, 0.42),
    "rtw_3x4_t": Budget((127, 126, 126, 128, 128, 122), 12, 3, 0, 0.38),
    "rtw_5x7_w_tf32": Budget((151, 151, 151, 150, 155, 154), 29, 0, 14, 0.37),
    "rtw_3x2_w_tf32": Budget((124, 122, 122, 124, 123, 126), 4, 0, 4, 0.17),
    "rtw_1x1_w_tf32": Budget((87, 87, 87, 87, 88, 90), 1, 0, 2, 0.07),
    "rtw_5x4_t_tf32": Budget((125, 125, 125, 128, 121, 121), 20, 0, 16, 0.19),
    "rtw_5x7_w_bf16x3": Budget((186, 186, 186, 186, 186, 187), 87, 8, 0, 0.79),
    "rtw_3x2_w_bf16x3": Budget((146, 146, 146, 148, 157, 149), 12, 2, 0, 0.5),
    "rtw_1x1_w_bf16x3": Budget((68, 68, 68, 77, 104, 105), 3, 2, 0, 0.17),
    "rtw_5x4_t_bf16x3": Budget((155, 155, 155, 159, 157, 154), 12, 0, 0, 0.92),
    "rtw_5x3_w": Budget((122, 122, 122, 128, 126, 120), 9, 2, 0, 0.47),
    "rtw_7x4_w": Budget((139, 139, 139, 139, 148, 142), 16, 2, 0, 0.66),
    "rtw_3x7_w": Budget((123, 123, 123, 123, 125, 123), 19, 4, 0, 0.63),
    "rtw_3x4_w": Budget((128, 127, 127, 125, 122, 123), 10, 2, 0, 0.52),
    "rtw_3x3_w": Budget((122, 121, 121, 128, 127, 127), 7, 2, 0, 0.36),
    "rtw_9x7_sq": Budget((127, 127, 127, 128, 128, 123), 43, 4, 0, 0.69),
    "rtw_7x7_sq": Budget((119, 119, 119, 121, 119, 121), 37, 4, 0, 0.66),
    "rtw_5x7_sq": Budget((123, 123, 123, 124, 128, 126), 29, 4, 0, 0.65),
    "rtw_9x5_sq": Budget((123, 123, 123, 123, 122, 127), 25, 3, 0, 0.58),
    "rtw_5x5_sq": Budget((120, 120, 120, 121, 122, 117), 19, 3, 0, 0.63),
    "rtw_5x3_sq": Budget((123, 123, 123, 122, 122, 125), 9, 2, 0, 0.5),
    "rtw_9x9_sq": Budget((127, 127, 127, 127, 128, 127), 61, 5, 0, 0.72),
    "rtw_9x11_sq": Budget((154, 154, 154, 153, 157, 156), 79, 6, 0, 0.79),
    "rtw_9x15_sq": Budget((168, 168, 168, 166, 168, 167), 115, 8, 0, 0.83),
    "rtw_3x14_sq": Budget((124, 124, 124, 123, 127, 127), 40, 7, 0, 0.69),
    "rtw_3x7_sq": Budget((122, 122, 122, 124, 128, 127), 19, 4, 0, 0.65),
    "rtw_3x4_sq": Budget((126, 126, 126, 126, 122, 126), 10, 2, 0, 0.55),
}


def variant_names() -> dict[tuple[str, ...], str]:
    """(math, line, offsets, rows, chunks, whole) of every line of the variants table."""
    text = (CUDA / "toeplitz_weight/variants.h").read_text()
    rows = re.findall(r'X\("(\w+)",\s*(\w+),\s*(\d+), (\d+), (\d+), (\d+), (true|false),', text)
    return {(*key, str(int(whole == "true"))): name for name, *key, whole in rows}


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to."""
    kernel = r"toeplitz_weight_kernelIL\w+?ToeplitzWeightKernelMathE(\d)ELi(\d+)ELi(\d+)ELi(\d+)ELb(\d)ELi\d+ELi(\d)E"
    found = re.search(kernel, symbol)
    if found is None:
        return None
    math = {"0": "half", "1": "half", "2": "tf32", "3": "bf16x3"}[found.group(1)]
    *tile, line = found.groups()[1:]
    return variant_names()[(math, line, *tile)]


# The block counted is one row offset's products with one input row.
FAMILY = Family(
    "toeplitz_weight",
    {"toeplitz_weight/bf16.cu": ARCHS, "toeplitz_weight/f32.cu": ARCHS, "toeplitz_weight/f16.cu": ("90",)},
    BUDGETS,
    variant_of,
    list(variant_names().values()),
)
