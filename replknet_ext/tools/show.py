"""Tables and progress bars in one style."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._progress import progress

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["bar", "number", "progress", "table"]


def table(title: str, *columns: str, numbers: str = "") -> Table:
    """An empty table; `numbers` has an "r" for each right-aligned column, at its position."""
    from rich import box
    from rich.table import Table

    result = Table(
        title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    for column, side in zip(columns, numbers.ljust(len(columns), "l"), strict=False):
        result.add_column(column, justify="right" if side == "r" else "left", overflow="fold")
    return result


def bar(share: float, width: int = 20) -> str:
    """A bar of `width` characters, in eighths of one."""
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


def number(value: int, unit: str, short: bool) -> str:
    """The integer with commas, or in millions (M) or billions (G) with two digits."""
    return f"{value / {'M': 1e6, 'G': 1e9}[unit]:.2f} {unit}" if short else f"{value:,}"
