"""UniRepLKNet, SLaK, OverLoCK and ConvNeXt on this package's kernels: by import name and by `replace_depthwise`."""

from __future__ import annotations

import copy
import sys

import pytest
import timm
import torch
from large_kernel_users import DilatedReparamBlock, SLaKKernel, overlock_xt, plain_conv
from models_common import randomize
from torch import nn

import replknet_ext.integrations.depthwise_conv2d_implicit_gemm  # noqa: F401  (users write this line)
from replknet_ext import DepthwiseConv2dLarge, replace_depthwise, restore

#: Some of UniRepLKNet's branches beside a 13x13: size and dilation.
BRANCHES = ((5, 1), (7, 2), (3, 4))


def same_training_step(one: nn.Module, two: nn.Module, x: torch.Tensor) -> None:
    """Outputs and all gradients agree, in training mode."""
    results = []
    for model in (one.train(), two.train()):
        model.zero_grad()
        images = x.clone().requires_grad_()
        out = model(images)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
        results.append((out, images.grad, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def layers(model: nn.Module) -> int:
    return sum(isinstance(module, DepthwiseConv2dLarge) for module in model.modules())


def test_unireplknet_finds_the_import_name():
    fast = randomize(DilatedReparamBlock(6, 13, BRANCHES, attempt_use_lk_impl=True)).double()
    plain = randomize(DilatedReparamBlock(6, 13, BRANCHES, attempt_use_lk_impl=False)).double()
    assert (layers(fast), layers(plain)) == (1, 0)  # the dilated branches are none of the extension's business
    assert list(fast.state_dict()) == list(plain.state_dict())
    fast.load_state_dict(plain.state_dict())
    same_training_step(fast, plain, torch.randn(2, 6, 14, 11, dtype=torch.float64))


def test_unireplknet_merges_and_keeps_the_fast_kernel():
    """The original extension stated padding 0, and merged models broke."""
    block = randomize(DilatedReparamBlock(6, 13, BRANCHES, attempt_use_lk_impl=True)).eval()
    x = torch.randn(2, 6, 14, 11)
    before = block(x)
    block.merge()
    torch.testing.assert_close(block(x), before, rtol=1e-4, atol=1e-4)
    assert isinstance(block.lk_origin, DepthwiseConv2dLarge)
    assert block(x).shape == x.shape


def test_unireplknet_without_the_name_and_with_replace_depthwise(monkeypatch):
    monkeypatch.setitem(sys.modules, "depthwise_conv2d_implicit_gemm", None)
    block = randomize(DilatedReparamBlock(6, 13, BRANCHES, attempt_use_lk_impl=True)).double()
    assert layers(block) == 0
    reference = randomize(DilatedReparamBlock(6, 13, BRANCHES, attempt_use_lk_impl=False)).double()
    reference.load_state_dict(block.state_dict())
    report = replace_depthwise(block)
    assert [entry.name for entry in report.swapped] == ["lk_origin", "small.0.0"]
    assert {entry.name for entry in report.kept} == {"small.1.0", "small.2.0"}
    same_training_step(block, reference, torch.randn(2, 6, 14, 11, dtype=torch.float64))


@pytest.mark.parametrize("channels_last", [False, True])
def test_slak_runs_on_the_cpu(channels_last):
    fast = randomize(SLaKKernel(4, 51, 5)).double()
    plain = randomize(SLaKKernel(4, 51, 5, plain_conv)).double()
    assert [stripe[0].kernel_size for stripe in fast.stripes] == [(51, 5), (5, 51), (5, 5)]
    assert layers(fast) == 3
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 20, 23, dtype=torch.float64)
    if channels_last:
        x, fast = x.to(memory_format=torch.channels_last), fast.to(memory_format=torch.channels_last)
    same_training_step(fast, plain, x)
    assert [entry.shape[2:] for entry in replace_depthwise(plain).swapped] == [(51, 5), (5, 51), (5, 5)]


def test_convnext_of_timm():
    model = timm.create_model("convnext_atto", num_classes=5, ls_init_value=0.5).double()
    reference = timm.create_model("convnext_atto", num_classes=5, ls_init_value=0.5).double()
    reference.load_state_dict(model.state_dict())
    report = replace_depthwise(model, min_kernel=7)
    assert len(report.swapped) == sum(len(stage.blocks) for stage in model.stages) == 12
    assert all(entry.shape[2:] == (7, 7) for entry in report.swapped)
    same_training_step(model, reference, torch.randn(1, 3, 64, 48, dtype=torch.float64))
    assert len(restore(model)) == 12
    assert layers(model) == 0


def test_overlock_has_its_layers_on_these_kernels():
    model = overlock_xt(num_classes=5).double()
    reference = copy.deepcopy(model)
    swapped = replace_depthwise(model).swapped
    assert sum(name.endswith("lk_origin") for name in (entry.name for entry in swapped)) == 17
    same_training_step(model, reference, torch.randn(2, 3, 32, 32, dtype=torch.float64))
