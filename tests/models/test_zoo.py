"""Names, published figures, and `get_model` with weights."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import warnings

import pytest
import torch
from models_common import SMALL, randomize
from torch import nn

import replknet_ext
from replknet_ext.models import (
    ARCHS,
    MODELS,
    CheckpointError,
    RepLKNet,
    create_model,
    get_model,
    list_models,
    register_model,
    save_checkpoint,
)
from replknet_ext.models.registry import _MODELS

# The table of mmpretrain's page, typed off it: name, params (M), FLOPs (G), top-1, top-5, file.
PAGE = [
    ("replknet-31B_3rdparty_in1k", "79.86", "15.64", 83.48, 96.57, "20221118-fd08e268"),
    ("replknet-31B_3rdparty_in1k-384px", "79.86", "45.95", 84.84, 97.34, "20221118-03a170ce"),
    ("replknet-31B_in21k-pre_3rdparty_in1k", "79.86", "15.64", 85.20, 97.56, "20221118-54ed5c46"),
    ("replknet-31B_in21k-pre_3rdparty_in1k-384px", "79.86", "45.95", 85.99, 97.75, "20221118-76c92b24"),
    ("replknet-31L_in21k-pre_3rdparty_in1k-384px", "172.67", "97.24", 86.63, 98.00, "20221118-dc3fc07c"),
    ("replknet-XL_meg73m-pre_3rdparty_in1k-320px", "335.44", "129.57", 87.57, 98.39, "20221118-88259b1d"),
]
SHORT = ["replknet_13", "replknet_31b", "replknet_31l", "replknet_xl"]


@pytest.mark.parametrize(("name", "params", "flops", "top1", "top5", "file"), PAGE)
def test_the_page(name, params, flops, top1, top5, file):
    config = MODELS[name]
    assert config.name == name
    assert (f"{config.params / 1e6:.2f}", f"{config.flops / 1e9:.2f}") == (params, flops)
    assert (config.top1, config.top5) == (top1, top5)
    assert config.url == f"https://download.openmmlab.com/mmclassification/v0/replknet/{name}_{file}.pth"
    assert config.url.endswith(f"-{config.sha256}.pth")
    size = int("".join(re.findall(r"-(\d+)px$", name)) or 224)
    assert config.input_size == (3, size, size)
    assert config.arch == name.split("_")[0].split("-")[1]
    assert config.pretrain == "".join(re.findall("_(in21k|meg73m)-pre", name))
    assert (config.interpolation, config.num_classes) == ("bicubic", 1000)


def test_preparation_of_images():
    prepared = {size: (c.crop, c.resize) for c in MODELS.values() for size in [c.input_size[-1]]}
    assert prepared == {224: (True, 256), 320: (True, 365), 384: (False, 384)}
    for config in MODELS.values():
        half = config.arch == "XL"  # the official code's normalisation; mmpretrain's configuration differs
        assert config.mean == ((0.5, 0.5, 0.5) if half else (0.485, 0.456, 0.406))
        assert config.std == ((0.5, 0.5, 0.5) if half else (0.229, 0.224, 0.225))


@pytest.mark.parametrize("config", {(c.arch, c.input_size): c for c in MODELS.values()}.values(), ids=lambda c: c.name)
def test_params_and_flops_to_the_integer(config):
    """The page's count, over the modules of the train-time form on the meta device."""
    with torch.device("meta"):
        model = RepLKNet(config.arch).eval()
    flops = 0

    def count(module, args, out):
        nonlocal flops
        if isinstance(module, nn.Conv2d):
            flops += out.numel() * module.weight[0].numel()
        else:
            flops += 5 * out.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(count)
    features = model.forward_features(torch.empty(1, *config.input_size, device="meta"))
    assert flops + features.numel() == config.flops
    assert sum(p.numel() for p in model.parameters()) == config.params


def test_list_models():
    assert list_models() == [*sorted(row[0] for row in PAGE), *SHORT]
    assert list_models(pretrained=True) == sorted([*(row[0] for row in PAGE), *SHORT[1:]])
    assert list_models(pretrained=False) == ["replknet_13"]
    assert list_models("*31l*") == ["replknet_31l"]
    assert list_models("*-384px", pretrained=False) == []
    assert replknet_ext.list_models is list_models
    assert replknet_ext.get_model is get_model
    assert set(MODELS) == set(list_models())


@pytest.mark.parametrize("name", list(MODELS))
def test_every_name_builds_its_architecture(name):
    with torch.device("meta"):
        model = get_model(name, drop_path_rate=0.2, num_classes=7)
    assert model.config == ARCHS[MODELS[name].arch]
    assert model.pretrained_cfg is MODELS[name]
    assert model.head.out_features == 7
    assert name in SHORT or MODELS[name].arch.lower() in name.lower()


