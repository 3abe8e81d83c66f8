"""Files that are there completely or not at all, and where the package keeps its own."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from . import _env

__all__ = ["cache_dir", "locked", "replacing"]

#: What names of temporary files begin with, and the age in seconds after which nobody writes to one any more.
_TEMPORARY, _OLD = ".replknet_ext-", 3600.0


def cache_dir() -> Path:
    """The folder for what the package finds out by itself: ``$REPLKNET_EXT_CACHE``, else in the user's cache."""
    named = _env.get("CACHE")
    if named is not None:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "replknet_ext"


@contextmanager
def locked(path: str | Path, timeout: float = -1) -> Iterator[None]:
    """One process at a time is in the block for ``path``, beside which a file with the suffix .lock stays.

    Args:
        timeout: seconds to wait; -1 for ever.

    Raises:
        OSError: the lock can't be made, or was not to be had in time.
    """
    from filelock import FileLock  # torch needs it, too

    with FileLock(f"{path}.lock", timeout=timeout):
        yield


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` if the block ends well, else it is removed.

    A file that is replaced keeps its mode, and where `path` is a link, the file that it leads to is replaced. What a
    killed process left in the folder is removed once it is old.

    Raises:
        OSError: the folder cannot be made or written to, or `path` is no file; errors of writing name `path`.
    """
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "is not a regular file")
        _remove_left_behind(target.parent)
        # The suffix stays: writers choose their format by it.
        temporary = target.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}{Path(path).suffix}")
        with temporary.open("xb"):  # with the mode that new files have here
            pass
        try:
            mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
            temporary.chmod(mode | stat.S_IWUSR)
            yield temporary
            temporary.chmod(mode)  # some writers put a file of their own in its place
            os.replace(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        # Writers name the temporary file or none, as when the disk is full.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@cache
def _remove_left_behind(folder: Path) -> None:
    """Removes old temporary files, once per process and folder: folders may hold many files."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _OLD:
                left.unlink()
