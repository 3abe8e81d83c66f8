"""The model that a command works with: from a name, a checkpoint, or both."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..data.labels import class_names, read_classes
from ..data.transforms import Preprocessing
from ..errors import ToolError, UsageError
from ..models import (
    ARCHS,
    MODELS,
    CheckpointError,
    RepLKNet,
    get_model,
    list_models,
    load_checkpoint,
    model_from_checkpoint,
    read_checkpoint,
)
from ..models.checkpoint import load_plain, read_plain
from ..models.keys import backbone_kwargs
from ..models.registry import builders

__all__ = ["Loaded", "device_of", "dtype_of", "load"]

#: What names of checkpoints end in.
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

#: Short names of the dtypes that models compute in.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode on its device, and what its pictures and classes are.

    Attributes:
        name: what to call it.
        known: the class names that somebody gave, and not those that are assumed; for matching folders.
    """

    name: str
    model: Any  # a RepLKNet, or another registered model with `num_classes`
    preprocessing: Preprocessing
    names: Sequence[str]
    known: Sequence[str] | None


def load(
    name: str | None,
    checkpoint: str | None = None,
    *,
    deploy: Literal["merge", "full"] | None = None,
    device: str = "auto",
    input_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: str | Path | None = None,
    classifier: bool = True,
) -> Loaded:
    """Builds the model and brings it into the form that is asked for.

    Args:
        name: one of `list_models()`; without it the checkpoint says what it is of.
        checkpoint: path or address, with any number of classes; without it the published weights of `name`.
        deploy: the merging level of `switch_to_deploy`, None for the form that the checkpoint has.
        device: "auto" is the first GPU, else the CPU.
        input_size, mean, std: what to change in the preprocessing of `name`.
        classes: a file with class names, see `labels.read_classes`.
        classifier: False takes backbones, too.

    Raises:
        UsageError: an unknown name, no weights to be had for it, values that do not fit together.
        CheckpointError: the weights cannot be had, read, or do not fit.
        ToolError: no such device, or a backbone's checkpoint where a classifier is needed.
    """
    where = device_of(device)
    if input_size is not None and input_size < 1:
        raise UsageError(f"input size must be at least 1; got {input_size}")
    model = _build(name, checkpoint, input_size)
    num_classes = getattr(model, "num_classes", 0) or 0  # None of backbones
    if classifier and not num_classes:
        raise ToolError(f"{checkpoint or name} has no classifier: it is a backbone's")
    given = read_classes(classes) if classes is not None else None
    names = class_names(num_classes, given)
    preprocessing = _adjusted(Preprocessing.of(model, input_size), mean, std)
    if deploy is not None:
        if not hasattr(model, "switch_to_deploy"):
            raise UsageError(f"{name} has nothing to merge: leave --deploy out")
        model.switch_to_deploy(level=deploy)
    model = model.eval().to(where)
    return Loaded(name or Path(str(checkpoint)).name, model, preprocessing, names, given)


def _build(name: str | None, checkpoint: str | None, input_size: int | None) -> Any:
    if name is not None and name not in list_models():
        try:
            get_model(name)  # raises, and says which names are near
        except ValueError as error:
            raise UsageError(str(error)) from None
    if checkpoint is None:
        if name is None:
            raise UsageError("no model given: pass --model or --checkpoint, or both")
        if name not in list_models(pretrained=True):
            raise UsageError(f"no weights are published for {name}: give --checkpoint FILE")
        try:
            return get_model(name, pretrained=True)
        except CheckpointError as error:
            raise ToolError(f"no weights for {name}: {error}. If you have the file, give --checkpoint FILE") from None
    if name is not None and name in builders() and not isinstance(model := get_model(name), RepLKNet):
        return _plain(name, model, checkpoint)
    content = read_checkpoint(checkpoint)
    if name is None:
        return _like_published(model_from_checkpoint(content), input_size)
    model = get_model(name, **backbone_kwargs(content.state), small_kernel_merged=content.form != "train")
    if content.form == "full":
        model.switch_to_deploy(level="full")
    load_checkpoint(model, content)
    return model


def _plain(name: str, model: Any, checkpoint: str) -> Any:
    """A registered network that is no RepLKNet with its weights, built again for as many classes as those have."""
    state = read_plain(checkpoint)
    own, classes = model.state_dict(), getattr(model, "num_classes", None)
    other = [(key, own[key].shape) for key in state if key in own and state[key].shape != own[key].shape]
    counts = {len(state[key]) for key, shape in other if state[key].ndim and shape[:1] == (classes,)}
    same = all(state[key].shape[1:] == shape[1:] for key, shape in other)
    if len(counts) == 1 and same:
        model = get_model(name, num_classes=counts.pop())
    load_plain(model, state, checkpoint)
    return model


def _like_published(model: RepLKNet, input_size: int | None = None) -> RepLKNet:
    """The model with the preprocessing of the published weights for its architecture, if it has one."""
    short = next((f"replknet_{arch.lower()}" for arch, config in ARCHS.items() if config == model.config), None)
    if short is not None and model.in_chans == 3:
        model.pretrained_cfg = cfg = MODELS[short]
        side = input_size or cfg.input_size[-1]
        warnings.warn(f"images are prepared as for {cfg.name}: {side} pixels; --model NAME changes it", stacklevel=2)
    return model


def _adjusted(used: Preprocessing, mean: Sequence[float] | None, std: Sequence[float] | None) -> Preprocessing:
    """`used` with another mean and std; one value stands for all channels."""

    def spread(option: str, values: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
        if values is None:
            return default
        if len(values) not in (1, len(default)):
            raise UsageError(f"{option} must have 1 or {len(default)} values; got {len(values)}")
        return tuple(values) if len(values) == len(default) else tuple(values) * len(default)

    try:
        return Preprocessing(used.size, spread("mean", mean, used.mean), spread("std", std, used.std), used.crop)
    except ValueError as error:
        raise UsageError(str(error)) from None


def device_of(name: str) -> torch.device:
    """The device of a name: "auto", "cpu", "cuda", "cuda:1" and so on, if it is there.

    Raises:
        UsageError: not a device.
        ToolError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: auto, cpu, cuda, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ToolError(f"no device {name!r}: torch sees {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.empty(1, device=device)
        except (RuntimeError, NotImplementedError, AssertionError):
            raise ToolError(f"no device {name!r} here") from None
    return device


def dtype_of(name: str) -> torch.dtype:
    """The dtype behind one of `DTYPES`.

    Raises:
        UsageError: another name.
    """
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}: {', '.join(DTYPES)}")
    return DTYPES[name]
