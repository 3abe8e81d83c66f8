"""Downloads that resume, are checked and cached."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .._files import locked
from .keys import CheckpointError

__all__ = ["download", "is_url"]

_ATTEMPTS = 3
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20


def is_url(source: object) -> bool:
    """Whether `source` is a string with a scheme that `download` takes."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://", "file:"))


def download(
    url: str, sha256: str | None = None, *, progress: bool = True, cache_dir: str | Path | None = None
) -> Path:
    """The file behind `url`: downloaded once, then taken from the cache.

    An interrupted download goes on where it stopped, in this call (a few times) or in a later one. Of several processes
    that want the same file one downloads and the others wait. The file appears under its name only when it is complete
    and its hash is right.

    Args:
        url: an address with http, https or file; a `file:` one is used where it is.
        sha256: SHA-256 of the file in hex, or the first digits of it. A cached file with another one is replaced.
        progress: show a progress bar on a terminal (with rich, if it is installed).
        cache_dir: where files are kept; `torch.hub.get_dir()`/checkpoints by default.

    Raises:
        CheckpointError: the address cannot be had, or the file has another hash.
    """
    if not is_url(url):
        raise CheckpointError(f"url must start with http://, https:// or file:; got {url!r}")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() == "file":
        path = Path(urllib.request.url2pathname(urllib.parse.unquote(parts.path) if os.name == "nt" else parts.path))
        if parts.netloc not in ("", "localhost"):
            raise CheckpointError(f"url must be a file on this machine, as in file:///a/b.pth; got {url!r}")
        if not path.is_file():
            raise CheckpointError(f"{url}: no such file")
        _check(path, sha256, url)
        return path

    folder = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "checkpoints"
    name = Path(urllib.parse.unquote(parts.path)).name
    if not name:
        raise CheckpointError(f"url must end in the name of a file; got {url!r}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    with locked(target):
        if target.is_file() and _has_hash(target, sha256):
            return target
        _fetch(url, sha256, target, progress)
    return target


def _fetch(url: str, sha256: str | None, target: Path, progress: bool) -> None:
    """Downloads into `target`.part and renames it when it is right."""
    part, origin = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.from")
    resumed = part.exists()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _transfer(url, part, origin, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416 or not part.exists():
                raise CheckpointError(f"{url} cannot be downloaded: {error}") from error
            # Nothing is left to send: the piece is all of it, or of another version that was longer.
            if not error.headers.get("Content-Range", "").endswith(f"/{part.stat().st_size}"):
                part.unlink()
                continue
        except (OSError, http.client.HTTPException) as error:
            if attempt < _ATTEMPTS:
                resumed = True
                continue
            kept = " (what has arrived is kept; call again to go on)" if part.exists() else ""
            raise CheckpointError(f"{url} cannot be downloaded: {error}{kept}") from error
        if _has_hash(part, sha256) or not resumed or attempt == _ATTEMPTS:
            break
        part.unlink()  # the piece from an earlier call may be of another file: once more from the start
        resumed = False
    try:
        _check(part, sha256, url)
    except CheckpointError:
        part.unlink(missing_ok=True)
        raise
    finally:
        origin.unlink(missing_ok=True)
    os.replace(part, target)


def _transfer(url: str, part: Path, origin: Path, progress: bool) -> None:
    """Appends to `part` what is still to come; `origin` remembers of which version of which file the piece is."""
    have = part.stat().st_size if part.exists() else 0
    known, _, validator = (origin.read_text() if origin.exists() else "").partition("\n")
    if have and known != url:
        have = 0
    headers = {"User-Agent": "replknet_ext", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
        if response.status != 206:  # the server sends everything
            have = 0
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # A weak ETag must not be used for ranges.
        origin.write_text(f"{url}\n{'' if validator.startswith('W/') else validator}")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file, _bar(part.stem, have, total, progress) as advance:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                advance(len(chunk))
    if total is not None and have != total:
        raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _check(path: Path, sha256: str | None, url: str) -> None:
    if not _has_hash(path, sha256):
        raise CheckpointError(
            f"{url} has the wrong content: its SHA-256 begins with {_digest(path)[: max(8, len(sha256 or ''))]}, "
            f"expected was {sha256}"
        )


def _has_hash(path: Path, sha256: str | None) -> bool:
    return not sha256 or _digest(path).startswith(sha256.lower())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        return digest.hexdigest()


@contextlib.contextmanager
def _bar(name: str, done: int, total: int | None, show: bool) -> Iterator[Callable[[int], Any]]:
    """A function that is told of bytes that have arrived and draws a progress bar on a terminal."""
    if not (show and sys.stderr.isatty()):
        yield lambda count: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        print(f"downloading {name}" + (f" ({total - done:,} bytes)" if total else ""), file=sys.stderr)
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
