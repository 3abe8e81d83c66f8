"""RepLKNet as a backbone of mmpretrain, mmsegmentation and mmdetection.

In a config of any of them:

    custom_imports = dict(imports=["replknet_ext.integrations.openmmlab"])
    model = dict(backbone=dict(type="replknet_ext.RepLKNet", arch="31B", out_indices=(0, 1, 2, 3)), ...)

Importing this module adds the scope `replknet_ext` to mmengine's tree of registries, where every OpenMMLab library
finds it, and the operator to mmengine's FLOP counter (`tools/analysis_tools/get_flops.py`); without mmengine nothing is
registered. `register("mmpretrain")` also puts it in the place of mmpretrain's
own RepLKNet, so that existing configs run on it unchanged.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._ext import NAMESPACE
from ..models import CheckpointError, RepLKNet, load_checkpoint
from ..models.download import download, is_url
from ..models.files import read_entries
from ..models.keys import shorten
from ._optional import require

__all__ = ["MMRepLKNet", "register"]

SCOPE = "replknet_ext"
NAME = "RepLKNet"
_PACKAGES = {"mmseg": "mmsegmentation"}


class MMRepLKNet(RepLKNet):
    """RepLKNet with the arguments, the state dict and the tuple of maps of mmpretrain's backbone.

    Args:
        arch: "31B", "31L", "XL" or a dict with large_kernel_sizes, layers, channels, small_kernel and dw_ratio.
        in_channels: channels of the images.
        ffn_ratio: hidden channels of the feed-forward blocks as a multiple of the stage's.
        out_indices: stages whose maps are returned.
        strides, dilations: only the network's own, (2, 2, 2, 2) and (1, 1, 1, 1).
        frozen_stages: the stem (from 0 on) and this many stages stay as they are in training; -1 for none. As in
            mmpretrain the transitions between them go on learning, which `RepLKNet` freezes, too.
        conv_cfg: None or the plain convolution.
        norm_cfg: type "BN" or "SyncBN", and eps, momentum and requires_grad of the BatchNorms.
        act_cfg: None or type "ReLU"; the feed-forward blocks have their GELU in any case.
        with_cp: recompute blocks in the backward pass to save memory.
        drop_path_rate: stochastic depth of the last block.
        small_kernel_merged, deploy: build the merged form, for merged weights.
        norm_intermediate_features: a BatchNorm on the maps that are returned. None does what mmpretrain's backbone
            always does and its checkpoints need: one for each of `out_indices`. True and False are those of the
            official downstream code: one in every stage, or raw maps.
        norm_eval: BatchNorms keep their running statistics in training.
        init_cfg: dict(type="Pretrained", checkpoint=..., prefix=...) loads weights of any known format in
            `init_weights()`; dicts of other types are initialised by mmengine.
        pretrained: short for such an init_cfg.

    Raises:
        ValueError: an argument that this network cannot follow; nothing is ignored.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any],
        in_channels: int = 3,
        ffn_ratio: float = 4.0,
        out_indices: Sequence[int] = (3,),
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        frozen_stages: int = -1,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
        with_cp: bool = False,
        drop_path_rate: float = 0.3,
        small_kernel_merged: bool = False,
        norm_intermediate_features: bool | None = None,
        norm_eval: bool = False,
        init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        deploy: bool = False,
        pretrained: str | None = None,
    ) -> None:
        _only("conv_cfg", conv_cfg, "Conv2d", "Conv")
        _only("act_cfg", act_cfg, "ReLU")
        norm = {"type": "BN", **(norm_cfg or {})}
        _only("norm_cfg", norm, "BN", "BN2d", "SyncBN", settings=("eps", "momentum", "requires_grad"))
        if pretrained is not None and init_cfg is not None:
            raise ValueError("pretrained and init_cfg exclude each other")
        super().__init__(
            arch,
            out_indices=out_indices,
            in_chans=in_channels,
            drop_path_rate=drop_path_rate,
            use_checkpoint=with_cp,
            small_kernel_merged=small_kernel_merged or deploy,
            norm_intermediate_features=norm_intermediate_features is not False,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            ffn_ratio=ffn_ratio,
        )
        _fixed("strides", strides, 2, len(self.stages))
        _fixed("dilations", dilations, 1, len(self.stages))
        if norm_intermediate_features is None:
            for index, stage in enumerate(self.stages):
                if index not in (self.out_indices or ()):
                    stage.norm = nn.Identity()
        self.init_cfg = {"type": "Pretrained", "checkpoint": pretrained} if pretrained else init_cfg
        self.is_init = False  # what mmengine asks of a submodule
        self._configure_norms(norm)

    def _configure_norms(self, norm: dict[str, Any]) -> None:
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eps = norm.get("eps", module.eps)
                module.momentum = norm.get("momentum", module.momentum)
                if not norm.get("requires_grad", True):
                    module.requires_grad_(False)
        if norm["type"] == "SyncBN":
            nn.SyncBatchNorm.convert_sync_batchnorm(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, in_channels, H, W) to one map for each of `out_indices`."""
        return cast("tuple[Tensor, ...]", super().forward(x))

    forward.__annotations__.clear()  # see `RepLKNet.forward`

    def _first(self, stages: int) -> list[nn.Module]:
        return [] if stages < 0 else [self.stem, *self.stages[:stages]]

    def init_weights(self) -> None:
        """Does what `init_cfg` says, once; mmengine's runner calls it."""
        if self.is_init or not self.init_cfg:
            self.is_init = True
            return
        configs = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else list(self.init_cfg)
        others = [dict(config) for config in configs if not _is_pretrained(config)]
        if others:
            require("mmengine.model", install="mmengine").initialize(self, others)
        for config in filter(_is_pretrained, configs):  # after the others, which would overwrite it
            self._load(config["checkpoint"], config.get("prefix"))
        self.is_init = True

    def _load(self, source: str, prefix: str | None) -> None:
        report = load_checkpoint(self, source if prefix is None else _below(source, prefix), strict=False)
        # A classifier's weights have no BatchNorm for the maps before the last; those start fresh.
        fresh = [key for key in report.missing if re.match(r"stages\.\d+\.norm\.", key)]
        wrong = [key for key in (*report.missing, *report.unexpected) if key not in fresh]
        if wrong:
            raise CheckpointError(f"{source} does not fit the backbone: {shorten(wrong)} missing or too many")
        if fresh:
            warnings.warn(f"{source} lacks {shorten(fresh)}: freshly initialised, train them", stacklevel=4)


