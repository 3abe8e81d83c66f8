"""Training: recipes, and the parts that run them, each usable in a loop of one's own.

    from replknet_ext import training

    training.train("digits", output="runs/digits")
    recipe = training.load_recipe("replknet_31b_in1k_224", ["optimizer.lr=1e-3"])
    groups = training.parameter_groups(model, weight_decay=0.05, layer_decay=0.7)

Needs the extra `train` (`pip install 'replknet_ext[train]'`); `import replknet_ext` does not import it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import Batch
    from .engine import make_ema, make_mixup, make_optimizer
    from .evaluation import evaluate, merge_and_evaluate
    from .groups import layer_id, num_layers, parameter_groups
    from .networks import build_network, load_weights
    from .plan import make_plan
    from .reading import load_recipe, recipe_names
    from .recipe import Recipe
    from .schedule import make_schedule
    from .signals import Stopped
    from .trainer import Result, train

__all__ = [
    "Batch",
    "Recipe",
    "Result",
    "Stopped",
    "build_network",
    "evaluate",
    "layer_id",
    "load_recipe",
    "load_weights",
    "make_ema",
    "make_mixup",
    "make_optimizer",
    "make_plan",
    "make_schedule",
    "merge_and_evaluate",
    "num_layers",
    "parameter_groups",
    "recipe_names",
    "train",
]

_FILES = {
    "data": ("Batch",),
    "engine": ("make_ema", "make_mixup", "make_optimizer"),
    "evaluation": ("evaluate", "merge_and_evaluate"),
    "groups": ("layer_id", "num_layers", "parameter_groups"),
    "networks": ("build_network", "load_weights"),
    "plan": ("make_plan",),
    "reading": ("load_recipe", "recipe_names"),
    "recipe": ("Recipe",),
    "schedule": ("make_schedule",),
    "signals": ("Stopped",),
    "trainer": ("Result", "train"),
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: the groups need torch alone."""
    file = next((file for file, names in _FILES.items() if name in names), None)
    if file is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .libraries import library

    if file not in ("groups", "evaluation", "signals"):
        library("pydantic")
    return getattr(importlib.import_module(f".{file}", __name__), name)
