"""Which triton is installed, and the shared memory that a device has for its kernels."""

from __future__ import annotations

import functools
import os
import re
from importlib import metadata

import torch

from . import tiles

#: The oldest triton that the kernels run on, and the newest that they are tested with. A newer one, which a newer torch
#: brings, is tried with a warning.
OLDEST, NEWEST = (3, 6), (3, 9)


def installed() -> tuple[int, ...] | None:
    """Major and minor number of the installed triton."""
    try:
        return tuple(int(number) for number in re.findall(r"\d+", metadata.version("triton"))[:2])
    except metadata.PackageNotFoundError:
        return None


def _version_problem() -> str | None:
    oldest, found = ".".join(map(str, OLDEST)), installed()
    if found is None:
        return f"triton is not installed: pip install 'triton>={oldest}'"
    if found < OLDEST:
        return f"triton {metadata.version('triton')} is installed, the kernels need triton>={oldest}"
    return None


#: Why the installed triton can't serve, or None. Known without importing it.
WHY_NOT = _version_problem()


def interpreter() -> bool:
    """Whether triton was told to interpret kernels, on CPU tensors: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def usable(shared: int) -> int:
    """Shared memory that a block may have, less what the compiler keeps for itself."""
    return max(tiles.SHARED_BYTES, shared - 4096)


@functools.cache
def _shared_bytes(device: int) -> int:
    properties = torch.cuda.get_device_properties(device)
    return usable(getattr(properties, "shared_memory_per_block_optin", tiles.SHARED_BYTES))


def shared_bytes(device: torch.device) -> int:
    """Shared memory that a block of our kernels may have on a device."""
    if device.type != "cuda" or not torch.cuda.device_count():
        return tiles.SHARED_BYTES
    return _shared_bytes(torch.cuda.current_device() if device.index is None else device.index)
