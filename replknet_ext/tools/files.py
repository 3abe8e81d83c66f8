"""Files that the tools write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .. import _files
from ..errors import ToolError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """`replknet_ext._files.replacing` for people.

    Raises:
        ToolError: the folder cannot be made or written to.
    """
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(_files.replacing(path))
        except OSError as error:
            raise ToolError(f"cannot write {path}: {error.strerror or error}") from None
        yield temporary
