"""Atomic writes, file locks, and the package's cache directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import _env

__all__ = ["cache_dir", "locked", "replacing"]


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
        OSError: the lock can't be made, or timed out.
    """
    from filelock import FileLock

    with FileLock(f"{path}.lock", timeout=timeout):
        yield


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` if the block ends well, else it is removed.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder")
    # The suffix stays: writers choose their format by it.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that nobody else may read
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
