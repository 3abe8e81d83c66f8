"""Accuracy on a loader, and what merging changes about it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import ToolError
from ..tools.evaluate import hits

__all__ = ["Accuracy", "Merged", "evaluate", "merge_and_evaluate"]


@dataclass(frozen=True)
class Accuracy:
    """Counts over all processes: images, those whose label was the best, and those among the best 5 (or fewer)."""

    images: int
    correct1: int
    correct5: int

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct1 / self.images

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.correct5 / self.images


@dataclass(frozen=True)
class Merged:
    """A network before and after `switch_to_deploy`.

    Attributes:
        before, after: accuracies.
        model: the merged copy, in eval mode.
        difference: largest difference of two logits, on this process's images.
    """

    before: Accuracy
    after: Accuracy
    model: Any
    difference: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    device: torch.device,
    *,
    autocast: AbstractContextManager[Any] | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Accuracy:
    """Accuracy of a classifier, summed over all processes; the network is in its old mode afterwards.

    Args:
        batches: with `images`, `labels` and `broken`, as this package's loaders have them.

    Raises:
        ToolError: an image cannot be read; names it.
    """
    return _run([model], batches, device, autocast or nullcontext(), memory_format)[0][0]


@torch.inference_mode()
def merge_and_evaluate(model: Any, batches: Iterable[Any], device: torch.device) -> Merged:
    """Merges a copy of a network that has `switch_to_deploy`, and evaluates both, in float32.

    Raises:
        TypeError: the network has nothing to merge.
        ToolError: as `evaluate`.
    """
    if not hasattr(model, "switch_to_deploy"):
        raise TypeError(f"{type(model).__name__} has no switch_to_deploy")
    merged = copy.deepcopy(model).eval()
    merged.switch_to_deploy()
    (before, after), difference = _run([model, merged], batches, device, nullcontext(), torch.contiguous_format)
    return Merged(before, after, merged, difference)


def _run(
    models: list[nn.Module],
    batches: Iterable[Any],
    device: torch.device,
    autocast: AbstractContextManager[Any],
    memory_format: torch.memory_format,
) -> tuple[list[Accuracy], float]:
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    counts = torch.zeros(len(models), 4, dtype=torch.int64)
    difference = 0.0
    with autocast:
        for batch in batches:
            if batch.broken:
                raise ToolError(f"a validation image cannot be read: {batch.broken[0]}")
            images = batch.images.to(device, non_blocking=True, memory_format=memory_format)
            logits = [model(images).float() for model in models]
            difference = max(difference, float((logits[0] - logits[-1]).abs().max()))
            counts += torch.stack([hits(each, batch.labels) for each in logits])
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    if dist.is_initialized():
        dist.all_reduce(counts)
    if counts[0, 0] == 0:
        raise ToolError("there are no validation images")
    return [Accuracy(*row[:3]) for row in counts.tolist()], difference
