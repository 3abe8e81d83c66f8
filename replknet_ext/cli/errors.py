"""Errors of commands as one line and an exit status: 2 for bad usage, 1 for failure."""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from ..errors import ToolError, UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

#: Set by ``--traceback``.
show_traceback = False


def reporting(command: Command) -> Command:
    """The command, with its errors and warnings on one line of stderr each."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            try:
                return command(*args, **kwargs)
            except (typer.Exit, typer.Abort, typer.BadParameter):
                raise
            except Exception as error:
                if show_traceback:
                    raise
                say("error: ", "bold red", _words(error))
                raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None

    return wrapped  # type: ignore[return-value]


def say(label: str, style: str, message: str) -> None:
    """A line on stderr; rich does not interpret what is in the message."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text.assemble((label, style), message))


def _words(error: Exception) -> str:
    if isinstance(error, (ToolError, ValueError)):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (--traceback, before the command, shows where)"


def _note(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    # Deprecations, of which some are UserWarnings, too, are for developers. Under torchrun one voice is enough.
    told = issubclass(category, UserWarning) and not issubclass(category, DeprecationWarning)
    if told and os.environ.get("RANK", "0") == "0":
        say("note: ", "bold yellow", str(message))
