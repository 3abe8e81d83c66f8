"""Checkpoints of RepLKNet in every format that is in use: read, load, convert, save.

Tensors are kept under this package's keys, which are the official code's; `keys` knows the other styles. Files are
only ever read as data (`weights_only=True`, or safetensors): reading one runs no code of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .download import download, is_url
from .files import check_suffix, read_entries, unwrap, write_entries
from .keys import (
    CheckpointError,
    Form,
    Style,
    backbone_kwargs,
    canonical,
    compare,
    explain_arch,
    form_of,
    infer_config,
    same_arch,
    shorten,
    skeleton,
    to_mmpretrain,
)
from .replknet import ARCHS, RepLKNet, RepLKNetConfig

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LoadReport",
    "convert_checkpoint",
    "download",
    "fit_state",
    "load_checkpoint",
    "model_from_checkpoint",
    "parse_state",
    "read_checkpoint",
    "save_checkpoint",
]

_FORMS: tuple[Form, ...] = ("train", "merged", "full")
_LEVELS = {"train": None, "merged": "merge", "full": "full"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in this package's keys.

    Attributes:
        state: the tensors, on the CPU.
        form: "train", "merged" (large kernels merged) or "full" (every foldable BatchNorm folded).
        style: the key style that the file had, "official" or "mmpretrain".
        head: whether it has a classifier.
        meta: what else is known: "source"; "keys", the entries of a trainer's file that hold weights, and "key", the
            one that was taken; "ignored", entries that are no part of a RepLKNet; "epoch" and "args" (a dict) of a
            trainer's file; "config", fields of `RepLKNetConfig`, where the file has them.
    """

    state: dict[str, Tensor]
    form: Form
    style: Style
    head: bool
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> RepLKNetConfig:
        """The architecture: as stored, else as the shapes tell.

        Raises:
            CheckpointError: the entries are no complete network.
        """
        inferred = infer_config(self.state, self.meta["source"])
        try:
            stored = RepLKNetConfig(**self.meta["config"])
        except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
            return inferred
        return stored if same_arch(stored, inferred, self.form) else inferred


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did.

    Attributes:
        missing: entries of the model that the checkpoint lacks; they keep their values.
        unexpected: entries of the checkpoint that the model lacks.
        ignored: entries that are no part of the model by design, such as the classifier when a backbone loads.
        merged: the form, "merged" or "full", that the weights were brought into to fit; "" where they fitted.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    merged: str = ""


def read_checkpoint(source: str | Path, *, key: str = "auto") -> Checkpoint:
    """Reads a checkpoint of any known format: official, mmpretrain, a trainer's, a segmentation or detection network's.

    Args:
        source: a path or an address (http, https, file) of a .safetensors file or of one that `torch.save` wrote.
            Also a folder that `save_pretrained` wrote.
        key: the entry of a trainer's file to take, such as "model_ema" or "ckpt.net"; "auto" takes the first of the
            usual names that there is (state_dict, model, module, ...; averaged weights last), else the only one.

    Plain records that trainers store (`argparse.Namespace`, numpy scalars and arrays, mmengine's `HistoryBuffer`) are
    let through. For other classes call this function inside `torch.serialization.safe_globals`, if you trust the file.

    Raises:
        CheckpointError: no such file, not readable, or no RepLKNet; says which.
    """
    path = download(str(source)) if is_url(source) else Path(source)
    entries, meta = read_entries(path, key, str(source))
    return _checkpoint(entries, {"source": str(source), **meta})


