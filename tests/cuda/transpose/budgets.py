"""Compile budgets of the transposes; the block with the most stores writes elements or vectors of a tile."""

from __future__ import annotations

import re

from cuda_budgets import ARCHS, Budget, Family

# registers of sm_80, 86, 89, 90, 100, 120; STG, LDSM, LDS, share
BUDGETS: dict[str, Budget] = {
    "transpose_2": Budget((48, 48, 48, 48, 40, 44), 4, 0, 8, 0.09),
    "transpose_4": Budget((48, 48, 48, 48, 48, 40), 4, 0, 4, 0.17),
    "transpose_8": Budget((48, 46, 46, 48, 48, 48), 4, 0, 4, 0.17),
}

#: By the mangled name of the element: unsigned short, int and long.
NAMES = {"t": "transpose_2", "j": "transpose_4", "m": "transpose_8"}


def variant_of(symbol: str) -> str | None:
    """By the bytes of an element."""
    found = re.search(r"transpose_kernelI([tjm])E", symbol)
    return NAMES[found[1]] if found else None


FAMILY = Family("transpose", {"transpose.cu": ARCHS}, BUDGETS, variant_of, list(NAMES.values()), work="STG")
