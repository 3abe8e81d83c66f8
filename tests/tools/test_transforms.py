"""Pictures to inputs: the official evaluation preprocessing, and everything that people hand in as a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tools_common import gradient_picture, photo

from replknet_ext.data import transforms
from replknet_ext.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, open_image, pictures, to_image
from replknet_ext.errors import ToolError
from replknet_ext.models import MODELS, get_model

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "size", "resized", "corner"),
    [
        ("chelsea", 224, (384, 256), (80, 16)),  # 451 x 300: int(256 * 451 / 300) = 384
        ("chelsea", 320, (548, 365), (114, 22)),  # int(320 / 0.875) = 365, as XL's; 22.5 goes to the even 22
        ("astronaut", 224, (256, 256), (16, 16)),
        ("rocket", 320, (547, 365), (114, 22)),  # 113.5 goes to the even 114
    ],
)
def test_short_side_and_centre(name: str, size: int, resized: tuple[int, int], corner: tuple[int, int]) -> None:
    image = photo(name)
    left, top = corner
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    fitted = Preprocessing((size, size)).fit(image)
    assert np.array_equal(np.asarray(fitted), np.asarray(expected))


def test_warp_and_arithmetic() -> None:
    image = photo("coffee")
    out = Preprocessing((384, 384), HALF, (0.25, 0.5, 1.0), crop=False)(image)
    pixels = np.asarray(image.resize((384, 384), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = ((pixels - 0.5) / [0.25, 0.5, 1.0]).transpose(2, 0, 1)
    assert out.dtype == torch.float32 and out.shape == (3, 384, 384)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["chelsea", "rocket", "retina", "coins"])
@pytest.mark.parametrize(("size", "crop"), [(224, True), (320, True), (97, True), (384, False)])
def test_it_is_what_torchvision_does(name: str, size: int, crop: bool) -> None:
    tv = pytest.importorskip("torchvision.transforms", exc_type=(ImportError, RuntimeError))
    bicubic = Image.Resampling.BICUBIC
    fit = [tv.Resize(int(size / 0.875), bicubic), tv.CenterCrop(size)] if crop else [tv.Resize((size, size), bicubic)]
    theirs = tv.Compose([*fit, tv.ToTensor(), tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(photo(name).convert("RGB"))
    assert torch.equal(Preprocessing((size, size), crop=crop)(photo(name)), theirs)


@pytest.mark.parametrize(
    ("name", "size", "mean", "std", "crop"),
    [
        ("replknet-31B_3rdparty_in1k", 224, IMAGENET_MEAN, IMAGENET_STD, True),
        ("replknet-31B_3rdparty_in1k-384px", 384, IMAGENET_MEAN, IMAGENET_STD, False),
        ("replknet-XL_meg73m-pre_3rdparty_in1k-320px", 320, HALF, HALF, True),
    ],
)
def test_published_models(name: str, size: int, mean: tuple[float, ...], std: tuple[float, ...], crop: bool) -> None:
    model = SimpleNamespace(pretrained_cfg=MODELS[name], in_chans=3)
    assert Preprocessing.of(model) == Preprocessing((size, size), mean, std, crop)


def test_a_model_built_by_name_knows_its_preprocessing() -> None:
    with torch.device("meta"):
        model = get_model("replknet_31b", num_classes=3)
    assert Preprocessing.of(model) == Preprocessing((224, 224), IMAGENET_MEAN, IMAGENET_STD, True)


@pytest.mark.parametrize(
    ("name", "size", "crop"),
    [
        ("replknet-31B_3rdparty_in1k", 384, False),
        ("replknet-31B_3rdparty_in1k", 383, True),
        ("replknet-31B_3rdparty_in1k-384px", 224, True),
        ("replknet-31B_3rdparty_in1k-384px", 384, False),
        ("replknet-31B_3rdparty_in1k", 32, False),
    ],
)
def test_another_size_brings_its_own_rule(name: str, size: int, crop: bool) -> None:
    found = Preprocessing.of(SimpleNamespace(pretrained_cfg=MODELS[name], in_chans=3), size)
    assert (found.size, found.crop) == ((size, size), crop)


def test_grey_models_and_impossible_ones() -> None:
    grey = Preprocessing.of(SimpleNamespace(pretrained_cfg=MODELS["replknet_31b"], in_chans=1))
    assert (grey.mean, grey.std) == ((0.5,), (0.5,))
    assert grey(photo("chelsea")).shape == (1, 224, 224)
    with pytest.raises(ToolError, match="this model takes 4"):
        Preprocessing.of(SimpleNamespace(in_chans=4))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"size": (0, 5), "crop": False}, "size must be"),
        ({"mean": (0.5, 0.5)}, "1 or 3 values"),
        ({"std": (1.0,)}, "1 or 3 values"),
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
        ({"size": (224, 192)}, "square"),
    ],
)
def test_wrong_preprocessing(kwargs: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Preprocessing(**kwargs)  # type: ignore[arg-type]


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    photo("chelsea").save(whole)
    cut, text, empty = tmp_path / "cut.png", tmp_path / "text.jpg", tmp_path / "empty.png"
    cut.write_bytes(whole.read_bytes()[:5000])
    text.write_text("not a picture")
    empty.touch()
    for path, words in [
        (cut, "cannot be read: .*truncated"),
        (text, "not a picture"),
        (empty, "not a picture"),
        (tmp_path, "not a file"),
        (tmp_path / "none.png", "no such file or folder"),
    ]:
        with pytest.raises(ToolError, match=words):
            open_image(path)


def test_a_camera_held_upright(tmp_path: Path) -> None:
    image = gradient_picture(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (40, 60)
    assert open_image(tmp_path / "turned.png", exif=False).size == (60, 40)


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "deep.png")
    out = Preprocessing((64, 64), HALF, HALF, crop=False)(open_image(tmp_path / "deep.png"))
    np.testing.assert_allclose(out[0].numpy(), values / 65535 * 2 - 1, atol=2 / 255)


def test_arrays_and_pillow_images_are_the_same_picture() -> None:
    image = gradient_picture(50, 70)
    array = np.asarray(image)
    opaque = np.concatenate([array, np.full((50, 70, 1), 255, np.uint8)], -1)
    for same in (image, array, opaque, array.astype(np.float32) / 255, array.astype(np.float64) / 255):
        assert np.array_equal(np.asarray(to_image(same).convert("RGB")), array)
    bgr = np.ascontiguousarray(array[..., ::-1])
    assert np.array_equal(np.asarray(to_image(bgr, channel_order="bgr")), array)
    grey = array[..., 0]
    for same in (grey, grey[..., None]):
        assert np.array_equal(np.asarray(to_image(same)), grey)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int64), ValueError, "int64"),
        (np.full((4, 4, 3), 2.0), ValueError, r"\[0, 1\]"),
        (np.full((4, 4, 3), np.nan), ValueError, r"\[0, 1\]"),
        (torch.zeros(3, 4, 4), TypeError, "Tensor"),
        ("nowhere.png", ToolError, "nowhere.png: no such file"),
    ],
)
def test_what_is_no_picture(source: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        to_image(source)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channel_order"):
        to_image(np.zeros((4, 4, 3), np.uint8), channel_order="gbr")


def test_folders_are_searched(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a.webp", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = pictures([tmp_path / "b" / "2.JPG", tmp_path, "missing.png"])
    assert [str(path.relative_to(tmp_path)) for path in found[:-1]] == ["b/2.JPG", "a.webp", "b/1.png"]
    assert found[-1] == Path("missing.png"), "a file that is named is reported later, not dropped"


def test_a_broken_pillow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ToolError, match=r"Pillow is not installed: pip install 'replknet_ext\[cli\]'"):
        transforms.open_image("x.png")
