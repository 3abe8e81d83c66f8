"""Lets a CUDA build of torchvision be imported beside a CPU torch, for tests of timm, which imports it.

PyPI's torchvision looks for operators of its CUDA library and raises RuntimeError where that cannot be loaded. Defining
their names is enough for what timm uses. conftest.py imports this module; a torchvision that works is left alone. Only
for tests: a user's torchvision should match the installed torch.
"""

from __future__ import annotations

import sys

import torch

_lib: torch.library.Library | None = None  # definitions live as long as this


def _define_missing_operators() -> None:
    global _lib
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    except ImportError:  # not installed: timm's own error says so
        return
    else:
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _lib = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _lib.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_define_missing_operators()
