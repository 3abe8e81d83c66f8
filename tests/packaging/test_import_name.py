"""The stand-in for `depthwise_conv2d_implicit_gemm`, the module that UniRepLKNet, SLaK and OverLoCK import."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from replknet_ext import DepthwiseConv2dLarge
from replknet_ext.integrations.depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM

ROOT = Path(__file__).resolve().parents[2]


def test_the_name_is_taken_only_when_asked_for(tmp_path: Path) -> None:
    """Somebody's real module stays in use until the one import, which is all that other people's code needs."""
    (tmp_path / "depthwise_conv2d_implicit_gemm.py").write_text("class DepthWiseConv2dImplicitGEMM: real = True\n")
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
import replknet_ext
from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM as before
assert before.real
import replknet_ext.integrations.depthwise_conv2d_implicit_gemm as ours
from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM as after
assert after is ours.DepthWiseConv2dImplicitGEMM and issubclass(after, replknet_ext.DepthwiseConv2dLarge)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kernel", [13, (13, 13), (51, 5), [5, 51], 1])
@pytest.mark.parametrize("bias", [False, True])
def test_is_the_convolution_it_says(kernel, bias):
    torch.manual_seed(0)
    module = DepthWiseConv2dImplicitGEMM(6, kernel, bias=bias)
    torch.manual_seed(0)
    # What merging code does: rebuild a plain convolution from what the layer says of itself.
    plain = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        bias=bias,
    )
    assert isinstance(module, DepthwiseConv2dLarge)
    assert list(module.state_dict()) == list(plain.state_dict())
    assert torch.equal(module.weight, plain.weight)
    assert module.padding == tuple(k // 2 for k in module.kernel_size)
    x = torch.randn(2, 6, 11, 14, dtype=torch.float64)
    torch.testing.assert_close(module.double()(x), plain.double()(x), rtol=1e-12, atol=1e-12)
    assert module(x).shape == x.shape


def test_bias_is_off_by_default():
    assert DepthWiseConv2dImplicitGEMM(4, 7).bias is None


@pytest.mark.parametrize("kernel", [4, (5, 4), (4, 5)])
def test_even_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match="kernel must be odd"):
        DepthWiseConv2dImplicitGEMM(4, kernel)


def test_copies_and_pickles():
    module = DepthWiseConv2dImplicitGEMM(4, (7, 3), bias=True)
    x = torch.randn(1, 4, 9, 9)
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(clone) is DepthWiseConv2dImplicitGEMM
        assert torch.equal(clone(x), module(x))


def test_pickles_that_name_the_original_class_are_read():
    module = DepthWiseConv2dImplicitGEMM(4, 3)
    ours = b"replknet_ext.integrations.depthwise_conv2d_implicit_gemm"
    text = pickle.dumps(module, protocol=0)  # names as plain lines
    assert ours in text
    other = pickle.loads(text.replace(ours, b"depthwise_conv2d_implicit_gemm"))
    assert type(other) is DepthWiseConv2dImplicitGEMM


def test_whole_modules_pickled_from_the_original_class():
    """They recorded padding 0, and nothing of ours, though the layer padded by K // 2."""
    module = DepthWiseConv2dImplicitGEMM(4, (7, 3))
    state = {k: v for k, v in module.__dict__.items() if k not in ("activation", "algorithm", "backend")}
    state["padding"] = (0, 0)
    old = DepthWiseConv2dImplicitGEMM.__new__(DepthWiseConv2dImplicitGEMM)
    old.__setstate__(state)
    assert old.padding == (3, 1)
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(old(x), module(x))


def test_sizes_as_of_a_convolution():
    layer = DepthWiseConv2dImplicitGEMM(np.int64(4), np.int64(31))
    assert (layer.kernel_size, layer.padding) == ((31, 31), (15, 15))
    assert DepthWiseConv2dImplicitGEMM(4, (np.int64(3), 5)).padding == (1, 2)
    for kernel in (31.0, "31", None):  # nor does nn.Conv2d take these
        with pytest.raises(TypeError, match="kernel_size must be an int or a pair of ints"):
            DepthWiseConv2dImplicitGEMM(4, kernel)
