"""Compile budgets of fft: all passes of float32 by FFT. The block with the most FFMAs is a transform of one item."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, CUDA, Budget, Family

# registers of sm_80, 86, 89, 90a, 100, 120; FFMA, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
}  # fmt: skip


def variants() -> dict[tuple[str, int, int], str]:
    """(pass, q, p) of every line of the two tables of variants."""
    text = (CUDA / "fft_variants.h").read_text()
    found = {}
    for pass_ in ("fwd", "weight"):
        table = text.split(f"#define FFT_{pass_.upper()}_VARIANTS(X)")[1].split("\n\n")[0]
        for name, q, p in re.findall(r'X\("(\w+)",\s*(\d+),\s*(\d+),', table):
            found[pass_, int(q), int(p)] = f"{name} {pass_}"
    return found


def variant_of(symbol: str) -> str | None:
    """Variant of a kernel's mangled name; None: the reduction of bwd_weight's splits."""
    found = re.search(r"fft_(fwd|weight)_kernelILi(\d+)ELi(\d+)E", symbol)
    return variants()[found[1], int(found[2]), int(found[3])] if found else None


FAMILY = Family(
    "fft", {"fft_fwd.cu": ARCHS, "fft_weight.cu": ARCHS}, BUDGETS, variant_of, list(variants().values()), work="FFMA"
)
