"""The commands `train` and `recipes`. typer reads their annotations: no `from __future__ import annotations` here."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..tools.show import console
from . import errors, options
from .errors import print_json, reporting, say


@reporting
def train(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A folder with train/CLASS/... and val/CLASS/...", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", metavar="NAME|FILE", help="A name that `recipes` lists, or YAML.", show_default=False
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Such as optimizer.lr=1e-3; may be repeated.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE|URL|NAME", help="Weights to start from: fine-tuning.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the run.", show_default="runs/NAME"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what the recipe comes to; train nothing.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a network by a recipe, then merge and evaluate it.

    Several processes: torchrun --nproc-per-node 8 -m replknet_ext train DATA ..., or accelerate
    launch. SIGTERM and SIGUSR1 save and end with status 75; --resume continues.
    """
    from ..errors import UsageError
    from ..training import libraries

    for name in ("pydantic", "yaml", "accelerate"):
        libraries.library(name)
    from ..training import plan as planning
    from ..training import reading, signals, trainer

    if dry_run:
        if recipe is None:
            raise UsageError("which recipe? Give --recipe NAME")
        chosen = reading.load_recipe(recipe, settings or [])
        plan = planning.make_plan(chosen, data)
        if os.environ.get("RANK", "0") != "0":
            return
        if as_json:
            print_json(plan.as_dict())
        else:
            planning.render(plan, console())
        return
    try:
        result = trainer.train(
            recipe,
            data,
            output=output,
            settings=settings or [],
            weights=weights,
            resume=resume,
            quiet=errors.quiet or as_json,
        )
    except signals.Stopped as stopped:
        say("stopped: ", "bold yellow", str(stopped))
        raise typer.Exit(signals.STOPPED) from None
    if as_json and os.environ.get("RANK", "0") == "0":
        print_json(result.as_dict())


@reporting
def recipes(as_json: options.AsJson = False) -> None:
    """The recipes that `train` knows by name."""
    from ..tools import show
    from ..training import libraries

    for name in ("pydantic", "yaml"):
        libraries.library(name)
    from ..training import plan as planning

    rows = planning.catalogue()
    if as_json:
        print_json(rows)
        return
    table = show.table("Recipes", "name", "what", "epochs", "batch", numbers="llrr")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(row["name"], row["about"], str(row["epochs"]), str(row["global_batch"]))
    console().print(table)
