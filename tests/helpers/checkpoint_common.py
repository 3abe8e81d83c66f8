"""What the tests of checkpoints share: a small network, and the formats of other programs.

The formats are typed off the released files and programs; no code of the package makes them.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import models_common
import torch
from models_common import randomize

from replknet_ext.models import RepLKNet

#: Every kind of entry once, and quick to load.
SMALL = replace(models_common.SMALL, layers=(1, 1), large_kernel_sizes=(7, 5), channels=(4, 8), small_kernel=3)
LAST = len(SMALL.layers) - 1


def small(**options) -> RepLKNet:
    if options.get("out_indices") is None:
        options.setdefault("num_classes", 10)
    return randomize(RepLKNet(SMALL, **options)).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16)


def in_mmpretrain(state, last=LAST):
    """What mmpretrain's models call the same tensors."""
    out = {}
    for key, value in state.items():
        if key.startswith("head."):
            key = f"head.fc.{key[5:]}"
        elif key.startswith("norm."):
            key = f"backbone.stages.{last}.norm.{key[5:]}"
        else:
            key = f"backbone.{key}"
        out[key] = value
    return out


def merged(model):
    return copy.deepcopy(model).reparameterize()


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}
