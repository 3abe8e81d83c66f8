"""Compile budgets of the FMA kernels for float32: all passes and memory formats."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; FFMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "fma_7x4": Budget((127, 128, 128, 128, 128, 128), 784, 0, 21, 0.95),
    "fma_8x4": Budget((128, 128, 128, 128, 128, 128), 1024, 0, 24, 0.95),
    "fma_weight_7x4": Budget((127, 128, 128, 128, 128, 128), 784, 0, 21, 0.95),
    "fma_weight_8x4": Budget((128, 128, 128, 128, 128, 128), 1024, 0, 24, 0.95),
}


def names(macro: str, type_: str) -> dict[tuple[int, int], str]:
    """Template arguments (rows, bwd_weight) of the lines of a variants table."""
    text = (CUDA / "fma/variants.h").read_text().split(f"#define {macro}(X)", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(rf'X\("(\w+)",\s*{type_},\s*(\d+),', text)
    fwd = {(int(row), 0): f"fma_{name}" for name, row in rows}
    return fwd | {(int(row), 1): f"fma_weight_{name}" for name, row in rows}


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to."""
    found = re.search(r"10fma_kernelIfLi(\d+)ELb([01])E", symbol)
    return names("FMA_VARIANTS", "float")[int(found[1]), int(found[2])] if found else None


FAMILY = Family(
    "fma",
    {"fma/f32.cu": ARCHS},
    BUDGETS,
    variant_of,
    list(names("FMA_VARIANTS", "float").values()),
    work="FFMA",
    whole_loop=True,
)
