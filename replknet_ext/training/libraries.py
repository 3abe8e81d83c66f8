"""Imports of the libraries that training stands on."""

from __future__ import annotations

from typing import Any

from ..data.torchvision_names import import_torchvision
from ..errors import ToolError

__all__ = ["library", "timm"]


def library(name: str) -> Any:
    """Imports a package of the extra `train`.

    Raises:
        ToolError: it is missing or broken; says what to install.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise ToolError(f"training needs {name}, which {state}: pip install 'replknet_ext[train]'") from None


def timm() -> Any:
    """timm, also where torchvision is built for another torch than the installed one.

    timm imports torchvision, whose compiled part then does not load: `RuntimeError: operator torchvision::nms does not
    exist`. All that training uses of it are transforms of Pillow images, plain Python that works once the two
    operators that it looks for at import have names.

    Raises:
        ToolError: timm or torchvision is missing or broken in another way.
    """
    import_torchvision()
    return library("timm")
