"""Commands on kernels and this machine. typer reads annotations, so this file does without those of `__future__`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..tools.show import console
from . import errors, options
from .errors import print_json, reporting, say

InputSize = Annotated[
    int | None,
    typer.Option(
        "--input-size", metavar="N", min=1, show_default=False, help="Input resolution in pixels. Default: the model's."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", "-b", metavar="N", min=1, help="Default: 64, or 8 on the CPU.", show_default=False),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")]


@reporting
def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `models` lists.")] = "replknet_31b",
    input_size: InputSize = None,
    batch_size: BatchSize = None,
    dtype: Annotated[
        options.Dtype | None,
        typer.Option("--dtype", help="Dtype of the layers. Default: bf16, or fp32 on the CPU.", show_default=False),
    ] = None,
    precision: Annotated[
        options.Precision, typer.Option("--precision", help="float32 precision mode.")
    ] = options.Precision.ieee,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Use the channels_last memory format.")
    ] = False,
    deploy: Annotated[
        options.Level | None,
        typer.Option("--deploy", help="Tune the network re-parameterized for inference.", show_default=False),
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            "--passes", metavar="P,...", show_default=False, help="Of fwd, bwd_input, bwd_weight. Default: all."
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="Restrict tuning to one backend, such as cpu or triton.")
    ] = "auto",
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show predictions, measure nothing.")] = False,
    limits: Annotated[
        options.Limits | None,
        typer.Option(
            "--device-limits", help="Show predictions for this GPU model (no GPU required).", show_default=False
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--most", metavar="N", min=1, help="Maximum candidates per backend.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Ignore cached results and re-measure.")] = False,
    save_config: Annotated[
        Path | None,
        typer.Option(
            "--save-config",
            metavar="FILE",
            show_default=False,
            help="Also add the choices to this file, for other devices of this kind.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure which kernel is fastest for each depthwise layer, and remember it.

    Choices are kept for this device and these versions, and hold wherever such layers run with
    this batch size and dtype. Run nothing else on the device meanwhile. With --dry-run, or
    --device-limits, the cost models' predictions are shown and nothing is measured.
    """
    from ..tools import loading
    from ..tools import tune as tool

    backend, chosen = tool.checked_backend(backend), tool.passes_of(passes)
    where = "cuda" if limits else str(loading.device_of(device))
    on_cpu = where == "cpu"
    found = tool.layers(
        model, where.partition(":")[0], input_size=input_size, batch=batch_size or (8 if on_cpu else 64),
        dtype=loading.dtype_of(dtype.value if dtype else "fp32" if on_cpu else "bf16"),
        channels_last=channels_last, precision=precision.value, deploy=options.value(deploy),
    )  # fmt: skip
    if dry_run or limits:
        if save_config is not None:
            raise UsageError("--save-config writes what was measured, so not with --dry-run or --device-limits")
        name, rows = tool.predict(found, chosen, backend, limits.value if limits else None)
        if as_json:
            print_json({"predictions for": name, "rows": [row.as_dict() for row in rows]})
        else:
            tool.render_predictions(name, rows, most or tool.SHOWN, console())
        return
    report = tool.measure(
        found, where, chosen, backend=backend, most=most or tool.MOST, force=force, hidden=errors.quiet,
        config=save_config,
    )  # fmt: skip
    if as_json:
        print_json(report.as_dict())
    else:
        tool.render_report(report, console())
        if save_config is not None:
            say("wrote ", "dim", f"{save_config}, to be shipped as {tool.shipped_name(report)}")


@reporting
def speedup(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name that `models` lists, any of timm's, or module:function, called without arguments.",
        ),
    ],
    input_size: InputSize = None,
    batch_size: BatchSize = None,
    deploy: Annotated[
        options.Level | None,
        typer.Option("--deploy", help="Re-parameterize the model for inference first.", show_default=False),
    ] = None,
    amp: Annotated[
        options.Half | None, typer.Option("--amp", help="Run under autocast with this dtype.", show_default=False)
    ] = None,
    min_kernel: Annotated[
        int, typer.Option("--min-kernel", metavar="K", min=1, help="Leave smaller kernels to torch.")
    ] = 5,
    device: Device = "auto",
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0, help="Seconds per cell of the tables.")
    ] = 3.0,
    as_json: options.AsJson = False,
) -> None:
    """Measure whether these kernels make a model faster here.

    Times the model, and each of its depthwise layers alone, on nn.Conv2d and on these kernels, both in NCHW and in
    channels_last: a forward pass, and one with gradients. Weights are random; nothing is downloaded or kept. Run
    nothing else on the device meanwhile.
    """
    from .._progress import steps
    from ..tools import loading
    from ..tools import speedup as tool

    where = loading.device_of(device)
    network = tool.load(model, options.value(deploy))
    with ExitStack() as stack:
        report = tool.measure(
            network, model, device=where, batch_size=batch_size or (8 if where.type == "cpu" else 64),
            input_size=input_size, min_kernel=min_kernel, amp=loading.dtype_of(amp.value) if amp else None,
            seconds=seconds, begin=lambda total: stack.enter_context(steps(total, errors.quiet)),
        )  # fmt: skip
    if as_json:
        print_json(report.as_dict())
    else:
        tool.render(report, console())


@reporting
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for bug reports and programs.")] = False,
) -> None:
    """Show environment, kernels in use and why others are unavailable."""
    from ..tools import doctor as tool

    report = tool.collect()
    if as_json:
        print_json(report)
    else:
        tool.render(report, console())
