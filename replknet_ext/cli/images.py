"""Commands that read images. typer reads annotations, so this file does without those of `__future__`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ToolError
from ..tools import show
from . import errors, options
from .errors import Interrupted, print_json, reporting, say
from .options import floats


@reporting
def predict(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Images and folders of images; - is standard input.")
    ],
    model: options.ModelName = None,
    checkpoint: options.CheckpointSource = None,
    deploy: options.Deploy = None,
    device: options.Device = "auto",
    classes: options.Classes = None,
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    topk: Annotated[int, typer.Option("--topk", "-k", metavar="N", min=1, help="Number of classes to print.")] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Images per batch.")] = 8,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", show_default=False, help="Write annotated images to this directory."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Classify images.

    A bad file is reported and stops nothing. The exit status is 1 if no file could be read, or if the network's outputs
    for one are not finite. Ctrl-C shows the results so far; --json then says "interrupted".
    """
    from ..data.transforms import pictures
    from ..tools import loading
    from ..tools import predict as tool

    paths = pictures(images)
    if not paths:
        raise ToolError(f"no pictures in {', '.join(images)}")
    targets = tool.destinations(paths, output) if output is not None else {}
    loaded = loading.load(
        model, checkpoint, deploy=options.value(deploy), device=device, input_size=input_size,
        mean=floats("--mean", mean), std=floats("--std", std), classes=classes,
    )  # fmt: skip
    found = tool.predict_files(loaded.model, paths, loaded.preprocessing, loaded.names, topk, batch_size)
    results: list[tool.Prediction | tool.Unreadable] = []
    interrupted = False
    try:
        with show.progress(hidden=errors.quiet or not as_json) as bar:  # without --json the results show the progress
            for result in bar.track(found, total=len(paths), description="predicting"):
                results.append(result)
                if isinstance(result, tool.Unreadable):
                    say("error: ", "bold red", f"{result.path}: {result.error}")
                    continue
                if not as_json:
                    tool.render(result, show.console())
                if output is not None:
                    tool.annotate(result, targets[result.path])
    except KeyboardInterrupt:
        interrupted = True
    good = sum(isinstance(result, tool.Prediction) for result in results)
    if as_json:
        print_json(
            {"model": loaded.name, "images": [result.as_dict() for result in results], "interrupted": interrupted}
        )
    if output is not None and good:
        say("", "", f"{good} annotated {'image' if good == 1 else 'images'} in {output}")
    if interrupted:
        raise Interrupted(len(results), len(paths))
    if not good or any(isinstance(result, tool.Unreadable) and result.error == tool.NOT_FINITE for result in results):
        raise typer.Exit(1)


@reporting
def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder with one folder of images per class.")],
    model: options.ModelName = None,
    checkpoint: options.CheckpointSource = None,
    deploy: options.Deploy = None,
    device: options.Device = "auto",
    classes: options.Classes = None,
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", metavar="N", min=1, help="Batch size per process.")
    ] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", "-j", metavar="N", min=0, help="Data-loading workers per process.", show_default="4 or less"
        ),
    ] = None,
    amp: Annotated[
        options.Half | None, typer.Option("--amp", help="Run under autocast with this dtype.", show_default=False)
    ] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Use the channels_last memory format.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Top-1 and top-5 accuracy on a folder laid out as ImageNet.

    DATA has one folder per class, or a folder `val` with them; sorted by name they are classes 0, 1, ... With
    --classes they are matched by name, and ImageNet's own names (n01440764, ...) always are. The exit status is 1
    if outputs of the network are not finite. Ctrl-C shows the figures so far.

    Several processes, each with its part of the images: torchrun --nproc-per-node 8 -m replknet_ext evaluate DATA ...
    """
    from ..data.folder import find_images
    from ..tools import evaluate as tool
    from ..tools import loading

    with tool.team(device) as here:
        with tool.first_alone(here):  # one process downloads, the others find it done
            loaded = loading.load(
                model, checkpoint, deploy=options.value(deploy), device=device, input_size=input_size,
                mean=floats("--mean", mean), std=floats("--std", std), classes=classes,
            )  # fmt: skip
        items, count = find_images(data, len(loaded.names), loaded.known)
        with tool.progress(len(items), here, hidden=errors.quiet) as on_batch:
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
        print_json({"model": loaded.name, "data": str(data), **result.as_dict()})
    else:
        tool.render(loaded.name, result, show.console())
    if result.interrupted:
        raise Interrupted(result.images + len(result.unreadable), len(items))
    if result.not_finite:
        of = f"{result.not_finite} of {result.images} images"
        raise ToolError(f"the network's outputs for {of} are not finite: they count as wrong")


@reporting
def erf(
    model: options.ModelName = None,
    checkpoint: options.CheckpointSource = None,
    deploy: options.Deploy = None,
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
            help="An image or a folder of images; may be repeated. Default: sample photos from scikit-image.",
        ),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", metavar="N", min=1, help="Maximum number of images.")
    ] = 50,
    input_size: Annotated[
        int, typer.Option("--input-size", metavar="N", min=1, help="Resize images to N x N, without a crop.")
    ] = 1024,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File of the heat map.")] = Path(
        "erf.png"
    ),
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="FILE.npy", show_default=False, help="Also write the scores to this file."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure the effective receptive field as in the paper."""
    from ..tools import erf as tool
    from ..tools import loading

    tool.check(output, scores, data)
    loaded = loading.load(
        model, checkpoint, deploy=options.value(deploy), device=device, input_size=input_size,
        mean=floats("--mean", mean), std=floats("--std", std), classifier=False,
    )  # fmt: skip
    with tool.progress(hidden=errors.quiet) as on_picture:
        field = tool.of(loaded, data, num_images, on_picture)
    for reason in field.skipped:
        say("note: ", "bold yellow", f"left out: {reason}")
    tool.heat_map(field, output, loaded.name)
    if scores is not None:
        tool.save_scores(field, scores)
    if as_json:
        print_json({"model": loaded.name, **field.as_dict(), "heat_map": str(output)})
    else:
        tool.render(loaded.name, field, show.console())
        say("", "", f"heat map in {output}" + (f", scores in {scores}" if scores else ""))
