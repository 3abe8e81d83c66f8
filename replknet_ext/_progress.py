"""Progress bars, where rich is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["progress", "steps"]


@contextmanager
def progress(hidden: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr that goes away at the end; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal)
    with contextlib.nullcontext() if shown.disable else shown:  # which rich 14 ends by an empty line
        yield shown


@contextmanager
def steps(total: int, hidden: bool = False) -> Iterator[Callable[[str], None]]:
    """A function that is told what begins next; `progress` of them, or nothing without rich."""
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        yield lambda description: None
        return
    with progress(hidden) as shown:
        task = shown.add_task("", total=total)
        begun = 0

        def begin(description: str) -> None:
            nonlocal begun
            shown.update(task, description=description, completed=begun)
            begun += 1

        yield begin
