"""Pictures as they come: links, depths, shapes, cameras, damaged bytes, and formats that start programs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models_common import SMALL
from PIL import Image
from tools_common import gradient_picture
from torch import nn

from replknet_ext.data import transforms
from replknet_ext.data.folder import find_images
from replknet_ext.data.transforms import Preprocessing, open_image, pictures_below, to_image
from replknet_ext.errors import ToolError
from replknet_ext.models import RepLKNet
from replknet_ext.tools import evaluate, predict

WARP = Preprocessing((16, 16), (0.0,) * 3, (1.0,) * 3, crop=False)


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    gradient_picture(8, 8).save(path)
    return path


# ---- links ----


def test_links_that_lead_back_find_nothing_twice(tmp_path: Path) -> None:
    files = [write(tmp_path / name / "picture.png") for name in "abcde"]
    (tmp_path / "a" / "self").symlink_to(tmp_path)
    (tmp_path / "b" / "back").symlink_to("..")
    (tmp_path / "self").symlink_to(".")
    assert pictures_below(tmp_path) == files


def test_a_linked_folder_is_found_where_it_lies(tmp_path: Path) -> None:
    """Under the class folder that holds it, not under one that sorts before it and has a link to it."""
    outside = write(tmp_path / "outside" / "far.png")
    own, other = write(tmp_path / "data" / "b" / "own.png"), write(tmp_path / "data" / "a" / "other.png")
    (tmp_path / "data" / "a" / "link").symlink_to(own.parent)
    (tmp_path / "data" / "c").symlink_to(outside.parent)
    assert pictures_below(tmp_path / "data") == [other, own, tmp_path / "data" / "c" / "far.png"]


def test_each_picture_counts_once(tmp_path: Path) -> None:
    for name in "abcde":
        write(tmp_path / name / "picture.png")
    (tmp_path / "a" / "self").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path)
    items, classes = find_images(tmp_path, 5)
    assert [label for _, label in items] == [0, 1, 2, 3, 4] and classes == 5


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = write(tmp_path / "open" / "picture.png")
    write(tmp_path / "shut" / "picture.png")
    scan = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match="shut is left out: Permission denied"):
        assert pictures_below(tmp_path) == [seen]


# ---- depths and modes ----

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def deep_pgm() -> bytes:
    return b"P5 16 16 65535\n" + (RAMP.astype(">u2") * 257).tobytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("16.png", RAMP.astype(np.uint16) * 257),
        ("16.tif", RAMP.astype(np.uint16) * 257),
        ("16.pgm", deep_pgm()),
        ("float.tif", RAMP.astype(np.float32) / 255),
        ("8.png", RAMP),
    ],
)
def test_depths_show_the_same_picture(tmp_path: Path, name: str, content: np.ndarray | bytes) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    fed = WARP(open_image(path))
    np.testing.assert_allclose(fed.numpy(), np.broadcast_to(RAMP / 255, (3, 16, 16)), atol=1e-6)
    predict.annotate(predict.Prediction(path, ((0, 1.0, "x"),)), tmp_path / "out.png")
    shown = np.asarray(Image.open(tmp_path / "out.png").convert("L"), dtype=float)[:640]
    assert shown.mean() == pytest.approx(127.5, abs=2)


def test_a_png_that_pillow_widens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow 10 opens 16-bit PNG as 32-bit integers."""
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "16.png")
    plugin = type(Image.open(tmp_path / "16.png"))
    load = plugin.load

    def wide(self: Image.Image) -> object:
        found = load(self)
        if self.mode == "I;16":
            self.im, self._mode = self.im.convert("I", 0), "I"
        return found

    monkeypatch.setattr(plugin, "load", wide)
    np.testing.assert_allclose(WARP(open_image(tmp_path / "16.png"))[0].numpy(), RAMP / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP.astype(np.int32) * 1000, "signed or 32-bit integers have no known range"),
        (RAMP.astype(np.float32), r"floating values must be in \[0, 1\], and here they are in \[0, 255\]"),
        (RAMP.astype(np.float32) - 1, r"here they are in \[-1, 254\]"),
        (np.full((4, 4), np.nan, np.float32), "here they are not finite"),
    ],
)
def test_ranges_that_nobody_knows_are_refused(tmp_path: Path, values: np.ndarray, words: str) -> None:
    path = tmp_path / "strange.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ToolError, match=words):
        WARP(open_image(path))
    with pytest.raises(ToolError, match=words):
        predict.annotate(predict.Prediction(path, ((0, 1.0, "x"),)), tmp_path / "out.png")
    results = list(predict.predict_files(Mean(), [path, write(tmp_path / "good.png")], WARP, "abc"))
    assert [type(result).__name__ for result in results] == ["Unreadable", "Prediction"]


