"""Loads the compiled extension ``replknet_ext._C`` once and says what it holds.

The package also works without it (``HAS_EXT`` is False): `replknet_ext.operator.ops` then defines the same ops in
Python and torch does the work. A present but broken extension is reported by a warning, not hidden.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

NAMESPACE = "replknet_ext"


def _why_missing(elsewhere: str | None) -> str:
    """Why no ``_C`` stands beside this file; warns where another folder of ``sys.path`` has the package with it.

    Python looks in the folder that it was started from first, so in a clone the sources hide what `pip install .` put
    elsewhere. The editable installation of another clone finds its own ``_C``, ``elsewhere``, for these sources.
    """
    here = Path(__file__).parent.resolve()
    places = [Path(entry) / here.name for entry in sys.path] + ([Path(elsewhere).parent] if elsewhere else [])
    for other in (place.resolve() for place in places):
        if other != here and any(other.glob("_C*.so")):
            reason = (
                f"the compiled extension is not installed in {here}, the folder that was imported, but in {other}: "
                f"start Python outside {here.parent}, or build there with pip install --no-build-isolation -e ."
            )
            warnings.warn(f"replknet_ext: {reason}", RuntimeWarning, stacklevel=5)
            return reason
    if (here.parent / "setup.py").is_file():
        return (
            f"the compiled extension is not installed in {here}: these are the sources, not built yet or built with "
            f"REPLKNET_EXT_SKIP_EXT; build them with pip install --no-build-isolation -e {here.parent}"
        )
    return "the compiled extension is not installed: the package was built with REPLKNET_EXT_SKIP_EXT"


def _load() -> tuple[bool, str | None]:
    """Import ``_C``; return (loaded, reason why not)."""
    module = f"{__package__}._C"
    if module not in sys.modules and torch._C._jit_get_schemas_for_operator(f"{NAMESPACE}::dwconv2d"):
        # Two copies of a stable-ABI library in one process crash it; stop before that can happen.
        raise ImportError(
            f"the operator {NAMESPACE}::dwconv2d is already defined in this process, so another copy of replknet_ext "
            "was loaded from elsewhere (a second install, or torch.ops.load_library on its .so). "
            "Keep one copy on sys.path and start a new process."
        )
    try:
        found = importlib.util.find_spec(module)
        origin = found.origin if found else None
        if origin is None or Path(origin).parent.resolve() != Path(__file__).parent.resolve():
            return False, _why_missing(origin)
        importlib.import_module(module)
    except ImportError as error:
        reason = f"the compiled extension could not be loaded: {error}"
        warnings.warn(f"replknet_ext: {reason}; calls go to Triton or torch", RuntimeWarning, stacklevel=2)
        return False, reason
    return True, None


#: Whether the compiled extension is loaded, and the reason if it is not.
HAS_EXT, WHY_NOT = _load()


def build_info() -> dict[str, Any]:
    """What the extension was built with (compiler, torch target, ``cuda_ops``), or {} without the extension."""
    if not HAS_EXT:
        return {}
    info: dict[str, Any] = json.loads(torch.ops.replknet_ext._build_info())
    return info


@functools.cache
def variant_names(table: str, pass_: str) -> list[str]:
    """The names in `build_info`'s table "cpu_variants" or "cuda_variants" for a pass; a variant's number is its place.

    bwd_input has the variants of fwd.
    """
    names: list[str] = build_info().get(table, {}).get("bwd_weight" if pass_ == "bwd_weight" else "fwd", [])
    return names


def forget_choices() -> None:
    """Tell the extension that measured choices have changed."""
    if HAS_EXT:
        torch.ops.replknet_ext._forget_choices()


def cpu_isa() -> str | None:
    """Instruction set that the CPU kernels use ("base", "avx2" or "avx512"), or None without the extension."""
    return str(torch.ops.replknet_ext._cpu_isa()) if HAS_EXT else None


def cpu_plan(
    sizes: Sequence[int],
    dtype: torch.dtype,
    pass_: str,
    algorithm: str,
    threads: int,
    variant: int = -1,
    *,
    channels_last: bool = False,
) -> dict[str, Any]:
    """How the CPU kernels would run a convolution on this processor's instruction set.

    Args:
        sizes: n, c, h, w, kh, kw, ho, wo, pad_top, pad_left of the convolution that runs; bwd_input is a forward
            convolution of the gradient.
        dtype: of all operands.
        pass_: "fwd", "bwd_input" or "bwd_weight".
        algorithm: as in the raw ops.
        threads: how many; the choice of a kernel does not depend on it, nor on n.
        variant: number of a kernel (its place in ``build_info()["cpu_variants"]``), -1 for the planner's choice.
        channels_last: memory format of input, output and gradient.

    Returns:
        variant, name, family, predicted microseconds on one thread, units, scratch bytes of a thread; or
        {"unsupported": reason}.
    """
    name = str(dtype).removeprefix("torch.")
    query = torch.ops.replknet_ext._cpu_plan
    plan: dict[str, Any] = json.loads(query(list(sizes), name, channels_last, pass_, algorithm, threads, variant))
    return plan


#: Raw ops with CUDA kernels in this build.
CUDA_OPS: frozenset[str] = frozenset(build_info().get("cuda_ops", ()))


@functools.cache
def cuda_devices() -> tuple[dict[str, int], ...]:
    """Capability and limits of the GPUs that the extension's CUDA runtime sees, by device index."""
    return tuple(json.loads(torch.ops.replknet_ext._cuda_devices())) if HAS_EXT else ()


def cuda_plan(
    sizes: Sequence[int],
    dtype: torch.dtype,
    pass_: str,
    precision: str,
    algorithm: str,
    limits: Mapping[str, int],
    variant: int = -1,
    *,
    channels_last: bool = False,
) -> dict[str, Any]:
    """How the CUDA kernels would launch on a device with ``limits`` (an entry of `cuda_devices`); needs no GPU.

    Args:
        sizes: n, c, h, w, kh, kw, ho, wo, pad_top, pad_left of the convolution that runs; bwd_input is a forward
            convolution of the gradient.
        dtype: of all operands.
        pass_: "fwd", "bwd_input" or "bwd_weight".
        precision, algorithm: as in the raw ops.
        limits: capability (90 is 9.0), multiprocessors, shared_per_block and shared_per_sm in bytes.
        variant: number of a kernel variant of the pass, -1 for the planner's choice.
        channels_last: memory format of input, output and gradient.

    Returns:
        The plan, or {"unsupported": reason}. ``copied``: channels_last operands go through contiguous copies, because
        the variant needs them or the model says that this is faster; ``cycles`` has their time.
    """
    numbers = [limits[key] for key in ("capability", "multiprocessors", "shared_per_block", "shared_per_sm")]
    name = str(dtype).removeprefix("torch.")
    query = torch.ops.replknet_ext._cuda_plan
    plan: dict[str, Any] = json.loads(
        query(list(sizes), name, channels_last, pass_, precision, algorithm, numbers, variant)
    )
    return plan
