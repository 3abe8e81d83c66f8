"""What the CPU benchmarks measure, and the figures that they are held to: groups of layers, goals, promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.shapes import PASSES, Layer, square, stages
from replknet_ext.models import ARCHS

BATCH = 8
REPLKNET_31B = tuple(stages(BATCH, ARCHS["31B"], 224))
K56, K28, K14, K7 = REPLKNET_31B

OFF_TEMPLATE = (
    square(2, 128, 96, 31),  # two images: torch needs seconds for one call of bwd_weight
    square(BATCH, 128, 53, 31),
    square(BATCH, 256, 29, 29),
    square(BATCH, 512, 13, 27),
    square(BATCH, 50, 56, 31),
    square(BATCH, 128, 56, 30),
    Layer(BATCH, 124, 56, 56, 51, 5),
    Layer(BATCH, 124, 56, 56, 5, 51),
)

SMALL = (
    square(BATCH, 96, 56, 7),  # ConvNeXt-T, first, third and last stage
    square(BATCH, 384, 14, 7),
    square(BATCH, 768, 7, 7),
    square(BATCH, 240, 28, 5),  # EfficientNet-B0
    square(BATCH, 1152, 7, 5),
    square(BATCH, 128, 56, 5),  # the parallel small kernel of RepLKNet-31B
    square(BATCH, 128, 56, 3),
    square(BATCH, 512, 14, 3),
)


@dataclass(frozen=True)
class Group:
    """Layers that one run measures. Ours runs on tensors of `layout`; torch on both layouts, always."""

    layers: tuple[Layer, ...]
    layout: str = "NCHW"
    dtype: str = "float32"

    @property
    def beside_float32(self) -> bool:
        """Whether ours in float32 is measured, too."""
        return self.dtype != "float32"


#: By the name on the command line, the most important first.
GROUPS: dict[str, Group] = {
    "main": Group(REPLKNET_31B),
    "channels_last": Group(REPLKNET_31B, layout="channels_last"),
    "batch_1": Group(tuple(replace(layer, n=1) for layer in REPLKNET_31B)),
    "off_template": Group(OFF_TEMPLATE),
    "bf16": Group(REPLKNET_31B, dtype="bfloat16"),
    "small": Group(SMALL),
    "small_channels_last": Group(SMALL, layout="channels_last"),
}

TITLES = {
    "main": "the depthwise layers of RepLKNet-31B",
    "channels_last": "the layers of RepLKNet-31B, ours on channels_last tensors",
    "batch_1": "the layers of RepLKNet-31B on one image",
    "off_template": "sizes that no kernel here is cut for",
    "bf16": "the layers of RepLKNet-31B in bfloat16",
    "small": "small kernels (ConvNeXt, EfficientNet, 3x3)",
    "small_channels_last": "small kernels, ours on channels_last tensors",
}


def label(layer: Layer) -> str:
    """The layer's name in results; the batch stands beside it."""
    return layer.name.split(" ", 1)[1]


@dataclass(frozen=True)
class Target:
    """A figure of one layer and pass that should be reached.

    `figure` is an attribute of `cpu_compare.Comparison`: ``vs_best`` and ``vs_default`` are nn.Conv2d's time over ours,
    in torch's best layout and as called (NCHW); ``direct_share`` is the direct kernel's share of the FMA peak;
    ``vs_float32`` is our float32 time over ours.
    """

    group: str
    layer: Layer
    pass_: str
    figure: str
    at_least: float
    isa: str = "avx512"


_VS_BEST = {"fwd": (12, 10, 5, 2.5), "bwd_input": (25, 30, 12, 4), "bwd_weight": (500, 350, 100, 80)}
_SHARE = {"fwd": (0.85, 0.83, 0.76, 0.55), "bwd_input": (0.85, 0.83, 0.76, 0.55), "bwd_weight": (0.85, 0.83, 0.74, 0.5)}


def _goals() -> Iterator[Target]:
    for pass_ in PASSES:
        for layer, ratio, share in zip(REPLKNET_31B, _VS_BEST[pass_], _SHARE[pass_], strict=True):
            yield Target("main", layer, pass_, "vs_best", ratio)
            yield Target("main", layer, pass_, "direct_share", share)
            yield Target("channels_last", layer, pass_, "vs_best", round(0.7 * ratio, 2))
            yield Target("batch_1", replace(layer, n=1), pass_, "vs_best", round(0.7 * ratio, 2))
            yield Target("bf16", layer, pass_, "vs_best", 1)
            yield Target("bf16", layer, pass_, "vs_float32", 1)
            yield Target("main", layer, pass_, "vs_best", 1, isa="avx2")
        for layer in OFF_TEMPLATE:
            yield Target("off_template", layer, pass_, "vs_best", 4)
        for group in ("small", "small_channels_last"):
            for layer in SMALL:
                yield Target(group, layer, pass_, "vs_best", 1)
    for layer in (K56, K28):
        yield Target("main", layer, "fwd", "vs_default", 400)


#: What this project set out to reach on two cores, torch on AVX-512 in either case. Results say which are met.
GOALS = tuple(_goals())

#: What README.md promises and `--check` holds: floors, well below what was measured.
PROMISES = (
    Target("main", K56, "fwd", "vs_default", 40),
    Target("main", K56, "bwd_weight", "vs_default", 40),
)
