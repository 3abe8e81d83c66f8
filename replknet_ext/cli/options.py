"""Options that several commands share."""

from enum import Enum
from typing import Annotated, Any

import typer


class Level(str, Enum):
    """How far to merge a model for inference."""

    merge = "merge"
    full = "full"


class Style(str, Enum):
    """Key styles of checkpoints."""

    official = "official"
    mmpretrain = "mmpretrain"
    backbone = "backbone"


class Half(str, Enum):
    """Dtypes of autocast."""

    bf16 = "bf16"
    fp16 = "fp16"


class Kind(str, Enum):
    """What `export` writes."""

    onnx = "onnx"
    program = "program"
    aoti = "aoti"


class Dtype(str, Enum):
    """Dtypes of weights."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Precision(str, Enum):
    """Precisions of float32."""

    ieee = "ieee"
    tf32 = "tf32"
    bf16x3 = "bf16x3"


class Limits(str, Enum):
    """GPUs whose limits are known (`backends.cuda.DEVICES`)."""

    h200 = "h200"
    h100 = "h100"
    a100 = "a100"
    l40s = "l40s"


_MODEL, _IMAGES = "Model", "Images"

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="NAME", help="A name that `models` lists.", rich_help_panel=_MODEL, show_default=False
    ),
]
CheckpointSource = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", "-c", metavar="FILE|URL", show_default=False, rich_help_panel=_MODEL,
        help="Weights, in any format. Default: the published ones of --model. Without --model the file decides.",
    ),
]  # fmt: skip
Deploy = Annotated[
    Level | None,
    typer.Option(
        "--deploy", show_default=False, rich_help_panel=_MODEL,
        help="Re-parameterize for inference. merge: the large kernels. full: fold every other BatchNorm, too.",
    ),
]  # fmt: skip
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=_MODEL, metavar="NAME")
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes", metavar="FILE", show_default=False, rich_help_panel=_MODEL,
        help="Class names, one per line or JSON. Default: ImageNet's for 1000 classes.",
    ),
]  # fmt: skip
InputSize = Annotated[
    int | None,
    typer.Option(
        "--input-size", metavar="N", min=1, show_default=False, rich_help_panel=_IMAGES,
        help="Input resolution in pixels. Default: the model's.",
    ),
]  # fmt: skip
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean", metavar="R,G,B", show_default=False, rich_help_panel=_IMAGES,
        help="Per-channel mean for normalisation, of images scaled to 0..1. Default: the model's.",
    ),
]  # fmt: skip
Std = Annotated[
    str | None,
    typer.Option(
        "--std", metavar="R,G,B", show_default=False, rich_help_panel=_IMAGES,
        help="Per-channel standard deviation for normalisation.",
    ),
]  # fmt: skip
Key = Annotated[
    str,
    typer.Option(
        "--key", metavar="NAME", help="Key of the state dict inside a training checkpoint, such as model_ema."
    ),
]
To = Annotated[
    Style,
    typer.Option("--to", help="Key style of the output. backbone: official keys without the classifier."),
]
Strict = Annotated[
    bool,
    typer.Option("--strict/--no-strict", help="Fail on entries that are not part of the network, or leave them out."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def floats(option: str, text: str | None) -> list[float] | None:
    """Comma-separated numbers, None if none were given."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.5,0.5", param_hint=option) from None


def value(level: Level | None) -> Any:
    """The value of `--deploy` as functions of `tools` take it."""
    return level.value if level is not None else None
