"""Model names: `@register_model` on a function makes `create_model("its_name")` build what it returns."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

__all__ = ["builders", "create_model", "register_model"]

_MODELS: dict[str, Callable[..., nn.Module]] = {}
_Builder = TypeVar("_Builder", bound=Callable[..., nn.Module])


def register_model(builder: _Builder) -> _Builder:
    """Registers `builder`, a function that takes keyword arguments and returns a model, under its own name.

    Raises:
        ValueError: another function has that name.
    """
    name = builder.__name__
    known = _MODELS.get(name)
    # The same function again is a module that was reloaded.
    if known is not None and (known.__module__, known.__qualname__) != (builder.__module__, builder.__qualname__):
        raise ValueError(f"model {name!r} is already registered by {known.__module__}")
    _MODELS[name] = builder
    return builder


def builders() -> dict[str, Callable[..., nn.Module]]:
    """The registered names and their functions."""
    return dict(sorted(_MODELS.items()))


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Builds the registered model `name`; keyword arguments go to its builder.

    Raises:
        TypeError: `name` is not a string, or an argument is unknown to the builder.
        ValueError: no such model; the message lists the nearest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str; got {type(name).__name__}")
    builder = _MODELS.get(name)
    if builder is None:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), _MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(builders())}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    return builder(**kwargs)