def test_short_names_have_the_weights_of():
    assert {name: MODELS[name].name for name in SHORT} == {
        "replknet_13": "replknet_13",
        "replknet_31b": "replknet-31B_3rdparty_in1k",
        "replknet_31l": "replknet-31L_in21k-pre_3rdparty_in1k-384px",
        "replknet_xl": "replknet-XL_meg73m-pre_3rdparty_in1k-320px",
    }
    with torch.device("meta"):
        assert create_model("replknet_31b").pretrained_cfg is MODELS["replknet_31b"]
        assert RepLKNet("31B").pretrained_cfg is None


def test_bad_names_and_arguments(_tiny):
    with pytest.raises(TypeError, match="int"):
        get_model(31)
    with pytest.raises(ValueError, match=r"unknown.*did you mean 'replknet-31B_3rdparty_in1k"):
        get_model("replknet-31b_3rdparty_in1k")
    with pytest.raises(ValueError, match="known are replknet-31B"):
        get_model("vit")
    with pytest.raises(ValueError, match="no weights are published for 'replknet_13'"):
        get_model("replknet_13", pretrained=True)
    with pytest.raises(TypeError, match="colour"):
        get_model("replknet_31b", colour="red")
    with pytest.raises(CheckpointError, match="no such file"):
        _tiny_from("nowhere.pth")


def _tiny_from(path, **kwargs):
    return get_model("replknet_tiny", pretrained=path, **kwargs)


@pytest.fixture
def _tiny(monkeypatch):
    """A small registered model: what follows is the same for every size."""
    monkeypatch.setattr("replknet_ext.models.registry._MODELS", dict(_MODELS))

    @register_model
    def replknet_tiny(**kwargs):
        return RepLKNet(SMALL, **kwargs)


@pytest.fixture
def weights(tmp_path, _tiny):
    model = randomize(RepLKNet(SMALL, num_classes=10)).eval()
    return model, save_checkpoint(model, tmp_path / "tiny.pth")


def test_pretrained_from_a_path_or_an_address(weights):
    trained, path = weights
    x = torch.randn(2, 3, 16, 16)
    for source in (path, str(path), path.as_uri()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = _tiny_from(source, num_classes=10).eval()
        assert torch.equal(model(x), trained(x))
    merged = _tiny_from(path, num_classes=10, small_kernel_merged=True).eval()
    torch.testing.assert_close(merged(x), trained(x))


def test_pretrained_true_downloads_and_checks(weights, tmp_path, monkeypatch):
    trained, path = weights
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    config = dataclasses.replace(MODELS["replknet_13"], url=path.as_uri(), sha256=sha[:8], num_classes=10)
    models = {**MODELS, "replknet_tiny": config}
    monkeypatch.setattr("replknet_ext.models.zoo.MODELS", models)
    x = torch.randn(2, 3, 16, 16)
    model = get_model("replknet_tiny", pretrained=True, num_classes=10).eval()
    assert torch.equal(model(x), trained(x))
    assert model.pretrained_cfg is config
    models["replknet_tiny"] = dataclasses.replace(config, sha256="00000000")
    with pytest.raises(CheckpointError, match="SHA-256"):
        get_model("replknet_tiny", pretrained=True, num_classes=10)


def test_other_classes_get_a_fresh_classifier(weights):
    trained, path = weights
    x = torch.randn(2, 3, 16, 16)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match=r"classifier for 10 classes.*num_classes=21841"):
        model = _tiny_from(path, num_classes=21841).eval()
    assert model(x).shape == (2, 21841)
    torch.manual_seed(3)
    assert torch.equal(model.head.weight, RepLKNet(SMALL, num_classes=21841).head.weight)
    torch.testing.assert_close(model.forward_features(x), trained.forward_features(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither of these asked for a classifier
        pooled = _tiny_from(path, num_classes=0).eval()
        backbone = _tiny_from(path, out_indices=(0, 1)).eval()
    torch.testing.assert_close(pooled(x), trained.extract_feat(x)[0])
    torch.testing.assert_close(trained.norm(backbone(x)[1]), trained.forward_features(x))


def test_other_channels(weights):
    """timm's rule: what an image means stays, whether its grey value comes once, three times or six times."""
    trained, path = weights
    gray = torch.randn(2, 1, 16, 16)
    expected = trained(gray.expand(-1, 3, -1, -1))
    for channels in (1, 6):
        model = _tiny_from(path, num_classes=10, in_chans=channels).eval()
        torch.testing.assert_close(model(gray.expand(-1, channels, -1, -1)), expected)
    model = _tiny_from(path, num_classes=10, in_chans=4)
    ours, theirs = model.stem[0].conv.weight, trained.stem[0].conv.weight
    torch.testing.assert_close(ours, torch.cat([theirs, theirs[:, :1]], 1) * 0.75)


def test_weights_of_another_architecture(weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a word on its classifier would only distract
        with pytest.raises(CheckpointError, match=r"tiny\.pth does not fit.*channels \(8, 16\) instead of \(128, 256"):
            get_model("replknet_31b", pretrained=weights[1])
