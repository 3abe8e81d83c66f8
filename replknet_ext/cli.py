"""The command line, ``replknet-ext`` or ``python -m replknet_ext``: argument parsing only, the work is in `tools`."""

import json
import sys
from typing import Annotated


def main() -> None:
    """Entry point; says what to install where typer or rich are missing."""
    try:
        import rich  # noqa: F401
        import typer  # annotations below name it, so this module does without `from __future__ import annotations`
    except ImportError as error:
        print(f"the command line needs {error.name}: pip install 'replknet_ext[cli]'", file=sys.stderr)
        sys.exit(1)

    app = typer.Typer(no_args_is_help=True, add_completion=False, help="Large depthwise convolutions for PyTorch.")

    @app.callback()
    def version() -> None:
        """Large depthwise convolutions for PyTorch."""

    @app.command()
    def doctor(
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for bug reports and programs.")] = False,
    ) -> None:
        """What is installed, which backend runs what, and why the others do not."""
        from rich.console import Console

        from .tools import doctor as tool

        report = tool.collect()
        if as_json:
            print(json.dumps(report, indent=1))
        else:
            tool.render(report, Console())

    app(prog_name="replknet-ext")


if __name__ == "__main__":
    main()
