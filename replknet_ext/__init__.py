"""replknet_ext: large depthwise 2-D convolutions for PyTorch, and the RepLKNet models built on them.

Needs no CUDA, triton, torchvision or timm, and works without the compiled extension (`HAS_EXT` is False), but slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import models
from ._ext import HAS_EXT
from ._version import __version__
from .explanation import Explanation, explain
from .functional import depthwise_conv2d
from .models import convert_checkpoint, get_model, list_models, load_checkpoint, reparameterize
from .modules import DepthwiseConv2dLarge
from .operator.autograd import DepthwiseConv2dLargeFunction
from .patch import ReplaceReport, replace_depthwise, restore
from .settings import (
    algorithm,
    autotune,
    float32_precision,
    get_algorithm,
    get_autotune,
    get_float32_precision,
    set_algorithm,
    set_autotune,
    set_float32_precision,
)
from .tuning import TuneReport, tune

if TYPE_CHECKING:
    from .tools.predict import inference_model

__all__ = [
    "HAS_EXT",
    "DepthwiseConv2dLarge",
    "DepthwiseConv2dLargeFunction",
    "Explanation",
    "ReplaceReport",
    "TuneReport",
    "__version__",
    "algorithm",
    "autotune",
    "convert_checkpoint",
    "depthwise_conv2d",
    "explain",
    "float32_precision",
    "get_algorithm",
    "get_autotune",
    "get_float32_precision",
    "get_model",
    "inference_model",
    "list_models",
    "load_checkpoint",
    "models",
    "reparameterize",
    "replace_depthwise",
    "restore",
    "set_algorithm",
    "set_autotune",
    "set_float32_precision",
    "tune",
]


def __getattr__(name: str) -> object:
    if name == "inference_model":  # a tool, which stands above the library: imported when asked for
        from .tools.predict import inference_model

        return inference_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
