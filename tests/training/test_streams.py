"""WebDataset shards, which are read in any order, and streams, which are refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("timm")

from training_common import equal, image_folder, signal_at, tiny, weights

from replknet_ext.data.shards import Shards, find_shards
from replknet_ext.errors import ToolError, UsageError
from replknet_ext.training import Stopped, train
from replknet_ext.training.data import open_sources

pytestmark = pytest.mark.xdist_group("training")

SETTINGS = ("optimizer.global_batch=8", "data.batch_size=8", "model.num_classes=2", "schedule.epochs=2")


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def shards(folder: Path, target: Path, per_shard: int = 6) -> Path:
    """An image folder as shards of WebDataset: KEY.png and KEY.cls, and a file that is neither."""
    target.mkdir()
    for split in ("train", "val"):
        paths = sorted((folder / split).rglob("*.png"))
        for begin in range(0, len(paths), per_shard):
            with tarfile.open(target / f"{split}-{begin:04}.tar", "w") as archive:
                for number, path in enumerate(paths[begin : begin + per_shard], begin):
                    add(archive, f"set/{number:03}.cls", b"%d\n" % (path.parent.name == "b"))
                    add(archive, f"set/{number:03}.png", path.read_bytes())
                    add(archive, f"set/{number:03}.json", b"{}")
    return target


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("shards")
    folder = image_folder(root / "folder")
    return folder, shards(folder, root / "shards")


def test_shards_are_the_same_data_and_resume_in_an_epoch(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second epoch."""
    folder, sharded = folders
    results = [train(tiny(*SETTINGS), data, output=tmp_path / data.name, quiet=True) for data in (folder, sharded)]
    assert results[0].loss == results[1].loss and results[0].top1 == results[1].top1
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        with pytest.raises(Stopped, match="at step 3"):
            train(tiny(*SETTINGS), sharded, output=tmp_path / "stopped", quiet=True)
    train(None, sharded, output=tmp_path / "stopped", resume=True, quiet=True)
    assert equal(weights(tmp_path / "stopped"), weights(tmp_path / "folder"))


def test_where_shards_are_looked_for(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sharded = folders[1]
    assert [path.name for path in find_shards(sharded, "train")] == [f"train-{n:04}.tar" for n in (0, 6, 12)]
    assert find_shards(sharded, "val-00*.tar") == find_shards(sharded, "val")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").symlink_to(sharded / "train-0000.tar")
    assert len(Shards(find_shards(tmp_path, "train"))) == 6
    (tmp_path / "train" / "class").mkdir()  # an image folder, in which somebody has left an archive
    assert find_shards(tmp_path, "train") == []


def damaged(tmp_path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"1.png": b""}, r"train-0\.tar: 1\.png has no label: 1\.cls, with a number in it, must be beside it"),
        ({"1.png": b"", "1.cls": b"cat"}, r"train-0\.tar: 1\.cls must hold a number from 0 on; it holds b'cat'"),
        ({"1.txt": b""}, "no pictures"),
    ],
)
def test_bad_shards_are_one_clear_line(files: dict[str, bytes], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        open_sources(tiny("evaluate=false").data, damaged(tmp_path, files), evaluate=False)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_in_a_shard_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    picture = next((folders[0] / "train" / "a").iterdir()).read_bytes()
    settings = ("optimizer.global_batch=2", "data.batch_size=2", "model.num_classes=2", "evaluate=false")
    files = {"1.png": picture[:40], "1.cls": b"0", "2.png": picture, "2.cls": b"1"}
    with pytest.raises(ToolError, match=r"an image cannot be read: .*train-0\.tar: 1\.png"):
        train(tiny(*settings), damaged(tmp_path, files), output=tmp_path / "broken", quiet=True)
    files |= {"1.png": picture, "1.cls": b"7"}
    with pytest.raises(UsageError, match="the data has the label 7, but there are 2 classes, from 0 on"):
        train(tiny(*settings), damaged(tmp_path, files), output=tmp_path / "label", quiet=True)
    with pytest.raises(UsageError, match=r"model\.num_classes: the data does not say how many classes"):
        train(tiny("optimizer.global_batch=2", "evaluate=false"), tmp_path, output=tmp_path / "x", quiet=True)
    (tmp_path / "train-0.tar").write_bytes(b"no archive")
    with pytest.raises(ToolError, match=r"train-0\.tar: cannot be read"):
        train(tiny(*settings), tmp_path, output=tmp_path / "archive", quiet=True)


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(1, 8, 8), 0

    def __len__(self) -> int:
        return 1


class NoNumbers:
    """As Hugging Face's streams."""

    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(1, 8, 8), 0


@pytest.mark.parametrize("given", [Stream(), NoNumbers()])
def test_streams_are_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{type(given).__name__} is a stream; .* Use an image folder, tar") as e:
        train(tiny("evaluate=false"), (given, None), output=tmp_path / "out", quiet=True)
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["wds/imagenet", "hfids/imagenet-1k", "TFDS/mnist"])
def test_streams_of_timm_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"data.dataset={name} is a stream; .*hfds/"):
        open_sources(tiny(f"data.dataset={name}", "data.path=null").data)


def test_a_data_set_that_timm_cannot_open_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"data\.dataset=torch/nothing, split 'train': Unknown torchvision") as e:
        open_sources(tiny("data.dataset=torch/nothing").data, tmp_path)
    assert "\n" not in str(e.value)
