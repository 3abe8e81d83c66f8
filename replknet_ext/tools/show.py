"""Text, tables and progress bars in one style."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING, Any

from .._progress import progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["bar", "console", "number", "plain", "progress", "table"]

#: Width where there is no terminal: nothing is cut or wrapped for programs and files.
UNLIMITED = 4096

#: Characters that reorder what stands beside them.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def console(**kwargs: Any) -> Console:
    """A console of rich that prints strings as they are, without markup; as wide as needed off a terminal.

    Args:
        kwargs: as `rich.console.Console`.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, **kwargs: Any) -> Text:  # type: ignore[override]
            return super().render_str(plain(text, keep="\n"), **kwargs)

    result = Plain(markup=False, emoji=False, highlight=False, **kwargs)
    if not result.is_terminal and "COLUMNS" not in os.environ:
        result.width = UNLIMITED
    return result


def plain(text: object, keep: str = "") -> str:
    """Text that a terminal shows and does not obey: control characters, and bytes that are no text, are escaped.

    Args:
        keep: characters to leave as they are.
    """

    def shown(character: str) -> str:
        if character in keep:
            return character
        strange = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _REORDERING
        return character.encode("unicode_escape", "surrogatepass").decode() if strange else character

    return "".join(map(shown, str(text)))


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
