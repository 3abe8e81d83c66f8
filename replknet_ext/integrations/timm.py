"""RepLKNet in timm's registry: importing this module registers the models.

    import timm, replknet_ext.integrations.timm
    timm.create_model("replknet_31b.in21k_ft_in1k_384", pretrained=True, num_classes=10)

Weights have this package's keys, so checkpoints go back and forth between `timm.create_model` and
`replknet_ext.get_model`. Needs timm (`pip install 'replknet_ext[timm]'`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..models import MODELS, DropPath, PretrainedConfig, RepLKNet
from ..models.blocks import run_checkpointed
from ..models.checkpoint import fit_state, parse_state
from ..modules import DepthwiseConv2dLarge
from ._optional import require

require("timm", install="replknet_ext[timm]")

from timm.layers import SelectAdaptivePool2d  # noqa: E402
from timm.models import (  # noqa: E402
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)

__all__ = ["TimmRepLKNet", "checkpoint_filter_fn", "default_cfgs"]

# What timm traces for feature extraction can be scripted, too, if these stay whole.
for _layer in (DepthwiseConv2dLarge, DropPath):
    register_notrace_module(_layer)


class TimmRepLKNet(RepLKNet):
    """RepLKNet with the methods and keywords that timm and its training script know.

    Args:
        arch, num_classes, in_chans, drop_path_rate, kwargs: as `RepLKNet`; no `out_indices`, for which timm has
            `features_only=True`.
        drop_rate: dropout before the classifier.
        global_pool: "avg", "max", "avgmax", or "" for none: logits (N, num_classes, H, W) of each pixel of the last
            map, or with num_classes=0 the map itself.
        device, dtype: where and as what the parameters are made.
    """

    def __init__(
        self,
        arch: Any = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("out_indices") is not None:
            raise ValueError("out_indices needs features_only=True: timm.create_model(..., features_only=True)")
        with nullcontext() if device is None else torch.device(device):
            super().__init__(arch, num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path_rate, **kwargs)
        self.to(dtype=dtype)
        self.drop_rate = drop_rate
        self.head_hidden_size = self.num_features
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": reduction, "module": f"stages.{stage}"}
            for stage, (channels, reduction) in enumerate(
                zip(self.config.channels, self.config.reductions, strict=True)
            )
        ]
        self._set_pool(global_pool)

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in ("avg", "max", "avgmax", ""):
            raise ValueError(f"global_pool must be avg, max, avgmax or ''; got {global_pool!r}")
        if self.deploy_level == "full" and self.num_classes and global_pool != "avg":
            raise ValueError(f"global_pool={global_pool!r} needs the last BatchNorm, which is folded at level='full'")
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool)).train(self.training)
        self.unpooled = not global_pool

    def _pool(self, x: Tensor) -> Tensor:
        x = self.global_pool(x)
        return nn.functional.dropout(x, self.drop_rate, self.training) if self.drop_rate else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools a map (N, C, H, W) and classifies it, or each pixel without pooling; with `pre_logits` only pools."""
        if pre_logits:
            self._require_norm("features")
        x = self._pool(x)
        if pre_logits:
            return x
        logits: Tensor = self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.unpooled else self.head(x)
        return logits

    def _stage_maps(self, x: Tensor, last: int) -> Iterator[Tensor]:
        """The map after each stage up to `last`."""
        x = self.stem[0](x)
        for layer in self.stem[1:]:
            x = run_checkpointed(layer, x) if self.use_checkpoint else layer(x)
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = self.transitions[index - 1](x)
            x = stage(x)
            yield x
            if index == last:
                break

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier, and with `global_pool` another pooling; 0 classes for none."""
        super().reset_classifier(num_classes)
        self._set_pool(self.global_pool.pool_type if global_pool is None else global_pool)

    def switch_to_deploy(self, level: str = "merge") -> TimmRepLKNet:
        """As `RepLKNet.switch_to_deploy`; the last BatchNorm can only be folded into an average."""
        if level == "full" and self.num_classes and self.global_pool.pool_type != "avg":
            raise ValueError(f"level='full' needs global_pool='avg'; this model has {self.global_pool.pool_type!r}")
        super().switch_to_deploy(level)
        return self

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the stages `indices`, and unless `intermediates_only` what `forward_features` returns.

        Args:
            x: images (N, in_chans, H, W).
            indices: stages by number (negative ones from the end), the last n for an int n, None for all.
            norm: normalise the last stage's map as the classifier sees it; the other stages have no norm.
            stop_early: do not compute the stages after the last that was asked for.
            output_fmt: "NCHW".
            intermediates_only: return the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW'; got {output_fmt!r}")
        wanted, last = _take(indices, len(self.stages))
        end = len(self.stages) - 1
        maps = []
        for stage, x in enumerate(self._stage_maps(x, last if stop_early else end)):  # noqa: B020
            if stage in wanted:
                maps.append(self.norm(x) if norm and stage == end else x)
        if intermediates_only:
            return maps
        return (self.norm(x) if stage == end else x), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of `indices`, and what cannot work without them; returns the numbers."""
        wanted, last = _take(indices, len(self.stages))
        cut = last < len(self.stages) - 1
        if prune_head or cut:
            self.reset_classifier(0, "")
        if prune_norm or cut:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if cut:
            self.stages = self.stages[: last + 1]
            self.transitions = self.transitions[:last]
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if not self.training:
            self.eval()  # also what is new
        return wanted


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Any RepLKNet checkpoint, official or mmpretrain's, train-time or merged, in the keys and form of `model`."""
    return fit_state(parse_state(state_dict), model)


