"""The files of measured choices of kernels: read, and written by `replknet_ext.tuning`, which measures.

A choice is the backend and the name of the variant for one pass of one problem on one device. Two places hold them: the
user's cache, one file for each device and set of versions, and behind it the files that the package ships, one for each
model of GPU, or of CPU with instruction set and threads. Nothing in them is trusted: a file that is damaged or of
another device or version is left out with one warning, and so is a variant, silently, that this build does not have or
that does not run the problem.
"""

from __future__ import annotations

import itertools
import json
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import _ext, _files
from ..backends import BACKENDS, Problem
from .device import OF_A_KIND, digest, identity, slug, stem_of

__all__ = [
    "Entry",
    "config_at",
    "document",
    "entries",
    "forget",
    "generation",
    "key_of",
    "of_other_versions",
    "parse",
    "path_of",
    "read",
    "remember",
    "save",
    "save_config",
    "shipped",
    "shipped_devices",
    "warn_once",
]

FORMAT = 1
SHIPPED = Path(__file__).parent / "shipped"
COMMAND = "`replknet-ext tune` measures anew"


class Entry(NamedTuple):
    """What was measured of one pass of one problem.

    Attributes:
        best: (backend, variant's name, microseconds): the best of each backend, the one to take first.
        untuned_us: microseconds of what runs without a choice, None if it failed.
    """

    best: tuple[tuple[str, str, float], ...]
    untuned_us: float | None

    def as_json(self) -> dict[str, Any]:
        """As files hold it."""
        rows = [{"backend": backend, "variant": name, "us": us} for backend, name, us in self.best]
        return {"best": rows, "untuned_us": self.untuned_us}

    @classmethod
    def from_json(cls, value: Any) -> Entry:
        """What `as_json` gave; anything else raises ValueError, TypeError or KeyError."""
        rows = tuple((str(row["backend"]), str(row["variant"]), float(row["us"])) for row in value["best"])
        if not rows or not {row[0] for row in rows} <= BACKENDS.keys():
            raise ValueError("no backend or an unknown one")
        untuned = value["untuned_us"]
        return cls(rows, None if untuned is None else float(untuned))


_lock = threading.RLock()
_tables: dict[Path, dict[str, Entry]] = {}  # what was read or measured in this process
_warned: set[str] = set()


def key_of(problem: Problem, backend: str = "auto") -> str:
    """Key of a problem in a file of choices: all that a choice depends on. Bias and activation are of the forward pass.

    A backend by name is part of it, as then the others were not measured.
    """
    n, c, h, w = problem.input_shape
    kh, kw = problem.weight_shape[2:]
    extra = [problem.activation] if problem.pass_ == "fwd" else []
    extra += ["bias"] if problem.has_bias and _in_pass(problem) else []
    extra += [f"backend={backend}"] if backend != "auto" else []
    padding = ",".join(map(str, problem.geometry.padding))
    layout = "channels_last" if problem.channels_last else "nchw"
    return " ".join(
        [problem.pass_, problem.dtype_name, f"{n}x{c}x{h}x{w}", f"k{kh}x{kw}", f"p{padding}", layout,
         problem.precision, problem.algorithm, *extra]
    )  # fmt: skip


def _in_pass(problem: Problem) -> bool:
    """Whether a bias is the kernel's affair: of the backward passes the GPU's bwd_weight sums its gradient."""
    return problem.pass_ == "fwd" or (problem.pass_ == "bwd_weight" and problem.device_type == "cuda")


# ---- devices ----


def path_of(who: Mapping[str, str]) -> Path:
    """The file in the user's cache for an `identity`."""
    return _files.cache_dir() / "tuned" / f"{slug(who['device'])}-{digest(dict(who))}.json"


# ---- tables ----


def document(who: Mapping[str, str], found: Mapping[str, Entry]) -> dict[str, Any]:
    """What a file of choices holds."""
    choices = {key: entry.as_json() for key, entry in sorted(found.items())}
    return {"format": FORMAT, "identity": dict(who), "choices": choices}


def read(path: Path, who: Mapping[str, str], *, alike: bool = False) -> dict[str, Entry]:
    """The choices in a file; {} if there is none or, with one warning, if it can't be used. Arguments as in `parse`."""
    found, why = parse(path, who, alike=alike)
    if why is not None:
        _left_out(path, why)
    return found


