"""Counts to the integer, by both definitions."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from models_common import SMALL
from tools_common import checkpoint

from replknet_ext.errors import UsageError
from replknet_ext.models import MODELS, RepLKNet
from replknet_ext.tools import summary

#: Name, side, parameters train-time and merged, MACs merged, and what mmpretrain's page says.
PUBLISHED = [
    ("replknet-31B_3rdparty_in1k", 224, 79_864_168, 79_527_272, 15_353_525_248, 15_636_547_584),
    ("replknet-31B_3rdparty_in1k-384px", 384, 79_864_168, 79_527_272, 45_118_578_688, 45_952_303_104),
    ("replknet-31L_in21k-pre_3rdparty_in1k-384px", 384, 172_671_016, 172_165_672, 95_989_420_032, 97_240_006_656),
    ("replknet-XL_meg73m-pre_3rdparty_in1k-320px", 320, 335_435_752, 335_399_656, 128_730_316_800, 129_570_201_600),
]


@pytest.mark.parametrize(
    ("name", "side", "train", "merged", "macs", "flops"),
    [PUBLISHED[0], *(pytest.param(*row, marks=pytest.mark.slow) for row in PUBLISHED[1:])],
)
def test_published_numbers(name: str, side: int, train: int, merged: int, macs: int, flops: int) -> None:
    found = summary.of(name)
    assert found.input_size == (3, side, side)
    assert found.forms["train"].params == train == MODELS[name].params
    assert found.forms["train"].flops == flops == MODELS[name].flops
    assert found.forms["merged"].params == merged
    assert found.forms["merged"].macs == macs
    if name == PUBLISHED[0][0]:
        assert found.forms["train"].macs == 15_431_298_048
        assert round(found.forms["merged"].large_macs / macs, 4) == 0.1591
    # Nothing but BatchNorms is folded away, and those are in one of the definitions only.
    assert found.forms["full"].macs == macs
    assert found.forms["full"].flops < found.forms["merged"].flops < flops
    assert sum(part.macs for part in found.parts) == macs
    assert sum(part.params for part in found.parts) == merged


def test_the_papers_kernel_size_study() -> None:
    merged = summary.of("replknet_13").forms["merged"]
    assert round(merged.params / 1e6, 2) == 73.82
    assert round(merged.macs / 1e9, 2) == 13.44


def test_a_small_network_by_hand() -> None:
    """Kernels 13 and 9, 1 and 2 blocks, 8 and 16 channels, small kernel 5, depthwise x 1.5, strides 2 and 1."""
    found = summary.summarise("small", SMALL, (3, 32, 32), num_classes=10).forms["train"]
    first, second = 16 * 16, 8 * 8
    stem = first * (8 * 3 * 9 + 8 * 9 + 8 * 8 + 8 * 9)
    large = first * 12 * (169 + 25) + second * 2 * 24 * (81 + 25)
    blocks = first * (8 * 12 * 2 + 8 * 32 * 2) + second * 2 * (16 * 24 * 2 + 16 * 64 * 2)
    transition = first * 8 * 16 + second * 16 * 9
    body = stem + large + blocks + transition
    assert found.macs == body + 16 * 10
    assert found.large_macs == large
    norms = first * (4 * 8 + (8 + 12 + 12 + 12 + 8) + (8 + 32 + 8)) + first * 16 + second * 16
    norms += second * (2 * (16 + 24 * 3 + 16) + 2 * (16 + 64 + 16)) + second * 16
    assert found.flops == body + 5 * norms + second * 16
    parts = summary.summarise("small", SMALL, (3, 32, 32), num_classes=10).parts
    assert [(part.name, part.channels, part.height) for part in parts] == [
        ("stem", 8, 16), ("stage 1", 8, 16), ("stage 2", 16, 8), ("head", 16, 8)
    ]  # fmt: skip


def test_counting_leaves_the_model_alone() -> None:
    model = RepLKNet(SMALL, num_classes=10).train()
    before = copy.deepcopy(model.state_dict())
    summary.count(model, (3, 32, 32))
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_of_a_checkpoint(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "small.pth", num_classes=7, in_chans=1)
    found = summary.of(str(path), input_size=32)
    assert found.input_size == (1, 32, 32)
    assert found.forms == summary.summarise("", SMALL, (1, 32, 32), num_classes=7).forms


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"'replknet_31c' is neither a known .* file; did you mean replknet_31"):
        summary.of("replknet_31c")
    with pytest.raises(UsageError, match=r"names are .*31B"):
        summary.of("vgg16")
