"""DTensor: sharded inputs and `distribute_module`, on two processes, against float64 on one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from two_processes import run_on_two

from replknet_ext import DepthwiseConv2dLarge, depthwise_conv2d
from replknet_ext.operator import sharding

SHAPE, KERNEL = (4, 6, 9, 8), (5, 3)


def data(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Input, weight, bias and a gradient of the output; the same on every process."""
    generator = torch.Generator().manual_seed(5)
    shapes = SHAPE, (SHAPE[1], 1, *KERNEL), (SHAPE[1],), SHAPE
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def by_torch(activation: str = "none") -> list[torch.Tensor]:
    """Output and the gradients of input, weight and bias, in float64."""
    x, weight, bias, grad = data()
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    out = torch.conv2d(*leaves, padding=(2, 1), groups=SHAPE[1])
    out = {"none": lambda t: t, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation](out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def communications(run):
    """What ``run`` returns, and how many collectives it needed."""
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as mode:
        result = run()
    return result, mode.get_total_counts()


def check_strategy(place_input: int, place_weight: int | None, activation: str, dtype: torch.dtype) -> None:
    """Forward and backward with input and weight placed like that: no communication, right values, right placements."""
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    of_input = [Shard(place_input)]
    of_weight = [Replicate() if place_weight is None else Shard(place_weight)]
    x, weight, bias, grad = data(dtype)
    leaves = [
        distribute_tensor(t, mesh, place).requires_grad_()
        for t, place in ((x, of_input), (weight, of_weight), (bias, of_weight))
    ]
    grad = distribute_tensor(grad, mesh, of_input)

    def step():
        out = depthwise_conv2d(*leaves, padding=(2, 1), activation=activation)
        return out, *torch.autograd.grad(out, leaves, grad)

    results, count = communications(step)
    assert count == 0
    assert [list(t.placements) for t in results[:2]] == [of_input] * 2
    of_gradient = [Partial()] if place_weight is None else of_weight
    assert [list(t.placements) for t in results[2:]] == [of_gradient] * 2
    for ours, wanted in zip(results, by_torch(activation), strict=True):
        whole = ours.detach().full_tensor().double()
        assert float((whole - wanted).abs().max() / wanted.abs().max()) < (1e-12 if dtype == torch.float64 else 1e-5)


def batch():
    check_strategy(0, None, "none", torch.float64)
    check_strategy(0, None, "gelu", torch.float32)


def channels():
    check_strategy(1, 0, "none", torch.float64)
    check_strategy(1, 0, "relu", torch.float32)


def rows_are_gathered():
    """A split of the plane is no strategy: the input is made whole, and the values stay right."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    x, weight, bias, _ = data()
    x, weight, bias = (
        distribute_tensor(t, mesh, [p]) for t, p in ((x, Shard(2)), (weight, Replicate()), (bias, Replicate()))
    )
    out = depthwise_conv2d(x, weight, bias, padding=(2, 1))
    torch.testing.assert_close(out.full_tensor(), by_torch()[0])


def paddings_are_told_apart():
    """The same shapes with another padding: an answer of the sharding cache would have the wrong size."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    x, weight, bias, _ = data()
    x, weight, bias = (
        distribute_tensor(t, mesh, [p]) for t, p in ((x, Shard(0)), (weight, Replicate()), (bias, Replicate()))
    )
    for padding in (0, (2, 1), (4, 2), (1, 2), (2, 1)):
        out = depthwise_conv2d(x, weight, bias, padding=padding)
        wanted = torch.conv2d(*data()[:3], padding=padding, groups=SHAPE[1])
        assert out.shape == wanted.shape
        torch.testing.assert_close(out.full_tensor(), wanted)


def uneven_batch():
    """Five images for two processes, and one."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    _, weight, bias, _ = data()
    weight, bias = (distribute_tensor(t, mesh, [Replicate()]) for t in (weight, bias))
    for images in (5, 1):
        x = torch.arange(images * 6 * 72, dtype=torch.float64).reshape(images, 6, 9, 8).sin()
        out = depthwise_conv2d(distribute_tensor(x, mesh, [Shard(0)]), weight, bias)
        torch.testing.assert_close(out.full_tensor(), torch.conv2d(x, *data()[1:3], groups=6))


def module():
    """`distribute_module` replicates the parameters: the same as nn.Conv2d gives."""
    from torch.distributed.tensor import Partial, Shard, distribute_module, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    layer = distribute_module(DepthwiseConv2dLarge(8, 5, padding=2).double(), mesh)
    x = distribute_tensor(torch.randn(4, 8, 9, 9, dtype=torch.float64), mesh, [Shard(0)])
    out = layer(x)
    assert list(out.placements) == [Shard(0)]
    out.sum().backward()
    assert list(layer.weight.grad.placements) == [Partial()]
    twin = torch.nn.Conv2d(8, 8, 5, padding=2, groups=8).double()
    twin.load_state_dict({name: p.full_tensor() for name, p in layer.state_dict().items()})
    wanted = twin(x.full_tensor())
    wanted.sum().backward()
    torch.testing.assert_close(out.full_tensor(), wanted)
    torch.testing.assert_close(layer.weight.grad.full_tensor(), twin.weight.grad)
    torch.testing.assert_close(layer.bias.grad.full_tensor(), twin.bias.grad)


def channels_last():
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    x, weight, bias, grad = data()
    own = x.chunk(2)[dist.get_rank()].to(memory_format=torch.channels_last)
    leaves = [
        DTensor.from_local(own, mesh, [Shard(0)]),
        *(distribute_tensor(t, mesh, [Replicate()]) for t in (weight, bias)),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = depthwise_conv2d(*leaves, padding=(2, 1))
    assert out.to_local().is_contiguous(memory_format=torch.channels_last)
    grads = torch.autograd.grad(out, leaves, distribute_tensor(grad, mesh, [Shard(0)]))
    assert grads[0].to_local().is_contiguous(memory_format=torch.channels_last)
    for ours, wanted in zip((out, *grads), by_torch(), strict=True):
        torch.testing.assert_close(ours.detach().full_tensor(), wanted)


def compiled():
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    x, weight, bias, _ = data()
    x, weight, bias = (
        distribute_tensor(t, mesh, [p]) for t, p in ((x, Shard(0)), (weight, Replicate()), (bias, Replicate()))
    )
    run = torch.compile(lambda *t: depthwise_conv2d(*t, padding=(2, 1)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(x, weight, bias).full_tensor(), by_torch()[0])


CHECKS = {
    check.__name__: check
    for check in (
        compiled,
        batch,
        channels,
        rows_are_gathered,
        paddings_are_told_apart,
        uneven_batch,
        module,
        channels_last,
    )
}


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, list[str]]:
    folder: Path = tmp_path_factory.mktemp("dtensor")
    return run_on_two(CHECKS, folder)


@pytest.mark.xdist_group("dtensor")  # the fixture starts two processes
@pytest.mark.parametrize("name", CHECKS)
def test_on_two_processes(failures, name):
    assert not failures[name], failures[name][0]


def test_nothing_is_imported_for_it():
    """Programs without DTensors do not pay for importing it."""
    assert dist.is_available()
    assert sharding.register() == ("torch.distributed.tensor" in sys.modules)
