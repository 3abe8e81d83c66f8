"""RepLKNet on the Hugging Face Hub: save_pretrained, from_pretrained, push_to_hub.

A repository holds `model.safetensors` with this package's keys, `config.json` with what builds the model (also its
deploy level), and a model card. Needs huggingface_hub and safetensors (`pip install 'replknet_ext[hub]'`).

The mixin sits on a subclass, not on `RepLKNet`: what the base class is must not depend on what is installed. Any
RepLKNet can be saved all the same: `hub.save_pretrained(model, folder)`, `hub.push_to_hub(model, "user/name")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .._version import __version__
from ..models import (
    DropPath,
    PretrainedConfig,
    RepLKNet,
    RepLKNetConfig,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from ..models.zoo import adapt_checkpoint
from ._optional import require

require("huggingface_hub", "safetensors", install="replknet_ext[hub]")

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download  # noqa: E402

__all__ = ["HubRepLKNet", "from_pretrained", "hub_config", "push_to_hub", "save_pretrained"]

_WEIGHTS = "model.safetensors"
#: Keywords of `RepLKNet` that `config.json` has and `from_pretrained` may override.
_KEYWORDS = ("num_classes", "out_indices", "in_chans", "drop_path_rate", "norm_intermediate_features")


class HubRepLKNet(
    RepLKNet,
    PyTorchModelHubMixin,
    library_name="replknet_ext",
    pipeline_tag="image-classification",
    paper_url="https://arxiv.org/abs/2203.06717",
    tags=["replknet", "large-kernel"],
):
    """A `RepLKNet` with `save_pretrained`, `from_pretrained` and `push_to_hub` of huggingface_hub's mixin."""

    def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **kwargs: Any) -> str | None:
        """Writes weights, config.json and a model card to a folder; keywords as huggingface_hub's mixin."""
        # Of the model as it is now: merging or another classifier may have changed it since it was built.
        result: str | None = super().save_pretrained(
            save_directory, config=hub_config(self) if config is None else config, **kwargs
        )
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        save_checkpoint(self, save_directory / _WEIGHTS)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        config: Mapping[str, Any] | None = None,
        proxies: object = None,  # this and the next come from huggingface_hub before 1.0
        resume_download: object = None,
        **overrides: Any,
    ) -> HubRepLKNet:
        model = cls._build(model_id, config or {}, overrides)
        if Path(model_id).is_dir():
            file = Path(model_id) / _WEIGHTS
        else:
            file = Path(
                hf_hub_download(
                    repo_id=model_id,
                    filename=_WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        load_checkpoint(model, adapt_checkpoint(read_checkpoint(file), model, model_id), strict=strict)
        return model.to(map_location).eval()

    @classmethod
    def _build(cls, model_id: str, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> HubRepLKNet:
        """The model that `config` describes. The mixin puts all of `config` into `overrides`, under the user's own."""
        if not isinstance(config.get("arch"), Mapping):
            raise ValueError(
                f"{model_id} is no RepLKNet saved by save_pretrained: config.json is missing or has no arch"
            )
        unknown = sorted(set(overrides) - set(config) - set(_KEYWORDS))
        if unknown:
            raise TypeError(f"from_pretrained got an unknown argument {unknown[0]!r}; known are {', '.join(_KEYWORDS)}")
        settings = {name: overrides.get(name, config.get(name)) for name in _KEYWORDS}
        if settings["out_indices"] is not None:
            settings["num_classes"] = None
        level = config.get("deploy_level")
        model = cls(
            RepLKNetConfig(**config["arch"]),
            small_kernel_merged=level is not None,
            **{name: value for name, value in settings.items() if value is not None},
        )
        if level == "full":
            model.switch_to_deploy(level)
        cfg = config.get("pretrained_cfg")
        model.pretrained_cfg = None if cfg is None else PretrainedConfig(**_tuples(cfg))
        return model


def hub_config(model: RepLKNet) -> dict[str, Any]:
    """The content of config.json: what builds `model` as it is now."""
    cfg = model.pretrained_cfg
    return {
        "model_type": "replknet",
        "arch": asdict(model.config),
        "num_classes": model.num_classes,
        "out_indices": model.out_indices,
        "in_chans": model.in_chans,
        "drop_path_rate": max((m.rate for m in model.modules() if isinstance(m, DropPath)), default=0.0),
        "norm_intermediate_features": any(isinstance(stage.norm, _BatchNorm) for stage in model.stages),
        "deploy_level": model.deploy_level,
        # timm keeps a dict of its own there.
        "pretrained_cfg": asdict(cfg) if isinstance(cfg, PretrainedConfig) else None,
        "replknet_ext_version": __version__,
    }


def save_pretrained(model: RepLKNet, save_directory: str | Path, **kwargs: Any) -> str | None:
    """`HubRepLKNet.save_pretrained` for any RepLKNet, which stays as it is."""
    return _as_hub_model(model).save_pretrained(save_directory, **kwargs)


def push_to_hub(model: RepLKNet, repo_id: str, **kwargs: Any) -> str:
    """`HubRepLKNet.push_to_hub` for any RepLKNet: uploads it and returns the address of the commit."""
    url: str = _as_hub_model(model).push_to_hub(repo_id, **kwargs)
    return url


def from_pretrained(source: str | Path, **kwargs: Any) -> HubRepLKNet:
    """The model in a folder or in the Hub's repository `source`, in eval mode.

    Args:
        source: a folder that `save_pretrained` wrote, or "user/name".
        kwargs: num_classes, out_indices, in_chans, drop_path_rate or norm_intermediate_features to change;
            `map_location`, `strict`; revision, token, cache_dir, local_files_only, force_download as huggingface_hub.

    Raises:
        ValueError: `source` is no RepLKNet saved this way, or the weights do not fit; says what.
    """
    model: HubRepLKNet = HubRepLKNet.from_pretrained(source, **kwargs)
    return model


def _as_hub_model(model: RepLKNet) -> HubRepLKNet:
    """`model` seen as a HubRepLKNet: the same parameters, buffers and settings, nothing copied or changed."""
    if isinstance(model, HubRepLKNet):
        return model
    if not isinstance(model, RepLKNet):
        raise TypeError(f"model must be a RepLKNet; got {type(model).__name__}")
    view: HubRepLKNet = object.__new__(HubRepLKNet)
    view.__dict__ = model.__dict__
    return view


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
