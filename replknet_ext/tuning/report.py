"""What tuning found, to print and to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends import Problem
from ..choices import table
from ..choices.table import Entry
from .measure import Measured

__all__ = ["Row", "TuneReport", "kind_of", "layer_of", "shape_of"]

#: The median over the smallest of samples that were taken beside other work.
DISTURBED = 1.5


def shape_of(problem: Problem) -> str:
    """Shapes in short."""
    kh, kw = problem.weight_shape[2:]
    kernel = f"{kh}" if kh == kw else f"{kh}x{kw}"
    return f"{'x'.join(map(str, problem.input_shape))} K{kernel}"


def kind_of(problem: Problem) -> str:
    """Dtype, precision and memory format in short."""
    layout = " channels_last" if problem.channels_last else ""
    precision = f" {problem.precision}" if problem.precision != "ieee" else ""
    return f"{problem.dtype_name}{precision}{layout}"


def layer_of(problem: Problem) -> str:
    """Shapes and dtype in short."""
    return f"{shape_of(problem)} {kind_of(problem)}"


@dataclass(frozen=True)
class Row:
    """One pass of one problem.

    Attributes:
        problem: what was tuned.
        count: how many layers have it.
        entry: the choice with its time and the untuned one's; None if nothing ran.
        measured: every candidate that was tried; empty if the choice was there already.
    """

    problem: Problem
    count: int
    entry: Entry | None
    measured: tuple[Measured, ...] = ()

    @property
    def disturbed(self) -> bool:
        """Whether the untuned kernel's times scatter so much that something else must have run beside."""
        first = self.measured[0] if self.measured else None
        return first is not None and first.failed is None and first.us > DISTURBED * first.least_us

    @property
    def gain(self) -> float | None:
        """Untuned over tuned time; None if one is unknown."""
        if self.entry is None or not self.entry.untuned_us:
            return None
        return self.entry.untuned_us / self.entry.best[0][2]

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        entry = None if self.entry is None else self.entry.as_json()
        return {
            "problem": table.key_of(self.problem), "layers": self.count, "choice": entry,
            "measured": [m.as_dict() for m in self.measured],
        }  # fmt: skip


@dataclass(frozen=True)
class TuneReport:
    """The outcome of `replknet_ext.tune`; `print` it for a table.

    Attributes:
        rows: one for each pass of each problem.
        device: for what it holds, see `identity`.
        path: the file that keeps the choices; None if they were not written.
        backend: "auto", or the one whose kernels alone were tried.
    """

    rows: tuple[Row, ...]
    device: Mapping[str, str]
    path: Path | None
    backend: str = "auto"

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def totals(self) -> dict[str, tuple[float, float]]:
        """Untuned and tuned microseconds of all layers, by pass; rows with an unknown time are left out."""
        sums: dict[str, tuple[float, float]] = {}
        for row in self.rows:
            if row.entry is not None and row.entry.untuned_us is not None:
                untuned, tuned = sums.get(row.problem.pass_, (0.0, 0.0))
                more = row.count * row.entry.untuned_us, row.count * row.entry.best[0][2]
                sums[row.problem.pass_] = untuned + more[0], tuned + more[1]
        return sums

    @property
    def kind(self) -> str:
        """`kind_of` all rows; empty if they differ."""
        kinds = {kind_of(row.problem) for row in self.rows}
        return kinds.pop() if len(kinds) == 1 else ""

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        path = None if self.path is None else str(self.path)
        return {"device": dict(self.device), "path": path, "rows": [row.as_dict() for row in self.rows]}

    def save_config(self, path: str | Path) -> Path:
        """Writes the choices to a file of one's own, from which a package can ship them; see `table.save_config`."""
        found = {table.key_of(row.problem, self.backend): row.entry for row in self.rows if row.entry is not None}
        return table.save_config(path, self.device, found)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings and cells: layer, layers, pass, kernel, untuned and tuned microseconds, gain.

        Layers are without what `kind` says of all of them.
        """
        cells = [_cells(row, shape_of if self.kind else layer_of) for row in self.rows]
        for pass_, (untuned, tuned) in self.totals.items():
            cells.append(("all layers", "", pass_, "", us(untuned), us(tuned), f"{untuned / tuned:.2f}x"))
        return ("layer", "n", "pass", "kernel", "untuned us", "tuned us", "gain"), cells

    def notes(self) -> Iterator[str]:
        """What the reader should know beside the table: what failed, and whether to trust the times."""
        for row in self:
            for m in row.measured:
                if m.failed is not None:
                    yield f"left out: {row.problem.pass_} {layer_of(row.problem)}: {m.candidate.label}: {m.failed}"
        disturbed = sum(row.disturbed for row in self)
        if disturbed:
            yield (
                f"{disturbed} of {len(self)} measurements scatter: something else seems to have run. "
                "Measure again on an idle device (--force, force=True)."
            )

    def __str__(self) -> str:
        heading, cells = self.table()
        title = [self.kind] if self.kind else []
        return "\n".join([*title, aligned([heading, *cells]), *self.notes()])


def us(value: float | None) -> str:
    """Microseconds in three digits."""
    if value is None or math.isinf(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cells(row: Row, name_of: Callable[[Problem], str]) -> tuple[str, ...]:
    start = (name_of(row.problem), str(row.count), row.problem.pass_)
    if row.entry is None:
        why = row.measured[0].failed if row.measured else "no kernel runs it"
        return *start, f"none: {why}", "-", "-", ""
    backend, name, tuned = row.entry.best[0]
    gain = row.gain
    return *start, f"{backend} {name}", us(row.entry.untuned_us), us(tuned), f"{gain:.2f}x" if gain else ""


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
