"""Atomic writes, file locks, and the package's cache directory."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import _env

__all__ = ["cache_dir", "locked", "replacing"]

_LEFT_BEHIND = 24 * 3600  # seconds after which nobody is writing a temporary file any more


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

    A link stays one: the file that it names is replaced. A file that is there keeps its mode. What a killed process has
    left beside `path` is removed once it is a day old.

    Raises:
        OSError: the folder cannot be made or written to, or `path` is no regular file; names `path`, as do errors of
            writing in the block.
    """
    # The suffix stays: writers choose their format by it.
    target, suffix = Path(os.path.realpath(path)), Path(path).suffix
    try:
        if target.is_dir():
            raise OSError(errno.EISDIR, "is a folder")
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "is no regular file")
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{glob.escape(target.stem)}-{'[0-9a-f]' * 8}{glob.escape(suffix)}"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _LEFT_BEHIND:
                    left.unlink()
        temporary = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{suffix}")
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
            yield temporary
            temporary.chmod(mode)  # writers that make the file anew, as safetensors', choose one of their own
            os.replace(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        # Writers name the temporary file or none, as when the disk is full.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
