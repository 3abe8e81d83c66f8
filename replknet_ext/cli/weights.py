"""Commands on networks and their weights. typer reads annotations, so this file does without those of `__future__`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..tools.show import console
from . import options
from .errors import print_json, reporting, say


@reporting
def reparam(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Train-time checkpoint: a file or a URL.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="What to write: .pth or .safetensors.")],
    deploy: Annotated[
        options.Level,
        typer.Option("--deploy", help="merge: the large kernels. full: fold every other BatchNorm that can be, too."),
    ] = options.Level.merge,
    to: options.To = options.Style.official,
    key: options.Key = "auto",
    strict: options.Strict = True,
) -> None:
    """Merge a checkpoint for inference: same outputs, fewer layers."""
    _convert(source, target, to, deploy, key, strict)


@reporting
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Any checkpoint: a file or a URL.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="What to write: .pth or .safetensors.")],
    to: options.To = options.Style.official,
    deploy: Annotated[
        options.Level | None,
        typer.Option("--deploy", help="Re-parameterize the output. Default: unchanged.", show_default=False),
    ] = None,
    dtype: Annotated[
        options.Dtype | None, typer.Option("--dtype", help="Dtype of the weights.", show_default=False)
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch", metavar="NAME", help="Fail unless it is of this architecture, such as 31B.", show_default=False
        ),
    ] = None,
    key: options.Key = "auto",
    strict: options.Strict = True,
) -> None:
    """Convert a checkpoint to another format."""
    _convert(source, target, to, deploy, key, strict, dtype, arch)


def _convert(
    source: str, target: Path, to: options.Style, deploy: options.Level | None, key: str, strict: bool,
    dtype: options.Dtype | None = None, arch: str | None = None,
) -> None:  # fmt: skip
    from ..models import convert_checkpoint
    from ..models.keys import shorten
    from ..tools import loading
    from ..tools.files import check_destination, check_suffix

    if os.path.exists(source) and target.exists() and os.path.samefile(source, target):
        raise UsageError(f"SRC and DST are the same file, {source}: it would be lost")
    check_suffix(target, loading.CHECKPOINT_SUFFIXES)
    check_destination(target)
    form = {None: "same", options.Level.merge: "merged", options.Level.full: "full"}[deploy]
    number = loading.dtype_of(dtype.value) if dtype else None
    result = convert_checkpoint(source, target, to=to.value, form=form, arch=arch, dtype=number, key=key, strict=strict)
    if not strict and (left_out := result.meta["ignored"]):
        say("note: ", "bold yellow", f"left out: {shorten(left_out)}")
    count = sum(tensor.numel() for tensor in result.state.values())
    say("", "", f"{target}: {result.form} form, {to.value} keys, {len(result.state)} tensors, {count:,} values")


@reporting
def export(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="What to write: .onnx, or .pt2 of torch.")],
    model: options.ModelName = None,
    checkpoint: options.CheckpointSource = None,
    deploy: options.Deploy = None,
    kind: Annotated[
        options.Kind | None,
        typer.Option(
            "--kind", help="program: torch.export; aoti: AOTInductor. Default: by the suffix.", show_default=False
        ),
    ] = None,
    input_size: options.InputSize = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", "-b", metavar="N", min=1, help="Fixed batch size. Default: any.", show_default=False
        ),
    ] = None,
    any_size: Annotated[bool, typer.Option("--any-size", help="Dynamic height and width.")] = False,
    opset: Annotated[int, typer.Option("--opset", metavar="N", min=1, help="ONNX opset version.")] = 18,
    as_json: options.AsJson = False,
) -> None:
    """Write the model for other runtimes: ONNX, torch.export, AOTInductor."""
    from ..tools import export as tool
    from ..tools import loading

    tool.check(output, kind.value if kind else None)
    loaded = loading.load(model, checkpoint, deploy=options.value(deploy), device="cpu", input_size=input_size)
    result = tool.export(
        loaded.model, output, kind=kind.value if kind else None, input_size=input_size, batch_size=batch_size,
        any_size=any_size, opset=opset,
    )  # fmt: skip
    if as_json:
        print_json({"model": loaded.name, **result.as_dict()})
    else:
        tool.render(loaded.name, result, console())


@reporting
def summary(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `models` lists, or a checkpoint file.")],
    input_size: Annotated[
        int | None,
        typer.Option("--input-size", metavar="N", min=1, help="Input resolution in pixels.", show_default=False),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", metavar="N", min=1, help="Number of classes.", show_default=False)
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Count parameters and operations, by the paper's and by mmpretrain's definition."""
    from ..tools import summary as tool

    result = tool.of(model, input_size, num_classes)
    if as_json:
        print_json(result.as_dict())
    else:
        tool.render(result, console())


@reporting
def models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Shell-style pattern of names.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only those with published weights.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """List named models and their published weights."""
    from ..tools import catalogue as tool

    rows = tool.collect(pattern, pretrained)
    if as_json:
        print_json(rows)
    else:
        tool.render(rows, console())