class Mean(nn.Module):
    """Classifies by nothing: the three channels' means."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_a_mode_that_pillow_cannot_convert_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*arguments: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")  # as Pillow 10

    Image.merge("LAB", [Image.new("L", (8, 8), 99)] * 3).save(tmp_path / "lab.tif")
    monkeypatch.setattr(Image.Image, "convert", convert)
    (result,) = predict.predict_files(Mean(), [tmp_path / "lab.tif"], WARP, "abc")
    assert isinstance(result, predict.Unreadable) and "LAB" in result.error
    assert evaluate.ImageFolder([(tmp_path / "lab.tif", 0)], WARP)[0] == (None, 0, 0)


# ---- shapes ----


@pytest.mark.parametrize(
    "size",
    [pytest.param(size, marks=pytest.mark.slow) for size in ((20000, 1), (1, 20000), (2_000_000, 2))]
    + [(1, 3_000_000)],
)
def test_thin_pictures_take_no_gigabytes(tmp_path: Path, size: tuple[int, int]) -> None:
    """In a process of its own, whose memory is limited."""
    picture = tmp_path / "thin.png"
    Image.new("RGB", size, (50, 100, 150)).save(picture)
    program = f"""
import resource, sys
from pathlib import Path
from replknet_ext.tools import predict
from replknet_ext.data.transforms import Preprocessing, open_image
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {600 << 20},) * 2)
path = Path({str(picture)!r})
for crop in (True, False):
    out = Preprocessing((224, 224), (0., 0., 0.), (1., 1., 1.), crop)(open_image(path))
    assert out.shape == (3, 224, 224) and [round(float(v) * 255) for v in out[:, 100, 100]] == [50, 100, 150]
predict.annotate(predict.Prediction(path, ((0, 1.0, "x"),)), {str(tmp_path / "out.png")!r})
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out.png").height < 1400


def test_the_centre_alone_is_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    image = gradient_picture(900, 300).crop((0, 0, 250, 900))
    whole = Preprocessing((64, 64)).fit(image)
    monkeypatch.setattr(transforms, "LARGEST_MAP", 0)
    centre = Preprocessing((64, 64)).fit(image)
    difference = np.abs(np.asarray(whole).astype(int) - np.asarray(centre).astype(int))
    assert (difference > 8).mean() < 0.02, "the gradient's step from 255 to 0 may lie a fraction of a pixel aside"


def test_no_memory_for_a_picture_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(*arguments: object) -> None:
        raise MemoryError

    path = write(tmp_path / "large.png")
    monkeypatch.setattr(transforms, "_resize", resize)
    with pytest.raises(ToolError, match="not enough memory"):
        WARP(open_image(path))


# ---- cameras, damaged bytes, programs ----


def test_exif_is_the_same_from_a_path_and_an_image(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient_picture(96, 128).save(path, exif=exif)
    assert to_image(path).size == to_image(Image.open(path)).size == to_image(open_image(path)).size == (96, 128)
    model = RepLKNet(SMALL, num_classes=3).eval()
    by_path = predict.inference_model(model, path, input_size=64)["pred_scores"]
    assert np.array_equal(by_path, predict.inference_model(model, Image.open(path), input_size=64)["pred_scores"])


def test_whatever_pillow_raises_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import struct

    path = write(tmp_path / "damaged.png")
    for error in (struct.error("unpack requires 4 bytes"), KeyError(3), ZeroDivisionError(), IndexError("x")):

        def load(self: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(type(Image.open(path)), "load", load)
        with pytest.raises(ToolError, match="cannot be read: "):
            open_image(path)


def test_eps_under_another_name_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a) or Image.new("RGB", (8, 8)).im)
    path = tmp_path / "eps.png"
    gradient_picture(8, 8).save(path, "EPS")
    with pytest.raises(ToolError, match="not a picture that Pillow can read"):
        open_image(path)
    assert not started


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000", "TGA"])
def test_usual_formats_are_read_whatever_the_suffix(tmp_path: Path, kind: str) -> None:
    gradient_picture(8, 8).save(tmp_path / "picture.png", kind)
    assert open_image(tmp_path / "picture.png").size == (8, 8)


def test_standard_input_is_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(write(tmp_path / "picture.png").read_bytes())

    transforms._stdin.cache_clear()
    monkeypatch.setattr(sys, "stdin", Stdin())
    assert [open_image("-").size for _ in range(2)] == [(8, 8), (8, 8)], "it can be had again, for annotating"
    transforms._stdin.cache_clear()
