"""replknet_ext: large depthwise 2-D convolutions for PyTorch, and the RepLKNet models built on them.

Imports without CUDA, triton, torchvision or timm, and without the compiled extension (`HAS_EXT`), then more slowly.
"""

from __future__ import annotations

from ._ext import HAS_EXT
from ._version import __version__
from .autograd import DepthwiseConv2dLargeFunction
from .functional import Explanation, depthwise_conv2d, explain
from .settings import (
    algorithm,
    float32_precision,
    get_algorithm,
    get_float32_precision,
    set_algorithm,
    set_float32_precision,
)

from . import models  # isort: skip  # the upper rows of the package import what stands above
from .models import reparameterize
from .modules import DepthwiseConv2dLarge
from .patch import ReplaceReport, replace_depthwise, restore

__all__ = [
    "HAS_EXT",
    "DepthwiseConv2dLarge",
    "DepthwiseConv2dLargeFunction",
    "Explanation",
    "ReplaceReport",
    "__version__",
    "algorithm",
    "depthwise_conv2d",
    "explain",
    "float32_precision",
    "get_algorithm",
    "get_float32_precision",
    "models",
    "reparameterize",
    "replace_depthwise",
    "restore",
    "set_algorithm",
    "set_float32_precision",
]
