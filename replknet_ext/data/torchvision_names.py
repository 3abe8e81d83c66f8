"""torchvision, also where it is built for another torch than the installed one."""

from __future__ import annotations

import torch

from ..errors import ToolError

_defined: list[torch.library.Library] = []  # definitions of operators live as long as this


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
