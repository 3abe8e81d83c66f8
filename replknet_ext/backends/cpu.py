"""The hand-written CPU kernels of the compiled extension."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .. import _ext
from ..checks import Geometry
from .base import Candidate, Problem, outside_raw_ops


class CpuBackend:
    """CPU kernels; the instruction set (base, AVX2, AVX-512) is chosen at run time."""

    name = "cpu"
    dispatched = True

    def supports(self, problem: Problem) -> str | None:
        """See `Backend.supports`."""
        if problem.device_type != "cpu":
            return f"runs CPU tensors, not {problem.device_type}"
        if problem.algorithm == "fft":
            return "the CPU kernels compute directly, not by FFT"
        return _ext.WHY_NOT or outside_raw_ops(problem)

    def kernel(self, problem: Problem) -> str | None:
        """See `Backend.kernel`."""
        return f"direct, {_ext.cpu_isa()}"

    def candidates(self, problem: Problem, limits: Mapping[str, int] | None = None) -> list[Candidate]:
        """See `Backend.candidates`: one, whose number is the default."""
        if limits is not None or self.supports(problem) is not None:
            return []
        return [Candidate("cpu", "direct", -1, "direct", None)]

    def variant(self, problem: Problem, name: str) -> int | None:
        """See `Backend.variant`."""
        return -1 if name == "direct" and self.supports(problem) is None else None

    def run(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry,
        activation: str, precision: str, algorithm: str,
    ) -> Tensor:  # fmt: skip
        """See `Backend.run`."""
        run = torch.ops.replknet_ext.dwconv2d.default
        return run(input, weight, bias, geometry.padding, activation, precision, algorithm, -1)  # type: ignore[no-any-return]
