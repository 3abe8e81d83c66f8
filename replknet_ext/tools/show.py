"""Tables and progress bars in one style."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress
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


@contextmanager
def progress(hidden: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr that goes away at the end; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as shown:
        yield shown