def register(registry: Any = None, name: str = NAME, force: bool = True) -> type[MMRepLKNet]:
    """Registers the backbone in a registry of your choice, in the place of whatever has that name there.

    Args:
        registry: "mmpretrain", "mmseg", "mmdet", or a Registry such as `mmengine.registry.MODELS`. None for the scope
            `replknet_ext`, which importing this module has registered already.
        name: what configs call it.
        force: take the place of a class of that name; False makes it an error.

    Raises:
        ImportError: the library is missing or cannot be imported; says what to install.
        KeyError: the name is taken and `force` is False.
    """
    if registry is None:
        registry = _own_registry()
    elif isinstance(registry, str):
        registry = require(f"{registry}.registry", install=_PACKAGES.get(registry, registry)).MODELS
        registry.import_from_location()  # or its own RepLKNet would be registered later, over this one
    registry.register_module(name=name, force=force, module=MMRepLKNet)
    return MMRepLKNet


def _own_registry() -> Any:
    """The scope `replknet_ext` in mmengine's tree, made on first use."""
    engine = require("mmengine.registry", install="mmengine")
    found = engine.MODELS.children.get(SCOPE)
    return engine.Registry("model", parent=engine.MODELS, scope=SCOPE) if found is None else found


def _count_in_mmengine() -> None:
    """mmengine counts the operators of a trace that it knows by name: adds ours, as it counts a convolution."""
    from mmengine.analysis import complexity_analysis as counters
    from mmengine.analysis.jit_handles import generic_activation_jit, get_shape

    def flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
        kernel = get_shape(inputs[1])[2:]
        return Counter(conv=math.prod(get_shape(outputs[0])) * math.prod(kernel))  # one for each multiply-add

    counters._DEFAULT_SUPPORTED_FLOP_OPS[f"{NAMESPACE}::dwconv2d"] = flops
    counters._DEFAULT_SUPPORTED_ACT_OPS[f"{NAMESPACE}::dwconv2d"] = generic_activation_jit("conv")


def _below(source: str, prefix: str) -> dict[str, Any]:
    """The entries of a checkpoint whose names start with `prefix`, without it."""
    path = download(source) if is_url(source) else Path(source)
    entries, _ = read_entries(path, "auto", source)
    prefix = prefix.rstrip(".") + "."
    named = {key: value for key, value in entries.items() if isinstance(key, str)}
    found = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
    if not found:
        raise CheckpointError(f"{source} has nothing under the prefix {prefix!r}; its entries are {shorten(named)}")
    return found


def _is_pretrained(config: Mapping[str, Any]) -> bool:
    kind = config["type"]  # a name, or mmengine's class PretrainedInit
    return (kind if isinstance(kind, str) else kind.__name__) in ("Pretrained", "PretrainedInit")


def _only(name: str, cfg: Mapping[str, Any] | None, *types: str, settings: Sequence[str] = ()) -> None:
    """Refuses a layer configuration that asks for something else than this network is made of."""
    if cfg is None:
        return
    if cfg.get("type") not in types:
        raise ValueError(f"{name} must be of type {' or '.join(types)}; got {cfg.get('type')!r}")
    unknown = sorted(set(cfg) - {"type", "inplace", *settings})
    if unknown:
        raise ValueError(f"{name} has settings that RepLKNet cannot follow: {', '.join(unknown)}")


def _fixed(name: str, values: Sequence[int] | None, value: int, stages: int) -> None:
    if values is not None and tuple(values) != (value,) * stages:
        raise ValueError(f"{name} must be {(value,) * stages}, RepLKNet's own; got {tuple(values)}")


with contextlib.suppress(ImportError):  # without mmengine there is nobody to register with
    register()
    _count_in_mmengine()
