"""Names of the entries of a RepLKNet checkpoint, in the styles that are in use, and what they tell about the network.

This package's keys are those of the official code. mmpretrain puts `backbone.` before them, calls the last BatchNorm
`backbone.stages.<last>.norm` and the classifier `head.fc`. A backbone of a segmentation or detection network has no
`norm` and `head`, and may have a `norm` in each stage. Trainers and wrappers put `module.` and the like before it all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .replknet import ARCHS, RepLKNet, RepLKNetConfig

__all__ = [
    "CheckpointError",
    "Difference",
    "Form",
    "Style",
    "arch_name",
    "backbone_kwargs",
    "canonical",
    "compare",
    "form_of",
    "holds_network",
    "infer_config",
    "same_arch",
    "shorten",
    "skeleton",
    "to_mmpretrain",
]

Form = Literal["train", "merged", "full"]
Style = Literal["official", "mmpretrain"]

_FIRST = "stem.0.conv.weight"  # what stands before it in a key stands before all of the network's
_DIGITS = 4  # of the number of a stage or block; a longer one is no part of a network
_STAGE_NORM = re.compile(rf"stages\.(\d{{1,{_DIGITS}}})\.norm\.")
_SHOWN = 5
_PARAMETER = re.compile(r"(.*\.)?(weight|bias|running_mean|running_var)")
#: Numbers of dimensions that the rest of this module counts on.
_RANKS = {"stem.0.conv.weight": 4, "norm.weight": 1, "head.weight": 2}


class CheckpointError(ValueError):
    """A checkpoint cannot be had, read, or does not fit; the message says what is wrong and what would help."""


def holds_network(entries: Mapping[Any, Any]) -> bool:
    """Whether the first entry of a RepLKNet is among them, after any prefix."""
    return any(isinstance(key, str) and f".{key}".endswith(f".{_FIRST}") for key in entries)


def canonical(entries: Mapping[Any, Any], source: str = "the state dict") -> tuple[dict[str, Tensor], Style, list[str]]:
    """The tensors of a state dict of any style under this package's keys.

    Returns:
        The tensors; the style they had; the entries left out: no tensors, parts of other networks (a decode head), and
        train-time branches that stand beside the merged kernel that replaced them.

    Raises:
        CheckpointError: there are several networks, such as a student and a teacher, or tensors that are no weights:
            sparse, quantised, of integers or complex numbers, or empty.
    """
    tensors = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    ignored = [str(key) for key in entries if key not in tensors]
    places = [key.removesuffix(_FIRST) for key in tensors if f".{key}".endswith(f".{_FIRST}")]
    if len(places) > 1:
        raise CheckpointError(f"the checkpoint holds several networks: {shorten(places)}; give one's state dict")
    prefix = places[0] if places else ""
    outer = prefix.removesuffix("backbone.")
    style: Style = "mmpretrain" if prefix != outer or f"{outer}head.fc.weight" in tensors else "official"
    state = {}
    for key, value in tensors.items():
        if key.startswith(f"{outer}head.fc."):
            state[f"head.{key.removeprefix(f'{outer}head.fc.')}"] = value
        elif key.startswith(prefix):
            state[key.removeprefix(prefix)] = value
        else:
            ignored.append(key)

    merged = {key.removesuffix("lkb_reparam.weight") for key in state if key.endswith(".lkb_reparam.weight")}
    stale = [k for k in state if re.sub(r"(lkb_origin|small_conv)\..*", "", k) in merged]
    ignored += stale
    state = {key: value for key, value in state.items() if key not in set(stale)}

    # A norm on the last stage alone is mmpretrain's name for the last BatchNorm of a classifier.
    norms = _stages_with_norm(state)
    if norms == [_stage_count(state) - 1] and "norm.weight" not in state:
        state = {_STAGE_NORM.sub("norm.", key): value for key, value in state.items()}
    for key, value in state.items():
        if wrong := _why_no_weight(key, value):
            raise CheckpointError(f"{source} has no dense floating-point weights: {key} {wrong}")
    return state, style, ignored


def _why_no_weight(key: str, value: Tensor) -> str:
    """Why this entry can be no parameter or statistic of a network, "" if it can."""
    if value.layout != torch.strided:
        return f"is sparse ({value.layout})"
    if not _PARAMETER.fullmatch(key):
        return ""
    if value.is_quantized or not value.is_floating_point():
        return f"is of {value.dtype}"
    if value.numel() == 0:
        return (
            f"has the shape {tuple(value.shape)}. DeepSpeed's ZeRO-3 leaves such placeholders: gather the weights with "
            "its zero_to_fp32.py"
        )
    if value.ndim != _RANKS.get(key, value.ndim):
        return f"has {value.ndim} dimensions instead of {_RANKS[key]}"
    return ""


def to_mmpretrain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries under mmpretrain's keys, in the order of its models."""
    last = f"stages.{_stage_count(state) - 1}."
    at_end = [key for key in state if key.startswith(last)][-1]
    norm = {f"backbone.{last}{key}": value for key, value in state.items() if key.startswith("norm.")}
    out = {}
    for key, value in state.items():
        if key.startswith("head."):
            out[f"head.fc.{key.removeprefix('head.')}"] = value
        elif not key.startswith("norm."):
            out[f"backbone.{key}"] = value
        if key == at_end:
            out |= norm
    return out


