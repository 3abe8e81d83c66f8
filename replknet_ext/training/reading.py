"""From a name, a file and `--set` to a recipe; errors name the key, what is wrong, and the nearest right key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .recipe import Recipe

__all__ = ["changed", "dump", "load_recipe", "recipe_names"]

_FOLDER = Path(__file__).with_name("recipes")


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(source: str | Path | Mapping[str, Any], settings: Iterable[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: a name of `recipe_names()`, the path of a YAML file, or its content as a mapping.
        settings: "key=value" each, with a dotted key such as "optimizer.lr" and a YAML value.

    Raises:
        UsageError: no such recipe, no YAML, an unknown key, or a value that is not allowed; one line.
    """
    values = {**source} if isinstance(source, Mapping) else _read(str(source))
    base = _validated(values)
    batch = base.optimizer.global_batch
    changes = [_setting(text) for text in settings]
    if not changes:
        return base
    values = base.model_dump()
    for keys, value in changes:
        _put(values, keys, value)
    recipe = _validated(values)
    if recipe.optimizer.scale_lr and recipe.optimizer.global_batch != batch:
        recipe.optimizer.lr *= recipe.optimizer.global_batch / batch
        recipe.optimizer.scale_lr = False  # it is stated for the new batch now
    return recipe


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out."""
    import yaml

    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return text


def changed(one: Recipe, other: Recipe) -> list[str]:
    """Keys in which two recipes differ, as "optimizer.lr: 0.004, not 0.001"."""
    first, second = (_flat(recipe.model_dump(mode="json")) for recipe in (one, other))
    return [f"{key}: {second[key]}, not {first[key]}" for key in first if first[key] != second[key]]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        if value == {}:
            flat[prefix + key] = value
    return flat


def _read(source: str) -> dict[str, Any]:
    import yaml

    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"recipe {source}: no such file")
    else:
        path = _FOLDER / f"{source}.yaml"
        if source not in recipe_names():
            raise UsageError(f"unknown recipe {source!r}{_near(source, recipe_names())}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _loader())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"recipe {source}: {why}") from None
    if not isinstance(values, dict):
        raise UsageError(f"recipe {source}: not a mapping of keys to values")
    return {"name": path.stem, **values}


def _loader() -> Any:
    """YAML 1.1 takes 1e-3 for a string, and people write learning rates so."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
    return Loader


def _setting(text: str) -> tuple[list[str], Any]:
    import yaml

    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set {text}: it must be KEY=VALUE, such as optimizer.lr=1e-3")
    try:
        return key.strip().split("."), yaml.load(value, _loader())
    except yaml.YAMLError:
        raise UsageError(f"--set {text}: {value!r} is no YAML value") from None


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    inside: Any = values
    for key in keys[:-1]:
        if isinstance(inside, dict) and inside.get(key, 0) is None:
            inside[key] = {}
        if not isinstance(inside, dict) or not isinstance(inside.get(key), dict):
            raise UsageError(_unknown(".".join(keys), _flat(values)))
        inside = inside[key]
    inside[keys[-1]] = value


def _validated(values: Mapping[str, Any]) -> Recipe:
    from pydantic import ValidationError

    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError(_words(error)) from None


def _words(error: Any) -> str:
    """One line for the first thing that is wrong."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(key, _flat(Recipe(name="").model_dump()))
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    prefix = "" if first["type"] == "value_error" else "must be "
    if first["type"] in ("missing", "value_error"):
        return f"recipe: {key + ': ' if key else ''}{message}"
    if first["type"] in ("too_long", "missing_argument", "model_type", "dict_type"):
        prefix = ""
    return f"recipe: {key} {prefix}{message}; got {first['input']!r}"


def _unknown(key: str, known: Iterable[str]) -> str:
    return f"recipe: unknown key {key!r}{_near(key, known)}"


def _near(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words; a key is also near if it differs in its part alone, as augment.lr does."""
    known = list(known)
    last = word.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:
        ends = {key.rpartition(".")[2]: key for key in known}
        near = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.6)]
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    # Of keys there are too many for a line.
    return f"; known are {', '.join(known)}" if len(known) < 20 else "; a dry run shows every key"
