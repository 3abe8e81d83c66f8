"""`explain`: which backend and kernel run a call of `depthwise_conv2d`, and why not others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import _ext
from .backends import BACKENDS, Backend, by_pass, names
from .choices import lookup
from .functional import IntOrPair
from .operator import checks
from .operator.call import prepare
from .operator.problem import PASSES, Problem


@dataclass(frozen=True)
class Explanation:
    """What `depthwise_conv2d` does with a call; ``str()`` of it is a table to read.

    Attributes:
        problem: the call as the backends see it.
        chosen: backend of each pass ("fwd", "bwd_input", "bwd_weight").
        kernels: what of the backend runs each pass (variant and family, or instruction set); None if nobody can know.
        by: who chose them: "by the model", "tuned" (measured here) or "shipped" (measured, came with the package).
        reasons: for each pass and backend None if it can run, else why not.
        notes: what else is worth knowing of dtype, precision and algorithm.
    """

    problem: Problem
    chosen: dict[str, str]
    kernels: dict[str, str | None]
    by: dict[str, str]
    reasons: dict[str, dict[str, str | None]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        p = self.problem
        dtype = str(p.dtype).removeprefix("torch.")
        lines = [
            f"depthwise_conv2d {tuple(p.input_shape)} * {tuple(p.weight_shape)} {dtype} on {p.device_type}",
            f"  stride {p.geometry.stride}, dilation {p.geometry.dilation}",
            f"  padding {p.geometry.padding} (top, bottom, left, right)",
            f"  activation {p.activation}, algorithm {p.algorithm}, precision {p.precision}",
        ]
        width = max(map(len, BACKENDS))
        for pass_, why in self.reasons.items():
            kernel = self.kernels[pass_]
            lines.append(f"  {pass_}: {self.chosen[pass_]}" + (f", {kernel}, {self.by[pass_]}" if kernel else ""))
            for name, reason in why.items():
                verdict = "chosen" if name == self.chosen[pass_] else f"no: {reason}" if reason else "could, not chosen"
                lines.append(f"    {name:<{width}} {verdict}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def explain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    *,
    activation: str = "none",
    algorithm: str | None = None,
    precision: str | None = None,
    backend: str = "auto",
) -> Explanation:
    """Which backend and kernel run each pass of this call, and why the other backends do not. Runs nothing.

    Arguments and errors are those of `depthwise_conv2d`.
    """
    call = prepare(
        input, weight, bias, stride, padding, dilation, activation=activation, algorithm=algorithm, precision=precision
    )
    problem = call.problem()
    checks.name("backend", backend, names())
    runs, why = by_pass(problem, backend)
    forward = BACKENDS[runs["fwd"]]
    kernels = {pass_: BACKENDS[name].kernel(replace(problem, pass_=pass_)) for pass_, name in runs.items()}
    by = dict.fromkeys(PASSES, "by the model")
    for pass_ in () if forward.differentiable else PASSES:
        choice = lookup.lookup(replace(problem, pass_=pass_), backend, input.device)
        if choice is not None:
            runs[pass_], kernels[pass_], by[pass_] = choice.backend, choice.name, choice.source
    return Explanation(problem, runs, kernels, by, why, _notes(problem, forward))


def _notes(problem: Problem, chosen: Backend) -> tuple[str, ...]:
    notes = []
    if chosen.name == "torch":
        direct = "; algorithm='direct' cannot be asked of it" if problem.algorithm == "direct" else ""
        notes.append(f"torch's convolution chooses its own algorithm{direct}")
    if problem.device_type == "cuda":
        if not _ext.CUDA_OPS:
            notes.append(f"this build has no CUDA kernels: this call goes to {chosen.name}")
        if problem.dtype == torch.float32 and chosen.name == "torch":
            notes.append("float32 precision follows torch.backends.cudnn.allow_tf32, not set_float32_precision")
    if problem.device_type == "cpu" and problem.dtype == torch.float32 and problem.precision != "ieee":
        notes.append(f"precision {problem.precision!r} has no effect on CPU: float32 is computed in ieee float32")
    if chosen.name != "torch" and problem.dtype in (torch.float16, torch.bfloat16):
        notes.append("half types accumulate in float32 and round once")
    return tuple(notes)
