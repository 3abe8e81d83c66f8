"""RepLKNet and its parts; `create_model(name)` builds a registered one."""

from .blocks import ConvFFN, DropPath, ReparamLargeKernelConv, RepLKBlock, RepLKNetStage
from .checkpoint import (
    Checkpoint,
    CheckpointError,
    LoadReport,
    convert_checkpoint,
    load_checkpoint,
    model_from_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from .download import download
from .registry import create_model, register_model
from .reparam import reparameterize
from .replknet import ARCHS, RepLKNet, RepLKNetConfig, replknet_13, replknet_31b, replknet_31l, replknet_xl
from .zoo import MODELS, PretrainedConfig, get_model, list_models

__all__ = [
    "ARCHS",
    "MODELS",
    "Checkpoint",
    "CheckpointError",
    "ConvFFN",
    "DropPath",
    "LoadReport",
    "PretrainedConfig",
    "RepLKBlock",
    "RepLKNet",
    "RepLKNetConfig",
    "RepLKNetStage",
    "ReparamLargeKernelConv",
    "convert_checkpoint",
    "create_model",
    "download",
    "get_model",
    "list_models",
    "load_checkpoint",
    "model_from_checkpoint",
    "read_checkpoint",
    "register_model",
    "reparameterize",
    "replknet_13",
    "replknet_31b",
    "replknet_31l",
    "replknet_xl",
    "save_checkpoint",
]