def parse(path: Path, who: Mapping[str, str], *, alike: bool = False) -> tuple[dict[str, Entry], str | None]:
    """The choices in a file, {} if there is none, and why it can't be used.

    Args:
        path: the file.
        who: what it must be for.
        alike: whether it is for all devices of one kind, as shipped ones are.
    """
    try:
        if not path.is_file():
            return {}, "cannot be read (it is no file)" if path.exists() else None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"cannot be read ({error})"
    try:
        if content["format"] != FORMAT:
            return {}, f"has format {content['format']!r}, not {FORMAT}"
        theirs = content["identity"]
        if alike:
            who = {key: who[key] for key in OF_A_KIND if key in who}
            theirs = {key: theirs[key] for key in who}
            if stem_of(theirs) == stem_of(who):
                theirs["device"] = who["device"]  # as good as the same name
        if theirs != dict(who):
            return {}, f"is of another device or version ({_difference(theirs, who)})"
        return {str(key): Entry.from_json(value) for key, value in content["choices"].items()}, None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return {}, "is damaged"


def _left_out(path: Path, why: str) -> None:
    warn_once(f"measured choices in {path} are not used: the file {why}; {COMMAND}")


def warn_once(message: str) -> None:
    """A UserWarning, the first time that this process has something to say about it."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {theirs.get(key)}, here {ours[key]}" for key in ours if theirs.get(key) != ours[key])


def of_other_versions(who: Mapping[str, str]) -> str | None:
    """What tells this device's other file of choices apart, if there is one (a CPU: of as many threads).

    It is another environment's, or of versions that have been replaced since: a matter for `replknet-ext doctor`, no
    reason for a warning.
    """
    path = path_of(who)
    for other in sorted(path.parent.glob(f"{slug(who['device'])}-*.json")):
        with suppress(OSError, ValueError, KeyError, AttributeError, RecursionError):
            theirs = json.loads(other.read_text(encoding="utf-8"))["identity"]
            if other != path and theirs.get("threads") == who.get("threads"):
                return _difference(theirs, who)
    return None


def entries(device: torch.device) -> Mapping[str, Entry]:
    """What the user's cache holds for a device, with what this process has measured; do not change it."""
    who = identity(device)
    try:
        path = path_of(who)
    except RuntimeError as error:  # no home folder to look in
        warn_once(f"measured choices are not used: {error}; REPLKNET_EXT_CACHE names another folder")
        return {}
    table = _tables.get(path)
    if table is None:
        with _lock:
            table = _tables.get(path)
            if table is None:
                table, why = parse(path, who)
                if why is not None:
                    _left_out(path, why)
                _tables[path] = table
    return table


def shipped(device: torch.device) -> Mapping[str, Entry]:
    """What the package ships for a device; do not change it."""
    who = identity(device)
    path = SHIPPED / f"{stem_of(who)}.json"
    table = _tables.get(path)
    if table is None:
        table = _tables[path] = read(path, who, alike=True)
    return table


def shipped_devices() -> list[str]:
    """Names of the devices that the package ships choices for, see `stem_of`."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def remember(device: torch.device, found: Mapping[str, Entry]) -> None:
    """Use these choices in this process from now on, whether or not they can be written."""
    with _lock:
        path = path_of(identity(device))
        _tables[path] = {**entries(device), **found}
    _changed()


def forget() -> None:
    """Read all files anew when they are next asked for."""
    with _lock:
        _tables.clear()
    _changed()


_generation = itertools.count(1)
_current = 0


def generation() -> int:
    """Another number whenever choices have changed: what was looked up before must be looked up again."""
    return _current


def _changed() -> None:
    global _current
    _current = next(_generation)
    _ext.forget_choices()


# ---- writing: several processes may, and none of them ever reads half a file ----

#: Seconds to wait for another process that writes the same file, which takes it milliseconds.
PATIENCE = 20.0


def _write(path: Path, who: Mapping[str, str], found: Mapping[str, Entry]) -> None:
    with _files.replacing(path) as temporary:
        temporary.write_text(json.dumps(document(who, found), indent=1) + "\n")


def save_config(path: str | Path, who: Mapping[str, str], found: Mapping[str, Entry]) -> Path:
    """Adds choices to a file such as the package ships, for all devices of the kind that they were measured on.

    Args:
        path: the file; it is made if it is not there.
        who: what they were measured on, see `device.identity`.
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
    found, why = parse(Path(path), who, alike=True)
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
    remember(device, found)
    who = identity(device)
    path = path_of(who)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _files.locked(path, PATIENCE):
            theirs = read(path, who)
            merged = {**theirs, **found} if replace else {**found, **theirs}
            _write(path, who, merged)
    except OSError as error:
        warn_once(f"measured choices can't be kept in {path.parent} ({error}) and hold for this process only; "
                          "REPLKNET_EXT_CACHE names another folder")  # fmt: skip
        return None
    remember(device, merged)
    return path