def _cfg(config: PretrainedConfig) -> dict[str, Any]:
    """timm's description of published weights."""
    size = config.input_size[-1]
    return {
        "url": config.url,
        "num_classes": config.num_classes,
        "input_size": config.input_size,
        "pool_size": (size // 32, size // 32),
        "interpolation": config.interpolation,
        # Without a crop the whole image is warped to the input size, as the published figures were measured.
        "crop_pct": 0.875 if config.crop else 1.0,
        "crop_mode": "center" if config.crop else "squash",
        "mean": config.mean,
        "std": config.std,
        "first_conv": "stem.0.conv",
        "classifier": "head",
        "paper_ids": "arXiv:2203.06717",
        "paper_name": "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs",
        "origin_url": "https://github.com/DingXiaoH/RepLKNet-pytorch",
    }


def _tag(config: PretrainedConfig) -> str:
    """As timm's own: the data, and the size where it is not 224: "in21k_ft_in1k_384"."""
    if not config.url:
        return "untrained"
    size = config.input_size[-1]
    return (f"{config.pretrain}_ft_" if config.pretrain else "") + "in1k" + (f"_{size}" if size != 224 else "")


default_cfgs = generate_default_cfgs(
    {f"replknet_{config.arch.lower()}.{_tag(config)}": _cfg(config) for config in MODELS.values()}
)


def _create(arch: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    model: nn.Module = build_model_with_cfg(
        TimmRepLKNet,
        f"replknet_{arch.lower()}",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{"arch": arch, **kwargs},
    )
    return model


@register_model
def replknet_31b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-31B: kernels 31, 29, 27, 13 and channels 128 to 1024."""
    return _create("31B", pretrained, **kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-31L: kernels 31, 29, 27, 13 and channels 192 to 1536."""
    return _create("31L", pretrained, **kwargs)


@register_model
def replknet_xl(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-XL: kernels 27, 27, 27, 13 and channels 256 to 2048, no small kernel."""
    return _create("XL", pretrained, **kwargs)


@register_model
def replknet_13(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-13, of the paper's kernel-size study: 13x13 in every stage."""
    return _create("13", pretrained, **kwargs)


def _take(indices: int | Sequence[int] | None, stages: int) -> tuple[list[int], int]:
    """The stages that timm's `indices` name, and the last of them: all for None, the last n for an int n."""
    if indices is None:
        indices = stages
    taken = range(stages - indices, stages) if isinstance(indices, int) else indices
    lowest = 0 if isinstance(indices, int) else -stages
    if not taken or any(not lowest <= index < stages for index in taken):
        raise ValueError(f"indices must name stages from 0 to {stages - 1}, or be a number of stages; got {indices!r}")
    wanted = [index % stages for index in taken]
    return wanted, max(wanted)
