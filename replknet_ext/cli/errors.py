"""What commands say: results on stdout, errors and notes as one line of stderr each, and the exit status.

0: done. 1: failed, because a file, folder, device or package is missing, cannot be read or written or has other
content, or because outputs are not finite. 2: wrong usage: unknown options, names or suffixes, or values that do not
fit together. 130: interrupted.
"""

import functools
import inspect
import json
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.text import Text

from ..errors import ToolError, UsageError
from ..tools.show import console, plain

Command = TypeVar("Command", bound=Callable[..., Any])

#: Set by ``--quiet`` and ``--traceback``.
quiet = show_traceback = False


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the results so far have been written to stdout."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"interrupted: {done} of {total} images done")


def reporting(command: Command) -> Command:
    """The command, with its errors and warnings on one line of stderr each."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            try:
                return command(*args, **kwargs)
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise  # typer ends quietly where nobody reads on
            except KeyboardInterrupt as error:
                say("", "", str(error) or "interrupted")
                raise typer.Exit(130) from None
            except Exception as error:
                if show_traceback:
                    raise
                say("error: ", "bold red", _words(error))
                raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None

    # A paragraph is one line, which help texts wrap to the screen.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    wrapped.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return wrapped  # type: ignore[return-value]


def say(label: str, style: str, message: str) -> None:
    """One line on stderr, with --quiet only if it is an error; the message is printed as it is, without markup."""
    if quiet and label != "error: ":
        return
    console(stderr=True, soft_wrap=True).print(Text.assemble((label, style), plain(" ".join(message.splitlines()))))


def print_json(content: Any) -> None:
    """JSON on stdout. JSON has no value that is not finite: one in `content` is a bug and raises ValueError."""
    print(json.dumps(content, indent=1, allow_nan=False))


def _words(error: Exception) -> str:
    if isinstance(error, (ToolError, ValueError)):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (--traceback, before the command, shows where)"


def _note(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    # Deprecations (some are UserWarnings) are for developers. Under torchrun the first process speaks for all.
    told = issubclass(category, UserWarning) and not issubclass(category, DeprecationWarning)
    if told and os.environ.get("RANK", "0") == "0":
        say("note: ", "bold yellow", str(message))
