"""Parameter groups: no weight decay for biases and norms, and the published layer-wise learning rates.

The published fine-tuning runs divide RepLKNet into 12 layers between stem and head, and give each a learning rate of
its own: `layer_decay` to the power of its distance from the head (github.com/DingXiaoH/RepLKNet-pytorch,
optim_factory.py). Groups have timm's key `lr_scale`, by which timm's schedules multiply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..models import RepLKNet

__all__ = ["layer_id", "num_layers", "parameter_groups"]

_DEEP_STAGE = 2  # the stage of 18 layers, which alone is divided
_BLOCKS = 4  # entries of `blocks` (RepLK block and ConvFFN count one each) that share a layer there


def _first_layers(layers: Sequence[int]) -> list[int]:
    """The id of each stage's first layer, and the id of the head behind them."""
    ids = [1]
    for stage, pairs in enumerate(layers):
        ids.append(ids[-1] + (-(-2 * pairs // _BLOCKS) if stage == _DEEP_STAGE else 1))
    return ids


def num_layers(layers: Sequence[int]) -> int:
    """Layers between stem and head: 12 for the published architectures.

    Args:
        layers: as `RepLKNetConfig.layers`.
    """
    return _first_layers(layers)[-1] - 1


def layer_id(name: str, layers: Sequence[int]) -> int:
    """The layer of a parameter: 0 for the stem, `num_layers(layers) + 1` for the last norm and the head.

    A transition belongs to the last layer of the stage before it.

    Args:
        name: of the parameter in a `RepLKNet`.
        layers: as `RepLKNetConfig.layers`.

    Raises:
        ValueError: a name that a RepLKNet has not.
    """
    first = _first_layers(layers)
    if name.startswith("stem."):
        return 0
    if match := re.match(r"stages\.(\d+)\.(?:blocks\.(\d+)\.)?", name):
        stage = int(match[1])
        if stage != _DEEP_STAGE:
            return first[stage]
        return first[stage] + int(match[2]) // _BLOCKS if match[2] else first[stage + 1] - 1
    if match := re.match(r"transitions\.(\d+)\.", name):
        return first[int(match[1]) + 1] - 1
    if name.startswith(("norm.", "head.")):
        return first[-1]
    raise ValueError(f"a RepLKNet has no parameter {name!r}")


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Groups for a torch or timm optimizer.

    Args:
        model: a `RepLKNet`, or with `layer_decay` a model of timm, which is grouped by its own `group_matcher`.
        weight_decay: of parameters with two dimensions or more that are no bias; the others have none.
        layer_decay: learning rate of a layer over that of the next deeper one; None for one rate.

    Returns:
        Dicts with "params", "weight_decay", "lr_scale", "name" and "names" (those of the parameters), from the stem
        to the head. Parameters without gradient are in none.

    Raises:
        TypeError: `layer_decay` for a model that says nothing about its layers.
    """
    ids, last = _ids(model, layer_decay)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decays = ids.get(name, 0), parameter.ndim > 1 and not name.endswith(".bias")
        if (layer, decays) not in groups:
            kind = "decay" if decays else "no_decay"
            groups[layer, decays] = {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": 1.0 if layer_decay is None else layer_decay ** (last - layer),
                "name": kind if layer_decay is None else f"layer_{layer}_{kind}",
                "names": [],
            }
        groups[layer, decays]["params"].append(parameter)
        groups[layer, decays]["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def _ids(model: nn.Module, layer_decay: float | None) -> tuple[dict[str, int], int]:
    """The layer of each parameter, and the last one."""
    if layer_decay is None:
        return {}, 0
    if isinstance(model, RepLKNet):
        layers = model.config.layers
        return {name: layer_id(name, layers) for name, _ in model.named_parameters()}, num_layers(layers) + 1
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise TypeError(f"layer_decay needs a RepLKNet or a model of timm; {type(model).__name__} has no group_matcher")
    from .libraries import timm

    timm()
    from timm.models import group_parameters

    ids: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return ids, max(ids.values())
