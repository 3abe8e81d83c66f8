"""Writes measured choices into the user's cache: several processes may, and none of them ever reads half a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from .. import _files
from ..choices import table
from ..choices.table import Entry

__all__ = ["config_at", "save", "save_config"]

#: Seconds to wait for another process that writes the same file, which takes it milliseconds.
PATIENCE = 20.0


def _write(path: Path, who: Mapping[str, str], found: Mapping[str, Entry]) -> None:
    with _files.replacing(path) as temporary:
        temporary.write_text(json.dumps(table.document(who, found), indent=1) + "\n")


def save_config(path: str | Path, who: Mapping[str, str], found: Mapping[str, Entry]) -> Path:
    """Adds choices to a file such as the package ships, for all devices of the kind that they were measured on.

    Args:
        path: the file; it is made if it is not there.
        who: what they were measured on, see `configs.identity`.
        found: the choices, which take the place of those in the file for the same problems.

    Raises:
        ValueError: there are no choices, or `path` is something else, or for another device or version.
        OSError: `path` cannot be written.
    """
    if not found:
        raise ValueError(f"nothing to write to {path}: there are no measured choices")
    before = config_at(path, who)
    _write(Path(path), who, {**before, **found})
    return Path(path)


def config_at(path: str | Path, who: Mapping[str, str]) -> dict[str, Entry]:
    """What `save_config` would add to; {} if nothing is there yet.

    Raises:
        ValueError: something else is there, or the choices of another device or version.
    """
    found, why = table.parse(Path(path), who, alike=True)
    if why is not None:
        raise ValueError(f"{path} {why}: name another file, or remove it")
    return found


def save(device: torch.device, found: Mapping[str, Entry], *, replace: bool) -> Path | None:
    """Adds choices to the file of a device, and uses what the file then holds.

    Args:
        device: where they were measured.
        found: the choices.
        replace: whether they take the place of those that another process has written for the same problems meanwhile.
            If not, those win, so that processes that tune at the same time agree in the end.

    Returns:
        The file, or None where it can't be written: then the choices hold for this process, and one warning says so.
    """
    table.remember(device, found)
    who = table.identity(device)
    path = table.path_of(who)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _files.locked(path, PATIENCE):
            theirs = table.read(path, who)
            merged = {**theirs, **found} if replace else {**found, **theirs}
            _write(path, who, merged)
    except OSError as error:
        table.warn_once(f"measured choices can't be kept in {path.parent} ({error}) and hold for this process only; "
                          "REPLKNET_EXT_CACHE names another folder")  # fmt: skip
        return None
    table.remember(device, merged)
    return path
