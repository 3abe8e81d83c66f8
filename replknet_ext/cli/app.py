"""The commands. typer reads their annotations, so this package does without `from __future__ import annotations`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import errors, options, training
from .errors import reporting, say
from .options import floats

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="RepLKNet, and large depthwise convolutions for PyTorch.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
) -> None:
    """RepLKNet, and large depthwise convolutions for PyTorch."""
    errors.show_traceback = traceback


@app.command()
@reporting
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Pictures, and folders of them.")],
    model: options.ModelName = None,
    checkpoint: options.CheckpointSource = None,
    deploy: options.Deploy = False,
    full: options.Full = False,
    device: options.Device = "auto",
    classes: options.Classes = None,
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    topk: Annotated[int, typer.Option("--topk", "-k", metavar="N", min=1, help="How many classes to tell.")] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Pictures at a time.")] = 8,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", show_default=False, help="Put pictures with labels there."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """What is on pictures.

    A bad file is reported and stops nothing; the exit status is 1 if no file could be read.
    """
    from ..data.transforms import pictures
    from ..tools import loading
    from ..tools import predict as tool

    paths = pictures(images)
    if not paths:
        raise tool.ToolError(f"no pictures in {', '.join(images)}")
    loaded = loading.load(
        model, checkpoint, deploy=_level(deploy, full), device=device, input_size=input_size,
        mean=floats("--mean", mean), std=floats("--std", std), classes=classes,
    )  # fmt: skip
    targets = tool.picture_names(paths, output) if output is not None else {}
    results = []
    for result in tool.predict_files(loaded.model, paths, loaded.preprocessing, loaded.names, topk, batch_size):
        results.append(result)
        if isinstance(result, tool.Unreadable):
            say("error: ", "bold red", f"{result.path}: {result.error}")
            continue
        if not as_json:
            tool.render(result, Console())
        if output is not None:
            tool.annotate(result, targets[result.path])
    good = sum(isinstance(result, tool.Prediction) for result in results)
    if as_json:
        print(json.dumps({"model": loaded.name, "images": [result.as_dict() for result in results]}, indent=1))
    if output is not None and good:
        say("", "", f"{good} {'picture' if good == 1 else 'pictures'} with labels in {output}")
    if not good:
        raise typer.Exit(1)


@app.command()
@reporting
def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder with one folder of pictures for each class.")],
    model: options.ModelName = None,
    checkpoint: options.CheckpointSource = None,
    deploy: options.Deploy = False,
    full: options.Full = False,
    device: options.Device = "auto",
    classes: options.Classes = None,
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Of each process.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", metavar="N", min=0, help="Readers of each process.", show_default="4 or less"),
    ] = None,
    amp: Annotated[options.Half | None, typer.Option("--amp", help="Autocast.", show_default=False)] = None,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory layout NHWC.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Top-1 and top-5 accuracy on a folder laid out as ImageNet.

    DATA has one folder for each class, or a folder `val` with them; sorted, they are the classes in order. With
    --classes they are matched by name, and ImageNet's own (n01440764, ...) always are. Several processes, each with
    its part of the pictures: torchrun --nproc-per-node 8 -m replknet_ext evaluate DATA ...
    """
    from ..data.folder import find_images
    from ..tools import evaluate as tool
    from ..tools import loading

    with tool.team(device) as here:
        with tool.first_alone(here):  # one process downloads, the others find it done
            loaded = loading.load(
                model, checkpoint, deploy=_level(deploy, full), device=device, input_size=input_size,
                mean=floats("--mean", mean), std=floats("--std", std), classes=classes,
            )  # fmt: skip
        items, count = find_images(data, len(loaded.names), loaded.known)
        with tool.progress(len(items), here, hidden=as_json) as on_batch:
            result = tool.evaluate(
                loaded.model, items, loaded.preprocessing, classes=count, batch_size=batch_size, workers=workers,
                amp=loading.dtype_of(amp.value) if amp else None, channels_last=channels_last, here=here,
                on_batch=on_batch,
            )  # fmt: skip
    if here.rank:
        return
    for path in result.unreadable[: tool.UNREADABLE_SHOWN]:
        say("note: ", "bold yellow", f"cannot be read, does not count: {path}")
    if as_json:
        print(json.dumps({"model": loaded.name, "data": str(data), **result.as_dict()}, indent=1))
    else:
        tool.render(loaded.name, result, Console())


