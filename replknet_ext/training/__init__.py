"""Training: recipes, and the parts that they are run by, each usable in a loop of one's own.

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
    from .groups import layer_id, num_layers, parameter_groups
    from .reading import load_recipe, recipe_names
    from .recipe import Recipe
    from .schedule import make_schedule

_WHERE = {
    "Recipe": "recipe",
    "layer_id": "groups",
    "load_recipe": "reading",
    "make_schedule": "schedule",
    "num_layers": "groups",
    "parameter_groups": "groups",
    "recipe_names": "reading",
}

__all__ = [
    "Recipe",
    "layer_id",
    "load_recipe",
    "make_schedule",
    "num_layers",
    "parameter_groups",
    "recipe_names",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .libraries import library

    if _WHERE[name] in ("recipe", "reading"):
        library("pydantic")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
