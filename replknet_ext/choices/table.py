"""Measured choices of kernels. They are only read here; `replknet_ext.tuning` measures and writes.

A choice is the backend and the name of the variant for one pass of one problem on one device. Two places hold them: the
user's cache, one file for each device and set of versions, and behind it the files that the package ships, one for each
model of GPU, or of CPU with instruction set and threads. Nothing in them is trusted: a file that is damaged or of
another device or version is left out with one warning, and so is a variant, silently, that this build does not have or
that does not run the problem.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import platform
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import _ext, _files
from .._version import __version__
from ..backends.base import Problem
from ..backends.registry import BACKENDS

__all__ = [
    "Choice",
    "Entry",
    "cpu_name",
    "document",
    "entries",
    "entry",
    "forget",
    "generation",
    "identity",
    "key_of",
    "lookup",
    "parse",
    "path_of",
    "read",
    "remember",
    "shipped",
    "shipped_devices",
    "stem_of",
    "tuned",
    "warn_once",
]

FORMAT = 1
SHIPPED = Path(__file__).parent / "shipped"
COMMAND = "`replknet-ext tune` measures anew"


class Choice(NamedTuple):
    """What runs one pass of a problem: see `Candidate` for name and variant. ``source``: "tuned" or "shipped"."""

    backend: str
    name: str
    variant: int
    us: float
    source: str


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
    """Everything that a choice may depend on, in words. Bias and activation are the forward pass's.

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


@functools.cache
def cpu_name() -> str:
    """The processor's own name, e.g. from /proc/cpuinfo."""
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


def _driver() -> str:
    with suppress(OSError):
        match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", Path("/proc/driver/nvidia/version").read_text())
        if match:
            return match.group(1)
    with suppress(AttributeError, RuntimeError):
        return str(torch._C._cuda_getDriverVersion())  # type: ignore[attr-defined]  # a build without CUDA lacks it
    return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def _fixed(device_type: str, index: int) -> dict[str, str]:
    """What of `identity` does not change in a process."""
    info = _ext.build_info()
    versions = {"torch": torch.__version__, "replknet_ext": __version__}
    if device_type == "cpu":
        isa = str(_ext.cpu_isa())
        return {"device": cpu_name(), "isa": isa, **versions, "variants": _digest(info.get("cpu_variants"))}
    return {
        "device": torch.cuda.get_device_name(index), "driver": _driver(), "cuda": str(torch.version.cuda), **versions,
        "triton": _version("triton"), "variants": _digest([info.get("cuda_variants"), info.get("cuda_archs")]),
    }  # fmt: skip


def identity(device: torch.device) -> dict[str, str]:
    """What a choice holds for beside its problem: the device, its driver or instruction set and threads, versions, and
    a digest of the table of variants."""
    if device.type == "cpu":
        return {**_fixed("cpu", 0), "threads": str(torch.get_num_threads())}
    return _fixed(device.type, torch.cuda.current_device() if device.index is None else device.index)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()


def stem_of(who: Mapping[str, str]) -> str:
    """The name of the file for all devices of one kind: a GPU's model ("h200", "a100-sxm4-80gb"), or a CPU's with
    instruction set and threads."""
    name = _slug(who["device"])
    return f"{name}_{who['isa']}_{who['threads']}t" if "isa" in who else re.sub("^nvidia-(?=.)", "", name)


#: What of an `identity` a file for all devices of one kind must share; the rest (driver, torch, ...) may differ.
_OF_A_KIND = ("device", "isa", "threads", "replknet_ext")


def path_of(who: Mapping[str, str]) -> Path:
    """The file in the user's cache for an `identity`."""
    return _files.cache_dir() / "tuned" / f"{_slug(who['device'])}-{_digest(dict(who))}.json"


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
            who = {key: who[key] for key in _OF_A_KIND if key in who}
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


def _note_stale(path: Path, who: Mapping[str, str]) -> None:
    """Say once if this device was tuned, but under other versions (a CPU: under as many threads)."""
    for other in sorted(path.parent.glob(f"{_slug(who['device'])}-*.json")):
        with suppress(OSError, ValueError, KeyError, AttributeError):
            theirs = json.loads(other.read_text(encoding="utf-8"))["identity"]
            if theirs.get("threads") == who.get("threads"):
                _left_out(other, f"is of another device or version ({_difference(theirs, who)})")
                return


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
                elif not table:
                    _note_stale(path, who)
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


def _found(problem: Problem, backend: str, device: torch.device) -> Iterator[tuple[str, Entry]]:
    """The entries for a problem and where they are from: those to prefer come first."""
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        return
    for source, table in (("tuned", entries(device)), ("shipped", shipped(device))):
        if table:
            entry = table.get(key_of(problem, backend)) or table.get(key_of(problem))
            if entry is not None:
                yield source, entry


def entry(problem: Problem, backend: str, device: torch.device) -> Entry | None:
    """What was measured of one pass of a problem, whether or not it can be used here."""
    return next((entry for _, entry in _found(problem, backend, device)), None)


def tuned(problem: Problem, backend: str, device: torch.device) -> bool:
    """Whether there is a choice that was measured here: shipped ones are no reason not to measure."""
    found = lookup(problem, backend, device)
    return found is not None and found.source == "tuned"


def lookup(problem: Problem, backend: str, device: torch.device) -> Choice | None:
    """The measured choice for one pass of a problem, or None: then the cost model chooses.

    Args:
        problem: with its pass and memory format.
        backend: as in `depthwise_conv2d`; with a name only that one's choices count.
        device: where it runs.
    """
    for source, entry in _found(problem, backend, device):
        for name, variant, us in entry.best:
            if backend not in ("auto", name):
                continue
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                number = BACKENDS[name].variant(problem, variant)
            if number is not None:
                return Choice(name, variant, number, us, source)
    return None
