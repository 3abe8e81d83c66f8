"""Strides of outputs and gradients are those of torch.conv2d, whatever the memory formats of the operands."""

from __future__ import annotations

import itertools
import time
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

from replknet_ext import DepthwiseConv2dLarge, depthwise_conv2d
from replknet_ext.backends import BACKENDS
from replknet_ext.operator.problem import output_format

FIRST, LAST = torch.contiguous_format, torch.channels_last
#: With one pixel, one row, one column and one image: where strides alone cannot tell the formats apart.
SHAPES = [(2, 4, 6, 7), (1, 4, 6, 7), (2, 4, 1, 7), (2, 4, 6, 1), (2, 4, 1, 1)]
KERNELS = [(5, 5), (1, 3)]
LAYOUTS = ("nchw", "channels_last", "transposed", "half of the channels")
backends = pytest.mark.parametrize(
    "backend", [name for name, known in BACKENDS.items() if known.devices is None or "cpu" in known.devices]
)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The values in new memory of this layout, where sizes of 1 have the strides of an allocation, too."""
    if layout == "transposed":
        return torch.empty_like(values.mT).copy_(values.mT).mT
    if layout == "half of the channels":
        n, c, h, w = values.shape
        return torch.empty(n, 2 * c, h, w, dtype=values.dtype, memory_format=LAST)[:, :c].copy_(values)
    layout = LAST if layout == "channels_last" else FIRST
    return torch.empty(values.shape, dtype=values.dtype, memory_format=layout).copy_(values)


def operands(shape, kernel, layouts, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias."""
    x = laid_out(torch.randn(shape, dtype=dtype), layouts[0]).requires_grad_()
    weight = laid_out(torch.randn(shape[1], 1, *kernel, dtype=dtype), layouts[1]).requires_grad_()
    return x, weight, torch.randn(shape[1], dtype=dtype, requires_grad=True)


def formats(t: Tensor) -> tuple[bool, bool, tuple[int, ...] | None]:
    """Which formats the strides are of, and the strides, unless both: then those of sizes of 1 mean nothing."""
    contiguous, last = (t.is_contiguous(memory_format=layout) for layout in (FIRST, LAST))
    return contiguous, last, None if contiguous and last else t.stride()


def padding_of(kernel: tuple[int, int]) -> tuple[int, int]:
    return kernel[0] // 2, kernel[1] // 2


@backends
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((s, torch.float32) for s in SHAPES), *((SHAPES[0], d) for d in (torch.float64, torch.bfloat16, torch.float16))],
)
def test_as_conv2d(shape, dtype, backend):
    """oneDNN is off, as it chooses other strides for planes of one pixel and for weight gradients."""
    for kernel, *layouts in itertools.product(KERNELS, LAYOUTS, LAYOUTS[:3], LAYOUTS[:2]):
        tensors = operands(shape, kernel, layouts, dtype)
        pad = padding_of(kernel)
        with torch.backends.mkldnn.flags(enabled=False):
            wanted = torch.conv2d(*tensors, 1, pad, 1, shape[1])
            grad = laid_out(torch.randn(wanted.shape, dtype=dtype), layouts[2])
            wanted_grads = torch.autograd.grad(wanted, tensors, grad)
            out = depthwise_conv2d(*tensors, padding=pad, backend=backend)
            grads = torch.autograd.grad(out, tensors, grad)
        assert formats(out) == formats(wanted), (kernel, layouts)
        assert formats(grads[0]) == formats(wanted_grads[0]), (kernel, layouts)
        if layouts[1] != "transposed":  # torch's, too, is then copied when it is kept
            assert grads[1].stride() == tensors[1].stride(), (kernel, layouts)
        for ours, theirs in zip((out, *grads), (wanted, *wanted_grads), strict=True):
            if dtype in (torch.float64, torch.float32):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_formats_with_onednn(shape):
    for kernel, *layouts in itertools.product(KERNELS, LAYOUTS, LAYOUTS[:3]):
        x, weight, bias = operands(shape, kernel, layouts, torch.float32)
        wanted = torch.conv2d(x, weight, bias, 1, padding_of(kernel), 1, shape[1])
        out = depthwise_conv2d(x, weight, bias, padding=padding_of(kernel))
        assert formats(out) == formats(wanted), (kernel, layouts)


