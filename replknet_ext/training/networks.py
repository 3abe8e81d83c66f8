"""The network of a recipe: RepLKNet by name or by its fields, or any model of timm on this package's kernels."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UsageError
from ..models import MODELS, RepLKNet, get_model, list_models, load_checkpoint, read_checkpoint
from ..models.checkpoint import read_plain
from ..models.download import download, is_url
from ..models.zoo import adapt_checkpoint
from ..patch import replace_depthwise
from .libraries import timm
from .recipe import Model

__all__ = ["build_network", "keep_norms", "load_weights"]

_TIMM = "timm/"


def build_network(model: Model, num_classes: int | None = None, *, weights: bool = True) -> nn.Module:
    """The network in training mode, on the CPU or torch's default device.

    Args:
        model: that part of a recipe.
        num_classes: of the data, where `model.num_classes` is None.
        weights: load `model.weights`, if any.

    Raises:
        UsageError: an unknown name, or options that this network has not.
        CheckpointError: the weights cannot be had, read, or do not fit.
    """
    classes = model.num_classes or num_classes
    if classes is None:
        raise UsageError("model.num_classes: the data does not say how many classes there are; set it")
    if num_classes is not None and num_classes != classes:
        raise UsageError(f"model.num_classes is {classes}, but the data has {num_classes} classes")
    options: dict[str, Any] = {"num_classes": classes, "in_chans": model.in_chans}
    if model.name.startswith(_TIMM):
        net = _timm_network(model, options)
    else:
        net = _own_network(model, options)
    if weights and model.weights is not None:
        load_weights(net, model.weights)
    if model.frozen_stages >= 0:
        if not isinstance(net, RepLKNet):
            raise UsageError(f"model.frozen_stages: only a RepLKNet has stages that can be frozen, not {model.name}")
        net.freeze_stages(model.frozen_stages)
    if model.gradient_checkpointing:
        if not hasattr(net, "set_grad_checkpointing"):
            raise UsageError(f"model.gradient_checkpointing: {model.name} cannot recompute its blocks")
        net.set_grad_checkpointing(True)  # type: ignore[operator]
    return net.train()


def _own_network(model: Model, options: dict[str, Any]) -> nn.Module:
    options |= {"drop_path_rate": model.drop_path_rate}
    try:
        if model.arch is not None:
            net: nn.Module = RepLKNet(model.arch, **options)
        else:
            net = get_model(model.name, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model: {error}") from None
    if isinstance(net, RepLKNet):
        net.norm_eval = model.norm_eval
    return net


def _timm_network(model: Model, options: dict[str, Any]) -> nn.Module:
    library = timm()
    name = model.name.removeprefix(_TIMM)
    known = library.list_models()
    if name.partition(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise UsageError(f"timm has no model {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if model.drop_path_rate:
        options |= {"drop_path_rate": model.drop_path_rate}
    try:
        net: nn.Module = library.create_model(name, **options)
    except TypeError as error:
        raise UsageError(f"model: {name} of timm: {error}") from None
    if model.replace_depthwise is not None:
        replace_depthwise(net, min_kernel=model.replace_depthwise)
    return net


def load_weights(net: nn.Module, source: str) -> None:
    """Loads what training starts from; a classifier for other classes stays fresh, and a warning says so.

    Args:
        net: a RepLKNet, or any other network, whose checkpoint then has its own names.
        source: a path or an address in any format of `load_checkpoint`, the name of a published model (which is
            downloaded), or "timm/NAME" for weights of timm.

    Raises:
        UsageError: no such file or name.
        CheckpointError: the weights cannot be read or do not fit.
    """
    if source.startswith(_TIMM):
        _load_matching(net, timm().create_model(source.removeprefix(_TIMM), pretrained=True).state_dict(), source)
        return
    there = is_url(source) or Path(source).exists()
    if not there and source in list_models():
        published = MODELS.get(source)
        if published is None or not published.url:
            raise UsageError(f"--from {source}: no weights are published for it")
        source = str(download(published.url, published.sha256))
    elif not there:
        names = list_models(pretrained=True)
        near = difflib.get_close_matches(source, names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"names are {', '.join(names)}"
        raise UsageError(f"--from {source}: no such file, and no published model of that name; {hint}")
    if isinstance(net, RepLKNet):
        checkpoint = read_checkpoint(source)
        if checkpoint.form != "train":
            raise UsageError(f"--from {source}: merged weights are for inference; training needs those before merging")
        load_checkpoint(net, adapt_checkpoint(checkpoint, net, source))
        return
    _load_matching(net, read_plain(source), source)


def _load_matching(net: nn.Module, state: dict[str, Any], source: str) -> None:
    """A state dict whose classifier may be for other classes."""
    own = net.state_dict()
    classifier = getattr(net, "pretrained_cfg", {}).get("classifier", "head")
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    lost = [
        key for key, value in state.items() if key.startswith(names) and key in own and value.shape != own[key].shape
    ]
    try:
        net.load_state_dict({**state, **{key: own[key] for key in lost}})
    except RuntimeError as error:
        raise UsageError(f"{source} does not fit {type(net).__name__}: {' '.join(str(error).split())}") from None
    if lost:
        warnings.warn(f"{source} has a classifier for other classes; that here is freshly initialised", stacklevel=3)


def keep_norms(net: nn.Module) -> None:
    """Puts every BatchNorm in eval mode: for `norm_eval`, after each `net.train()`."""
    for module in net.modules():
        if isinstance(module, (_BatchNorm, torch.nn.SyncBatchNorm)):
            module.eval()
