"""The command line, ``replknet-ext`` or ``python -m replknet_ext``: argument parsing only, the work is in `tools`."""

from __future__ import annotations

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point; says what to install where typer or rich are missing."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        print(f"the command line needs {error.name}: pip install 'replknet_ext[cli]'", file=sys.stderr)
        sys.exit(1)

    from .app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show stops nothing

    app(prog_name="replknet-ext")
