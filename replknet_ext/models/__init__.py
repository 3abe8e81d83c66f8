"""RepLKNet and its parts; `create_model(name)` builds a registered one."""

from .blocks import ConvFFN, DropPath, ReparamLargeKernelConv, RepLKBlock, RepLKNetStage
from .registry import create_model, list_models, register_model
from .reparam import reparameterize
from .replknet import ARCHS, RepLKNet, RepLKNetConfig, replknet_13, replknet_31b, replknet_31l, replknet_xl

__all__ = [
    "ARCHS",
    "ConvFFN",
    "DropPath",
    "RepLKBlock",
    "RepLKNet",
    "RepLKNetConfig",
    "RepLKNetStage",
    "ReparamLargeKernelConv",
    "create_model",
    "list_models",
    "register_model",
    "reparameterize",
    "replknet_13",
    "replknet_31b",
    "replknet_31l",
    "replknet_xl",
]
