"""The hand-written CUDA kernels of the compiled extension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import _ext
from ..operator.problem import OP_OF_PASS, Problem, outside_raw_ops, sizes_of
from .base import CYCLES_PER_US, Backend, Candidate, ordered

#: Limits of GPUs that predictions can be asked for, as `_ext.cuda_devices` gives those of a GPU at hand.
DEVICES = {
    name: dict(zip(("capability", "multiprocessors", "shared_per_block", "shared_per_sm"), numbers, strict=True))
    for name, numbers in {
        "h200": (90, 132, 227 << 10, 228 << 10),
        "h100": (90, 132, 227 << 10, 228 << 10),
        "a100": (80, 108, 163 << 10, 164 << 10),
        "l40s": (89, 142, 99 << 10, 100 << 10),
    }.items()
}

_RESOURCES = ("warps", "shared_bytes", "blocks", "blocks_per_sm", "workspace_bytes")


class CudaBackend(Backend):
    """CUDA kernels, as far as this build of the extension has them."""

    name = "cuda"
    devices = ("cuda",)
    compiled = True

    def supports(self, problem: Problem) -> str | None:
        """See `Backend.supports`."""
        if why := self.wrong_device(problem) or _ext.WHY_NOT:
            return why
        if not _ext.CUDA_OPS:
            return "the extension was built without CUDA kernels"
        if OP_OF_PASS[problem.pass_] not in _ext.CUDA_OPS:
            return f"the extension has no CUDA kernel for the pass {problem.pass_}"
        return outside_raw_ops(problem) or _refused_by_planner(problem)

    def kernel(self, problem: Problem) -> str | None:
        """See `Backend.kernel`: variant and family, and what is not chosen because no device has measured it."""
        plan = _plan(problem)
        if plan is None or "unsupported" in plan:
            return None
        copied = ", on a contiguous copy" if plan["copied"] else ""
        unmeasured = f"; not {plan['unmeasured']}, which no device has measured" if "unmeasured" in plan else ""
        return f"{plan['name']} (family {plan['family']}{copied}){unmeasured}"

    def candidates(self, problem: Problem, limits: Mapping[str, int] | None = None) -> list[Candidate]:
        """See `Backend.candidates`."""
        if outside_raw_ops(problem) is not None or not _ext.HAS_EXT or 0 in problem.input_shape:
            return []
        if limits is None:
            if not torch.cuda.is_available() or self.supports(problem) is not None:
                return []
            limits = _ext.cuda_devices()[_index(problem)]
        plans = (plan_on(problem, limits, variant) for variant in range(-1, len(variant_names(problem.pass_))))
        return ordered([_candidate(problem, plan) for plan in plans if "unsupported" not in plan])

    def variant(self, problem: Problem, name: str) -> int | None:
        """See `Backend.variant`."""
        names = variant_names(problem.pass_)
        plan = _plan(problem, names.index(name)) if name in names else None
        return None if plan is None or "unsupported" in plan else int(plan["variant"])


def variant_names(pass_: str) -> list[str]:
    """The variants of a pass by number."""
    return _ext.variant_names("cuda_variants", pass_)


def _candidate(problem: Problem, plan: dict[str, Any]) -> Candidate:
    return Candidate(
        "cuda", plan["name"], plan["variant"], plan["family"], plan["cycles"] / CYCLES_PER_US,
        {key: plan[key] for key in _RESOURCES}, "on contiguous copies" if plan["copied"] else "",
    )  # fmt: skip


def architecture_for(capability: int, archs: str) -> str | None:
    """The code that a GPU of ``capability`` (90 is 9.0) runs of a build for ``archs`` ("8.0;9.0a;12.0+PTX"), or None.

    9.0a runs on 9.0 only, 8.0 on every 8.x; of +PTX the driver makes code for any later GPU.
    """
    best: str | None = None
    for arch in filter(None, archs.split(";")):
        number = arch.removesuffix("+PTX")
        built = int(number.rstrip("af").replace(".", ""))
        if built == capability:
            return number
        portable = number[-1].isdigit() and built < capability
        if portable and built // 10 == capability // 10:
            best = number
        elif portable and arch.endswith("+PTX") and best is None:
            best = arch
    return best


def _refused_by_planner(problem: Problem) -> str | None:
    """Why no kernel runs this problem on its device, or None."""
    if torch.compiler.is_compiling():  # Dynamo can't trace the query; the op hands to torch what it does not cover
        return None
    plan = _plan(problem)
    reason: str | None = None if plan is None else plan.get("unsupported")
    return reason


def _index(problem: Problem) -> int:
    return torch.cuda.current_device() if problem.device_index is None else problem.device_index


def why_not_on(index: int) -> str | None:
    """Why this build runs nothing on a GPU that torch sees, or None."""
    devices, info = _ext.cuda_devices(), _ext.build_info()
    if index >= len(devices):
        return f"the driver is older than CUDA {info['cuda_toolkit']}, which the extension was built with, needs"
    limits, archs = devices[index], info["cuda_archs"]
    if architecture_for(limits["capability"], archs) is not None:
        return None
    version = f"{limits['capability'] // 10}.{limits['capability'] % 10}"
    return f"built for {archs}, not for compute capability {version}: build with TORCH_CUDA_ARCH_LIST={version}"


def _plan(problem: Problem, variant: int = -1) -> dict[str, Any] | None:
    """The planner's answer for the problem's device (see `plan_on`), or None where there is no GPU to ask about."""
    if not torch.cuda.is_available():
        return None
    index = _index(problem)
    if (why := why_not_on(index)) is not None:
        return {"unsupported": why}
    return plan_on(problem, _ext.cuda_devices()[index], variant)


def plan_on(problem: Problem, limits: Mapping[str, int], variant: int = -1) -> dict[str, Any]:
    """How the CUDA kernels run a problem with stride and dilation 1 on a device with ``limits``; needs no GPU.

    Returns:
        `_ext.cuda_plan`'s answer.
    """
    sizes = sizes_of(problem)
    how = (problem.dtype, problem.pass_, problem.precision, problem.algorithm, limits, variant)
    return _ext.cuda_plan(sizes, *how, channels_last=problem.channels_last)
