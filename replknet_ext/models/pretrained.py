"""The published RepLKNet weights: where they are, what they need and what they reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["MODELS", "SHORT_NAMES", "PretrainedConfig"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_ADDRESS = "https://download.openmmlab.com/mmclassification/v0/replknet"


@dataclass(frozen=True)
class PretrainedConfig:
    """One set of published weights and how an image is prepared for it.

    Attributes:
        name: the name on mmpretrain's RepLKNet page.
        arch: a name of `ARCHS`.
        input_size: (channels, height, width) of the images that the figures below are for.
        mean, std: of the RGB channels of an image in 0..1; an image is normalised to (image - mean) / std.
        crop: True: the shorter side is resized to `resize` pixels and the centre is cut out; False: the image is
            warped to the input size, as the official code does from 384 pixels on.
        interpolation: how images are resized.
        num_classes: outputs of the classifier.
        top1, top5: published ImageNet-1k accuracy in percent; None where nothing is published.
        params: parameters of the train-time form.
        flops: of the train-time form at `input_size` as the page counts them: multiply-adds of the convolutions plus
            5 for each output of a BatchNorm plus 1 for each input of the pooling; the classifier is not counted.
        url: address of the weights, "" where none are published.
        sha256: the first digits of the file's SHA-256, which stand in its name.
        pretrain: the data of the training before ImageNet-1k: "", "in21k" or "meg73m".
    """

    name: str
    arch: str
    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: bool
    interpolation: str
    num_classes: int
    top1: float | None
    top5: float | None
    params: int
    flops: int
    url: str
    sha256: str
    pretrain: str

    @property
    def resize(self) -> int:
        """Pixels of the shorter side before the centre crop (the side itself without a crop): 224 gives 256."""
        return self.input_size[-1] * 256 // 224 if self.crop else self.input_size[-1]


_PARAMS = {"31B": 79_864_168, "31L": 172_671_016, "XL": 335_435_752, "13": 74_156_392}
_FLOPS = {
    ("31B", 224): 15_636_547_584,
    ("31B", 384): 45_952_303_104,
    ("31L", 384): 97_240_006_656,
    ("XL", 320): 129_570_201_600,
    ("13", 224): 13_719_422_976,
}


def _config(name: str, arch: str, size: int, top1: float | None, top5: float | None, file: str) -> PretrainedConfig:
    """`file` is the date and the hash in the file's name, "" for a model without weights."""
    mean, std = _HALF if arch == "XL" else _IMAGENET
    return PretrainedConfig(
        name=name,
        arch=arch,
        input_size=(3, size, size),
        mean=mean,
        std=std,
        crop=size < 384,
        interpolation="bicubic",
        num_classes=1000,
        top1=top1,
        top5=top5,
        params=_PARAMS[arch],
        flops=_FLOPS[arch, size],
        url=f"{_ADDRESS}/{name}_{file}.pth" if file else "",
        sha256=file.rpartition("-")[2],
        pretrain=next((data for data in ("in21k", "meg73m") if f"_{data}-pre" in name), ""),
    )


_PUBLISHED = (
    _config("replknet-31B_3rdparty_in1k", "31B", 224, 83.48, 96.57, "20221118-fd08e268"),
    _config("replknet-31B_3rdparty_in1k-384px", "31B", 384, 84.84, 97.34, "20221118-03a170ce"),
    _config("replknet-31B_in21k-pre_3rdparty_in1k", "31B", 224, 85.20, 97.56, "20221118-54ed5c46"),
    _config("replknet-31B_in21k-pre_3rdparty_in1k-384px", "31B", 384, 85.99, 97.75, "20221118-76c92b24"),
    _config("replknet-31L_in21k-pre_3rdparty_in1k-384px", "31L", 384, 86.63, 98.00, "20221118-dc3fc07c"),
    _config("replknet-XL_meg73m-pre_3rdparty_in1k-320px", "XL", 320, 87.57, 98.39, "20221118-88259b1d"),
)

#: Names of the builders and the published weights that each of them takes with `pretrained=True`.
SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "replknet_31b": "replknet-31B_3rdparty_in1k",
        "replknet_31l": "replknet-31L_in21k-pre_3rdparty_in1k-384px",
        "replknet_xl": "replknet-XL_meg73m-pre_3rdparty_in1k-320px",
    }
)


def _models() -> dict[str, PretrainedConfig]:
    models = {config.name: config for config in _PUBLISHED}
    models |= {short: models[name] for short, name in SHORT_NAMES.items()}
    # Of the paper's kernel-size study; nobody has published its weights in a known format.
    models["replknet_13"] = _config("replknet_13", "13", 224, None, None, "")
    return models


#: Every name that `get_model` knows: the six of mmpretrain's page, and the short ones.
MODELS: Mapping[str, PretrainedConfig] = MappingProxyType(_models())
