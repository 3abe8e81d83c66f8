"""Compile budgets of the FMA kernels for float64, which are correct and not tuned."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, Budget, Family

from .budgets import names

# registers of sm_80, 86, 89, 90, 100, 120; DFMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "fma_4x4_f64": Budget((136, 136, 136, 132, 220, 199), 256, 0, 24, 0.87),
    "fma_weight_4x4_f64": Budget((130, 130, 130, 126, 150, 138), 256, 0, 24, 0.87),
}


def variant_of(symbol: str) -> str | None:
    """The variant that a mangled kernel name belongs to; the reduction of bwd_weight has no budget."""
    found = re.search(r"10fma_kernelIdLi(\d+)ELb([01])E", symbol)
    return names("FMA_VARIANTS_F64", "double")[int(found[1]), int(found[2])] if found else None


FAMILY = Family(
    "fma_f64",
    {"fma/f64.cu": ARCHS},
    BUDGETS,
    variant_of,
    list(names("FMA_VARIANTS_F64", "double").values()),
    work="DFMA",
    whole_loop=True,
)
