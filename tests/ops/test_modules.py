"""DepthwiseConv2dLarge is an nn.Conv2d to everything that looks at it from outside."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_common import relative_error
from torch import nn
from torch.nn.utils import parametrizations

from replknet_ext import DepthwiseConv2dLarge
from replknet_ext.models import RepLKNetConfig


def conv2d(channels: int, kernel, padding="same", bias=True, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=bias, **kwargs)


CONFIGS = [
    pytest.param(4, 31, {}, id="31"),
    pytest.param(4, 5, {"padding": 2, "bias": False}, id="5-int-padding"),
    pytest.param(3, (51, 5), {"padding": (25, 2)}, id="51x5"),
    pytest.param(5, 4, {}, id="even-same"),
    pytest.param(5, (6, 3), {"padding": "valid"}, id="valid"),
    pytest.param(2, 7, {"padding": 0}, id="no-padding"),
    pytest.param(4, 5, {"padding": 2, "stride": 2}, id="stride"),
    pytest.param(4, 5, {"padding": (4, 4), "dilation": 2}, id="dilation"),
    pytest.param(4, 5, {"dilation": (1, 2)}, id="same-dilation"),
    pytest.param(4, 5, {"padding": 2, "padding_mode": "reflect"}, id="reflect"),
    pytest.param(4, 4, {"padding_mode": "circular"}, id="circular-even"),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("channels", "kernel", "options"), CONFIGS)
def test_same_layer_as_conv2d(channels, kernel, options):
    """Same init from the same seed, same keys, same output as nn.Conv2d in float64, same random state afterwards."""
    torch.manual_seed(3)
    reference = conv2d(channels, kernel, **options)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    module = DepthwiseConv2dLarge(channels, kernel, **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(module.state_dict()) == list(reference.state_dict())
    for key, value in reference.state_dict().items():
        assert torch.equal(module.state_dict()[key], value)
    for name in nn.Conv2d.__constants__:
        assert getattr(module, name) == getattr(reference, name), name

    x = torch.randn(2, channels, 17, 19)
    expected = reference.double()(x.double())
    assert relative_error(module(x), expected) < 1e-5
    assert relative_error(module.double()(x.double()), expected) < 1e-13
    assert relative_error(module(x.double()[0]), expected[0]) < 1e-13  # unbatched


def test_state_dict_goes_both_ways():
    module, reference = DepthwiseConv2dLarge(3, 9), conv2d(3, 9)
    reference.load_state_dict(module.state_dict())
    assert torch.equal(reference.weight, module.weight)
    torch.nn.init.normal_(reference.weight)
    module.load_state_dict(reference.state_dict())
    assert torch.equal(reference.weight, module.weight)
    with pytest.raises(RuntimeError, match="bias"):
        DepthwiseConv2dLarge(3, 9, bias=False).load_state_dict(reference.state_dict())


@pytest.mark.parametrize(("channels", "kernel", "options"), CONFIGS)
def test_repr_is_that_of_conv2d(channels, kernel, options):
    expected = repr(conv2d(channels, kernel, **options)).replace("Conv2d(", "DepthwiseConv2dLarge(")
    assert repr(DepthwiseConv2dLarge(channels, kernel, **options)) == expected


def test_repr_names_what_is_not_default():
    module = DepthwiseConv2dLarge(2, 3, activation="relu", algorithm="direct", backend="torch")
    assert repr(module).endswith("groups=2, activation=relu, algorithm=direct, backend=torch)")


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("stride", [1, 2])
def test_activation(activation, stride):
    module = DepthwiseConv2dLarge(3, 5, padding=2, stride=stride, activation=activation).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    plain = F.conv2d(x, module.weight, module.bias, stride, 2, groups=3)
    expected = getattr(F, activation)(plain)
    assert not torch.allclose(plain, expected)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch.save"])
def test_copies_keep_everything(copier):
    module = DepthwiseConv2dLarge(3, 7, activation="relu", backend="torch").eval()
    if copier == "torch.save":
        buffer = io.BytesIO()
        torch.save(module, buffer)
        clone = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    else:
        clone = copier(module)
    assert type(clone) is DepthwiseConv2dLarge
    assert repr(clone) == repr(module)
    assert not clone.training
    assert clone.weight is not module.weight
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(clone(x), module(x))


def test_device_dtype_and_memory_format():
    meta = DepthwiseConv2dLarge(4, 31, device="meta", dtype=torch.bfloat16)
    assert meta.weight.is_meta
    assert meta.bias.dtype == torch.bfloat16
    out = meta(torch.empty(2, 4, 20, 24, device="meta", dtype=torch.bfloat16))
    assert out.shape == (2, 4, 20, 24)
    assert out.is_meta

    module = DepthwiseConv2dLarge(4, 7).to(memory_format=torch.channels_last)
    assert module.weight.stride() == conv2d(4, 7).to(memory_format=torch.channels_last).weight.stride()
    x = torch.randn(2, 4, 9, 11).contiguous(memory_format=torch.channels_last)
    out = module(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), module.weight.double(), module.bias.double(), padding=3, groups=4)
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (dict(channels=0, kernel_size=3), ValueError, "channels"),
        (dict(channels=2.0, kernel_size=3), TypeError, "channels"),
        (dict(channels=2, kernel_size=0), ValueError, "kernel_size"),
        (dict(channels=2, kernel_size="3"), TypeError, "kernel_size"),
        (dict(channels=2, kernel_size=(3, 3, 3)), ValueError, "kernel_size"),
        (dict(channels=2, kernel_size=3, padding=-1), ValueError, "padding"),
        (dict(channels=2, kernel_size=3, padding="full"), ValueError, "padding"),
        (dict(channels=2, kernel_size=3, stride=2), ValueError, "same"),
        (dict(channels=2, kernel_size=3, stride=0, padding=1), ValueError, "stride"),
        (dict(channels=2, kernel_size=3, dilation=0), ValueError, "dilation"),
        (dict(channels=2, kernel_size=3, padding_mode="mirror"), ValueError, "padding_mode"),
        (dict(channels=2, kernel_size=3, activation="swish"), ValueError, "activation"),
        (dict(channels=2, kernel_size=3, algorithm="magic"), ValueError, "algorithm"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    with pytest.raises(error, match=named):
        DepthwiseConv2dLarge(**arguments)


def test_from_conv2d_shares_parameters_and_trains():
    conv = conv2d(3, 7).eval()
    conv.bias.requires_grad_(False)
    module = DepthwiseConv2dLarge.from_conv2d(conv)
    assert module.weight is conv.weight
    assert module.bias is conv.bias
    assert not module.training
    assert not module.bias.requires_grad
    assert repr(module) == repr(conv).replace("Conv2d(", "DepthwiseConv2dLarge(")
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    before = conv.weight.detach().clone()
    module(torch.randn(1, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module.weight, before)
    module.weight = nn.Parameter(torch.zeros_like(module.weight))  # of the new module only
    assert conv.weight.abs().sum() > 0


def test_from_conv2d_keeps_hooks_and_their_handles():
    conv = conv2d(3, 7)
    calls = []
    handle = conv.register_forward_hook(lambda module, args, out: calls.append(type(module)))
    module = DepthwiseConv2dLarge.from_conv2d(conv)
    x = torch.randn(1, 3, 8, 8)
    module(x)
    assert calls == [DepthwiseConv2dLarge]
    handle.remove()
    module(x)
    assert len(calls) == 1


def test_from_conv2d_with_hook_based_weight_norm():
    conv = conv2d(3, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(conv)
    module = DepthwiseConv2dLarge.from_conv2d(conv)
    with torch.no_grad():
        module.weight_g.mul_(2)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(module(x), conv(x))


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) + 1


def overridden() -> nn.Conv2d:
    conv = conv2d(4, 5)
    conv.forward = lambda x: x
    return conv


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(4, 4, 5), "not depthwise"),
        (lambda: nn.Conv2d(4, 4, 5, groups=2), "not depthwise"),
        (lambda: nn.Conv2d(4, 8, 5, groups=4), "multiplier 2"),
        (lambda: OwnForward(4, 4, 5, groups=4), "subclass"),
        (lambda: parametrizations.weight_norm(conv2d(4, 5)), "parametrized"),
        (lambda: DepthwiseConv2dLarge(4, 5), "already"),
        (lambda: conv2d(4, 5, dtype=torch.complex64), "complex64"),
        (overridden, "instance"),
    ],
)
def test_from_conv2d_refuses_with_a_reason(make, reason):
    with pytest.raises(ValueError, match=reason):
        DepthwiseConv2dLarge.from_conv2d(make())


def test_from_conv2d_refuses_what_is_no_conv():
    with pytest.raises(TypeError, match="Linear"):
        DepthwiseConv2dLarge.from_conv2d(nn.Linear(2, 2))


def test_parametrizations_apply_to_the_module():
    module = parametrizations.weight_norm(DepthwiseConv2dLarge(4, 5))
    x = torch.randn(1, 4, 8, 8)
    expected = F.conv2d(x.double(), module.weight.double(), module.bias.double(), padding=2, groups=4)
    assert relative_error(module(x), expected) < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_with_gradients_enabled(tmp_path: Path) -> None:
    module = DepthwiseConv2dLarge(4, 7)
    torch.jit.trace(module, torch.randn(1, 4, 9, 9)).save(tmp_path / "traced.pt")
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(torch.jit.load(tmp_path / "traced.pt")(x), module(x))


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_integers_of_numpy(kind):
    """As of `nn.Conv2d`, which takes them everywhere."""
    sizes = dict(channels=4, kernel_size=3, stride=2, padding=1, dilation=2)
    layer = DepthwiseConv2dLarge(**{name: kind(value) for name, value in sizes.items()})
    plain = DepthwiseConv2dLarge(**sizes)
    assert repr(layer) == repr(plain)
    stored = (layer.in_channels, layer.groups, *layer.kernel_size, *layer.stride, *layer.padding, *layer.dilation)
    assert {type(value) for value in stored} == {int}
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(layer(x), plain(x))
    config = RepLKNetConfig(*(np.array(values) for values in ((5, 5), (1, 1), (8, 16))), small_kernel=kind(3))
    assert config == RepLKNetConfig((5, 5), (1, 1), (8, 16), small_kernel=3)
    assert {type(value) for value in (*config.layers, *config.channels, config.small_kernel)} == {int}
