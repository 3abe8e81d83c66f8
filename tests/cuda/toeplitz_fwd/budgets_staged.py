"""Compile budgets of toeplitz_fwd's staged kernels: channels_last, and float32 by tf32 and bf16x3."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; HMMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "rt_5x7_w_cl": Budget((119, 119, 119, 119, 127, 128), 29, 0, 5, 0.8),
    "rt_5x4_w_cl": Budget((92, 92, 92, 94, 115, 116), 14, 0, 5, 0.66),
    "rt_3x2_w_cl": Budget((92, 92, 92, 90, 94, 88), 8, 1, 6, 0.22),
    "rt_1x1_w_cl": Budget((88, 88, 88, 92, 94, 92), 2, 1, 2, 0.08),
    "rt_3x4_t_cl": Budget((117, 117, 117, 117, 121, 121), 12, 0, 3, 0.7),
    "rt_5x4_t_cl": Budget((117, 117, 117, 117, 119, 119), 20, 0, 5, 0.74),
    "rt_5x6_w_cl": Budget((109, 109, 109, 109, 127, 127), 24, 0, 5, 0.77),
    "rt_5x3_w_cl": Budget((85, 85, 85, 85, 96, 96), 9, 0, 5, 0.56),
    "rt_3x7_w_cl": Budget((115, 115, 115, 115, 127, 127), 19, 0, 3, 0.79),
    "rt_3x4_w_cl": Budget((88, 88, 88, 88, 114, 116), 10, 0, 3, 0.66),
    "rt_5x7_w_tf32": Budget((128, 124, 124, 124, 127, 127), 58, 0, 10, 0.82),
    "rt_5x4_w_tf32": Budget((116, 114, 114, 114, 118, 118), 28, 0, 10, 0.7),
    "rt_3x2_w_tf32": Budget((99, 99, 99, 96, 106, 112), 8, 0, 6, 0.42),
    "rt_1x1_w_tf32": Budget((94, 94, 94, 94, 106, 106), 4, 1, 4, 0.13),
    "rt_3x4_t_tf32": Budget((122, 122, 122, 120, 128, 134), 24, 0, 6, 0.75),
    "rt_5x4_t_tf32": Budget((130, 130, 130, 128, 121, 124), 40, 0, 10, 0.76),
    "rt_5x7_w_bf16x3": Budget((128, 128, 128, 128, 127, 127), 87, 0, 10, 0.87),
    "rt_5x4_w_bf16x3": Budget((126, 126, 126, 126, 128, 128), 42, 0, 10, 0.77),
    "rt_3x2_w_bf16x3": Budget((126, 126, 126, 126, 127, 126), 12, 0, 6, 0.48),
    "rt_1x1_w_bf16x3": Budget((122, 122, 122, 122, 121, 122), 6, 1, 4, 0.16),
    "rt_3x4_t_bf16x3": Budget((160, 160, 160, 158, 154, 154), 36, 0, 6, 0.81),
    "rt_5x4_t_bf16x3": Budget((160, 160, 160, 158, 146, 146), 60, 0, 10, 0.83),
}

SUFFIXES = {"HALF": ("cl",), "FLOAT": ("tf32", "bf16x3")}


def variant_names() -> dict[tuple[str, ...], str]:
    """(suffix, offsets, pairs, chunks, whole) of every line of both tables, in the order of toeplitz_fwd/variants.h."""
    text = (CUDA / "toeplitz_fwd/staged_variants.h").read_text()
    names = {}
    for table, suffixes in SUFFIXES.items():
        part = text.split(f"#define TOEPLITZ_STAGED_{table}_VARIANTS(X)")[1].split("#define")[0]
        rows = re.findall(r'X\("(\w+)",\s*(\d+), (\d+), (\d+),\s*(true|false),', part)
        for suffix in suffixes:
            for name, *key, whole in rows:
                names[tuple([suffix, *key, str(int(whole == "true"))])] = f"{name}_{suffix}"
    return names


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to."""
    found = re.search(r"toeplitz_staged_kernelIL\w+?ToeplitzFwdModeE(\d)ELi(\d+)ELi(\d+)ELi(\d+)ELb(\d)E", symbol)
    if found is None:
        return None
    suffix = {"0": "cl", "1": "cl", "2": "tf32", "3": "bf16x3"}[found.group(1)]
    return variant_names()[tuple([suffix, *found.groups()[1:]])]


# Registers are of the bf16 kernels; the fp16 ones are the same code but for one instruction's type.
FAMILY = Family(
    "toeplitz_staged",
    {
        "toeplitz_fwd/staged_bf16.cu": ARCHS,
        "toeplitz_fwd/staged_tf32.cu": ARCHS,
        "toeplitz_fwd/staged_bf16x3.cu": ARCHS,
        "toeplitz_fwd/staged_f16.cu": ("90",),
    },
    BUDGETS,
    variant_of,
    list(variant_names().values()),
)
