"""The Triton kernels: for GPUs or installs that the compiled extension's CUDA kernels do not serve.

The raw ops call them by ``backend="triton"``, and by themselves where a build has no CUDA kernel. triton is imported
when it is first needed.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ...operator.problem import Problem, outside_raw_ops, sizes_of
from ..base import CYCLES_PER_US, Backend, Candidate, ordered
from . import tiles
from .device import NEWEST, WHY_NOT, installed, interpreter, shared_bytes, usable

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@functools.cache
def _import() -> tuple[Any, str | None]:
    """The module `triton.launch`, or why it can't be imported. Warns, once, of a triton that is too new."""
    if (installed() or NEWEST) > NEWEST:
        warnings.warn(
            f"replknet_ext: triton {metadata.version('triton')} is newer than {'.'.join(map(str, NEWEST))}, the newest "
            "that the Triton kernels are tested with; they are tried",
            RuntimeWarning,
            stacklevel=2,
        )
    try:
        return importlib.import_module(".launch", __package__), None
    except (ImportError, RuntimeError) as error:
        return None, f"triton could not be imported: {error}"


def _no_device(device: torch.device, compiling: bool) -> str | None:
    """Why the kernels can't run on this device, or None."""
    if device.type == "cpu" and interpreter():
        return None
    if device.type != "cuda":
        return f"runs CUDA tensors, not {device.type}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if not compiling and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device.index)
        if major < 8:
            return f"needs compute capability 8.0, not {major}.{minor}"
    return None


def refusal(device: torch.device, dtype: torch.dtype, algorithm: str) -> str | None:
    """Why the kernels can't run the raw ops on such tensors, or None."""
    compiling = torch.compiler.is_compiling()  # Dynamo can't trace the import; the op hands what fails to torch
    if dtype not in DTYPES:
        return f"no Triton kernels for {str(dtype).removeprefix('torch.')}"
    if algorithm == "fft":
        return "the Triton kernels compute directly, not by FFT"
    return WHY_NOT or _no_device(device, compiling) or (None if compiling else _import()[1])


def _tiles(problem: Problem, shared: int) -> Sequence[tuple[tiles.Tile, float]]:
    """The tiles of a pass with their predicted cycles."""
    if 0 in problem.input_shape:
        return ()
    sizes, how = tiles.Sizes(*sizes_of(problem)), (problem.dtype_name, problem.precision)
    if problem.pass_ == "bwd_weight":
        return tiles.weight_tiles(sizes, *how, shared)
    return tiles.forward_tiles(sizes, *how, problem.channels_last, shared)


def _launch() -> Any:
    """The module with the passes. Callers have asked `TritonBackend.supports`."""
    return _import()[0]


class TritonBackend(Backend):
    """Kernels that triton compiles when they are first called, for any GPU that it serves."""

    name = "triton"
    devices = ("cuda",)

    def supports(self, problem: Problem) -> str | None:
        """See `Backend.supports`."""
        refused = refusal(problem.device, problem.dtype, problem.algorithm)
        return outside_raw_ops(problem) or refused

    def kernel(self, problem: Problem) -> str | None:
        """See `Backend.kernel`: the tile that the model chooses."""
        found = _tiles(problem, shared_bytes(problem.device))
        return tiles.describe(found[0][0]) if found else None

    def candidates(self, problem: Problem, limits: Mapping[str, int] | None = None) -> list[Candidate]:
        """See `Backend.candidates`: the tiles that the model considers."""
        if limits is None:
            if self.supports(problem) is not None:
                return []
            shared = shared_bytes(problem.device)
        else:
            if outside_raw_ops(problem) or problem.dtype not in DTYPES or problem.algorithm == "fft":
                return []
            shared = usable(limits["shared_per_block"])
        return ordered(
            [
                Candidate(
                    "triton", tiles.name_of(tile), number, tiles.kernel_of(tile), cycles / CYCLES_PER_US,
                    {"warps": tile.num_warps}, words=tiles.describe(tile),
                )
                for number, (tile, cycles) in enumerate(_tiles(problem, shared))
            ]
        )  # fmt: skip

    def variant(self, problem: Problem, name: str) -> int | None:
        """See `Backend.variant`."""
        if self.supports(problem) is not None:
            return None
        found = _tiles(problem, shared_bytes(problem.device))
        return next((number for number, (tile, _) in enumerate(found) if tiles.name_of(tile) == name), None)

    def fwd(self, *args: Any) -> Tensor:
        """See `Backend.fwd`."""
        return _launch().fwd(*args)  # type: ignore[no-any-return]

    def bwd_input(self, *args: Any) -> Tensor:
        """See `Backend.bwd_input`."""
        return _launch().bwd_input(*args)  # type: ignore[no-any-return]

    def bwd_weight(self, *args: Any) -> Tensor:
        """See `Backend.bwd_weight`."""
        return _launch().bwd_weight(*args)  # type: ignore[no-any-return]

    def bwd_weight_bias(self, *args: Any) -> tuple[Tensor, Tensor]:
        """See `Backend.bwd_weight_bias`: both from one pass over the gradient."""
        return _launch().bwd_weight_bias(*args)  # type: ignore[no-any-return]
