"""Files that the tools write: checked before the work, and written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import _files
from ..errors import ToolError, UsageError

__all__ = ["check_destination", "check_suffix", "refuse_inputs", "replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """`replknet_ext._files.replacing` for people.

    Raises:
        ToolError: the folder cannot be made or written to, or writing fails.
    """
    try:
        with _files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror or error}") from None


def check_suffix(path: str | Path, suffixes: Sequence[str]) -> None:
    """Raises a UsageError unless the name ends in one of `suffixes`."""
    if Path(path).suffix.lower() not in suffixes:
        raise UsageError(f"cannot write {path}: its suffix must be one of {', '.join(suffixes)}")


def check_destination(path: str | Path) -> None:
    """Whether a file can be written, asked before the work that its content takes. No folder is made for it.

    Raises:
        ToolError: there is no such folder, it cannot be written to, or `path` is something other than a file.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ToolError(f"cannot write {path}: {'not a' if target.parent.exists() else 'no such'} folder {path.parent}")
    if target.exists() and not target.is_file():
        raise ToolError(f"cannot write {path}: it is {'a folder' if target.is_dir() else 'no regular file'}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ToolError(f"cannot write {path}: no permission to write to {path.parent}")


def refuse_inputs(targets: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Whether no target is a file that is read, under whatever name.

    Raises:
        UsageError: names the first that is.
    """
    known = {_identity(path): path for path in inputs}
    for target in targets:
        identity = _identity(target)
        if identity is not None and identity in known:
            raise UsageError(f"{target} would replace {known[identity]}, which is read: choose another output")


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # not there, or an address
        return None
    return status.st_dev, status.st_ino
