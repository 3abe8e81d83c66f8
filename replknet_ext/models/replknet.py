"""RepLKNet: a convolutional network with kernels up to 31x31.

"Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", https://arxiv.org/abs/2203.06717.
State dict keys and their order are those of the official implementation, github.com/DingXiaoH/RepLKNet-pytorch (MIT).
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..operator import checks
from .blocks import ReparamLargeKernelConv, RepLKNetStage, ScriptTracer, conv_bn_relu, run_checkpointed
from .pretrained import MODELS, PretrainedConfig
from .registry import register_model
from .reparam import LEVELS, Reparameterizable, fold_norm_linear, reparameterize

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "ARCHS",
    "RepLKNet",
    "RepLKNetConfig",
    "replknet_13",
    "replknet_31b",
    "replknet_31l",
    "replknet_xl",
]


def _is_positive_int(value: Any) -> bool:
    """Whether it is an integer above 0, of Python or of numpy."""
    return hasattr(value, "__index__") and not isinstance(value, bool) and operator.index(value) > 0


@dataclass(frozen=True)
class RepLKNetConfig:
    """The shape of a RepLKNet; sequences may be lists and have one entry a stage, for one stage or more.

    Attributes:
        large_kernel_sizes: odd K of each stage.
        layers: pairs of RepLKBlock and ConvFFN in each stage.
        channels: channels of each stage.
        small_kernel: odd size of the parallel small kernel, at most each K; None for none.
        dw_ratio: channels of the large depthwise kernels as a multiple of the stage's, rounded down as in the official
            code.
        ffn_ratio: hidden channels of the feed-forward blocks as a multiple of the stage's, rounded down.
        stem_strides: strides of the stem's two 3x3 convolutions; (2, 2) is the published 1/4 resolution, (1, 1)
            keeps small images at full size. Every further stage halves H and W.
    """

    large_kernel_sizes: tuple[int, ...]
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    small_kernel: int | None = 5
    dw_ratio: float = 1.0
    ffn_ratio: float = 4.0
    stem_strides: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        for name in ("large_kernel_sizes", "layers", "channels", "stem_strides"):
            values = getattr(self, name)
            if not isinstance(values, Iterable) or not all(_is_positive_int(value) for value in values):
                raise ValueError(f"{name} must be a sequence of positive ints; got {values!r}")
            object.__setattr__(self, name, tuple(map(operator.index, values)))
        stages = len(self.layers)
        if stages == 0 or len(self.large_kernel_sizes) != stages or len(self.channels) != stages:
            raise ValueError(
                "large_kernel_sizes, layers and channels must have one entry for each stage, got lengths "
                f"{len(self.large_kernel_sizes)}, {stages} and {len(self.channels)}"
            )
        if any(size % 2 == 0 for size in self.large_kernel_sizes):
            raise ValueError(f"large_kernel_sizes must be odd; got {self.large_kernel_sizes}")
        small = self.small_kernel
        if small is not None and not (
            _is_positive_int(small) and small % 2 == 1 and small <= min(self.large_kernel_sizes)
        ):
            raise ValueError(f"small_kernel must be odd and at most {min(self.large_kernel_sizes)}; got {small}")
        object.__setattr__(self, "small_kernel", None if small is None else operator.index(small))
        if len(self.stem_strides) != 2:
            raise ValueError(f"stem_strides must have two entries; got {self.stem_strides}")
        for name in ("dw_ratio", "ffn_ratio"):
            ratio = getattr(self, name)
            if not isinstance(ratio, (int, float)) or not math.isfinite(ratio):
                raise ValueError(f"{name} must be a finite number; got {ratio!r}")
            if min(_times(self.channels, ratio)) < 1:
                raise ValueError(f"{name} must leave at least one channel; got {ratio}")

    @property
    def dw_channels(self) -> tuple[int, ...]:
        """Channels of the large depthwise kernels, for each stage."""
        return _times(self.channels, self.dw_ratio)

    @property
    def ffn_channels(self) -> tuple[int, ...]:
        """Hidden channels of the feed-forward blocks, for each stage."""
        return _times(self.channels, self.ffn_ratio)

    @property
    def reductions(self) -> tuple[int, ...]:
        """The input size over the map size, for each stage."""
        first = self.stem_strides[0] * self.stem_strides[1]
        return tuple(first * 2**stage for stage in range(len(self.layers)))


def _times(channels: tuple[int, ...], ratio: float) -> tuple[int, ...]:
    return tuple(int(count * ratio) for count in channels)


ARCHS: Mapping[str, RepLKNetConfig] = MappingProxyType(
    {
        "31B": RepLKNetConfig((31, 29, 27, 13), (2, 2, 18, 2), (128, 256, 512, 1024)),
        "31L": RepLKNetConfig((31, 29, 27, 13), (2, 2, 18, 2), (192, 384, 768, 1536)),
        "XL": RepLKNetConfig((27, 27, 27, 13), (2, 2, 18, 2), (256, 512, 1024, 2048), small_kernel=None, dw_ratio=1.5),
        "13": RepLKNetConfig((13, 13, 13, 13), (2, 2, 18, 2), (128, 256, 512, 1024)),
    }
)


class RepLKNet(nn.Module, Reparameterizable):
    """RepLKNet as a classifier, or with `out_indices` as a backbone.

    BatchNorms are plain; `nn.SyncBatchNorm.convert_sync_batchnorm(model)` makes them synchronised.

    Args:
        arch: a name of `ARCHS`, a `RepLKNetConfig` or a mapping with its fields. None when all come as keywords.
        num_classes: outputs of the classifier, 0 for pooled features without one; 1000 unless `out_indices` is given.
        out_indices: stages whose maps the backbone returns; negative ones count from the end.
        in_chans: channels of the input.
        drop_path_rate: stochastic depth of the last block; earlier ones rise to it linearly from 0. The published
            training runs use 0.1 to 0.8.
        use_checkpoint: trade time for memory in training by recomputing each block in the backward pass.
        small_kernel_merged: builds the merged form, to load merged weights.
        norm_intermediate_features: a BatchNorm on each map that the backbone returns.
        frozen_stages: see `freeze_stages`; -1 freezes nothing.
        norm_eval: in training every BatchNorm keeps to its running statistics.
        config: fields of `RepLKNetConfig` that differ from `arch`: `RepLKNet("31B", small_kernel=None)`.

    Attributes:
        config: the `RepLKNetConfig`.
        pretrained_cfg: the published weights that belong to the name it was built by, or None.

    Shape:
        x (N, in_chans, H, W), any H and W; a classifier returns (N, num_classes), a backbone a tuple of maps
        (N, channels[s], H / reductions[s], W / reductions[s]), rounded up, in the order of the stages.

    Raises:
        TypeError: an unknown keyword, or a missing field of the configuration.
        ValueError: an unknown name, or values that do not fit together; says which.
    """

    def __init__(
        self,
        arch: str | RepLKNetConfig | Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        out_indices: Sequence[int] | None = None,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        small_kernel_merged: bool = False,
        norm_intermediate_features: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        **config: Any,
    ) -> None:
        super().__init__()
        self.config = cfg = _resolve(arch, config)
        stages = len(cfg.layers)
        if num_classes is not None and out_indices is not None:
            raise ValueError("num_classes and out_indices exclude each other: a classifier or a backbone")
        if norm_intermediate_features and out_indices is None:
            raise ValueError("norm_intermediate_features needs out_indices: a classifier returns no feature maps")
        if num_classes is None and out_indices is None:
            num_classes = 1000
        if num_classes is not None and num_classes < 0:
            raise ValueError(f"num_classes must be at least 0; got {num_classes}")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1); got {drop_path_rate}")
        self.num_classes = None if num_classes is None else operator.index(num_classes)
        self.out_indices = None if out_indices is None else _stage_indices(out_indices, stages)
        self.in_chans = operator.index(in_chans)
        self.num_features = cfg.channels[-1]
        self.use_checkpoint = use_checkpoint
        self.norm_eval = norm_eval
        self.pretrained_cfg: PretrainedConfig | None = None

        width = cfg.channels[0]
        first, last = cfg.stem_strides
        self.stem = nn.ModuleList(
            [
                conv_bn_relu(in_chans, width, 3, stride=first),
                conv_bn_relu(width, width, 3, groups=width),
                conv_bn_relu(width, width, 1),
                conv_bn_relu(width, width, 3, stride=last, groups=width),
            ]
        )
        rates = iter(_ramp(drop_path_rate, sum(cfg.layers)))
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for stage, (kernel_size, layers, channels) in enumerate(
            zip(cfg.large_kernel_sizes, cfg.layers, cfg.channels, strict=True)
        ):
            self.stages.append(
                RepLKNetStage(
                    channels,
                    kernel_size,
                    [next(rates) for _ in range(layers)],
                    cfg.small_kernel,
                    dw_channels=cfg.dw_channels[stage],
                    ffn_channels=cfg.ffn_channels[stage],
                    use_checkpoint=use_checkpoint,
                    small_kernel_merged=small_kernel_merged,
                    norm=norm_intermediate_features,
                )
            )
            if stage + 1 < stages:
                wider = cfg.channels[stage + 1]
                self.transitions.append(
                    nn.Sequential(
                        conv_bn_relu(channels, wider, 1), conv_bn_relu(wider, wider, 3, stride=2, groups=wider)
                    )
                )
        if self.out_indices is None:
            self.norm = nn.BatchNorm2d(self.num_features)
            self.head = _classifier(self.num_features, num_classes or 0)
        self.frozen_stages = -1
        self.freeze_stages(frozen_stages)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        features = self.forward_features(x)
        return features if isinstance(features, tuple) else self.forward_head(features)

    # torch.fx copies annotations of `forward` into the code that it writes; TorchScript has no name for that result.
    forward.__annotations__.pop("return")

    def __prepare_scriptable__(self) -> fx.GraphModule:
        """What `torch.jit.script` compiles in the place of this model: its layers, in the order they are called."""
        with torch.no_grad():  # `use_checkpoint` has no meaning there
            return fx.GraphModule(self, ScriptTracer().trace(self))

    def forward_features(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The normalised last map (N, C, H, W) of a classifier, or the tuple of maps of a backbone.

        At deploy level "full" a classifier's last BatchNorm is part of `head`: then the map is the one before it, good
        for `forward_head` only.
        """
        x = self.stem[0](x)
        for layer in self.stem[1:]:
            x = run_checkpointed(layer, x) if self.use_checkpoint else layer(x)
        maps = []
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = self.transitions[index - 1](x)
            x = stage(x)
            if self.out_indices is not None and index in self.out_indices:
                maps.append(cast(RepLKNetStage, stage).norm(x))
                if index == self.out_indices[-1]:  # nobody asked for what comes after
                    break
        return self.norm(x) if self.out_indices is None else tuple(maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools a map (N, C, H, W) and classifies it: (N, num_classes), or (N, C) with `pre_logits`.

        Raises:
            ValueError: the model is a backbone.
            RuntimeError: `pre_logits` at deploy level "full", where the features before `head` lack their BatchNorm.
        """
        self._require_classifier()
        if pre_logits:
            self._require_norm("features")
        x = x.mean((-2, -1))
        return x if pre_logits else self.head(x)

    def extract_feat(self, x: Tensor, stage: str = "neck") -> tuple[Tensor, ...]:
        """Features as a tuple, as mmpretrain's models return them.

        Args:
            x: images (N, in_chans, H, W).
            stage: of a classifier, "neck" for pooled features (N, C) or "backbone" for the normalised last map
                (N, C, H, W). A backbone returns its maps either way.

        Raises:
            RuntimeError: a classifier at deploy level "full", whose features lack their BatchNorm.
        """
        checks.name("stage", stage, ("backbone", "neck"))
        if self.out_indices is None:
            self._require_norm("features")
        features = self.forward_features(x)
        if isinstance(features, tuple):
            return features
        return (features if stage == "backbone" else features.mean((-2, -1)),)

    @property
    def backbone(self) -> "Self":
        """The model itself, so that mmpretrain's `model.backbone.switch_to_deploy()` runs as it is."""
        return self

    def get_classifier(self) -> nn.Module:
        """The last layer, an `nn.Linear`, or an `nn.Identity` when num_classes is 0."""
        self._require_classifier()
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Puts in a fresh classifier with `num_classes` outputs (0 for none), on the model's device and dtype.

        Raises:
            ValueError: `num_classes` is negative, or the model is a backbone.
            RuntimeError: deploy level "full", where the old classifier holds the BatchNorm before it.
        """
        self._require_classifier()
        self._require_norm("another classifier")
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0; got {num_classes}")
        self.num_classes = num_classes
        weight = self.norm.weight
        head = _classifier(self.num_features, num_classes)
        self.head = head.to(device=weight.device, dtype=weight.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns recomputation in the backward pass on or off; see `use_checkpoint`."""
        self.use_checkpoint = enable
        for stage in self.stages:
            stage.use_checkpoint = enable  # type: ignore[assignment]

    def freeze_stages(self, stages: int) -> None:
        """Keeps the first stages as they are in training: no gradients, BatchNorm in eval mode, no drop path.

        Args:
            stages: -1 freezes nothing (and thaws what was frozen), 0 the stem, n the stem, the first n stages and the
                transitions between those. (mmpretrain goes on training the transitions.)
        """
        checks.integer("frozen_stages", stages, -1)
        if stages > len(self.stages):
            raise ValueError(f"frozen_stages must be at most {len(self.stages)}, the number of stages; got {stages}")
        for part in self._first(self.frozen_stages):
            part.requires_grad_(True)
        self.frozen_stages = stages
        if self.out_indices is not None:
            # Checkpoints have every stage, with this norm; what never sees data must not wait for a gradient.
            last = self.out_indices[-1]
            for index, stage in enumerate(self.stages):
                cast(RepLKNetStage, stage).norm.requires_grad_(index in self.out_indices)
            for part in (*self.stages[last + 1 :], *self.transitions[last:]):
                part.requires_grad_(False)
        for part in self._first(stages):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Self":
        """As of every module; frozen stages, and with `norm_eval` all BatchNorms, stay in eval mode."""
        super().train(mode)
        for part in self._first(self.frozen_stages):
            part.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _first(self, stages: int) -> list[nn.Module]:
        """The modules that `freeze_stages(stages)` freezes."""
        if stages < 0:
            return []
        return [self.stem, *self.stages[:stages], *self.transitions[: max(stages - 1, 0)]]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, in timm's form; `coarse`: by stage, not block."""
        if coarse:
            return {"stem": r"^stem", "blocks": [(r"^stages\.(\d+)", None), (r"^transitions\.(\d+)", (1,))]}
        last = 99999  # behind every block of the stage, before the next one
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (last,)),
            (r"^transitions\.(\d+)", (last + 1,)),
        ]
        return {"stem": r"^stem", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the published training does not decay: biases and BatchNorms."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    @property
    def deploy_level(self) -> str | None:
        """None for the train-time form, else the level of `switch_to_deploy`: "merge" or "full"."""
        modules = list(self.modules())
        if not all(module.merged for module in modules if isinstance(module, ReparamLargeKernelConv)):
            return None
        pairs = [layers for module in modules if isinstance(module, Reparameterizable) for layers, _ in module._pairs()]
        return "merge" if any("bn" in layers._modules for layers in pairs) else "full"

    def reparameterize(self, level: str = "merge") -> "Self":
        """Merges large kernels with their small branches and BatchNorms, at level "full" all other BatchNorms too.

        See `replknet_ext.models.reparameterize` for the levels. At "full" the last BatchNorm goes into `head` where
        that is an `nn.Linear`, so features (`extract_feat`, `pre_logits`) and another classifier are no longer to be
        had: merge with level "merge" or build with `num_classes=0` for those.
        """
        checks.name("level", level, LEVELS)
        if level == "full":
            self._check()
        reparameterize(self.stages, level=level)
        if level == "full":
            self._fold_pairs()
            if self.out_indices is None and type(self.head) is nn.Linear and isinstance(self.norm, _BatchNorm):
                fold_norm_linear(self.norm, self.head)
                self.norm = nn.Identity().train(self.training)  # type: ignore[assignment]
        return self

    def _pairs(self) -> list[tuple[nn.Module, str | None]]:
        return [(layers, None) for part in (self.stem, *self.transitions) for layers in part.children()]

    def _require_classifier(self) -> None:
        if self.out_indices is not None:
            raise ValueError("this RepLKNet is a backbone (it has out_indices) and has no classifier")

    def _require_norm(self, what: str) -> None:
        if isinstance(self.norm, nn.Identity):
            raise RuntimeError(
                f"{what} cannot be had at deploy level 'full': the last BatchNorm is folded into the classifier. "
                "Use switch_to_deploy('merge'), or build the model with num_classes=0"
            )


def _named(name: str, arch: str, kwargs: dict[str, Any]) -> RepLKNet:
    model = RepLKNet(arch, **kwargs)
    model.pretrained_cfg = MODELS[name]
    return model


@register_model
def replknet_31b(**kwargs: Any) -> RepLKNet:
    """RepLKNet-31B: kernels 31, 29, 27, 13 and channels 128 to 1024; keywords as `RepLKNet`."""
    return _named("replknet_31b", "31B", kwargs)


@register_model
def replknet_31l(**kwargs: Any) -> RepLKNet:
    """RepLKNet-31L: kernels 31, 29, 27, 13 and channels 192 to 1536; keywords as `RepLKNet`."""
    return _named("replknet_31l", "31L", kwargs)


@register_model
def replknet_xl(**kwargs: Any) -> RepLKNet:
    """RepLKNet-XL: kernels 27, 27, 27, 13, channels 256 to 2048, no small kernel; keywords as `RepLKNet`."""
    return _named("replknet_xl", "XL", kwargs)


@register_model
def replknet_13(**kwargs: Any) -> RepLKNet:
    """RepLKNet-13, of the paper's kernel-size study: 13x13 in every stage; keywords as `RepLKNet`."""
    return _named("replknet_13", "13", kwargs)


def _resolve(arch: str | RepLKNetConfig | Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> RepLKNetConfig:
    """The configuration that `arch` and the keywords beside it describe."""
    known = {field.name for field in fields(RepLKNetConfig)}
    unknown = sorted({*overrides, *(arch if isinstance(arch, Mapping) else ())} - known)
    if unknown:
        raise TypeError(f"RepLKNet got an unknown argument {unknown[0]!r}; configuration fields are {sorted(known)}")
    if arch is None:
        if not overrides:
            raise TypeError(f"RepLKNet needs arch: a name ({', '.join(ARCHS)}), a RepLKNetConfig or its fields")
        return RepLKNetConfig(**overrides)
    if isinstance(arch, Mapping):
        return RepLKNetConfig(**{**arch, **overrides})
    if isinstance(arch, str):
        if arch.upper() not in ARCHS:
            raise ValueError(f"arch must be one of {', '.join(ARCHS)}; got {arch!r}")
        arch = ARCHS[arch.upper()]
    if not isinstance(arch, RepLKNetConfig):
        raise TypeError(f"arch must be a name, a RepLKNetConfig or a mapping; got {type(arch).__name__}")
    return replace(arch, **overrides)


def _classifier(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


def _stage_indices(out_indices: Sequence[int], stages: int) -> tuple[int, ...]:
    """`out_indices` as ascending stage numbers."""
    if not out_indices or any(not -stages <= index < stages for index in out_indices):
        raise ValueError(f"out_indices must name stages from 0 to {stages - 1}; got {out_indices!r}")
    return tuple(sorted({operator.index(index) % stages for index in out_indices}))


def _ramp(last: float, count: int) -> list[float]:
    """`count` numbers from 0 to `last` in equal steps; plain arithmetic, so that it works under any torch device."""
    return [last * i / (count - 1) if count > 1 else 0.0 for i in range(count)]
