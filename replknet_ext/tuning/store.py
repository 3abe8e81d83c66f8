"""Writes measured choices into the user's cache: several processes may, and none of them ever reads half a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from .. import _files
from ..backends import configs
from ..backends.configs import Entry

__all__ = ["save"]

#: Seconds to wait for another process that writes the same file, which takes it milliseconds.
PATIENCE = 20.0


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
    configs.remember(device, found)
    who = configs.identity(device)
    path = configs.path_of(who)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _files.locked(path, PATIENCE):
            theirs = configs.read(path, who)
            merged = {**theirs, **found} if replace else {**found, **theirs}
            choices = {key: entry.as_json() for key, entry in sorted(merged.items())}
            with _files.replacing(path) as temporary:
                temporary.write_text(
                    json.dumps({"format": configs.FORMAT, "identity": who, "choices": choices}, indent=1)
                )
    except OSError as error:
        configs.warn_once(f"measured choices can't be kept in {path.parent} ({error}) and hold for this process only; "
                          "REPLKNET_EXT_CACHE names another folder")  # fmt: skip
        return None
    configs.remember(device, merged)
    return path
