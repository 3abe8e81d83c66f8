"""Bugs planted in the transposes. They are linked with the smallest family, as a build needs one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import emulator_build
from mutants import SCHEDULES, Mutants

from .harness import CASES, Matrices, check

# name: (text, replacement)
BUGS = {
    "no barrier before the tile is read": ("    __syncthreads();\n    if (a.vectors_out)", "    if (a.vectors_out)"),
    "no barrier before the next tile": ("    __syncthreads();\n  }\n}", "  }\n}"),
    "reads beyond the last row": ("if (row < rows && column < columns) use", "if (column < columns) use"),
    "reads beyond the last column": ("if (row < rows && column < columns) use", "if (row < rows) use"),
    "writes beyond the last row": ("if (row >= rows || column >= columns)", "if (column >= columns)"),
    "writes the second column of a word beyond the last": ("      if (column + 1 >= columns) continue;\n", ""),
    "elements beyond the last column": ("inside = column < columns", "inside = true"),
    "half a word": ("if (column >= ceil_div(columns, kPacked) * kPacked) return;", "if (!inside) return;"),
    "elements beyond the last row": ("if (row >= rows) return;", ""),
    "elements of a batch beyond the last row": ("if (row + k * kStep < rows) v[k]", "v[k]"),
    "halves of a word swapped": (
        "(below[2 * k] & 0xffff) | below[2 * k + 1] << 16", "(below[2 * k + 1] & 0xffff) | below[2 * k] << 16",
    ),
    "16 bytes at any address": ("reinterpret_cast<uintptr_t>(tensor) % 16 == 0 &&", "(void)tensor,"),
    "16 bytes in rows of any length": ("&& row * static_cast<int64_t>(sizeof(T)) % 16 == 0", "+ 0 * row"),
    "alignment of the other side": ("aligned(a.to, a.rows)", "aligned(a.to, a.columns)"),
    "next matrix from the start": ("const T*>(a.from) + (matrix *", "const T*>(a.from) + (blockIdx.y *"),
    "row of the tile": ("blockIdx.x / a.across", "blockIdx.x % a.across"),
    "even distance of rows": ("kPitch = kWords | 1", "kPitch = kWords"),
}  # fmt: skip


def cut(cuda: Path) -> None:
    """The family of tests/emulator/stand_in by this folder's name."""
    (cuda / "transpose").mkdir()
    for path in (emulator_build.HERE / "stand_in").glob("*.c*"):
        (cuda / "transpose" / path.name).write_text(path.read_text().replace("stand_in", "transpose"))


def finding(emulator: ModuleType, schedule: str, seed: int) -> str | None:
    """The first of a schedule."""
    try:
        emulator.set_options(schedule, seed, banks=True)
        for case in CASES:
            check(emulator, case)
        emulator.set_options(schedule, seed, last_block=2)
        check(emulator, Matrices(65_535 + 3, 2, 3), 3)
    except AssertionError as error:
        return str(error)
    return None


def findings(emulator: ModuleType) -> list[str]:
    """Of every schedule the first, and bank conflicts."""
    found = [finding(emulator, *schedule) for schedule in SCHEDULES]
    emulator.set_options()
    conflicts = ["bank conflicts"] if emulator.take_counters()["access_conflicts"] else []
    return [one for one in found if one] + conflicts


MUTANTS = Mutants("transpose", {name: ("transpose.cu", *bug) for name, bug in BUGS.items()}, [], cut, more=findings)
