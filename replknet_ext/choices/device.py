"""What a measurement holds for beside its problem: the device, and the versions that it was made with."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import _ext
from .._version import __version__

__all__ = ["OF_A_KIND", "cpu_name", "digest", "identity", "slug", "stem_of"]


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


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def _fixed(device_type: str, index: int) -> dict[str, str]:
    """What of `identity` does not change in a process."""
    info = _ext.build_info()
    versions = {"torch": torch.__version__, "replknet_ext": __version__}
    if device_type == "cpu":
        isa = str(_ext.cpu_isa())
        return {"device": cpu_name(), "isa": isa, **versions, "variants": digest(info.get("cpu_variants"))}
    return {
        "device": torch.cuda.get_device_name(index), "driver": _driver(), "cuda": str(torch.version.cuda), **versions,
        "triton": _version("triton"), "variants": digest([info.get("cuda_variants"), info.get("cuda_archs")]),
    }  # fmt: skip


def identity(device: torch.device) -> dict[str, str]:
    """What a measurement is valid for: the device, its driver or instruction set and threads, versions, and a
    digest of the table of variants."""
    if device.type == "cpu":
        return {**_fixed("cpu", 0), "threads": str(torch.get_num_threads())}
    return _fixed(device.type, torch.cuda.current_device() if device.index is None else device.index)


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()


def stem_of(who: Mapping[str, str]) -> str:
    """The name of the file for all devices of one kind: a GPU's model ("h200", "a100-sxm4-80gb"), or a CPU's with
    instruction set and threads."""
    name = slug(who["device"])
    return f"{name}_{who['isa']}_{who['threads']}t" if "isa" in who else re.sub("^nvidia-(?=.)", "", name)


#: What of an `identity` a file for all devices of one kind must share; the rest (driver, torch, ...) may differ.
OF_A_KIND = ("device", "isa", "threads", "replknet_ext")
