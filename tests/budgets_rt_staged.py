"""Compile budgets of rt_fwd's staged kernels: channels_last, and float32 by tf32 and bf16x3."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90a, 100, 120; HMMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {}

SUFFIXES = {"HALF": ("cl",), "FLOAT": ("tf32", "bf16x3")}


def variant_names() -> dict[tuple[str, ...], str]:
    """(suffix, offsets, pairs, chunks, whole) of every line of both tables, in the order of rt_fwd_variants.h."""
    text = (CUDA / "rt_fwd_staged_variants.h").read_text()
    names = {}
    for table, suffixes in SUFFIXES.items():
        part = text.split(f"#define RT_STAGED_{table}_VARIANTS(X)")[1].split("#define")[0]
        rows = re.findall(r'X\("(\w+)",\s*(\d+), (\d+), (\d+),\s*(true|false),', part)
        for suffix in suffixes:
            for name, *key, whole in rows:
                names[(suffix, *key, str(int(whole == "true")))] = f"{name}_{suffix}"
    return names


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to."""
    found = re.search(r"rt_staged_kernelIL\w+?RtModeE(\d)ELi(\d+)ELi(\d+)ELi(\d+)ELb(\d)E", symbol)
    if found is None:
        return None
    suffix = {"0": "cl", "1": "cl", "2": "tf32", "3": "bf16x3"}[found.group(1)]
    return variant_names()[(suffix, *found.groups()[1:])]


# Registers are of the bf16 kernels; the fp16 ones are the same code but for one instruction's type.
FAMILY = Family(
    "rt_staged",
    {
        "rt_fwd_staged_bf16.cu": ARCHS,
        "rt_fwd_staged_tf32.cu": ARCHS,
        "rt_fwd_staged_bf16x3.cu": ARCHS,
        "rt_fwd_staged_f16.cu": ("90a",),
    },
    BUDGETS,
    variant_of,
    list(variant_names().values()),
)
