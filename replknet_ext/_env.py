"""Environment variables of the package. No other Python module reads ``REPLKNET_EXT_*``."""

from __future__ import annotations

import os

PREFIX = "REPLKNET_EXT_"

#: Every variable that the package looks at, and what it does. ``doctor`` prints this table.
VARIABLES: dict[str, str] = {
    "CPU_ISA": "base | avx2 | avx512: highest instruction set the CPU kernels may use (read once, by the extension)",
    "CACHE": "folder of measured choices (default: replknet_ext in $XDG_CACHE_HOME or ~/.cache)",
    "AUTOTUNE": "1: measure the kernels of each new problem on its first call, and keep the fastest",
    "NCHW_GEMM": "1: 1x1 convolutions of fully merged models multiply NCHW maps on a GPU (unmeasured)",
    "SKIP_EXT": "1: install without the compiled extension: Triton on GPUs, torch elsewhere (read by setup.py)",
    "SKIP_CUDA": "1: build the extension without CUDA kernels (read by setup.py)",
    "FORCE_CUDA": "1: fail the build if no CUDA toolkit is found (read by setup.py)",
}


def get(name: str) -> str | None:
    """Value of ``REPLKNET_EXT_<name>``, or None if it is unset or empty.

    Args:
        name: a key of `VARIABLES`, without the prefix.

    Raises:
        KeyError: the package has no such variable.
    """
    if name not in VARIABLES:
        raise KeyError(f"{PREFIX}{name} is not a variable of this package; known: {', '.join(VARIABLES)}")
    return os.environ.get(PREFIX + name) or None


def flag(name: str) -> bool:
    """Whether ``REPLKNET_EXT_<name>`` is set to anything but 0, false, no or off."""
    return (get(name) or "0").lower() not in ("0", "false", "no", "off")


def snapshot() -> dict[str, str]:
    """The variables that are set, under their full names."""
    return {PREFIX + name: value for name in VARIABLES if (value := get(name)) is not None}