@app.command()
@reporting
def reparam(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Train-time checkpoint, a file or an address.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="What to write: .pth or .safetensors.")],
    level: Annotated[
        options.Level,
        typer.Option("--level", help="merge: the large kernels. full: fold every other BatchNorm that can be, too."),
    ] = options.Level.merge,
    to: options.To = options.Style.official,
    key: options.Key = "auto",
) -> None:
    """Merge a checkpoint for inference: same outputs, fewer layers."""
    _convert(source, target, to, "merged" if level is options.Level.merge else "full", key)


@app.command()
@reporting
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Any checkpoint, a file or an address.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="What to write: .pth or .safetensors.")],
    to: options.To = options.Style.official,
    form: Annotated[options.Form, typer.Option("--form", help="Form of the model.")] = options.Form.same,
    dtype: Annotated[
        options.Dtype | None, typer.Option("--dtype", help="Dtype of the weights.", show_default=False)
    ] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="NAME", help="What it must be of, such as 31B.", show_default=False)
    ] = None,
    key: options.Key = "auto",
) -> None:
    """Bring a checkpoint into another format."""
    _convert(source, target, to, form.value, key, dtype, arch)


def _convert(
    source: str, target: Path, to: options.Style, form: str, key: str, dtype: options.Dtype | None = None,
    arch: str | None = None,
) -> None:  # fmt: skip
    from ..errors import UsageError
    from ..models import convert_checkpoint
    from ..tools import loading

    if os.path.exists(source) and target.exists() and os.path.samefile(source, target):
        raise UsageError(f"SRC and DST are the same file, {source}: it would be lost")
    number = loading.dtype_of(dtype.value) if dtype else None
    result = convert_checkpoint(source, target, to=to.value, form=form, arch=arch, dtype=number, key=key)
    count = sum(tensor.numel() for tensor in result.state.values())
    say("", "", f"{target}: {result.form} form, {to.value} keys, {len(result.state)} tensors, {count:,} values")


@app.command()
@reporting
def export(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="What to write: .onnx, or .pt2 of torch.")],
    model: options.ModelName = None,
    checkpoint: options.CheckpointSource = None,
    deploy: options.Deploy = False,
    full: options.Full = False,
    kind: Annotated[
        options.Kind | None,
        typer.Option("--kind", help="program: of torch.export; aoti: compiled. By the suffix.", show_default=False),
    ] = None,
    input_size: options.InputSize = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "-b", metavar="N", min=1, help="Any, if not given.", show_default=False),
    ] = None,
    any_size: Annotated[bool, typer.Option("--any-size", help="Leave height and width open.")] = False,
    opset: Annotated[int, typer.Option("--opset", metavar="N", min=1, help="Of ONNX.")] = 18,
    as_json: options.AsJson = False,
) -> None:
    """Write the model for other runtimes: ONNX, torch.export, AOTInductor."""
    from ..tools import export as tool
    from ..tools import loading

    loaded = loading.load(model, checkpoint, deploy=_level(deploy, full), device="cpu", input_size=input_size)
    result = tool.export(
        loaded.model, output, kind=kind.value if kind else None, input_size=input_size, batch_size=batch_size,
        any_size=any_size, opset=opset,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"model": loaded.name, **result.as_dict()}, indent=1))
    else:
        tool.render(loaded.name, result, Console())


