"""Compile budgets of rt_weight: bwd_weight on tensor cores."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

BUDGETS: dict[str, Budget] = {}


def variant_names() -> dict[tuple[str, ...], str]:
    """(math, offsets, rows, chunks) of every line of the variants table."""
    text = (CUDA / "rt_weight_variants.h").read_text()
    rows = re.findall(r'X\("(\w+)",\s*(\w+),\s*(\d+), (\d+), (\d+),', text)
    return {row[1:]: row[0] for row in rows}


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to."""
    found = re.search(r"rt_weight_kernelIL\w+?RtwKernelMathE(\d)ELi(\d+)ELi(\d+)ELi(\d+)E", symbol)
    if found is None:
        return None
    math = {"0": "half", "1": "half", "2": "tf32", "3": "bf16x3"}[found.group(1)]
    return variant_names()[(math, *found.groups()[1:])]


# The block counted is one row offset's products with one input row.
FAMILY = Family(
    "rt_weight",
    {"rt_weight_bf16.cu": ARCHS, "rt_weight_f32.cu": ARCHS, "rt_weight_f16.cu": ("90a",)},
    BUDGETS,
    variant_of,
    list(variant_names().values()),
)
