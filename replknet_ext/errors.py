"""What goes wrong for a reason that users can change: one line, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ToolError", "UsageError", "needs"]


class ToolError(RuntimeError):
    """A tool cannot do its work; the message says why. The command line ends with status 1."""


class UsageError(ToolError):
    """A tool was asked for something that makes no sense. The command line ends with status 2."""


@contextmanager
def needs(package: str, extra: str = "cli") -> Iterator[None]:
    """Around an import of an optional package: says what to install where it is missing or broken.

    Raises:
        ToolError: the import raised ImportError, or RuntimeError as packages for another torch do.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ToolError):
            raise
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise ToolError(f"{package} {state}: pip install 'replknet_ext[{extra}]'") from None
