"""Checkpoint files: reading without running code of theirs, unwrapping what trainers put around weights, writing."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import replacing
from .keys import CheckpointError, arch_name, shorten
from .replknet import RepLKNetConfig

__all__ = ["check_suffix", "read_entries", "unwrap", "write_entries"]

#: Entries under which trainers store the weights, in the order in which `key="auto"` looks for them.
_WRAPPERS = ("state_dict", "model", "module", "model_ema")
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def read_entries(path: Path, key: str, source: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The state dict in a file, and what else the file says: see `unwrap`."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else unwrap(_read_torch(path), key, source)


def _read_torch(path: Path) -> Any:
    # A plain record, in which trainers store their arguments. Leaving the context would forget one the user allowed.
    known = argparse.Namespace in torch.serialization.get_safe_globals()
    allowed: list[Any] = [] if known else [argparse.Namespace]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.findall(r"GLOBAL (\S+)", str(error))  # the first one; only the newer format lists them all
        if zipfile.is_zipfile(path):
            with torch.serialization.safe_globals(allowed):
                unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if not unsafe:
            raise CheckpointError(f"{path} is damaged, truncated or no checkpoint: {_first_sentence(error)}") from error
        if any(name.startswith("torch.nn.modules.") for name in unsafe):
            raise CheckpointError(
                f"{path} holds a whole model; only weights are read: save its state_dict()"
            ) from error
        raise CheckpointError(
            f"{path} holds objects of {shorten(sorted(unsafe))}, and unpickling those may run code. If you trust the "
            f"file, read it inside torch.serialization.safe_globals([{unsafe[0].rpartition('.')[2]}])"
        ) from error
    except Exception as error:  # the unpickler meets damaged bytes with whatever they lead to
        raise CheckpointError(f"{path} is damaged, truncated or no checkpoint: {_first_sentence(error)}") from error


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            entries = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
            stored = (file.metadata() or {}).get("config")
        return entries, {"config": json.loads(stored)} if stored else {}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, truncated or no checkpoint: {_first_sentence(error)}") from error


def unwrap(loaded: Any, key: str, source: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The mapping that holds the weights, and what is known from around it."""
    meta: dict[str, Any] = {}
    while isinstance(loaded, Mapping):
        keys = [name for name, value in loaded.items() if isinstance(value, Mapping) and name in (*_WRAPPERS, key)]
        if isinstance(loaded.get("epoch"), int):
            meta.setdefault("epoch", loaded["epoch"])
        if isinstance(loaded.get("args"), argparse.Namespace):
            meta.setdefault("args", vars(loaded["args"]))
        if isinstance(loaded.get("meta"), Mapping) and isinstance(loaded["meta"].get("config"), Mapping):
            meta.setdefault("config", dict(loaded["meta"]["config"]))
        if key != "auto" and "key" not in meta:
            if key not in keys:
                there = f"it has {shorten(keys)}" if keys else "it has none"
                raise CheckpointError(f"{source} has no weights under {key!r}; {there}")
            chosen = key
        else:
            chosen = next((name for name in _WRAPPERS if name in keys), "")
        if not chosen:
            return loaded, meta
        meta.setdefault("keys", keys)
        meta.setdefault("key", chosen)
        loaded = loaded[chosen]
    raise CheckpointError(f"{source} holds a {type(loaded).__name__}, not a state dict")


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
