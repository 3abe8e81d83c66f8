"""DistributedDataParallel on two processes: gradients are those of the whole batch on one, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from models_common import SMALL, randomize
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_on_two

from replknet_ext import DepthwiseConv2dLarge, replace_depthwise
from replknet_ext.models import RepLKNet

LAST = torch.channels_last


def images(channels: int = 3, size: int = 32) -> Tensor:
    """Four, the same on every process."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(4, channels, size, size, dtype=torch.float64, generator=generator)


def loss_of(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A sum over the batch."""
    return sum(out.square().sum() for out in ([outputs] if isinstance(outputs, Tensor) else outputs))


def compare(model: nn.Module, batch: Tensor, **options: bool) -> None:
    """Two steps, each process on half of the batch; DDP's gradient is the mean over the processes."""
    alone = copy.deepcopy(model)
    loss_of(alone(batch)).backward()
    parallel = DistributedDataParallel(model, **options)
    half = batch.chunk(2)[dist.get_rank()]
    for _ in range(2):  # the first step allocates the buckets, the second would find a gradient that never came
        parallel.zero_grad()
        loss_of(parallel(half)).backward()
    for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert (ours.grad is None) == (not ours.requires_grad), name
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad * 2, theirs.grad, rtol=1e-9, atol=1e-9)
            assert ours.grad.stride() == ours.stride(), name


def network(**options) -> RepLKNet:
    return randomize(RepLKNet(SMALL, **options)).double().eval()  # BatchNorms as on the whole batch


def classifier():
    compare(network(num_classes=5), images())


def backbone_of_the_first_stage():
    """Later stages learn nothing, so nothing waits for their gradients, without find_unused_parameters."""
    model = network(out_indices=(0,))
    assert not all(p.requires_grad for p in model.parameters())
    compare(model, images(), find_unused_parameters=False)


def channels_last():
    """Gradients have the strides of the weights: torch warns otherwise, and warnings are errors here."""
    layers = nn.Sequential(DepthwiseConv2dLarge(8, 13), nn.BatchNorm2d(8), DepthwiseConv2dLarge(8, (1, 7)))
    model = layers.double().eval().to(memory_format=LAST)
    compare(model, images(8, 16).to(memory_format=LAST))
    compare(network(num_classes=5).to(memory_format=LAST), images().to(memory_format=LAST))


def swapped_model():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.GELU()).double()
    replace_depthwise(model)
    compare(model, images(), static_graph=True)


CHECKS = {check.__name__: check for check in (classifier, backbone_of_the_first_stage, channels_last, swapped_model)}


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, list[str]]:
    return run_on_two(CHECKS, tmp_path_factory.mktemp("ddp"))


@pytest.mark.xdist_group("ddp")  # the fixture starts two processes
@pytest.mark.parametrize("name", CHECKS)
def test_on_two_processes(failures, name):
    assert not failures[name], failures[name][0]
