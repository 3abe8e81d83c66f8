"""torch.jit.script and torch.fx take the layer, models that hold it and RepLKNet as they take torch's own."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm
import torch
from models_common import SMALL, randomize, relative_error
from timm.models import create_feature_extractor
from torch import fx, nn

import replknet_ext.integrations.timm  # noqa: F401  # registers the models
from replknet_ext import DepthwiseConv2dLarge, replace_depthwise
from replknet_ext.integrations.openmmlab import MMRepLKNet
from replknet_ext.models import RepLKNet

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def reloaded(scripted):
    """As a program without this package's Python would load it."""
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 3, "bias": False},
        {"padding": "valid"},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": (0, 3), "stride": 2, "dilation": (1, 2)},
    ],
)
def test_layer(options, activation):
    layer = DepthwiseConv2dLarge(8, 7, activation=activation, algorithm="direct", dtype=torch.float64, **options)
    x = torch.randn(2, 8, 16, 17, dtype=torch.float64)
    assert relative_error(reloaded(torch.jit.script(layer))(x), layer(x)) < 1e-12


def test_swapped_model():
    model = nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.BatchNorm2d(8), nn.ReLU()).double().eval()
    x = torch.randn(2, 8, 12, 12, dtype=torch.float64)
    expected = model(x)
    assert len(replace_depthwise(model).swapped) == 1
    scripted = torch.jit.script(model)
    for program in (scripted, torch.jit.script(fx.symbolic_trace(model))):
        assert relative_error(reloaded(program)(x), expected) < 1e-12
    with pytest.raises(TypeError, match=r"TorchScript module.*before tracing it"):
        replace_depthwise(scripted)


def network(level: str | None = None, **options) -> RepLKNet:
    options = options or {"num_classes": 5}
    model = randomize(RepLKNet(SMALL, drop_path_rate=0.2, **options)).double().eval()
    return model if level is None else model.switch_to_deploy(level)


IMAGES = torch.randn(2, 3, 32, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("level", [None, "merge", "full"])
def test_network(level):
    model = network(level)
    keys = list(model.state_dict())
    assert relative_error(reloaded(torch.jit.script(model))(IMAGES), model(IMAGES)) < 1e-12
    assert list(model.state_dict()) == keys
    assert type(model) is RepLKNet


def test_backbone():
    model = network(out_indices=(0, 1), norm_intermediate_features=True)
    for ours, theirs in zip(reloaded(torch.jit.script(model))(IMAGES), model(IMAGES), strict=True):
        assert relative_error(ours, theirs) < 1e-12


def test_training_mode_stays_a_choice():
    """Scripted for training: drop path and BatchNorm follow `train` and `eval`, and weights are those of the model."""
    model = network().train()
    model.set_grad_checkpointing()
    scripted = torch.jit.script(model)
    torch.manual_seed(0)
    first, second = scripted(IMAGES), scripted(IMAGES)
    assert not torch.equal(first, second)  # drop path draws
    first.sum().backward()
    assert model.stem[0].conv.weight.grad is not None
    assert relative_error(scripted.eval()(IMAGES), model.eval()(IMAGES)) < 1e-12


@pytest.mark.parametrize("level", [None, "full"])
def test_traced_networks_are_pickled_and_scripted(level):
    for model in (network(level), MMRepLKNet(SMALL, out_indices=(0, 1)).double().eval()):
        traced = pickle.loads(pickle.dumps(fx.symbolic_trace(model)))
        scripted = (torch.jit.script(traced),) if isinstance(model, MMRepLKNet) else ()
        for program in (traced, *scripted):
            for ours, theirs in zip(program(IMAGES), model(IMAGES), strict=True):
                assert relative_error(ours, theirs) < 1e-12
        for module in model.modules():  # any part as the root
            if module.__class__.__module__.startswith("replknet_ext") and not isinstance(module, RepLKNet):
                pickle.dumps(fx.symbolic_trace(module))
    torch.save(traced, io.BytesIO())


NAMES = ["replknet_31b", "replknet_31l", "replknet_xl", "replknet_13"]


@pytest.mark.parametrize("name", NAMES)
def test_timms_tests_of_torchscript(name):
    """Its test_model_forward_torchscript and test_model_forward_fx_torchscript, on narrower models."""
    narrow = {"large_kernel_sizes": (7, 5, 5, 5), "layers": (1, 1, 1, 1), "channels": (4, 8, 8, 8)}
    model = randomize(timm.create_model(name, scriptable=True, **narrow)).eval()
    images = IMAGES.float()
    out = model(images)
    assert relative_error(torch.jit.script(model)(images), out) < 1e-5
    traced = create_feature_extractor(copy.deepcopy(model), ["head"])
    assert relative_error(torch.jit.script(traced)(images)["head"], out) < 1e-5
