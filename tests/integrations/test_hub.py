"""`replknet_ext.integrations.hub`: save_pretrained, from_pretrained, push_to_hub; nothing here reaches the network."""

from __future__ import annotations

import json
import shutil
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from models_common import SMALL, randomize
from safetensors import safe_open

from replknet_ext.integrations import hub
from replknet_ext.models import MODELS, CheckpointError, RepLKNet, model_from_checkpoint


def small(**kwargs) -> RepLKNet:
    return randomize(RepLKNet(SMALL, **kwargs)).eval()


@pytest.mark.parametrize("level", [None, "merge", "full"])
def test_round_trip_at_every_deploy_level(level, tmp_path):
    model = small(num_classes=5, in_chans=4, drop_path_rate=0.25)
    model.pretrained_cfg = MODELS["replknet_xl"]
    if level is not None:
        model.switch_to_deploy(level)
    before = dict(model.__dict__)
    hub.save_pretrained(model, tmp_path)
    assert model.__dict__ == before
    assert type(model) is RepLKNet
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())

    again = hub.from_pretrained(tmp_path)
    assert isinstance(again, RepLKNet)
    assert not again.training
    assert again.deploy_level == level
    assert (again.config, again.num_classes, again.in_chans) == (SMALL, 5, 4)
    assert again.pretrained_cfg == model.pretrained_cfg
    assert hub.hub_config(again) == hub.hub_config(model)
    assert hub.hub_config(again)["drop_path_rate"] == 0.25
    x = torch.randn(2, 4, 24, 20)
    assert torch.equal(again(x), model(x))


def test_config_is_of_the_model_as_it_is_now(tmp_path):
    model = hub.HubRepLKNet(SMALL, num_classes=7)
    model.reset_classifier(3)
    model.switch_to_deploy()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_classes"], config["deploy_level"]) == (3, "merge")
    assert config["arch"]["large_kernel_sizes"] == [13, 9]
    again = hub.HubRepLKNet.from_pretrained(tmp_path)
    assert type(again) is hub.HubRepLKNet
    assert again.head.out_features == 3


def test_backbone_round_trip(tmp_path):
    model = small(out_indices=(0, 1), norm_intermediate_features=True)
    hub.save_pretrained(model, tmp_path)
    again = hub.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 24, 20)
    assert again.out_indices == (0, 1)
    assert all(map(torch.equal, again(x), model(x)))


def test_another_use_of_the_same_weights(tmp_path):
    model = small(num_classes=5)
    hub.save_pretrained(model, tmp_path)
    x = torch.randn(1, 3, 24, 20)

    with pytest.warns(UserWarning, match="classifier for 5 classes; that for num_classes=8 is freshly initialised"):
        tuned = hub.from_pretrained(tmp_path, num_classes=8, drop_path_rate=0.5)
    assert tuned(x).shape == (1, 8)
    assert tuned.stages[1].blocks[-1].drop_path.rate == 0.5
    torch.testing.assert_close(tuned.forward_features(x), model.forward_features(x))

    maps = hub.from_pretrained(tmp_path, out_indices=(1,))(x)
    torch.testing.assert_close(model.norm(maps[0]), model.forward_features(x))


def test_push_to_hub_uploads_the_same_folder(tmp_path, monkeypatch):
    class Api:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, private=None, exist_ok=False):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **kwargs):
            shutil.copytree(folder_path, tmp_path / "there")
            return f"commit in {repo_id}"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    model = small(num_classes=5)
    assert hub.push_to_hub(model, "someone/replknet-small", token="secret") == "commit in someone/replknet-small"
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert "library_name: replknet_ext" in (tmp_path / "there" / "README.md").read_text()

    def download(repo_id: str, filename: str, **kwargs) -> str:
        assert (repo_id, kwargs["revision"]) == ("someone/replknet-small", "v1")
        return str(tmp_path / "there" / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    again = hub.from_pretrained("someone/replknet-small", revision="v1")
    x = torch.randn(1, 3, 24, 20)
    assert torch.equal(again(x), model(x))


def test_what_does_not_fit_is_said(tmp_path):
    hub.save_pretrained(small(num_classes=5), tmp_path)
    with pytest.raises(TypeError, match="unknown argument 'classes'; known are num_classes, out_indices"):
        hub.from_pretrained(tmp_path, classes=3)
    with pytest.raises(TypeError, match="model must be a RepLKNet; got Linear"):
        hub.save_pretrained(torch.nn.Linear(2, 2), tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())
    config["arch"]["layers"] = [1, 1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        hub.from_pretrained(tmp_path)

    for content in (None, "{}"):
        (tmp_path / "config.json").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"is no RepLKNet saved by save_pretrained: config\.json is missing or"):
            hub.from_pretrained(tmp_path)


@pytest.mark.parametrize("level", [None, "merge", "full"])
def test_ratios_that_are_no_quotient_of_channels(tmp_path, level):
    model = RepLKNet(SMALL, dw_ratio=1.1, ffn_ratio=2.67, num_classes=5).eval()
    if level:
        model.switch_to_deploy(level)
    hub.save_pretrained(model, tmp_path)
    again = hub.from_pretrained(tmp_path)
    assert again.config == model.config
    x = torch.randn(1, 3, 24, 20)
    assert torch.equal(again(x), model(x))
    assert torch.equal(model_from_checkpoint(tmp_path).eval()(x), model(x))  # the folder is a checkpoint, too


def test_integers_of_numpy(tmp_path):
    """JSON has no such numbers, and the model none either."""
    for options in ({"num_classes": np.int64(5), "in_chans": np.int64(1)}, {"out_indices": [np.int64(-1)]}):
        hub.save_pretrained(RepLKNet(SMALL, **options), tmp_path)
        again = hub.from_pretrained(tmp_path)
        assert (again.num_classes, again.out_indices) in ((5, None), (None, (1,)))


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, hub.__name__)
    with pytest.raises(ImportError, match=r"this needs huggingface_hub: pip install 'replknet_ext\[hub\]'"):
        __import__(hub.__name__)
