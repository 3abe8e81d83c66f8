"""Accuracy on a folder: the layouts, the counts, and the counts of several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tools_common import checkpoint, gradient_picture
from torch import Tensor, nn

from replknet_ext.data.folder import find_images
from replknet_ext.data.transforms import Preprocessing
from replknet_ext.errors import ToolError, UsageError
from replknet_ext.tools import evaluate as tool

GREY = Preprocessing((4, 4), (0.0,), (1.0,), crop=False)
CLASSES = 7


class Reader(nn.Module):
    """Classifies pictures of one grey value v as class v // 10, then class v % 10, then by number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dtypes: set[torch.dtype] = set()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.dtypes.add(self.linear(x[:, 0, 0, :1]).dtype)
        values = (x[:, 0, 0, 0] * 255 * self.scale).round().long()
        logits = -torch.arange(CLASSES).float().repeat(len(x), 1)
        logits[torch.arange(len(x)), values % 10] = 1
        logits[torch.arange(len(x)), values // 10] = 2
        return logits


def write(folder: Path, values: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        Image.new("L", (4, 4), value).save(folder / f"{number:02}.png")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Eleven pictures whose labels are the best class 5 times, among the best five 9 times."""
    write(tmp_path / "val" / "0", [1, 1, 34])
    write(tmp_path / "val" / "3", [30, 13, 12])
    write(tmp_path / "val" / "6" / "deep", [60, 61, 12, 16])
    write(tmp_path / "val" / "5", [12])
    for empty in ("1", "2", "4"):
        (tmp_path / "val" / empty).mkdir()
    return tmp_path


def expected(values: list[tuple[int, int]]) -> tuple[int, int]:
    """Counts of top-1 and top-5 by the definition of `Reader`, of (grey value, label)."""
    ranks = []
    for value, label in values:
        order = list(dict.fromkeys([value // 10, value % 10, *range(CLASSES)]))
        ranks.append(order.index(label))
    return sum(rank == 0 for rank in ranks), sum(rank < 5 for rank in ranks)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (64, 2)])
def test_counts(planted: Path, batch_size: int, workers: int) -> None:
    items, classes = find_images(planted, CLASSES)
    assert [label for _, label in items] == [0, 0, 0, 3, 3, 3, 5, 6, 6, 6, 6]
    seen: list[tuple[int, int, int]] = []
    result = tool.evaluate(
        Reader().eval(), items, GREY, classes=classes, batch_size=batch_size, workers=workers,
        on_batch=lambda *counts: seen.append(counts),
    )  # fmt: skip
    values = [(int(Image.open(path).getpixel((0, 0))), label) for path, label in items]  # type: ignore[arg-type]
    assert (result.correct1, result.correct5) == expected(values) == (5, 9)
    assert (result.images, result.classes, result.topk, result.processes) == (11, 7, 5, 1)
    assert seen[-1] == (11, 5, 9) and len(seen) == -(-11 // batch_size)
    assert (result.top1, result.top5) == (100 * 5 / 11, 100 * 9 / 11)


def test_an_interrupted_run_has_the_figures_so_far(planted: Path) -> None:
    items, classes = find_images(planted, CLASSES)

    def interrupt(images: int, correct1: int, correct5: int) -> None:
        if images == 4:
            raise KeyboardInterrupt

    def run(here: tool.Team | None) -> tool.Result:
        return tool.evaluate(
            Reader().eval(), items, GREY, classes=classes, batch_size=2, workers=0, here=here, on_batch=interrupt
        )

    result = run(None)
    values = [(int(Image.open(path).getpixel((0, 0))), label) for path, label in items[:4]]  # type: ignore[arg-type]
    assert result.interrupted and result.images == 4 and (result.correct1, result.correct5) == expected(values)
    with pytest.raises(KeyboardInterrupt):  # the others' counts are not known
        run(tool.Team(0, 2))


def test_unreadable_pictures_do_not_count(planted: Path) -> None:
    broken = planted / "val" / "0" / "00.png"
    broken.write_text("broken")
    items, classes = find_images(planted, CLASSES)
    result = tool.evaluate(Reader(), items, GREY, classes=classes, batch_size=1, workers=0)
    assert (result.images, result.correct1, result.correct5) == (10, 4, 8)
    assert result.unreadable == (str(broken),)
    with pytest.raises(ToolError, match="none of 1 pictures"):
        tool.evaluate(Reader(), items[:1], GREY, classes=classes, workers=0)
    with pytest.raises(UsageError, match="batch size"):
        tool.evaluate(Reader(), items, GREY, classes=classes, batch_size=0)


def test_autocast_and_the_models_dtype(planted: Path) -> None:
    items, classes = find_images(planted, CLASSES)
    for model, amp, dtype in [
        (Reader(), None, torch.float32),
        (Reader(), torch.bfloat16, torch.bfloat16),
        (Reader().double(), None, torch.float64),
    ]:
        result = tool.evaluate(model, items, GREY, classes=classes, workers=0, amp=amp, channels_last=True)
        assert result.correct1 == 5 and model.dtypes == {dtype}


def test_pictures_are_taken_as_they_lie_in_the_file(tmp_path: Path) -> None:
    """As for the published accuracies: whatever the camera says about up and down."""
    picture = Image.new("L", (4, 4), 0)
    picture.putpixel((0, 0), 30)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for number in range(CLASSES):
        (tmp_path / str(number)).mkdir()
    picture.save(tmp_path / "3" / "turned.png", exif=exif)
    items, classes = find_images(tmp_path, CLASSES)
    assert tool.evaluate(Reader(), items, GREY, classes=classes, workers=0).correct1 == 1


def test_fewer_than_five_classes(tmp_path: Path) -> None:
    write(tmp_path / "a", [0])
    write(tmp_path / "b", [0])
    items, classes = find_images(tmp_path, 2)

    class Two(Reader):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :2]

    result = tool.evaluate(Two(), items, GREY, classes=classes, workers=0)
    assert (result.topk, result.correct1, result.correct5) == (2, 1, 2)


def test_the_validation_set_as_it_comes(tmp_path: Path) -> None:
    for name in ("ILSVRC2012_val_00015416.JPEG", "ILSVRC2012_val_00000293.JPEG"):
        gradient_picture(8, 8).save(tmp_path / name)
    items, classes = find_images(tmp_path, 1000)
    assert {path.name: label for path, label in items}["ILSVRC2012_val_00015416.JPEG"] == 13
    assert classes == 2
    with pytest.raises(UsageError, match="one folder for each class"):
        find_images(tmp_path, 10)
    gradient_picture(8, 8).save(tmp_path / "cat.png")
    with pytest.raises(UsageError, match=r"cat\.png is no picture of ImageNet's"):
        find_images(tmp_path, 1000)
    write(tmp_path / "n01440764", [0])
    with pytest.raises(UsageError, match="lies outside of the class folders"):
        find_images(tmp_path, 1000)


def test_layouts_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no such folder"):
        find_images(tmp_path / "none", 3)
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match="not a folder"):
        find_images(tmp_path / "file", 3)
    with pytest.raises(ToolError, match="no pictures"):
        find_images(tmp_path, 3)
    write(tmp_path / "a", [0])
    with pytest.raises(UsageError, match="3 classes and there are 1 class folders"):
        find_images(tmp_path, 3)


def test_names_place_folders(tmp_path: Path) -> None:
    write(tmp_path / "tabby", [0])
    write(tmp_path / "ant", [0])
    items, classes = find_images(tmp_path, 3, ["tabby, tabby cat", "bee", "ant"])
    assert ([(path.parent.name, label) for path, label in items], classes) == ([("ant", 2), ("tabby", 0)], 2)


@pytest.mark.slow
def test_two_processes_count_every_picture_once(tmp_path: Path) -> None:
    """Eleven pictures on two processes: a sampler that pads would count twelve."""
    weights = checkpoint(tmp_path / "tiny.pth", num_classes=3, in_chans=1)
    generator = torch.Generator().manual_seed(0)
    for number in range(11):
        pixels = torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8)
        folder = tmp_path / "data" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    (tmp_path / "data" / "a" / "broken.png").write_text("broken")
    arguments = ["evaluate", str(tmp_path / "data"), "--checkpoint", str(weights), "--input-size", "16"]
    arguments += ["--batch-size", "2", "--workers", "0", "--device", "cpu", "--json"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "replknet_ext"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    reports = []
    for command in (["-m", "replknet_ext"], launch):
        done = subprocess.run(
            [sys.executable, *command, *arguments], capture_output=True, text=True, timeout=180, env=environment
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
    one, two = reports
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    one.pop("seconds"), two.pop("seconds")
    assert one == two
    assert one["images"] == 11 and one["unreadable"] == [str(tmp_path / "data" / "a" / "broken.png")]
    assert 0 < one["correct1"] < 11, "a result that says something"
