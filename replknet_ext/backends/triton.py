"""The Triton kernels: for GPUs or installs that the compiled extension's CUDA kernels do not serve.

They have raw ops of their own, ``torch.ops.replknet_ext.triton_dwconv2d`` and so on (see `replknet_ext.ops`), and
stand in for the CUDA kernels of the plain raw ops where a build has none. triton is imported when it is first needed.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ..checks import Geometry
from .base import Problem, outside_raw_ops
from .triton_kernels import configs

#: The versions of triton that the kernels are tested with: from the first, before the second.
VERSIONS = (3, 6), (3, 10)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _version_problem() -> str | None:
    first, end = (".".join(map(str, version)) for version in VERSIONS)
    try:
        found = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return f"triton is not installed: pip install 'triton>={first},<{end}'"
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if not VERSIONS[0] <= numbers < VERSIONS[1]:
        return f"triton {found} is installed, the kernels need triton>={first},<{end}"
    return None


#: Why the installed triton can't serve, or None. Known without importing it.
WHY_NOT = _version_problem()


@functools.cache
def _import() -> tuple[Any, str | None]:
    """The module `triton_kernels.launch`, or why it can't be imported."""
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
        n, c, h, w = problem.input_shape
        if n == 0:
            return None
        kh, kw = problem.weight_shape[2:]
        top, bottom, left, right = problem.geometry.padding
        ho, wo = h + top + bottom - kh + 1, w + left + right - kw + 1
        sizes = configs.Sizes(n, c, h, w, kh, kw, ho, wo, top, left)
        if problem.pass_ == "bwd_input":
            sizes = configs.Sizes(n, c, ho, wo, kh, kw, h, w, kh - 1 - top, kw - 1 - left)
        return configs.describe(
            problem.pass_, sizes, str(problem.dtype).removeprefix("torch."), problem.precision, problem.channels_last
        )

    def run(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry,
        activation: str, precision: str, algorithm: str,
    ) -> Tensor:  # fmt: skip
        """See `Backend.run`."""
        run = torch.ops.replknet_ext.triton_dwconv2d.default
        return run(input, weight, bias, geometry.padding, activation, precision, algorithm, -1)  # type: ignore[no-any-return]
