"""The hand-written CPU kernels of the compiled extension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import _ext
from ..operator.problem import Problem, outside_raw_ops, sizes_of
from .base import Backend, Candidate, ordered


class CpuBackend(Backend):
    """CPU kernels; the instruction set (base, AVX2, AVX-512) is chosen at run time."""

    name = "cpu"
    devices = ("cpu",)
    compiled = True

    def supports(self, problem: Problem) -> str | None:
        """See `Backend.supports`."""
        return self.wrong_device(problem) or _ext.WHY_NOT or outside_raw_ops(problem) or _refused_by_planner(problem)

    def kernel(self, problem: Problem) -> str | None:
        """See `Backend.kernel`: variant, family and instruction set."""
        plan = plan_of(problem)
        return f"{plan['name']} (family {plan['family']}), {_ext.cpu_isa()}"

    def candidates(self, problem: Problem, limits: Mapping[str, int] | None = None) -> list[Candidate]:
        """See `Backend.candidates`. Predictions are for one thread."""
        if limits is not None or 0 in problem.input_shape or self.supports(problem) is not None:
            return []
        plans = (plan_of(problem, variant) for variant in range(-1, len(variant_names(problem.pass_))))
        return ordered(
            [
                Candidate(
                    "cpu", plan["name"], plan["variant"], plan["family"], plan["microseconds"],
                    {"units": plan["units"], "scratch_bytes": plan["scratch_bytes"]},
                )
                for plan in plans if "unsupported" not in plan
            ]
        )  # fmt: skip

    def variant(self, problem: Problem, name: str) -> int | None:
        """See `Backend.variant`."""
        names = variant_names(problem.pass_)
        if name not in names or self.supports(problem) is not None:
            return None
        plan = plan_of(problem, names.index(name))
        return None if "unsupported" in plan else int(plan["variant"])


def left_to_torch(kernel_size: tuple[int, int], training: bool) -> bool:
    """Whether torch's convolution is expected to be as fast as these kernels or faster, in float32 and channels_last.

    The rule comes from layers and whole networks on one AVX-512 machine with 2 threads (`benchmarks.timm_models`).
    Bands of one row or column of up to 11 taps lost in inference and training, filters up to 7x7 in inference only,
    most of all with few channels on large maps (starnet_s1, 24 channels at 80x80: 0.8 times as fast).
    """
    height, width = kernel_size
    band = height == 1 or width == 1
    return (band and height + width <= 12) or (not training and height <= 7 and width <= 7)


def variant_names(pass_: str) -> list[str]:
    """The variants of a pass by number."""
    return _ext.variant_names("cpu_variants", pass_)


def plan_of(problem: Problem, variant: int = -1) -> dict[str, Any]:
    """`_ext.cpu_plan`'s answer for a problem with stride and dilation 1 on torch's present number of threads."""
    return _ext.cpu_plan(
        sizes_of(problem), problem.dtype, problem.pass_, problem.algorithm, torch.get_num_threads(), variant,
        channels_last=problem.channels_last,
    )  # fmt: skip


def _refused_by_planner(problem: Problem) -> str | None:
    """Why no kernel runs this problem; only an FFT that was asked for can be refused."""
    if problem.algorithm != "fft":
        return None
    if problem.dtype == torch.float64:
        return "float64 is computed directly, not by FFT"
    if torch.compiler.is_compiling():  # Dynamo can't trace the query; the op raises the same reason when it runs
        return None
    reason: str | None = plan_of(problem).get("unsupported")
    return reason
