"""The Triton kernels: for GPUs or installs that the compiled extension's CUDA kernels do not serve.

They have raw ops of their own, ``torch.ops.replknet_ext.triton_dwconv2d`` and so on (see `replknet_ext.ops`), and
stand in for the CUDA kernels of the plain raw ops where a build has none. triton is imported when it is first needed.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ..checks import Geometry
from .base import CYCLES_PER_US, Candidate, Problem, ordered, outside_raw_ops, sizes_of
from .triton_kernels import configs

#: The oldest triton that the kernels run on, and the newest that they are tested with. A newer one, which a newer torch
#: brings, is tried with a warning.
OLDEST, NEWEST = (3, 6), (3, 9)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _version() -> tuple[int, ...] | None:
    """Major and minor number of the installed triton."""
    try:
        return tuple(int(number) for number in re.findall(r"\d+", metadata.version("triton"))[:2])
    except metadata.PackageNotFoundError:
        return None


def _version_problem() -> str | None:
    oldest, found = ".".join(map(str, OLDEST)), _version()
    if found is None:
        return f"triton is not installed: pip install 'triton>={oldest}'"
    if found < OLDEST:
        return f"triton {metadata.version('triton')} is installed, the kernels need triton>={oldest}"
    return None


#: Why the installed triton can't serve, or None. Known without importing it.
WHY_NOT = _version_problem()


@functools.cache
def _import() -> tuple[Any, str | None]:
    """The module `triton_kernels.launch`, or why it can't be imported. Warns, once, of a triton that is too new."""
    if (_version() or NEWEST) > NEWEST:
        warnings.warn(
            f"replknet_ext: triton {metadata.version('triton')} is newer than {'.'.join(map(str, NEWEST))}, the newest "
            "that the Triton kernels are tested with; they are tried",
            RuntimeWarning,
            stacklevel=2,
        )
    try:
        return importlib.import_module(".triton_kernels.launch", __package__), None
    except (ImportError, RuntimeError) as error:
        return None, f"triton could not be imported: {error}"


def _interpreter() -> bool:
    """Whether triton was told to interpret kernels, on CPU tensors: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _no_device(device_type: str, compiling: bool) -> str | None:
    """Why the kernels can't run on this type of device here, or None."""
    if device_type == "cpu" and _interpreter():
        return None
    if device_type != "cuda":
        return f"runs CUDA tensors, not {device_type}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if not compiling and torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs compute capability 8.0, not {}.{}".format(*torch.cuda.get_device_capability())
    return None


def refusal(device_type: str, dtype: torch.dtype, algorithm: str) -> str | None:
    """Why the kernels can't run the raw ops on such tensors, or None."""
    compiling = torch.compiler.is_compiling()  # Dynamo can't trace the import; the op hands what fails to torch
    if dtype not in DTYPES:
        return f"no Triton kernels for {str(dtype).removeprefix('torch.')}"
    if algorithm == "fft":
        return "the Triton kernels compute directly, not by FFT"
    return WHY_NOT or _no_device(device_type, compiling) or (None if compiling else _import()[1])


def _usable(shared: int) -> int:
    """Shared memory that a block may have, less what the compiler keeps for itself."""
    return max(configs.SHARED_BYTES, shared - 4096)


@functools.cache
def _shared_bytes(device: int) -> int:
    properties = torch.cuda.get_device_properties(device)
    return _usable(getattr(properties, "shared_memory_per_block_optin", configs.SHARED_BYTES))


def shared_bytes(device: torch.device) -> int:
    """Shared memory that a block of our kernels may have on a device."""
    if device.type != "cuda" or not torch.cuda.device_count():
        return configs.SHARED_BYTES
    return _shared_bytes(torch.cuda.current_device() if device.index is None else device.index)


def _tiles(problem: Problem, shared: int) -> Sequence[tuple[configs.Tile, float]]:
    """The tiles of a pass with their predicted cycles."""
    if 0 in problem.input_shape:
        return ()
    sizes, how = configs.Sizes(*sizes_of(problem)), (problem.dtype_name, problem.precision)
    if problem.pass_ == "bwd_weight":
        return configs.weight_tiles(sizes, *how, shared)
    return configs.forward_tiles(sizes, *how, problem.channels_last, shared)


def kernel_of(pass_: str, tensor: Tensor, algorithm: str) -> Callable[..., Any] | None:
    """The function of `triton_kernels.launch` for a pass ("fwd", ..., "bwd_weight_bias"), None if it can't run."""
    if refusal(tensor.device.type, tensor.dtype, algorithm) is not None:
        return None
    return getattr(_import()[0], pass_)  # type: ignore[no-any-return]


class TritonBackend:
    """Kernels that triton compiles when they are first called, for any GPU that it serves."""

    name = "triton"
    dispatched = True

    def supports(self, problem: Problem) -> str | None:
        """See `Backend.supports`."""
        refused = refusal(problem.device_type, problem.dtype, problem.algorithm)
        return outside_raw_ops(problem) or refused

    def kernel(self, problem: Problem) -> str | None:
        """See `Backend.kernel`: the tile that the model chooses."""
        tiles = _tiles(problem, shared_bytes(torch.device(problem.device_type)))
        return configs.describe(tiles[0][0]) if tiles else None

    def candidates(self, problem: Problem, limits: Mapping[str, int] | None = None) -> list[Candidate]:
        """See `Backend.candidates`: the tiles that the model considers."""
        if limits is None:
            if self.supports(problem) is not None:
                return []
            shared = shared_bytes(torch.device(problem.device_type))
        else:
            if outside_raw_ops(problem) or problem.dtype not in DTYPES or problem.algorithm == "fft":
                return []
            shared = _usable(limits["shared_per_block"])
        return ordered(
            [
                Candidate(
                    "triton", configs.name_of(tile), number, configs.kernel_of(tile), cycles / CYCLES_PER_US,
                    {"warps": tile.num_warps}, words=configs.describe(tile),
                )
                for number, (tile, cycles) in enumerate(_tiles(problem, shared))
            ]
        )  # fmt: skip

    def variant(self, problem: Problem, name: str) -> int | None:
        """See `Backend.variant`."""
        if self.supports(problem) is not None:
            return None
        tiles = _tiles(problem, shared_bytes(torch.device(problem.device_type)))
        return next((number for number, (tile, _) in enumerate(tiles) if configs.name_of(tile) == name), None)

    def run(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry,
        activation: str, precision: str, algorithm: str,
    ) -> Tensor:  # fmt: skip
        """See `Backend.run`."""
        run = torch.ops.replknet_ext.triton_dwconv2d.default
        return run(input, weight, bias, geometry.padding, activation, precision, algorithm, -1)  # type: ignore[no-any-return]
