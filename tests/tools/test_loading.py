"""The model that a command works with, from a name, a checkpoint, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models_common import SMALL, relative_error
from tools_common import checkpoint

from replknet_ext.data.transforms import IMAGENET_MEAN, Preprocessing
from replknet_ext.errors import ToolError, UsageError
from replknet_ext.models import RepLKNet, convert_checkpoint
from replknet_ext.tools import loading

NAME = "replknet_31b"


@pytest.fixture
def small_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published names build a small network: the real ones take a gigabyte."""
    monkeypatch.setattr(loading, "get_model", lambda name, **kwargs: RepLKNet(SMALL, **kwargs))


@pytest.mark.usefixtures("small_names")
@pytest.mark.parametrize("name", [None, NAME])
@pytest.mark.parametrize("form", ["same", "merged", "full"])
@pytest.mark.parametrize("deploy", [None, "merge", "full"])
def test_every_form_of_a_checkpoint(tmp_path: Path, name: str | None, form: str, deploy: Any) -> None:
    weights = checkpoint(tmp_path / "train.pth", num_classes=21, in_chans=1)
    convert_checkpoint(weights, tmp_path / "other.safetensors", form=form, to="official")
    x = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        expected = loading.load(None, str(weights)).model.double()(x.double())
        found = loading.load(name, str(tmp_path / "other.safetensors"), deploy=deploy)
        assert not found.model.training
        assert relative_error(found.model(x), expected) < 1e-4
    assert found.model.num_classes == 21 == len(found.names)
    level = max(("same", "merge", "full").index(part) for part in (form.replace("merged", "merge"), deploy or "same"))
    assert found.model.deploy_level == (None, "merge", "full")[level]


def test_an_architecture_without_a_name_is_prepared_as_published() -> None:
    with torch.device("meta"):
        models = {arch: RepLKNet(arch) for arch in ("31B", "XL")}
    for arch, size, mean in [("31B", 224, IMAGENET_MEAN), ("XL", 320, (0.5, 0.5, 0.5))]:
        with pytest.warns(UserWarning, match=": 64 pixels; --model"):
            loading._like_published(models[arch], 64)
        with pytest.warns(UserWarning, match=f"{size} pixels; --model NAME changes it"):
            found = Preprocessing.of(loading._like_published(models[arch]))
        assert (found.size, found.mean) == ((size, size), mean)


def test_preprocessing_can_be_changed(tmp_path: Path) -> None:
    weights = str(checkpoint(tmp_path / "small.pth", num_classes=3))
    found = loading.load(None, weights, input_size=400, mean=[0.5], std=[0.1, 0.2, 0.3]).preprocessing
    assert found == Preprocessing((400, 400), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), crop=False)
    with pytest.raises(UsageError, match="input size"):
        loading.load(None, weights, input_size=0)


def test_devices() -> None:
    assert loading.device_of("auto").type in ("cpu", "cuda")
    assert loading.device_of("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        loading.device_of("gpu")
    with pytest.raises(ToolError, match=r"no device 'cuda:99': torch sees \d+ GPUs"):
        loading.device_of("cuda:99")
    with pytest.raises(UsageError, match="unknown dtype 'int8'"):
        loading.dtype_of("int8")
