"""Downloads that resume, are checked and cached.

torch.hub and pooch begin again after a drop, and torch.hub takes a file that ended early for a whole one;
huggingface_hub resumes, but publicly only from repositories of its Hub. Hence this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
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
    """The file behind `url`: downloaded once, then taken from the cache, where each address has a folder of its own.

    An interrupted download goes on where it stopped, in this call (a few times) or in a later one, where the server
    names the version of its file (ETag or Last-Modified). Of several processes that want the same file one downloads
    and the others wait. The file appears under its name only when it is complete and its hash is right.

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
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise CheckpointError(f"url must be an address; got {url!r}: {error}") from error
    if parts.scheme.lower() == "file":
        path = Path(urllib.request.url2pathname(urllib.parse.unquote(parts.path) if os.name == "nt" else parts.path))
        if parts.netloc not in ("", "localhost"):
            raise CheckpointError(f"url must be a file on this machine, as in file:///a/b.pth; got {url!r}")
        if not os.path.isfile(path):
            raise CheckpointError(f"{url}: no such file")
        _check(path, sha256, url)
        return path

    name = Path(urllib.parse.unquote(parts.path)).name
    if name in ("", "..") or not name.isprintable() or len(os.fsencode(name)) > 200:
        raise CheckpointError(f"url must end in the name of a file; got {url!r}")
    folder = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "checkpoints"
    target = folder / hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:16] / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if not (target.is_file() and _has_hash(target, sha256)):
                _fetch(url, sha256, target, progress)
    except OSError as error:  # of the folder; what the network does has been dealt with
        raise CheckpointError(f"{url} cannot be kept in {target.parent}: {error}") from error
    return target


def _fetch(url: str, sha256: str | None, target: Path, progress: bool) -> None:
    """Downloads into `target`.part and renames it when it is right."""
    part, version = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.version")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _transfer(url, part, version, progress)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416 or not part.exists():
                raise CheckpointError(f"{url} cannot be downloaded: {error}") from error
            part.unlink()  # nothing is left to send of what is not all of it: begin again
        except (OSError, http.client.HTTPException, ValueError) as error:
            if attempt == _ATTEMPTS or isinstance(error, (ValueError, http.client.InvalidURL)):
                kept = " (what has arrived is kept; call again to go on)"
                if not version.exists():
                    kept = ""
                    part.unlink(missing_ok=True)
                raise CheckpointError(f"{url} cannot be downloaded: {error}{kept}") from error
    else:
        raise CheckpointError(f"{url} cannot be downloaded: the server has no such part of it")
    try:
        _check(part, sha256, url)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        version.unlink(missing_ok=True)


def _transfer(url: str, part: Path, version: Path, progress: bool) -> None:
    """Appends to `part` what is still to come; `version` remembers of which version of the file the piece is."""
    known = version.read_text() if version.exists() and part.exists() else ""
    have = part.stat().st_size if known else 0
    headers = {"User-Agent": "replknet_ext", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known}
    # Letters beyond ASCII, which browsers let stand in an address.
    request = urllib.request.Request(urllib.parse.quote(url, safe="!#$%&'()*+,/:;=?@[]~"), headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if response.status == 206:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if not have or start is None or int(start[1]) != have or validator not in ("", known):
                part.unlink(missing_ok=True)
                raise ConnectionError("the server sent another part of the file than it was asked for")
        else:  # the server sends everything
            have = 0
            part.unlink(missing_ok=True)  # which may be a link to a file of somebody else's
            version.unlink(missing_ok=True)
            if validator and not validator.startswith("W/"):  # a weak ETag must not be used for ranges
                version.write_text(validator)
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        with (
            open(part, "ab" if have else "xb", opener=_no_link) as file,
            _bar(part.stem, have, total, progress) as advance,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                advance(len(chunk))
    if total is not None and have != total:
        raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


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
