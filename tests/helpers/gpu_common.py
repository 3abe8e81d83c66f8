"""What the tests on a device share: the raw ops by pass, the oracle, names of kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from cases import LAYOUTS, Case, Operands, expected, operands
from torch import Tensor

from replknet_ext.backends import BACKENDS

ops = torch.ops.replknet_ext


def run(
    pass_: str,
    case: Case,
    o: Operands,
    activation: str = "none",
    variant: int = -1,
    *,
    precision: str = "ieee",
    algorithm: str = "direct",
) -> Tensor:
    """One raw op; a variant is one of the CUDA kernels."""
    how = (precision, algorithm, "auto" if variant < 0 else "cuda", variant)
    if pass_ == "fwd":
        return ops.dwconv2d(o.x, o.weight, o.bias, case.padding, activation, *how)
    if pass_ == "bwd_input":
        return ops.dwconv2d_backward_input(o.grad, o.weight, case.padding, *how)
    return ops.dwconv2d_backward_weight(o.grad, o.x, case.padding, *how)


def run_torch(pass_: str, case: Case, o: Operands, activation: str = "none") -> Tensor:
    """torch's own result on the CPU in the dtype of the operands."""
    if pass_ == "fwd":
        return BACKENDS["torch"].fwd(o.x, o.weight, o.bias, case.padding, activation, "ieee", "auto", -1)
    if pass_ == "bwd_input":
        return BACKENDS["torch"].bwd_input(o.grad, o.weight, case.padding, "ieee", "auto", -1)
    return BACKENDS["torch"].bwd_weight(o.grad, o.x, case.padding, "ieee", "auto", -1)


def on_device(o: Operands, layout: str = "nchw") -> Operands:
    """The operands on the GPU in a layout, filters too."""
    f = LAYOUTS[layout]
    return Operands(f(o.x.cuda()), f(o.weight.cuda()), o.bias.cuda(), f(o.grad.cuda()))


@lru_cache(maxsize=64)
def oracle(pass_: str, case: Case, kind: str) -> Tensor:
    """float64 result, once for all dtypes and layouts."""
    return expected(pass_, case, operands(case, kind))


def relative(actual: Tensor, wanted: Tensor) -> float:
    """||actual - wanted|| / ||wanted||."""
    return float((actual.double().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-300))


def kernels_of(run: Callable[[], object]) -> str:
    """Names of the kernels that a call launches."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    return " ".join(event.name for event in profile.events())
