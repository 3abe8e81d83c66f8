"""`replknet_ext.integrations.timm`: RepLKNet as a model of timm's registry, used as timm's users do."""

from __future__ import annotations

import importlib
import json
import math
import sys

import pytest
import timm
import torch
from models_common import randomize
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_pretrained_cfg
from timm.optim import create_optimizer_v2
from timm.utils import reparameterize_model
from torch import nn

import replknet_ext.integrations.timm as plugin
from replknet_ext.models import MODELS, CheckpointError, RepLKNet, create_model

#: RepLKNet-31B with everything smaller; any model name takes these keywords.
TINY = {"large_kernel_sizes": (13, 9, 7, 5), "layers": (1, 1, 2, 1), "channels": (8, 12, 16, 24)}
REDUCTIONS = [4, 8, 16, 32]
IMAGES = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(3))


def tiny(name: str = "replknet_31b", **kwargs) -> nn.Module:
    return randomize(timm.create_model(name, **TINY, **kwargs)).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A file: address of a checkpoint as mmpretrain publishes them."""
    net = randomize(RepLKNet(**TINY, num_classes=1000))
    state = {f"backbone.{k}": v for k, v in net.state_dict().items() if not k.startswith(("norm.", "head."))}
    state |= {f"backbone.stages.3.{k}": v for k, v in net.state_dict().items() if k.startswith("norm.")}
    state |= {f"head.fc.{k}": v for k, v in net.head.state_dict().items()}
    path = tmp_path_factory.mktemp("published") / "replknet_20221118.pth"
    torch.save({"state_dict": state, "meta": {}}, path)
    return path.as_uri()


# ---- the registry ----


def test_names_and_tags():
    assert timm.list_models("replknet*") == ["replknet_13", "replknet_31b", "replknet_31l", "replknet_xl"]
    assert timm.list_models("replknet*", pretrained=True) == [
        "replknet_31b.in1k",
        "replknet_31b.in1k_384",
        "replknet_31b.in21k_ft_in1k",
        "replknet_31b.in21k_ft_in1k_384",
        "replknet_31l.in21k_ft_in1k_384",
        "replknet_xl.meg73m_ft_in1k_320",
    ]
    assert get_pretrained_cfg("replknet_31b").tag == "in1k"
    with pytest.raises(RuntimeError, match="No pretrained weights exist for replknet_13"):
        timm.create_model("replknet_13", pretrained=True, **TINY)


def test_weights_and_preprocessing_are_those_of_the_page():
    addresses = {get_pretrained_cfg(name).url for name in timm.list_models("replknet*", pretrained=True)}
    assert addresses == {config.url for config in MODELS.values() if config.url}
    for config in MODELS.values():
        cfg = get_pretrained_cfg(f"replknet_{config.arch.lower()}.{plugin._tag(config)}")
        assert (cfg.url, cfg.input_size, cfg.mean, cfg.std) == (config.url, config.input_size, config.mean, config.std)
        assert math.floor(config.input_size[-1] / cfg.crop_pct) == config.resize
        assert (cfg.crop_mode, cfg.interpolation) == ("center" if config.crop else "squash", "bicubic")
        assert cfg.pool_size == (config.input_size[-1] // 32,) * 2


@pytest.mark.parametrize(
    ("name", "size", "mode", "mean"),
    [
        ("replknet_31b", 224, "center", 0.485),
        ("replknet_31b.in21k_ft_in1k_384", 384, "squash", 0.485),
        ("replknet_xl", 320, "center", 0.5),
    ],
)
def test_data_config_and_transform(name, size, mode, mean):
    from PIL import Image

    config = resolve_model_data_config(tiny(name))
    assert (config["input_size"], config["crop_mode"], config["mean"][0]) == ((3, size, size), mode, mean)
    # A picture, white on the left half: a squashed one keeps its border, a cropped one keeps its proportions.
    picture = Image.new("RGB", (800, 400))
    picture.paste((255, 255, 255), (0, 0, 100, 400))
    image = create_transform(**config)(picture)
    assert image.shape == (3, size, size)
    assert bool(image[0, size // 2, 0] > 1.9) == (mode == "squash")


# ---- the model ----


def test_arguments_of_create_model():
    model = timm.create_model(
        "replknet_31b.in21k_ft_in1k", **TINY, num_classes=7, in_chans=4, drop_path_rate=0.3, drop_rate=0.5
    )
    assert isinstance(model, RepLKNet)
    assert (model.num_classes, model.in_chans, model.num_features, model.head_hidden_size) == (7, 4, 24, 24)
    assert model.pretrained_cfg["tag"] == "in21k_ft_in1k"
    assert model.default_cfg["classifier"] == "head"
    assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == 4
    assert model.stages[3].blocks[-1].drop_path.rate == 0.3
    x = torch.ones(2, 4, 64, 64)
    model.stages.eval()  # so that only the dropout before the classifier is left
    assert model.drop_rate == 0.5
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert 0.2 < (pooled == 0).float().mean() < 0.8
    assert model.eval()(x).shape == (2, 7)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x)))
    assert model.forward_head(features, pre_logits=True).shape == (2, 24)


def test_device_and_dtype():
    model = timm.create_model("replknet_31b", **TINY, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    model.reset_classifier(3)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert model(IMAGES.to("meta", torch.bfloat16)).dtype == torch.bfloat16


def test_published_sizes():
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in timm.create_model(name).parameters())
            for name in ("replknet_31b", "replknet_31l", "replknet_xl", "replknet_13")
        }
    assert counts == {
        "replknet_31b": 79_864_168,
        "replknet_31l": 172_671_016,
        "replknet_xl": 335_435_752,
        "replknet_13": MODELS["replknet_13"].params,
    }


def test_weights_are_exchanged_with_the_package():
    ours = randomize(create_model("replknet_31b", **TINY)).eval()
    theirs = tiny()
    assert list(theirs.state_dict()) == list(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(theirs(IMAGES), ours(IMAGES))


def test_classifier_and_pooling():
    model = tiny(num_classes=5)
    map_ = model.forward_features(IMAGES)
    model.reset_classifier(3)
    assert model.get_classifier().out_features == 3
    model.reset_classifier(3, "max")
    torch.testing.assert_close(model(IMAGES), model.head(map_.amax((2, 3))))
    with pytest.raises(ValueError, match="level='full' needs global_pool='avg'; this model has 'max'"):
        model.switch_to_deploy("full")
    model.reset_classifier(0, "")
    assert torch.equal(model(IMAGES), map_)
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(IMAGES), map_.mean((2, 3)))
    assert not any(module.training for module in model.modules())
    model.reset_classifier(4, "")  # a classifier of each pixel
    torch.testing.assert_close(
        model(IMAGES), torch.einsum("nchw,kc->nkhw", map_, model.head.weight) + model.head.bias[:, None, None]
    )
    with pytest.raises(ValueError, match="global_pool must be avg, max, avgmax or ''; got 'gem'"):
        tiny(global_pool="gem")
    with pytest.raises(ValueError, match="out_indices needs features_only=True"):
        tiny(out_indices=(1,))
    folded = tiny(num_classes=5)
    before = folded(IMAGES)
    folded.switch_to_deploy("full")
    torch.testing.assert_close(folded(IMAGES), before, rtol=1e-4, atol=1e-4)


# ---- feature maps ----


def stage_outputs(model: RepLKNet) -> list[torch.Tensor]:
    """What the stages return, caught by hooks."""
    seen = {}
    hooks = [
        stage.register_forward_hook(lambda m, i, out, s=s: seen.update({s: out}))
        for s, stage in enumerate(model.stages)
    ]
    model(IMAGES)
    for hook in hooks:
        hook.remove()
    return [seen[stage] for stage in range(len(model.stages))]


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1,), (0, 2), (-1,), None])
def test_features_only(indices):
    kwargs = {} if indices is None else {"out_indices": indices}
    features = tiny(features_only=True, **kwargs)
    whole = tiny()
    features.model.load_state_dict(whole.state_dict(), strict=False)
    wanted = [i % 4 for i in indices or (0, 1, 2, 3)]
    assert features.feature_info.channels() == [TINY["channels"][i] for i in wanted]
    assert features.feature_info.reduction() == [REDUCTIONS[i] for i in wanted]
    maps = features(IMAGES)
    expected = stage_outputs(whole)
    assert len(maps) == len(wanted)
    for map_, index in zip(maps, wanted, strict=True):
        torch.testing.assert_close(map_, expected[index])
    # What is not needed is gone, so that a distributed training does not wait for its gradients.
    assert len(features.model.stages) == max(wanted) + 1
    assert not any(key.startswith(("model.norm", "model.head")) for key in features.state_dict())
    sum(m.sum() for m in features.train()(IMAGES)).backward()
    assert all(p.grad is not None for p in features.parameters())


def test_features_by_hooks():
    features = tiny(features_only=True, out_indices=(1, 3), feature_cls="hook")
    torch.testing.assert_close(features(IMAGES), [stage_outputs(features.body)[i] for i in (1, 3)])


def test_forward_intermediates():
    model = tiny()
    stages = stage_outputs(model)
    last, maps = model.forward_intermediates(IMAGES)
    torch.testing.assert_close(maps, stages)
    torch.testing.assert_close(last, model.forward_features(IMAGES))
    last, maps = model.forward_intermediates(IMAGES, indices=2, norm=True)
    torch.testing.assert_close(maps, [stages[2], model.norm(stages[3])])
    last, maps = model.forward_intermediates(IMAGES, indices=[1], stop_early=True)
    torch.testing.assert_close(maps, [stages[1]])
    torch.testing.assert_close(last, stages[1])
    assert isinstance(model.forward_intermediates(IMAGES, indices=[0], intermediates_only=True), list)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW'; got 'NLC'"):
        model.forward_intermediates(IMAGES, output_fmt="NLC")


# ---- weights ----


def test_pretrained_weights_from_an_address(checkpoint):
    overlay = {"url": checkpoint}
    model = timm.create_model("replknet_31b", pretrained=True, pretrained_cfg_overlay=overlay, **TINY).eval()
    state = torch.load(checkpoint.removeprefix("file://"))["state_dict"]
    assert torch.equal(model.head.weight, state["head.fc.weight"])
    assert torch.equal(model.norm.running_var, state["backbone.stages.3.norm.running_var"])
    key = "stages.2.blocks.2.large_kernel.lkb_origin.conv.weight"
    assert torch.equal(model.state_dict()[key], state[f"backbone.{key}"])

    other = timm.create_model(
        "replknet_31b", pretrained=True, pretrained_cfg_overlay=overlay, **TINY, num_classes=6, in_chans=1
    ).eval()
    assert other.head.weight.shape == (6, 24)
    torch.testing.assert_close(
        other.stem[0].conv.weight, state["backbone.stem.0.conv.weight"].sum(1, keepdim=True), rtol=1e-5, atol=1e-6
    )
    gray = IMAGES[:, :1]
    torch.testing.assert_close(
        other.forward_features(gray), model.forward_features(gray.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4
    )

    features = timm.create_model(
        "replknet_31b", pretrained=True, pretrained_cfg_overlay=overlay, **TINY, features_only=True, out_indices=(0, 2)
    ).eval()
    stages = stage_outputs(model)
    torch.testing.assert_close(features(IMAGES), [stages[0], stages[2]])

    merged = timm.create_model(
        "replknet_31b", pretrained=True, pretrained_cfg_overlay=overlay, **TINY, small_kernel_merged=True
    ).eval()
    torch.testing.assert_close(merged(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-3)


def test_weights_of_another_architecture_are_refused(checkpoint):
    with pytest.raises(CheckpointError, match="layers"):
        timm.create_model(
            "replknet_31b",
            pretrained=True,
            pretrained_cfg_overlay={"url": checkpoint},
            **TINY | {"layers": (1, 1, 1, 1)},
        )


def test_saved_by_timm_and_loaded_again(tmp_path):
    model = tiny("replknet_31b.in1k_384", num_classes=4)
    timm.models.save_for_hf(model, str(tmp_path), model_args=TINY, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "replknet_31b"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert again.pretrained_cfg["crop_mode"] == "squash"


# ---- training and deployment ----


def test_layer_decay():
    model = tiny(num_classes=5)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in model.named_parameters()}
    assert scale.keys() == names.keys()
    by_part: dict[str, set[float]] = {}
    for key, name in names.items():
        part = name.split(".blocks")[0] if name.startswith(("stages", "transitions")) else name.split(".")[0]
        by_part.setdefault(".".join(part.split(".")[:2]), set()).add(scale[key])
        assert decay[key] == (0.05 if model.get_parameter(name).ndim > 1 else 0.0), name
    assert by_part["head"] == by_part["norm"] == {1.0}
    order = ["stem", "stages.0", "transitions.0", "stages.1", "transitions.1", "stages.2", "transitions.2", "stages.3"]
    assert len(by_part["stem"]) == 1
    for before, after in zip(order, [*order[1:], "head"], strict=True):
        assert max(by_part[before]) <= min(by_part[after]), (before, after)
    assert max(by_part["stem"]) < min(by_part["stages.0"]) < min(by_part["stages.3"]) < 1
    assert len(by_part["stages.2"]) == 4  # a scale for each block


def test_gradient_checkpointing():
    model = tiny().train()
    reference = tiny().train()
    reference.load_state_dict(model.state_dict())
    model.set_grad_checkpointing(True)
    for network in (model, reference):
        network(IMAGES).square().sum().backward()
    for (name, one), two in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_timms_own_reparameterization():
    for model in (tiny(), tiny(features_only=True, out_indices=(0, 2))):
        before = model(IMAGES)
        merged = reparameterize_model(model)
        torch.testing.assert_close(merged(IMAGES), before, rtol=1e-3, atol=1e-4)
        assert not any("lkb_origin" in name for name, _ in merged.named_modules())
        assert any("lkb_origin" in name for name, _ in model.named_modules())


# ---- without timm ----


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ModuleNotFoundError("No module named 'timm'", name="timm"),
            r"this needs timm: pip install 'replknet_ext\[timm\]'",
        ),
        (
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            "timm needs torchvision: pip install",
        ),
        (RuntimeError("operator torchvision::nms does not exist"), "torchvision is built for another torch"),
    ],
)
def test_missing_or_broken_timm(error, message, monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "timm":
                raise error

    for name in list(sys.modules):
        if name.split(".")[0] == "timm" or name == plugin.__name__:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(ImportError, match=message):
        importlib.import_module(plugin.__name__)


@pytest.mark.parametrize("indices", [5, 8, 0, -1, (4,), (-5,), ()])
def test_stages_that_are_not_there(indices):
    model = tiny()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match="indices must name stages from 0 to 3"):
        model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=indices)
    with pytest.raises(ValueError, match="indices must name stages from 0 to 3"):
        model.prune_intermediate_layers(indices)
    assert list(model.state_dict()) == keys
    with pytest.raises(ValueError, match="indices must name stages from 0 to 3"):
        tiny(features_only=True, out_indices=indices)


def test_pruned_models_stay_in_their_mode():
    model = tiny()
    model.prune_intermediate_layers([1])
    assert not any(module.training for module in model.modules())
