"""A network trained here, through the commands: evaluate, reparam and predict agree about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from tools_common import cli

from examples import demo_digits
from replknet_ext.models import RepLKNetConfig, save_checkpoint

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CONFIG = RepLKNetConfig((9, 5), (1, 1), (16, 32), small_kernel=3, ffn_ratio=2.0, stem_strides=(2, 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """A checkpoint, the held-out digits as a folder of pictures, and the accuracy on their tensors."""
    root = tmp_path_factory.mktemp("digits")
    digits = demo_digits.load_digits()
    model = demo_digits.train(digits, 3, config=CONFIG)
    images, labels = digits.test
    # Pictures have 256 levels; the accuracy is of what is in them.
    pixels = ((images + 1) * 127.5).round()
    with torch.inference_mode():
        accuracy = 100 * float((model(pixels / 127.5 - 1).argmax(1) == labels).double().mean())
    for index, (picture, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        folder = root / "data" / "val" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0].byte().numpy()).save(folder / f"{index:03}.png")
    (root / "names.txt").write_text("\n".join(NAMES))
    return save_checkpoint(model, root / "digits.pth"), root / "data", accuracy


@pytest.mark.slow
@pytest.mark.xdist_group("digits")
def test_the_same_accuracy_in_every_form(trained: tuple[Path, Path, float], tmp_path: Path) -> None:
    weights, data, accuracy = trained
    assert accuracy > 90
    common = ("--input-size", 16, "--workers", 0)
    report = cli.json("evaluate", data, "-c", weights, *common)
    assert report["images"] == 360 and report["classes"] == 10
    assert report["top1"] == pytest.approx(accuracy)
    counts = {(report["correct1"], report["correct5"])}
    for level, target in [("merge", tmp_path / "merged.pth"), ("full", tmp_path / "full.safetensors")]:
        cli("reparam", weights, target, "--deploy", level)
        again = cli.json("evaluate", data, "-c", target, *common)
        counts.add((again["correct1"], again["correct5"]))
    for level in ("merge", "full"):
        again = cli.json("evaluate", data, "-c", weights, "--deploy", level, *common)
        counts.add((again["correct1"], again["correct5"]))
    assert len(counts) == 1, counts
    low = cli.json("evaluate", data, "-c", weights, "--amp", "bf16", *common)
    assert abs(low["top1"] - accuracy) < 2


@pytest.mark.slow
@pytest.mark.xdist_group("digits")
def test_predict_says_the_same(trained: tuple[Path, Path, float]) -> None:
    weights, data, accuracy = trained
    names = data.parent / "names.txt"
    report = cli.json("predict", data / "val", "-c", weights, "--input-size", 16, "--classes", names, "-k", 1)
    right = [entry["pred_class"] == NAMES[int(Path(entry["path"]).parent.name)] for entry in report["images"]]
    assert len(right) == 360 and 100 * sum(right) / 360 == pytest.approx(accuracy)


@pytest.mark.slow
@pytest.mark.xdist_group("digits")
def test_folders_with_names(trained: tuple[Path, Path, float], tmp_path: Path) -> None:
    """Sorted, these folders would be in another order than the classes."""
    weights, data, accuracy = trained
    for label, name in enumerate(NAMES):
        (tmp_path / name).symlink_to(data / "val" / str(label))
    common = ("--input-size", 16, "--workers", 0)
    named = cli.json("evaluate", tmp_path, "-c", weights, "--classes", data.parent / "names.txt", *common)
    assert named["top1"] == pytest.approx(accuracy)
    assert cli.json("evaluate", tmp_path, "-c", weights, *common)["top1"] < 50
