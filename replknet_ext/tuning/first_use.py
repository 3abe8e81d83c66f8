"""Tuning on first use (``REPLKNET_EXT_AUTOTUNE=1``): the passes that a call will need are measured before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..backends import Problem
from ..choices import lookup, table
from ..choices.table import Entry
from ..operator.call import Call
from . import measure as measuring
from . import search

__all__ = ["allowed", "measure_passes", "tune"]

#: Seconds for one pass of one problem.
SECONDS = 3.0

# Problems with their pass, and the backend asked for: measured, or found to have nothing to measure.
_done: set[tuple[Problem, str]] = set()


def tune(call: Call, backend: str) -> None:
    """Measures the passes that a call will need, unless that was done or is out of place now."""
    grad = torch.is_grad_enabled()
    needs = {
        "fwd": True,
        "bwd_input": grad and call.input.requires_grad,
        "bwd_weight": grad and call.weight.requires_grad,
    }
    problem = call.problem()
    wanted = [
        pass_ for pass_, needed in needs.items() if needed and (replace(problem, pass_=pass_), backend) not in _done
    ]
    if wanted and 0 not in call.input.shape and allowed(call.input, call.weight, call.bias):
        measure_passes(problem, wanted, backend, call.input.device)


def allowed(*tensors: Tensor | None) -> bool:
    """Whether something may be measured now, beside a call on these tensors."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if not all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors):  # fake tensors, other subclasses
        return False
    if any(t is not None and t.device.type not in ("cpu", "cuda") for t in tensors):
        return False
    on_gpu = any(t is not None and t.is_cuda for t in tensors)
    return not (on_gpu and torch.cuda.is_current_stream_capturing())


def measure_passes(problem: Problem, passes: Sequence[str], backend: str, device: torch.device) -> None:
    """Measures the passes that nobody has measured, and keeps the choices."""
    found: dict[str, Entry] = {}
    for pass_ in passes:
        one = replace(problem, pass_=pass_)
        if (one, backend) in _done:
            continue
        _done.add((one, backend))  # if it comes to nothing, once is enough
        if lookup.tuned(one, backend, device):
            continue
        listed = search.shortlist(one, backend)
        if len(listed) < 2:
            continue
        entry = search.entry_of(measuring.measure(one, listed, device, budget_seconds=SECONDS))
        if entry is not None:
            found[table.key_of(one, backend)] = entry
    if found:
        table.save(device, found, replace=False)
