"""Place of the Triton kernels. This release has none; the backend says so when it is asked for."""

from __future__ import annotations

from torch import Tensor

from ..checks import Geometry
from .base import Problem


class TritonBackend:
    """Answers every problem with the reason why there is no Triton kernel for it."""

    name = "triton"
    dispatched = False

    def supports(self, problem: Problem) -> str | None:
        """See `Backend.supports`."""
        return "this release has no Triton kernels"

    def kernel(self, problem: Problem) -> str | None:
        """See `Backend.kernel`."""
        return None

    def run(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry,
        activation: str, precision: str, algorithm: str,
    ) -> Tensor:  # fmt: skip
        """Never reached: `supports` accepts nothing."""
        raise NotImplementedError("this release has no Triton kernels")
