"""The learning rate of each step: linear warm-up, then a cosine, by timm."""

from __future__ import annotations

import math
from typing import Any

import torch

from .libraries import timm
from .recipe import Schedule

__all__ = ["learning_rates", "make_schedule"]


def make_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule, steps_per_epoch: int) -> Any:
    """timm's `CosineLRScheduler` over optimizer steps; call `step_update(steps_done)` before each step.

    Args:
        optimizer: its groups' "lr" are the peak, and their "lr_scale", if any, multiply.
        steps_per_epoch: optimizer steps.
    """
    timm()
    from timm.scheduler import CosineLRScheduler

    steps = schedule.epochs * steps_per_epoch
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), steps - 1)
    made = CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        lr_min=schedule.min_lr,
        warmup_t=warmup,
        warmup_lr_init=schedule.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    made.step_update(0)
    return made


def learning_rates(lr: float, schedule: Schedule, steps_per_epoch: int, points: int = 9) -> list[tuple[float, float]]:
    """(epoch, learning rate) at some points of a schedule, first and last step among them, for people to look at."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    made = make_schedule(optimizer, schedule, steps_per_epoch)
    last = schedule.epochs * steps_per_epoch - 1
    peak = min(round(schedule.warmup_epochs * steps_per_epoch), last)
    chosen = sorted({0, peak, *(math.floor(last * i / max(points - 2, 1)) for i in range(points - 1))})
    rates = []
    for step in chosen:
        made.step_update(step)
        rates.append((step / steps_per_epoch, optimizer.param_groups[0]["lr"]))
    return rates
