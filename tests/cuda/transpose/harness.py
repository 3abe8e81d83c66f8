"""Runs csrc/cuda/transpose.cu on the emulator: matrices [rows][columns] into [columns][rows]."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from emulator_harness import GUARD, Guarded

DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


@dataclass(frozen=True)
class Matrices:
    """One launch; shifts: elements that the tensors lie off a 256-byte boundary."""

    matrices: int
    rows: int
    columns: int
    bytes_: int = 2  # of an element
    shift_from: int = 0
    shift_to: int = 0


#: Tensors that a launch may be given: whole tiles, cut ones, 16 bytes at a time on both sides, on one, on none.
CASES = [
    Matrices(matrices, rows, columns, bytes_)
    for bytes_ in DTYPES
    for matrices, rows, columns in (
        (1, 64, 64), (2, 56 * 2, 72), (2, 49, 128), (1, 136, 5), (3, 67, 131), (2, 1, 9), (2, 70, 1), (1, 8, 8),
    )
] + [
    Matrices(2, 64, 128, bytes_, *shifts) for bytes_ in DTYPES for shifts in ((1, 0), (0, 1), (3, 3))
]  # fmt: skip


def check(emulator: ModuleType, case: Matrices, blocks: int = 1 << 31) -> None:
    """Every element is where it belongs, and nothing else is touched.

    Args:
        emulator: the build.
        case: what is launched.
        blocks: that the emulator has been told to run, each of them alone on its matrices; others are not looked at.

    Raises:
        AssertionError: the emulator's first finding, or what is wrong.
    """
    size = (case.matrices, case.rows, case.columns)
    dtype = DTYPES[case.bytes_]
    every = torch.arange(case.matrices * case.rows * case.columns, dtype=torch.int64).view(size)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[case.bytes_]
    given = every.to(bits)  # patterns that are all different, or nearly: bits are moved, not numbers
    source = Guarded(given.view(dtype), case.shift_from)
    target = Guarded(torch.empty(case.matrices, case.columns, case.rows, dtype=dtype), case.shift_to, fill=False)
    try:
        for name, t in (("from", source), ("to", target)):
            guard = case.bytes_ * GUARD
            emulator.watch(name, t.tensor.data_ptr(), case.bytes_ * t.tensor.numel(), guard, name == "to")
        error = emulator.transpose(source.tensor.data_ptr(), target.tensor.data_ptr(), *size, case.bytes_)
    finally:
        emulator.unwatch()
    assert not error, f"{case}: {error}"
    assert target.intact(), f"{case}: wrote outside the result"
    ran = [i for i in range(case.matrices) if i % 65_535 < blocks]
    wrong = int((target.tensor.view(bits)[ran] != given.transpose(1, 2)[ran]).sum())
    assert wrong == 0, f"{case}: {wrong} elements are wrong"
