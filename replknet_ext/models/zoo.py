"""Models by name, with published weights: `get_model` and `list_models`."""

from __future__ import annotations

import difflib
import warnings
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import Checkpoint, load_checkpoint, load_plain, read_checkpoint, read_plain
from .download import download
from .pretrained import MODELS, PretrainedConfig
from .registry import builders
from .replknet import RepLKNet

__all__ = ["MODELS", "PretrainedConfig", "adapt_checkpoint", "get_model", "list_models"]


def list_models(pattern: str = "*", pretrained: bool | None = None) -> list[str]:
    """The names that `get_model` knows and that match the shell-style `pattern`, sorted.

    Args:
        pattern: as for `fnmatch`; capitals matter.
        pretrained: True: only names with published weights; False: only names without; None: both.
    """

    def has_weights(name: str) -> bool:
        return name in MODELS and bool(MODELS[name].url)

    names = {*MODELS, *builders()}
    return sorted(n for n in names if fnmatch(n, pattern) and pretrained in (None, has_weights(n)))


def get_model(name: str, pretrained: bool | str | Path = False, **kwargs: Any) -> Any:
    """Builds the model `name`, with weights if asked for.

    Args:
        name: one of `list_models()`: a name of mmpretrain's page, or a short one such as "replknet_31b".
        pretrained: True downloads the published weights (once; the SHA-256 is checked); a path or an address (http,
            https, file) loads that checkpoint, in any format that `load_checkpoint` takes.
        kwargs: as `RepLKNet`: num_classes, out_indices, in_chans, drop_path_rate, ...

    Returns:
        A `RepLKNet`, or what the builder of another registered model returns; of that a checkpoint is a state dict with
        its own names, plain or under one of the names that trainers use.

    With weights for other classes than `num_classes` the classifier stays freshly initialised, and a warning says so.
    With `in_chans` other than 3 the first filters are adapted as timm does: summed for one channel, else repeated and
    scaled by 3 / in_chans.

    Raises:
        TypeError: `name` is not a string, or an unknown keyword.
        ValueError: an unknown name (the message lists the nearest), or no weights are published for it.
        CheckpointError: the weights cannot be had, read, or do not fit.
    """
    _check_name(name)
    published = MODELS.get(name)
    builder = builders().get(name)
    if pretrained is True and (published is None or not published.url):
        raise ValueError(
            f"no weights are published for {name!r}; list_models(pretrained=True) names those that have some"
        )
    if builder is not None:
        model = builder(**kwargs)
        if not isinstance(model, RepLKNet):
            if pretrained is not False:
                load_plain(model, read_plain(str(pretrained)), str(pretrained))
            return model
    else:
        assert published is not None
        model = RepLKNet(published.arch, **kwargs)
    model.pretrained_cfg = published
    if pretrained is not False:
        if pretrained is True:
            assert published is not None
            checkpoint = read_checkpoint(download(published.url, published.sha256))
        else:
            checkpoint = read_checkpoint(pretrained)
        load_checkpoint(model, adapt_checkpoint(checkpoint, model, name))
    return model


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str; got {type(name).__name__}")
    names = list_models()
    if name not in names:
        lower = {known.lower(): known for known in names}
        near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(repr(lower[n]) for n in near)}?" if near else f"known are {', '.join(names)}"
        raise ValueError(f"unknown model {name!r}; {hint}")


def adapt_checkpoint(checkpoint: Checkpoint, model: RepLKNet, name: str) -> Checkpoint:
    """The checkpoint with the model's own fresh classifier where its classes differ, and filters for its channels."""
    state = dict(checkpoint.state)
    if model.out_indices is None and model.num_classes and checkpoint.form != "full":
        head = state.get("head.weight")
        if head is None or (head.shape[0] != model.num_classes and head.shape[1] == model.num_features):
            has = "no classifier" if head is None else f"a classifier for {head.shape[0]} classes"
            warnings.warn(
                f"the weights for {name} have {has}; that for num_classes={model.num_classes} is freshly initialised",
                stacklevel=3,
            )
            fresh = {f"head.{key}": value.detach().clone() for key, value in model.head.state_dict().items()}
            state = {key: value for key, value in state.items() if not key.startswith("head.")} | fresh
    stem = state.get("stem.0.conv.weight")
    if stem is not None and stem.shape[1] == 3 != model.in_chans:
        state["stem.0.conv.weight"] = _adapt_filters(stem, model.in_chans)
    return replace(checkpoint, state=state)


def _adapt_filters(weight: Tensor, channels: int) -> Tensor:
    """Filters (C, 3, K, K) for RGB as filters for another number of channels, by timm's rule."""
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    return repeated * (3 / channels)
