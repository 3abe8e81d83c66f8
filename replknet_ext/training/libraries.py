"""Imports of the libraries that training stands on."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ToolError

__all__ = ["library", "timm"]

_defined: list[Any] = []  # definitions of operators live as long as this


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


def import_torchvision() -> None:
    """Imports torchvision if it is installed, with the names of the operators that a build for another torch lacks."""
    import sys

    try:
        import torchvision  # noqa: F401
    except ImportError:  # timm's own error says so
        return
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise ToolError(f"torchvision cannot be imported ({error})") from None
        for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")]:
            del sys.modules[name]
        made = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            made.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _defined.append(made)
