"""The CUDA backend's own launch planner, asked about layers of benchmarks, for any GPU and without one.

The planner is plain C++ and part of every build of the extension. So predictions come from the very code that chooses a
variant at run time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.shapes import Layer
from replknet_ext import _ext

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"


class PlanError(ValueError):
    """The planner's reason why a variant, or every variant, can't run a problem."""


class PlannerUnavailableError(RuntimeError):
    """The extension, which holds the planner, is not built here."""


@dataclass(frozen=True)
class Limits:
    """What the planner must know of a GPU; the fields of DeviceLimits in csrc/cuda/backend.h."""

    capability: int
    sms: int
    shared_per_block: int
    shared_per_sm: int


H200 = Limits(90, 132, 227 << 10, 228 << 10)


def device_limits() -> Limits:
    """This GPU, as the planner asks for it."""
    p = torch.cuda.get_device_properties(0)
    block = int(getattr(p, "shared_memory_per_block_optin", H200.shared_per_block))
    per_sm = int(getattr(p, "shared_memory_per_multiprocessor", H200.shared_per_sm))
    return Limits(10 * p.major + p.minor, p.multi_processor_count, block, per_sm)


@dataclass(frozen=True)
class Plan:
    """A LaunchPlan: how one launch would go. `cycles` is the model's prediction for the busiest SM."""

    variant: int
    parts: int
    warps: int
    shared_bytes: int
    blocks_per_sm: int
    blocks: int
    workspace_bytes: int
    copied: bool  # channels_last tensors go through NCHW copies
    name: str
    family: str
    mmas: float
    cycles: float


class Cost(NamedTuple):
    """Of asking for the plans of a training step once: how many had to be made, and the time of all."""

    made: int
    ms: float


def _check() -> None:
    if not _ext.HAS_EXT:
        raise PlannerUnavailableError(f"the launch planner is part of the extension: {_ext.WHY_NOT}")


def variants(pass_: str = "fwd") -> list[str]:
    """Names of the variants of a pass; a variant's number is its place."""
    _check()
    return _ext.variant_names("cuda_variants", pass_)


def sizes_of(layer: Layer, pass_: str) -> tuple[int, ...]:
    """A pass of a layer as `_ext.cuda_plan` takes it."""
    pad_top, pad_left = layer.padding
    if pass_ == "bwd_input":  # the forward kernel on the gradient, filter rotated and pads mirrored
        pad_top, pad_left = layer.kh - 1 - pad_top, layer.kw - 1 - pad_left
    return (layer.n, layer.c, layer.h, layer.w, layer.kh, layer.kw, layer.h, layer.w, pad_top, pad_left)


def planner(
    step: Sequence[tuple[Layer, str]],
    dtype: str,
    limits: Limits = H200,
    *,
    channels_last: bool = False,
    precision: str = "ieee",
    algorithm: str = "auto",
) -> Callable[[], Cost]:
    """A function that asks for the plan of each (layer, pass) in turn, as a training step does from C++.

    Raises:
        PlannerUnavailableError: the extension is not built.
    """
    _check()
    sizes = [number for layer, pass_ in step for number in sizes_of(layer, pass_)]
    passes = " ".join(pass_ for _, pass_ in step)
    device = [getattr(limits, field.name) for field in fields(limits)]

    def ask() -> Cost:
        query = torch.ops.replknet_ext._cuda_plan_cost
        cost = json.loads(query(sizes, dtype, channels_last, passes, precision, algorithm, device))
        return Cost(cost["made"], cost["nanoseconds"] / 1e6)

    return ask


def plan(
    layer: Layer,
    pass_: str = "fwd",
    dtype: str = "bfloat16",
    limits: Limits = H200,
    variant: int = -1,
    *,
    channels_last: bool = False,
    precision: str = "ieee",
    algorithm: str = "auto",
) -> Plan:
    """The plan of a pass.

    Args:
        layer: the shapes.
        pass_: "fwd", "bwd_input" or "bwd_weight".
        dtype: "float64", "float32", "float16" or "bfloat16".
        limits: the GPU.
        variant: a number, or -1 for the planner's choice.
        channels_last: the memory format.
        precision, algorithm: as in the public function.

    Raises:
        PlanError: the variant can't run this layer; the message is the planner's reason.
        PlannerUnavailableError: the extension is not built.
    """
    _check()
    device = {
        "capability": limits.capability,
        "multiprocessors": limits.sms,
        "shared_per_block": limits.shared_per_block,
        "shared_per_sm": limits.shared_per_sm,
    }
    how = (getattr(torch, dtype), pass_, precision, algorithm, device, variant)
    answer: dict[str, Any] = _ext.cuda_plan(sizes_of(layer, pass_), *how, channels_last=channels_last)
    if "unsupported" in answer:
        raise PlanError(answer["unsupported"])
    return Plan(**{field.name: answer[field.name] for field in fields(Plan)})


def supported(
    layer: Layer, pass_: str, dtype: str, limits: Limits = H200, *, channels_last: bool = False, precision: str = "ieee"
) -> dict[int, Plan]:
    """Plans of every variant that runs a pass, by number."""
    plans = {}
    for variant in range(len(variants(pass_))):
        with suppress(PlanError):
            plans[variant] = plan(
                layer, pass_, dtype, limits, variant, channels_last=channels_last, precision=precision
            )
    return plans