def read_plain(source: str | Path, *, key: str = "auto") -> dict[str, Tensor]:
    """The state dict of a network of any kind, plain or in a trainer's file, under its own names.

    Args:
        source: a path or an address.
        key: as in `read_checkpoint`.

    Raises:
        CheckpointError: no such file, not readable, or no state dict: entries that are no tensors, or have no names.
    """
    entries, _ = read_entries(download(str(source)) if is_url(source) else Path(source), key, str(source))
    strange = [name for name, value in entries.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange or not entries:
        what = f"not of tensors with names: {shorten(map(repr, strange))}" if strange else "empty"
        raise CheckpointError(f"{source} holds no state dict; its entries are {what}")
    return dict(entries)


def load_plain(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Loads what `read_plain` returned into a model that is no RepLKNet.

    Raises:
        CheckpointError: it does not fit; says what, and calls it `source`.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{source} does not fit {type(model).__name__}: {why}") from error


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Checkpoint | Mapping[str, Any],
    *,
    strict: bool = True,
    key: str = "auto",
) -> LoadReport:
    """Loads a checkpoint of any known format into a RepLKNet; on an error the model is as it was.

    Train-time weights that go into a merged model are merged on the way, in float64. The reverse cannot be. A backbone
    leaves the classifier and its BatchNorm aside; so does a model with `num_classes=0` with the classifier.

    Args:
        model: a RepLKNet, also inside DistributedDataParallel or torch.compile's wrapper.
        source: a path, an address, a `Checkpoint`, or what `torch.load` returned.
        strict: False lets entries be missing or too many, and leaves a classifier for other classes as it is.
        key: see `read_checkpoint`.

    Returns:
        What was left out; everything else has been loaded.

    Raises:
        TypeError: `model` is no RepLKNet.
        CheckpointError: the checkpoint cannot be read or does not fit; lists what does not.
    """
    net = _network(model)
    if isinstance(source, Checkpoint):
        checkpoint = source
    elif isinstance(source, Mapping):
        checkpoint = parse_state(source, key=key)
    else:
        checkpoint = read_checkpoint(source, key=key)
    name = checkpoint.meta["source"]
    state, ignored = _fit(checkpoint, net, strict)
    difference = compare(state, net)
    if not strict:
        lost = tuple(k for k, *_ in difference.shapes if k.startswith("head."))
        state = {key: value for key, value in state.items() if key not in (*difference.unexpected, *lost)}
        ignored += lost
        shapes = tuple(entry for entry in difference.shapes if entry[0] not in lost)
        if shapes:
            raise CheckpointError(f"{name} does not fit the model: {replace(difference, shapes=shapes)}")
    elif difference:
        hint = _hint(difference.missing, difference.unexpected, [key for key, *_ in difference.shapes])
        raise CheckpointError(f"{name} does not fit the model: {difference}{hint}")
    net.load_state_dict(state, strict=False)
    form = _form(net)
    return LoadReport(
        missing=difference.missing,
        unexpected=difference.unexpected,
        ignored=(*checkpoint.meta.get("ignored", ()), *ignored),
        merged="" if checkpoint.form == form else form,
    )


def parse_state(loaded: Mapping[str, Any], *, key: str = "auto", source: str = "the state dict") -> Checkpoint:
    """What `read_checkpoint` makes of a file, from what `torch.load` or `state_dict()` returned.

    Raises:
        CheckpointError: it is no RepLKNet; the message calls it `source`.
    """
    entries, meta = unwrap(loaded, key, source)
    return _checkpoint(entries, {"source": source, **meta})


def fit_state(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """The tensors in the form of `model`, without those that its kind of network leaves aside, as it would load them.

    Raises:
        TypeError: `model` is no RepLKNet.
        CheckpointError: another architecture, or a form that the model's cannot be made from.
    """
    return _fit(checkpoint, _network(model), True)[0]


def model_from_checkpoint(source: str | Path | Checkpoint, *, key: str = "auto", **kwargs: Any) -> RepLKNet:
    """Builds the RepLKNet that a checkpoint is of, in its form, and loads it; in training mode, as any new model.

    The architecture is read from the shapes. They do not tell the strides of the stem: files that `save_checkpoint`
    wrote for a custom architecture have them beside the weights, for others the published (2, 2) is taken.

    Args:
        source, key: see `read_checkpoint`.
        kwargs: as `RepLKNet`; they replace what the checkpoint tells, such as `out_indices=(0, 1, 2, 3)`.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source, key=key)
    arguments = backbone_kwargs(checkpoint.state)
    if kwargs.get("out_indices") is not None:
        arguments.pop("num_classes", None)
    elif kwargs.get("num_classes") is not None:
        arguments = {"in_chans": arguments["in_chans"]}
    if not {"arch", "small_kernel_merged"} & kwargs.keys():
        arguments["small_kernel_merged"] = checkpoint.form == "merged"
    model = RepLKNet(**{"arch": checkpoint.config, **arguments, **kwargs})
    if checkpoint.form == "full":
        model.switch_to_deploy("full")
    load_checkpoint(model, checkpoint)
    return model


def convert_checkpoint(
    src: str | Path,
    dst: str | Path,
    *,
    to: str = "official",
    form: str = "same",
    arch: str | None = None,
    dtype: torch.dtype | str | None = None,
    key: str = "auto",
    strict: bool = True,
) -> Checkpoint:
    """Converts a checkpoint file into another format; `dst` appears complete or not at all.

    Args:
        src: see `read_checkpoint`.
        dst: file to write; its suffix decides between safetensors (.safetensors) and torch's format (.pth, .pt, .bin).
        to: keys to write: "official" (also this package's), "mmpretrain", or "backbone": the official keys without the
            classifier and its BatchNorm, for segmentation and detection.
        form: "same", "merged", or "full" (which only this package reads).
        arch: a name of `ARCHS` that the checkpoint must be of.
        dtype: of the floating-point entries, such as "float16"; None leaves them.
        key: see `read_checkpoint`.
        strict: False leaves out entries that are no part of the network, such as an auxiliary head.

    Returns:
        What was written, in this package's keys; `meta["ignored"]` names what was left out.

    Raises:
        CheckpointError: the source cannot be read or is incomplete, or the combination does not exist.
    """
    for argument, value, allowed in (
        ("to", to, ("official", "mmpretrain", "backbone")),
        ("form", form, ("same", "merged", "full")),
        ("arch", arch, (None, *ARCHS)),
    ):
        if value not in allowed:
            raise CheckpointError(f"{argument} must be one of {', '.join(map(str, allowed))}; got {value!r}")
    check_suffix(Path(dst))
    checkpoint = read_checkpoint(src, key=key)
    config, state, name = checkpoint.config, checkpoint.state, str(src)
    if arch is not None and not same_arch(config, ARCHS[arch], checkpoint.form):
        raise CheckpointError(f"{name} is not a RepLKNet-{arch}: {explain_arch(config, ARCHS[arch])}")
    if to == "backbone":
        state = {key: value for key, value in state.items() if not key.startswith(("norm.", "head."))}
    target: Form = checkpoint.form if form == "same" else form  # type: ignore[assignment]
    if _FORMS.index(target) < _FORMS.index(checkpoint.form):
        raise CheckpointError(f"{name} is in the {checkpoint.form} form already; merging cannot be undone")
    if target == "full" and to == "mmpretrain":
        raise CheckpointError("mmpretrain has no form without BatchNorms; use form='merged' or to='official'")
    _check_data(state, name)
    if not strict:
        wanted = skeleton(state, config, checkpoint.form).state_dict()
        state = {key: value for key, value in state.items() if key in wanted}
    left_out = [key for key in checkpoint.state if key not in state]
    state = _merge(state, config, checkpoint.form, target, name)
    if dtype is not None:
        kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise CheckpointError(f"dtype must be a floating-point type such as 'float16'; got {dtype!r}")
        state = {key: value.to(kind) if value.is_floating_point() else value for key, value in state.items()}
    written = Checkpoint(
        state,
        target,
        "mmpretrain" if to == "mmpretrain" else "official",
        "head.weight" in state,
        {"source": str(dst), "ignored": [*checkpoint.meta["ignored"], *left_out], "config": asdict(config)},
    )
    write_entries(to_mmpretrain(state) if to == "mmpretrain" else state, Path(dst), config)
    return written


def save_checkpoint(model_or_state: nn.Module | Mapping[str, Tensor], dst: str | Path) -> Path:
    """Writes weights; the suffix of `dst` decides between safetensors and torch's format. All or nothing.

    A .pth of a published architecture is a bare state dict, as the official files are. That of a custom one is
    {"model": state dict, "meta": {"config": ...}}, since weights do not tell everything about an architecture.

    Raises:
        CheckpointError: an unknown suffix.
    """
    dst = Path(dst)
    check_suffix(dst)
    if isinstance(model_or_state, nn.Module):
        config = getattr(model_or_state, "config", None)
        state = model_or_state.state_dict()
    else:
        config, state = None, dict(model_or_state)
    write_entries(state, dst, config if isinstance(config, RepLKNetConfig) else None)
    return dst


# ---------------------------------------------------------------------------------------------------------------------


def _checkpoint(entries: Mapping[str, Any], meta: dict[str, Any]) -> Checkpoint:
    state, style, ignored = canonical(entries, meta["source"])
    form = form_of(state, meta["source"])
    return Checkpoint(state, form, style, "head.weight" in state, {**meta, "ignored": ignored})


def _network(model: nn.Module) -> RepLKNet:
    """The RepLKNet inside wrappers such as DistributedDataParallel."""
    net: Any = model
    while not isinstance(net, RepLKNet):
        net = getattr(net, "module", getattr(net, "_orig_mod", None))
        if not isinstance(net, nn.Module):
            raise TypeError(f"model must be a RepLKNet; got {type(model).__name__}")
    return net


def _form(net: RepLKNet) -> Form:
    return next(form for form in _FORMS if _LEVELS[form] == net.deploy_level)


def _fit(checkpoint: Checkpoint, net: RepLKNet, strict: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The entries as `net` would load them, and the keys of those that it leaves aside."""
    name, found, wanted = checkpoint.meta["source"], checkpoint.config, _form(net)
    if not same_arch(found, net.config, checkpoint.form):
        raise CheckpointError(f"{name} does not fit the model: {explain_arch(found, net.config)}")
    if strict and checkpoint.meta.get("config") and found.stem_strides != net.config.stem_strides:
        raise CheckpointError(
            f"{name} was trained with stem_strides={found.stem_strides}; the model has {net.config.stem_strides}"
        )
    _check_data(checkpoint.state, name)
    state, ignored = _leave_out(checkpoint.state, net)
    if _FORMS.index(checkpoint.form) > _FORMS.index(wanted):
        raise CheckpointError(
            f"{name} is in the {checkpoint.form} form and the model in its {wanted} form, and merging cannot be "
            f"undone: call model.switch_to_deploy({_LEVELS[checkpoint.form]!r}) before loading it"
        )
    if checkpoint.form != wanted:
        state = _merge(state, found, checkpoint.form, wanted, name)
    return state, ignored


def _check_data(state: Mapping[str, Tensor], name: str) -> None:
    """Raises where entries are shapes only, as of a model on the meta device."""
    empty = [key for key, value in state.items() if value.is_meta]
    if empty:
        raise CheckpointError(f"{name} has no values (it is of the meta device): {shorten(empty)}")


def _leave_out(state: Mapping[str, Tensor], net: RepLKNet) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The entries that are meant for this kind of network, and the keys of the others."""
    state = dict(state)
    if net.out_indices is None:
        parts: tuple[str, ...] = () if net.num_classes else ("head.",)
    else:
        parts = ("norm.", "head.")
        last = f"stages.{len(net.stages) - 1}."
        if f"{last}norm.weight" in net.state_dict() and f"{last}norm.weight" not in state:
            # mmpretrain's backbone: the last BatchNorm is the norm of the last map.
            state |= {f"{last}{key}": value for key, value in state.items() if key.startswith("norm.")}
    ignored = tuple(key for key in state if parts and key.startswith(parts))
    return {key: value for key, value in state.items() if key not in ignored}, ignored


def _merge(state: Mapping[str, Tensor], config: RepLKNetConfig, form: Form, to: Form, name: str) -> dict[str, Tensor]:
    """The entries, checked to be complete, in the order of the model, and brought into the form `to`."""
    model = skeleton(state, config, form)
    difference = compare(state, model)
    if difference:
        raise CheckpointError(f"{name} is not a complete RepLKNet: {difference}")
    idle = [key for key in model.state_dict() if key not in state and not key.endswith("num_batches_tracked")]
    with torch.no_grad():
        model.load_state_dict(dict(state), strict=False, assign=True)
    if form != to:
        model.eval().reparameterize(_LEVELS[to] or "merge")
    return {key: value.detach() for key, value in model.state_dict().items() if key not in idle}


def _hint(missing: tuple[str, ...], unexpected: tuple[str, ...], shapes: list[str]) -> str:
    """What would help where the reason can be told."""
    if "head.weight" in shapes:
        return (
            ". The classifier is for other classes: strict=False leaves it out, reset_classifier() changes the model's"
        )
    if any(key.startswith("stages.") and ".norm." in key for key in unexpected):
        return ". The checkpoint normalises its maps: build with norm_intermediate_features=True and out_indices"
    if any(key.startswith("stages.") and ".norm." in key for key in missing):
        return ". The checkpoint has no norms for these maps: strict=False leaves them as they are, to be trained"
    if "norm.weight" in missing:
        return ". The checkpoint is of a backbone: build with out_indices, or strict=False leaves the rest untrained"
    if "head.weight" in missing:
        return ". The checkpoint has no classifier: build with num_classes=0, or strict=False leaves it untrained"
    return ""
