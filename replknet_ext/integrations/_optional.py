"""Imports of packages that may be missing or broken."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(*modules: str, install: str) -> Any:
    """Imports `modules` and returns the first.

    Args:
        modules: dotted names.
        install: the requirement that brings them.

    Raises:
        ImportError: one is missing or raises on import; says what to install. A CUDA build of torchvision beside a
            CPU torch raises RuntimeError, and OpenMMLab's libraries AssertionError where their versions do not match.
    """
    first, *_ = [_import(name, install) for name in modules]
    return first


def _import(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        missing = error.name.split(".")[0] if error.name else package
        reason = f"this needs {package}" if missing == package else f"{package} needs {missing}"
        raise ImportError(f"{reason}: pip install '{install}' ({error})", name=error.name) from error
    except (RuntimeError, AssertionError) as error:
        hint = ""
        if "torchvision" in str(error):
            hint = "; torchvision is built for another torch than the installed one: install the one that matches"
        raise ImportError(f"{name} is installed but cannot be imported: {error}{hint}", name=name) from error
