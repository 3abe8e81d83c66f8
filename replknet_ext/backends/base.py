"""What a backend is: it says why it can't run a problem, and runs the ones it can."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from .. import _ext
from ..operator.problem import Geometry, Problem, mirrored

#: Turns the CUDA and Triton models' cycles into microseconds: an H200's clock under load. A prediction on any GPU.
#: Without the extension as `csrc/cuda/model.h` has it.
CYCLES_PER_US: float = _ext.build_info().get("model_clock_mhz", 1755.0)


@dataclass(frozen=True)
class Candidate:
    """One way to run one pass of a problem on a device.

    Attributes:
        backend: its name.
        name: of the variant; other builds have it, too, so this is what files of choices hold.
        variant: its number, as the raw ops of the backend take it for this problem in this build.
        family: the kernels that it belongs to.
        predicted_us: microseconds by the cost model, which is a prediction; None where there is no model.
        resources: what it takes of the device: "warps", "shared_bytes", "blocks", "blocks_per_sm", "workspace_bytes".
        note: what else there is to know, in words.
        words: readable name, where that of the variant is a row of numbers (Triton tiles).
    """

    backend: str
    name: str
    variant: int
    family: str
    predicted_us: float | None
    resources: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    words: str = ""

    @property
    def label(self) -> str:
        """Backend and variant, to read."""
        return f"{self.backend} {self.words or self.name}" + (f", {self.note}" if self.note else "")

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return {**vars(self), "resources": dict(self.resources)}


def ordered(candidates: list[Candidate]) -> list[Candidate]:
    """What runs untuned first, the rest by predicted time, without duplicates."""
    if not candidates:
        return []
    unique = list({(c.backend, c.name): c for c in reversed(candidates)}.values())
    rest = [c for c in reversed(unique) if c is not candidates[0]]
    return [candidates[0], *sorted(rest, key=lambda c: math.inf if c.predicted_us is None else c.predicted_us)]


class Backend(ABC):
    """A way to run the convolution: one subclass in one file, and one line in `registry`.

    It says which problems it `supports` and computes them by `fwd` and `bwd_weight`, and by `bwd_input` and
    `bwd_weight_bias` where it can do better than these. Their arguments are those of the raw ops up to ``algorithm``,
    then ``variant``. They get problems that `supports` accepted, of at least one image, need not be differentiable, and
    return new tensors: in the memory format `replknet_ext.operator.problem.output_format` of the two operands, weight
    gradients contiguous. Under a TorchDispatchMode, as in the first call of compiled code, torch does not resolve lazy
    views (``x.conj()``, ``x.imag``) before an operator reads them: use ``resolve_conj()`` and ``resolve_neg()``. A
    backend that is `compiled` has none of these functions: its kernels are the raw ops'.

    Attributes:
        name: what callers and files of choices call it.
        devices: types of the devices whose tensors it runs; None: any.
        compiled: the passes are kernels of the extension, which the raw ops of a device call by themselves.
        differentiable: it has `run`, which torch differentiates, for every stride, dilation and channel multiplier.
    """

    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...] | None] = ("cpu", "cuda")
    compiled: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    @abstractmethod
    def supports(self, problem: Problem) -> str | None:
        """None if this backend can run ``problem``, else the reason why not (a clause without a full stop)."""

    def wrong_device(self, problem: Problem) -> str | None:
        """The reason why not where the device of ``problem`` is none of `devices`, for `supports`."""
        if self.devices is None or problem.device_type in self.devices:
            return None
        return f"runs {' and '.join(map(str.upper, self.devices))} tensors, not {problem.device_type}"

    def kernel(self, problem: Problem) -> str | None:
        """What runs a problem that `supports` accepted, for `replknet_ext.explain`; None if nobody can know."""
        return None

    def candidates(self, problem: Problem, limits: Mapping[str, int] | None = None) -> list[Candidate]:
        """Every variant that runs ``problem`` on its device, or on a GPU with ``limits`` (`cuda.DEVICES`).

        Ordered by the cost model; the first is what runs untuned. Empty if the backend can't run the problem or leaves
        nothing to choose.
        """
        return []

    def variant(self, problem: Problem, name: str) -> int | None:
        """Number of the variant of that name, None if it does not run ``problem`` on its device."""
        return None

    def fwd(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int],
        activation: str, precision: str, algorithm: str, variant: int,
    ) -> Tensor:  # fmt: skip
        """Raw op ``dwconv2d``; variant -1: the one that the backend chooses."""
        raise NotImplementedError

    def bwd_input(
        self, grad_output: Tensor, weight: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
    ) -> Tensor:
        """Raw op ``dwconv2d_backward_input``: `fwd` of the gradient, filter rotated, padding mirrored."""
        pads = mirrored(padding, weight.shape[2:])
        return self.fwd(grad_output, weight.flip(2, 3), None, pads, "none", precision, algorithm, variant)

    def bwd_weight(
        self, grad_output: Tensor, input: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
    ) -> Tensor:
        """Raw op ``dwconv2d_backward_weight``."""
        raise NotImplementedError

    def bwd_weight_bias(
        self, grad_output: Tensor, input: Tensor, padding: Sequence[int], precision: str, algorithm: str, variant: int
    ) -> tuple[Tensor, Tensor]:
        """Raw op ``dwconv2d_backward_weight_bias``: `bwd_weight`, and the sum of the gradient per channel."""
        grad_weight = self.bwd_weight(grad_output, input, padding, precision, algorithm, variant)
        return grad_weight, grad_output.sum((0, 2, 3))

    def run(self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str) -> Tensor:
        """The forward pass by differentiable functions, of backends that are `differentiable`."""
        raise NotImplementedError