@app.command()
@reporting
def summary(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `models` lists, or a checkpoint file.")],
    input_size: Annotated[
        int | None,
        typer.Option("--input-size", metavar="N", min=1, help="Side of the input in pixels.", show_default=False),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", metavar="N", min=1, help="Outputs of the head.", show_default=False)
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Parameters and operations, by the paper's and by mmpretrain's definition."""
    from ..tools import summary as tool

    result = tool.of(model, input_size, num_classes)
    if as_json:
        print(json.dumps(result.as_dict(), indent=1))
    else:
        tool.render(result, Console())


@app.command()
@reporting
def erf(
    model: options.ModelName = None,
    checkpoint: options.CheckpointSource = None,
    deploy: options.Deploy = False,
    full: options.Full = False,
    device: options.Device = "auto",
    mean: options.Mean = None,
    std: options.Std = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            show_default=False,
            help="A picture or a folder of them; may be repeated. Without it photos of scikit-image.",
        ),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", metavar="N", min=1, help="At most so many pictures.")
    ] = 50,
    input_size: Annotated[
        int, typer.Option("--input-size", metavar="N", min=1, help="Side that they are warped to.")
    ] = 1024,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The heat map.")] = Path("erf.png"),
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="FILE.npy", show_default=False, help="Write the map itself, too."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """The effective receptive field, measured as in the paper."""
    from ..tools import erf as tool
    from ..tools import loading

    loaded = loading.load(
        model, checkpoint, deploy=_level(deploy, full), device=device, input_size=input_size,
        mean=floats("--mean", mean), std=floats("--std", std),
    )  # fmt: skip
    with tool.progress(hidden=as_json) as on_picture:
        field = tool.of(loaded, data, num_images, on_picture)
    for reason in field.skipped:
        say("note: ", "bold yellow", f"left out: {reason}")
    tool.heat_map(field, output, loaded.name)
    if scores is not None:
        tool.save_scores(field, scores)
    if as_json:
        print(json.dumps({"model": loaded.name, **field.as_dict(), "heat_map": str(output)}, indent=1))
    else:
        tool.render(loaded.name, field, Console())
        say("", "", f"heat map in {output}" + (f", scores in {scores}" if scores else ""))


@app.command()
@reporting
def models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Shell-style pattern of names.")] = "*",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only those with published weights.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """The models that have names, and their published weights."""
    from ..tools import catalogue as tool

    rows = tool.collect(pattern, pretrained)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        tool.render(rows, Console())


@app.command()
@reporting
def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `models` lists.")] = "replknet_31b",
    input_size: Annotated[
        int | None,
        typer.Option(
            "--input-size",
            "--size",
            "-s",
            metavar="N",
            min=1,
            show_default=False,
            help="Side of the pictures, when not the model's own.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch", "-b", metavar="N", min=1, help="Pictures at a time: 64, or 8 on the CPU.", show_default=False
        ),
    ] = None,
    dtype: Annotated[
        options.Dtype | None,
        typer.Option("--dtype", help="Of the layers' tensors: bf16, or fp32 on the CPU.", show_default=False),
    ] = None,
    precision: Annotated[options.Precision, typer.Option("--precision", help="Of fp32.")] = options.Precision.ieee,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory format.")] = False,
    deploy: Annotated[bool, typer.Option("--deploy", help="Of the merged network.")] = False,
    passes: Annotated[
        str | None,
        typer.Option("--passes", metavar="P,...", show_default=False, help="Of fwd, bwd_input, bwd_weight; else all."),
    ] = None,
    backend: Annotated[str, typer.Option("--backend", metavar="NAME", help="cpu, cuda or triton alone.")] = "auto",
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Predict, measure nothing.")] = False,
    limits: Annotated[
        options.Limits | None,
        typer.Option("--device-limits", help="Predict for this GPU; needs none.", show_default=False),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--most", metavar="N", min=1, help="Candidates of a backend.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again what was measured.")] = False,
    save_config: Annotated[
        Path | None,
        typer.Option(
            "--save-config",
            metavar="FILE",
            show_default=False,
            help="Add the choices to a file, for other devices of this kind.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure which kernel is fastest for each depthwise layer, and remember it.

    Choices are kept for this device and these versions, and hold wherever such layers run with
    this batch size and dtype. Leave the device alone meanwhile. With --dry-run, or
    --device-limits, the cost models' predictions are shown and nothing is measured.
    """
    from ..errors import UsageError
    from ..tools import loading
    from ..tools import tune as tool

    backend, chosen = tool.checked_backend(backend), tool.passes_of(passes)
    where = "cuda" if limits else str(loading.device_of(device))
    on_cpu = where == "cpu"
    found = tool.layers(
        model, where.partition(":")[0], input_size=input_size, batch=batch_size or (8 if on_cpu else 64),
        dtype=loading.dtype_of(dtype.value if dtype else "fp32" if on_cpu else "bf16"),
        channels_last=channels_last, precision=precision.value, deploy=deploy,
    )  # fmt: skip
    if dry_run or limits:
        if save_config is not None:
            raise UsageError("--save-config writes what was measured, so not with --dry-run or --device-limits")
        name, rows = tool.predict(found, chosen, backend, limits.value if limits else None)
        if as_json:
            print(json.dumps({"predictions for": name, "rows": [row.as_dict() for row in rows]}, indent=1))
        else:
            tool.render_predictions(name, rows, most or tool.SHOWN, Console())
        return
    report = tool.measure(
        found, where, chosen, backend=backend, most=most or tool.MOST, force=force, hidden=as_json, config=save_config,
    )  # fmt: skip
    if as_json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        tool.render_report(report, Console())
        if save_config is not None:
            say("wrote ", "dim", f"{save_config}, to be shipped as {tool.shipped_name(report)}")


@app.command()
@reporting
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for bug reports and programs.")] = False,
) -> None:
    """What is installed, which backend runs what, and why the others do not."""
    from ..tools import doctor as tool

    report = tool.collect()
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        tool.render(report, Console())


app.command()(training.train)
app.command()(training.recipes)


def _level(deploy: bool, full: bool) -> Any:
    return "full" if full else "merge" if deploy else None