def form_of(state: Mapping[str, Tensor], source: str) -> Form:
    """Which form of the network the keys belong to.

    Raises:
        CheckpointError: of none that is known.
    """
    merged = any(".large_kernel.lkb_reparam." in key for key in state)
    train = any(".large_kernel.lkb_origin." in key for key in state)
    if not merged and not train:
        found = f"its entries are {shorten(state)}" if state else "it has no tensors"
        raise CheckpointError(f"{source} holds no RepLKNet: no large_kernel; {found}")
    if merged and train:
        raise CheckpointError(f"{source} is merged in some blocks only")
    if "stem.0.conv.bias" not in state:
        return "merged" if merged else "train"
    if train or any(".prelkb_bn." in key for key in state):
        raise CheckpointError(
            f"{source} holds a form with some BatchNorms folded, as deep_fuse_BN() of the official code makes it; "
            "load the checkpoint it was made from and use switch_to_deploy('full')"
        )
    return "full"


def infer_config(state: Mapping[str, Tensor], source: str) -> RepLKNetConfig:
    """The architecture that the shapes tell; the strides of the stem, which no shape tells, as published.

    A merged checkpoint does not tell the small kernel either: that of the published architecture, else None.
    """
    try:
        kernels, layers, channels, dw_channels, ffn_channels, small = [], [], [], [], [], None
        for stage in range(_stage_count(state)):
            path = f"stages.{stage}.blocks"
            numbers = {int(m[1]) for key in state if (m := re.match(rf"{re.escape(path)}\.(\d{{1,{_DIGITS}}})\.", key))}
            width, hidden = (state[f"{path}.{i}.pw1.conv.weight"] for i in (0, 1))
            large = state.get(f"{path}.0.large_kernel.lkb_origin.conv.weight")
            kernels.append((state[f"{path}.0.large_kernel.lkb_reparam.weight"] if large is None else large).shape[-1])
            layers.append(len(numbers) // 2)
            channels.append(width.shape[1])
            dw_channels.append(width.shape[0])
            ffn_channels.append(hidden.shape[0])
            branch = state.get(f"{path}.0.large_kernel.small_conv.conv.weight")
            small = None if branch is None else branch.shape[-1]
        config = RepLKNetConfig(
            tuple(kernels),
            tuple(layers),
            tuple(channels),
            small,
            _ratio("depthwise", dw_channels, channels),
            _ratio("feed-forward", ffn_channels, channels),
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{source} holds no complete RepLKNet: {error}") from error
    merged = not any(".lkb_origin." in key for key in state)
    return next((c for c in ARCHS.values() if merged and replace(c, small_kernel=None) == config), config)


def same_arch(a: RepLKNetConfig, b: RepLKNetConfig, form: Form) -> bool:
    """Whether weights of `a` in this form fit `b`."""
    unseen = {} if form == "train" else {"small_kernel": None}
    return _sizes(a) | unseen == _sizes(b) | unseen


def _sizes(config: RepLKNetConfig) -> dict[str, Any]:
    """What the shapes of the weights tell: channels instead of the ratios that they were computed from."""
    names = ("large_kernel_sizes", "layers", "channels", "small_kernel", "dw_channels", "ffn_channels")
    return {name: getattr(config, name) for name in names}


def _ratio(kind: str, products: Sequence[int], channels: Sequence[int]) -> float:
    """The shortest decimal that, times `channels` and rounded down, gives `products`.

    Raises:
        ValueError: there is none: other ratios in other stages.
    """
    if min(channels, default=0) > 0:
        low = max(product / count for product, count in zip(products, channels, strict=True))
        for digits in range(17):
            ratio: float = math.ceil(low * 10**digits) / 10**digits
            if all(int(count * ratio) == product for product, count in zip(products, channels, strict=True)):
                return ratio
    raise ValueError(f"{kind} channels {tuple(products)} are no common multiple of the stages' {tuple(channels)}")


def arch_name(config: RepLKNetConfig) -> str | None:
    """The name of a published architecture."""
    return next((name for name, known in ARCHS.items() if known == config), None)


def skeleton(state: Mapping[str, Tensor], config: RepLKNetConfig, form: Form) -> RepLKNet:
    """A RepLKNet without data (on the meta device), of the kind and form that these entries are of."""
    with torch.device("meta"):
        model = RepLKNet(config, small_kernel_merged=form == "merged", **backbone_kwargs(state))
    return model.reparameterize("full") if form == "full" else model


def backbone_kwargs(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `RepLKNet`, beside the architecture, that these entries belong to."""
    first = state.get("stem.0.conv.weight")
    kwargs: dict[str, Any] = {"in_chans": 3 if first is None else first.shape[1]}
    if "head.weight" in state:
        return kwargs | {"num_classes": state["head.weight"].shape[0]}
    if "norm.weight" in state:
        return kwargs | {"num_classes": 0}
    norms = _stages_with_norm(state)
    return kwargs | {
        "out_indices": norms or range(_stage_count(state)),
        "norm_intermediate_features": bool(norms),
    }


@dataclass(frozen=True)
class Difference:
    """Where a checkpoint and a model disagree; `shapes` are (key, in the checkpoint, in the model)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} entries are missing: {shorten(self.missing)}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} entries are unexpected: {shorten(self.unexpected)}")
        if self.shapes:
            shown = [f"{key} is {ours} and should be {theirs}" for key, ours, theirs in self.shapes]
            parts.append(f"{len(shown)} entries have another shape: {shorten(shown)}")
        return "; ".join(parts)


def compare(state: Mapping[str, Tensor], model: RepLKNet) -> Difference:
    """What keeps `state` from being loaded into `model`.

    Not missing are the counters of batches, which old files lack and nothing needs, and the norms of stages whose maps
    a backbone does not return.
    """
    wanted = model.state_dict()
    idle = [f"stages.{i}.norm." for i in range(len(model.stages)) if i not in (model.out_indices or ())]
    missing = [key for key in wanted if key not in state and not key.endswith(".num_batches_tracked")]
    shapes = [
        (key, tuple(value.shape), tuple(wanted[key].shape))
        for key, value in state.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    return Difference(
        missing=tuple(key for key in missing if not key.startswith(tuple(idle))),
        unexpected=tuple(key for key in state if key not in wanted),
        shapes=tuple(shapes),
    )


def explain_arch(found: RepLKNetConfig, wanted: RepLKNetConfig) -> str:
    """A sentence on which architecture a checkpoint is of when it is not the one that is wanted."""
    name = arch_name(found)
    if name is not None:
        return f"it is a checkpoint of RepLKNet-{name}: build RepLKNet({name!r})"
    ours, theirs = _sizes(found), _sizes(wanted)
    differing = [f"{field} {ours[field]} instead of {theirs[field]}" for field in ours if ours[field] != theirs[field]]
    return f"it is a checkpoint of another architecture: {', '.join(differing)}"


def shorten(items: Iterable[str]) -> str:
    """The first of many, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _stage_count(state: Mapping[str, Tensor]) -> int:
    return max((int(m[1]) + 1 for key in state if (m := re.match(rf"stages\.(\d{{1,{_DIGITS}}})\.", key))), default=0)


def _stages_with_norm(state: Mapping[str, Tensor]) -> list[int]:
    return sorted({int(m[1]) for key in state if (m := _STAGE_NORM.match(key))})
