"""Checkpoint files: reading without running code of theirs, unwrapping what trainers put around weights, writing."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import threading
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import replacing
from .keys import CheckpointError, arch_name, holds_network, shorten
from .replknet import RepLKNetConfig

__all__ = ["check_suffix", "read_entries", "unwrap", "write_entries"]

#: Entries under which trainers store the weights, in the order in which `key="auto"` takes them.
_WRAPPERS = (
    *("state_dict", "model", "module", "model_state_dict", "net", "network", "params", "weights", "backbone"),
    *("model_ema", "ema_state_dict", "state_dict_ema", "ema"),
)
_DEPTH = 8  # levels of dicts that are searched
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
#: What a folder of the Hugging Face Hub calls its weights.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_UNPACKED = 10  # times its own size that the content of a file may have; torch.save does not compress
_loading = threading.Lock()  # the list of safe globals is one for all threads


class _Record:
    """Takes the place of an object that is read past: it takes all arguments and does nothing."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


#: Objects beside the weights in trainers' files that become a `_Record`. mmengine's history holds its own methods,
#: which a pickle gets by `getattr`.
_RECORDS = (
    *("numpy.dtype", "numpy.ndarray", "builtins.getattr", "mmengine.logging.history_buffer.HistoryBuffer"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)


def read_entries(path: Path, key: str, source: str) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """The state dict in a file, or in a folder as the Hugging Face Hub has it, and what else it says: see `unwrap`."""
    if os.path.isdir(path):
        found = [path / name for name in _HUB_FILES if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path} is a folder without {' or '.join(_HUB_FILES)}")
        path = found[0]
    if not os.path.isfile(path):
        # A name may be too long to look at.
        raise CheckpointError(f"{path}: {'no regular file' if os.path.exists(path) else 'no such file'}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    entries, meta = unwrap(_read_torch(path), key, source)
    for name, value in entries.items():
        if isinstance(value, Tensor) and _is_hollow(value):
            raise CheckpointError(f"{path} holds fewer values than the shape of {name} says, {tuple(value.shape)}")
    return entries, meta


def _is_hollow(tensor: Tensor) -> bool:
    """Whether a model would need more memory for this tensor than the file has for it."""
    if tensor.layout != torch.strided:
        return False  # refused with the other kinds that are no weights
    return tensor.is_meta or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _read_torch(path: Path) -> Any:
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with _loading, torch.serialization.safe_globals(_records()):
            unsafe = _check_archive(path) if zipfile.is_zipfile(path) else []
            if not unsafe:
                return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler meets damaged bytes with whatever they lead to
        unsafe = re.findall(r"GLOBAL (\S+)", str(error))  # the first one; the older format has no list of them
        if not unsafe:
            # Of damaged bytes a KeyError or IndexError tells nothing.
            why = "" if isinstance(error, (LookupError, EOFError)) else f": {_first_sentence(error)}"
            raise CheckpointError(f"{path} {_why_unreadable(path)}{why}") from error
    if any(name.startswith("torch.nn.modules.") for name in unsafe):
        raise CheckpointError(f"{path} holds a whole model; only weights are read: save its state_dict()")
    names = sorted(unsafe)
    raise CheckpointError(
        f"{path} holds objects of {shorten(names)}, and unpickling those may run code. If you trust the file, read it "
        f"inside torch.serialization.safe_globals([{', '.join(names)}])"
    )


def _records() -> list[Any]:
    """What the unpickler may meet beside tensors, in the form that `safe_globals` takes.

    Leaving that context forgets what is in it, so what the user allowed must not be.
    """
    allowed = torch.serialization.get_safe_globals()
    names = {f[1] if isinstance(f, tuple) else f"{f.__module__}.{f.__qualname__}" for f in allowed}
    records: list[Any] = [] if argparse.Namespace in allowed else [argparse.Namespace]
    return records if names.intersection(_RECORDS) else [*records, *((_Record, name) for name in _RECORDS)]


def _check_archive(path: Path) -> list[str]:
    """Classes and functions in a file of the newer format that are not let through.

    Raises:
        CheckpointError: its content is out of proportion to its size.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if unpacked > _UNPACKED * size:
        raise CheckpointError(f"{path} has {size:,} bytes and would unpack to {unpacked:,}: no checkpoint is like that")
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def _why_unreadable(path: Path) -> str:
    """What to say of a file that the unpickler refuses without naming a class."""
    with suppress(Exception):
        start = b""
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    start = file.read(2)
        else:
            with path.open("rb") as file:
                start = file.read(2)
        if start[:1] == pickle.PROTO and start[1] in (4, 5):
            return (
                f"was written with pickle_protocol={start[1]}, which cannot be read without running code of the file; "
                "where you trust it, load it with weights_only=False and save it again with torch.save's default"
            )
    return "is damaged, truncated or no checkpoint"


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            entries = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
            stored = (file.metadata() or {}).get("config")
        return entries, {"config": json.loads(stored)} if stored else {}
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, truncated or no checkpoint: {_first_sentence(error)}") from error


def unwrap(loaded: Any, key: str, source: str) -> tuple[Mapping[Any, Any], dict[str, Any]]:
    """The mapping that holds the weights, and what is known from around it.

    Raises:
        CheckpointError: nothing under `key`; several mappings with weights and none of them under a usual name; or no
            mapping at all.
    """
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{source} holds a {type(loaded).__name__}, not a state dict")
    holders = _holders(loaded)
    inner = [path for path in holders if path]
    if key != "auto":
        inner = [p for p in inner if f".{key}." in f".{'.'.join(p)}."]
        if not inner:
            there = f"it has {shorten('.'.join(p) for p in holders if p)}" if any(holders) else "it has none"
            raise CheckpointError(f"{source} has no weights under {key!r}; {there}")
    usual = sorted(
        (p for p in inner if all(name in (*_WRAPPERS, *key.split(".")) for name in p)),
        key=lambda p: [_WRAPPERS.index(name) if name in _WRAPPERS else -1 for name in p],
    )
    if usual:
        chosen = usual[0]
    elif () in holders and key == "auto":
        chosen = ()
    elif len(inner) > 1:
        names = shorten(".".join(p) for p in inner)
        raise CheckpointError(f"{source} has weights under {names}; say which by key")
    else:
        chosen = inner[0] if inner else ()

    meta: dict[str, Any] = {}
    if chosen:
        meta |= {"keys": [".".join(p) for p in holders if p], "key": ".".join(chosen)}
    around: Any = loaded
    for name in (*chosen, None):
        if isinstance(around.get("epoch"), int):
            meta.setdefault("epoch", around["epoch"])
        if isinstance(around.get("args"), argparse.Namespace):
            meta.setdefault("args", vars(around["args"]))
        if isinstance(around.get("meta"), Mapping) and isinstance(around["meta"].get("config"), Mapping):
            meta.setdefault("config", dict(around["meta"]["config"]))
        if name is not None:
            around = around[name]
    return around, meta


def _holders(loaded: Mapping[Any, Any]) -> dict[tuple[str, ...], Mapping[Any, Any]]:
    """The mappings inside `loaded`, by their names, that hold a RepLKNet; if none does, those that hold tensors."""
    found, seen = {}, set()
    todo: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), loaded)]
    for path, mapping in todo:
        if id(mapping) in seen:  # a dict that holds itself
            continue
        seen.add(id(mapping))
        if any(isinstance(value, Tensor) and isinstance(name, str) for name, value in mapping.items()):
            found[path] = mapping
        todo += [
            ((*path, name), value)
            for name, value in mapping.items()
            if isinstance(name, str) and isinstance(value, Mapping) and len(path) < _DEPTH
        ]
    return {path: mapping for path, mapping in found.items() if holds_network(mapping)} or found


def check_suffix(dst: Path) -> None:
    """Raises a CheckpointError unless `dst` names a file of a known type that can be written here."""
    if dst.suffix not in _SUFFIXES:
        raise CheckpointError(f"dst must end in {', '.join(_SUFFIXES)}; got {dst.name!r}")
    if dst.suffix == ".safetensors":
        _safetensors()


def write_entries(state: Mapping[str, Tensor], dst: Path, config: RepLKNetConfig | None) -> None:
    """Writes the entries to `dst`, all or nothing, with the architecture where weights alone do not tell it."""
    state = {key: _own(value) for key, value in state.items()}
    with replacing(dst) as temporary:
        if dst.suffix == ".safetensors":
            import safetensors.torch

            metadata = {"format": "pt"} | ({"config": json.dumps(asdict(config))} if config is not None else {})
            safetensors.torch.save_file(state, temporary, metadata)
        elif config is None or arch_name(config) is not None:
            torch.save(state, temporary)
        else:
            wrapper = "state_dict" if any(key.startswith("backbone.") for key in state) else "model"
            torch.save({wrapper: state, "meta": {"config": asdict(config)}}, temporary)


def _own(value: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, in a storage of its own: files hold whole storages."""
    value = value.detach().to("cpu").contiguous()
    return value.clone() if value.untyped_storage().nbytes() != value.numel() * value.element_size() else value


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise CheckpointError("safetensors files need the package: pip install safetensors") from error
    return safetensors


def _first_sentence(error: BaseException) -> str:
    """The first sentence of its message."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
