"""All commands, in the order of the help text."""

from typing import Annotated

import typer

from . import errors, images, kernels, training, weights

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="RepLKNet, and large depthwise convolutions for PyTorch.",
    epilog="Exit status: 0 done; 1 failed; 2 wrong usage; 130 interrupted.",
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
) -> None:
    """RepLKNet, and large depthwise convolutions for PyTorch."""
    errors.quiet, errors.show_traceback = quiet, traceback


for command in (
    images.predict, images.evaluate, weights.reparam, weights.convert, weights.export, weights.summary, training.train,
    training.recipes, images.erf, weights.models, kernels.tune, kernels.speedup, kernels.doctor,
):  # fmt: skip
    app.command()(command)