@pytest.mark.parametrize("shape", SHAPES)
def test_fake_and_meta_as_eager(shape):
    for kernel, *layouts in itertools.product(KERNELS, LAYOUTS, LAYOUTS[:3]):
        x, weight, bias = (t.detach() for t in operands(shape, kernel, layouts, torch.float32))
        pad = padding_of(kernel)
        options = ("ieee", "auto", "auto", -1)
        four = (pad[0], pad[0], pad[1], pad[1])
        calls = {
            torch.ops.replknet_ext.dwconv2d: (x, weight, bias, four, "none", *options),
            torch.ops.replknet_ext.dwconv2d_backward_input: (x, weight, four, *options),
            torch.ops.replknet_ext.dwconv2d_backward_weight: (x, x, (0, 0, 0, 0), *options),
        }
        for op, arguments in calls.items():
            wanted = op(*arguments).stride()
            meta = [
                torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta") if isinstance(a, Tensor) else a
                for a in arguments
            ]
            assert op(*meta).stride() == wanted
            with FakeTensorMode() as mode:
                fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
                assert op(*fake).stride() == wanted


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    layer = DepthwiseConv2dLarge(4, 5).to(memory_format=LAST)
    x = torch.randn(2, 4, 8, 9, requires_grad=True)
    out = torch.compile(layer, backend=backend, fullgraph=True)(x)
    wanted = layer(x)
    assert out.stride() == wanted.stride() == (288, 1, 36, 4)
    leaves = x, layer.weight
    ours, theirs = (torch.autograd.grad(y.sum(), leaves) for y in (out, wanted))
    assert ours[0].stride() == theirs[0].stride() == (288, 1, 36, 4)
    assert ours[1].stride() == theirs[1].stride() == layer.weight.stride() == (25, 1, 5, 1)


def test_kinds_of_derivatives():
    """Double backward, forward mode and vmap of a channels_last weight."""
    x, weight, _ = operands((2, 3, 5, 6), (3, 3), ("nchw", "channels_last"), torch.float64)
    run = lambda x, w: depthwise_conv2d(x, w, padding=1)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, (x, weight), check_batched_grad=True)
    conv2d = lambda x, w: torch.conv2d(x, w, None, 1, 1, 1, 3)  # noqa: E731
    ours, theirs = (
        torch.func.vmap(torch.func.grad(lambda w, x, f=f: f(x, w).square().sum()), (None, 0))(
            weight.detach(), x[:, None]
        )
        for f in (run, conv2d)
    )
    torch.testing.assert_close(ours, theirs)


def test_a_swap_keeps_the_formats_of_a_model():
    """NCHW into a channels_last model: channels_last from the first convolution on, swapped or not."""
    conv = nn.Conv2d(8, 8, 7, padding=3, groups=8).to(memory_format=LAST)
    x = torch.randn(2, 8, 9, 10)
    wanted = conv(x)
    assert DepthwiseConv2dLarge.from_conv2d(conv)(x).stride() == wanted.stride()
    assert output_format(x, conv.weight) == LAST


def test_data_parallel_does_not_warn(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = DepthwiseConv2dLarge(8, 13).to(memory_format=LAST)
        parallel = DistributedDataParallel(layer)
        x = torch.randn(2, 8, 16, 16).to(memory_format=LAST)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                parallel(x).sum().backward()
        assert layer.weight.grad.stride() == layer.weight.stride() == (169, 1, 13, 1)
    finally:
        time.sleep(
            0.1
        )  # gloo's thread waits for the GIL once more, which whoever frees the group holds while it joins it
        torch.distributed.destroy_process_group()
