"""Compile budgets of toeplitz_wgmma: fwd and bwd_input by sm_90a's own tensor instructions."""

from __future__ import annotations

import re

from cuda_budgets import CUDA, Budget, Family

# Registers at the start, of which setmaxnreg makes 112 and 32; HGMMA, LDSM, LDS, share of a warpgroup's step, whose
# first product ptxas puts before the block. An HGMMA of 64 or 128 columns takes 32 or 64 cycles, so that 4 warpgroups
# issue about 200 instructions per scheduler in the 640 or 1280 cycles of a step.
BUDGETS: dict[str, Budget] = {
    "wgmma_5x2_n64": Budget((96,), 4, 0, 4, 0.098),
    "wgmma_5x2_n32": Budget((96,), 4, 0, 4, 0.098),
    "wgmma_5x4_n16": Budget((96,), 4, 0, 4, 0.098),
}


def variant_names() -> dict[tuple[int, ...], str]:
    """Template arguments (offsets, chunks, images) of every line of the variants table."""
    text = (CUDA / "toeplitz_wgmma/variants.h").read_text()
    rows = re.findall(r'X\("(\w+)",\s*(\d+),\s*(\d+),\s*(\d+)\)', text)
    return {(*map(int, row[1:4]),): row[0] for row in rows}


def variant_of(symbol: str) -> str:
    """The variant that a mangled kernel name belongs to."""
    return variant_names()[tuple(int(v) for v in re.findall(r"Li(\d+)E", symbol)[:3])]


FAMILY = Family(
    "toeplitz_wgmma",
    {"toeplitz_wgmma/bf16.cu": ("90a",), "toeplitz_wgmma/f16.cu": ("90a",)},
    BUDGETS,
    variant_of,
    list(variant_names().values()),
    work="HGMMA",
    archs=("90a",),
)
