"""The hand-written CUDA kernels of the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _ext
from ..checks import Geometry
from .base import OP_OF_PASS, Problem, outside_raw_ops


class CudaBackend:
    """CUDA kernels, as far as this build of the extension has them."""

    name = "cuda"
    dispatched = True

    def supports(self, problem: Problem) -> str | None:
        """See `Backend.supports`."""
        if problem.device_type != "cuda":
            return f"runs CUDA tensors, not {problem.device_type}"
        if _ext.WHY_NOT:
            return _ext.WHY_NOT
        if not _ext.CUDA_OPS:
            return "the extension was built without CUDA kernels"
        if OP_OF_PASS[problem.pass_] not in _ext.CUDA_OPS:
            return f"the extension has no CUDA kernel for the pass {problem.pass_}"
        if problem.dtype not in (torch.float16, torch.bfloat16):
            return f"the CUDA kernels take float16 and bfloat16, not {str(problem.dtype).removeprefix('torch.')}"
        return outside_raw_ops(problem) or _refused_by_planner(problem)

    def run(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry,
        activation: str, precision: str, algorithm: str,
    ) -> Tensor:  # fmt: skip
        """See `Backend.run`."""
        run = torch.ops.replknet_ext.dwconv2d.default
        return run(input, weight, bias, geometry.padding, activation, precision, algorithm, -1)  # type: ignore[no-any-return]


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
    """Why no kernel runs this forward problem on the current device, or None."""
    if torch.compiler.is_compiling():  # Dynamo can't trace the query; the op hands to torch what it does not cover
        return None
    devices = _ext.cuda_devices()
    if not devices:  # asked about a GPU on a machine that has none
        return None
    limits = devices[torch.cuda.current_device()]
    archs = _ext.build_info()["cuda_archs"]
    if architecture_for(limits["capability"], archs) is None:
        version = f"{limits['capability'] // 10}.{limits['capability'] % 10}"
        return f"built for {archs}, not for compute capability {version}: build with TORCH_CUDA_ARCH_LIST={version}"
    n, c, h, w = problem.input_shape
    kh, kw = problem.weight_shape[2:]
    top, bottom, left, right = problem.geometry.padding
    sizes = (n, c, h, w, kh, kw, h + top + bottom - kh + 1, w + left + right - kw + 1, top, left)
    reason: str | None = _ext.cuda_plan(sizes, problem.dtype, limits).get("unsupported")
    return reason
