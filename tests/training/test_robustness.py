"""Signals, kills, full disks, bad images, bad folders: a run ends in one clear line and leaves whole checkpoints."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from tools_common import cli
from training_common import TINY, equal, image_folder, signal_at, tiny, weights

from replknet_ext.errors import ToolError, UsageError
from replknet_ext.training import Stopped, engine, train, trainer
from replknet_ext.training.checkpoints import Folder
from replknet_ext.training.data import open_sources
from replknet_ext.training.logs import read_log
from replknet_ext.training.signals import STOPPED, TOGETHER, stop_requests

pytestmark = pytest.mark.xdist_group("training")

ALL = ("model", "model_ema", "optimizer", "step", "epoch", "best", "loss_sum")


def content(folder: Path) -> dict[str, Any]:
    saved = torch.load(folder / "last.pth", weights_only=True)
    return {key: saved[key] for key in ALL}


@pytest.mark.parametrize("at_ends", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_resuming_gives_the_same_bits(at_ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped twice at random steps, with accumulation, averaged weights and drop path; or at the ends of epochs."""
    settings = ("schedule.epochs=3", "data.batch_size=24", "evaluate=false", "model.num_classes=10")
    assert tiny().optimizer.global_batch == 64  # three passes
    data = (torch.utils.data.TensorDataset(torch.randn(256, 1, 8, 8), torch.arange(256) % 10), None)
    train(tiny(*settings), data, output=tmp_path / "whole", quiet=True)
    first, second = (3, 11) if at_ends else sorted(random.sample([0, 1, 2, 4, 5, 6, 8, 9, 10], 2))
    where = tmp_path / "stopped"
    for at, number in ((first, signal.SIGTERM), (second, signal.SIGUSR1)):
        with monkeypatch.context() as patch:
            signal_at(patch, at, number)
            with pytest.raises(Stopped, match=f"{signal.Signals(number).name}: saved .*last.pth at step {at + 1}"):
                train(tiny(*settings), data, output=where, resume=at == second, quiet=True)
        assert content(where)["step"] == at + 1
    train(None, data, output=where, resume=True, quiet=True)  # by the folder alone
    assert equal(content(where), content(tmp_path / "whole")), (first, second)

    def told(folder: Path) -> list[Any]:
        return [(e["step"], e["train_loss"]) for e in read_log(folder) if "train_loss" in e]

    assert told(where) == told(tmp_path / "whole")


def test_the_gradient_scaler_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 needs a GPU here, its scaler does not; it doubles its scale after every two steps."""
    real = engine._accelerator

    def with_scaler(recipe: Any) -> Any:
        made = real(recipe)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return made

    monkeypatch.setattr(engine, "_accelerator", with_scaler)
    data = (torch.utils.data.TensorDataset(torch.randn(128, 1, 8, 8), torch.arange(128) % 10), None)
    settings = ("evaluate=false", "model.num_classes=10", "optimizer.global_batch=16", "optimizer.clip_grad=1")
    train(tiny(*settings), data, output=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        signal_at(patch, 4)
        with pytest.raises(Stopped):
            train(tiny(*settings), data, output=tmp_path / "stopped", quiet=True)
    train(None, data, output=tmp_path / "stopped", resume=True, quiet=True)
    saved = [torch.load(tmp_path / name / "last.pth", weights_only=True) for name in ("whole", "stopped")]
    assert saved[0]["scaler"]["scale"] == 4.0 * 2**4
    assert all(equal(saved[0][key], saved[1][key]) for key in (*ALL, "scaler"))


def test_a_signal_in_an_evaluation_saves_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, settings = image_folder(tmp_path / "data"), ("optimizer.global_batch=8", "schedule.epochs=2")
    real = trainer.evaluate

    def evaluate(*arguments: Any, **options: Any) -> Any:
        if not sent:  # a second signal after more than TOGETHER would end this process
            os.kill(os.getpid(), signal.SIGTERM)
            sent.append(signal.SIGTERM)
        return real(*arguments, **options)

    for epoch in (1, 2):  # the second time nothing is left but to write the result
        sent: list[int] = []
        with monkeypatch.context() as patch, pytest.raises(Stopped, match=f"SIGTERM: saved .* at step {2 * epoch}"):
            patch.setattr(trainer, "evaluate", evaluate)
            train(tiny(*settings), data, output=tmp_path / "out", resume=epoch == 2, quiet=True)
        assert content(tmp_path / "out")["epoch"] == epoch
    result = train(None, data, output=tmp_path / "out", resume=True, quiet=True)
    assert result.steps == 4 and result.loss > 0
    assert [e["epoch"] for e in read_log(tmp_path / "out") if "top1" in e] == [0, 1]


def test_the_command_ends_with_its_own_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps(TINY))
    data = image_folder(tmp_path / "data")
    short = ("train", data, "--recipe", recipe, "-o", tmp_path / "out", "-s", "optimizer.global_batch=4")
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        result = cli(*short, code=STOPPED)
    assert "stopped: SIGTERM: saved" in result.stderr and "at step 3; resume it" in result.stderr
    said = cli(*short, code=2).stderr
    assert "holds a run already" in said
    said = cli(*short, "--resume", "-s", "optimizer.lr=1", code=2).stderr
    assert "is a run of another recipe: optimizer.lr: 1.0, not 0.008" in said
    assert "nothing to resume" in cli("train", "--resume", "-o", tmp_path, code=2).stderr


def test_a_second_signal_ends_at_once() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # together they are one
            if not request or request.name != "SIGTERM":
                os._exit(1)
            os.write(writer, b"alive")
            request.arrived -= TOGETHER
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
    os.close(writer)
    assert os.read(reader, 10) == b"alive"
    os.close(reader)
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_killed_at_twenty_moments_a_checkpoint_is_whole(tmp_path: Path) -> None:
    """A process that does nothing but save is killed: most of the time in the middle of it."""
    big = {"model": {"w": torch.arange(300_000.0)}, "optimizer": {}, "recipe": {}, "step": 0}
    folder = Folder(tmp_path)
    folder.save(big)
    interrupted = 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                for step in range(1, 10_000):
                    folder.save({**big, "step": step}, best=True, number=step)
            finally:
                os._exit(1)
        time.sleep(0.02 + 0.1 * random.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path in (folder.last, *tmp_path.glob("best.pth"), *folder.numbered()):
            saved = torch.load(path, weights_only=True)
            assert torch.equal(saved["model"]["w"], big["model"]["w"]) and saved["step"] >= 0
        left = list(tmp_path.glob(".*.pth"))
        interrupted += bool(left)
        for path in left:
            path.unlink()
    assert interrupted >= 3  # the test has seen kills during a save
    assert len(folder.numbered()) <= 4


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    small = {"model": {}, "optimizer": {}, "recipe": {}, "step": 1}
    folder.save(small)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ToolError, match=r"cannot write the checkpoint .*last\.pth: .*; the one before it is whole"):
            folder.save({**small, "model": {"w": torch.zeros(1_000_000)}, "step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folder.read()["step"] == 1 and [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_a_loss_that_is_not_finite_names_step_and_layer(tmp_path: Path) -> None:
    images = torch.randn(128, 1, 8, 8)
    recipe = tiny(
        "model.num_classes=10", "evaluate=false", "optimizer.global_batch=16", "checkpoints.every_steps=1",
        "data.batch_size=16",
    )  # fmt: skip
    good = torch.utils.data.TensorDataset(images, torch.arange(128) % 10)

    class Bad:
        """From the 49th read image on: finite images whose convolution is not."""

        reads = 0

        def __len__(self) -> int:
            return 128

        def __getitem__(self, index: int) -> Any:
            Bad.reads += 1
            image, label = good[index]
            return (torch.full_like(image, 3e38) if Bad.reads > 48 else image), label

    with pytest.raises(ToolError) as caught:
        train(recipe, (Bad(), None), output=tmp_path, quiet=True)
    said = str(caught.value)
    assert "at step 4: the first output that is not finite is of the layer stem.0.conv; " in said
    assert f"{tmp_path / 'last.pth'} is from before" in said and content(tmp_path)["step"] == 3
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


SMALL = ("optimizer.global_batch=8", "data.batch_size=8")


def test_a_broken_image_stops_or_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = image_folder(tmp_path / "data")
    broken = data / "train" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ToolError, match=r"an image cannot be read: .*train/b/3\.png"):
        train(tiny(*SMALL), data, output=tmp_path / "stop", quiet=True)
    result = train(tiny(*SMALL, "data.broken_images=skip"), data, output=tmp_path / "skip", quiet=True)
    assert result.steps == 2 and "skipped: " in (said := capsys.readouterr().err) and "train/b/3.png" in said
    (data / "val" / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ToolError, match=r"a validation image cannot be read: .*val/a/0\.png"):
        train(tiny(*SMALL, "data.broken_images=skip"), data, output=tmp_path / "val", quiet=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data / "none", "no such folder"),
        (lambda data: data / "train" / "a" / "0.png", "no such folder"),
        (lambda data: data / "train", "no folder, tar file or shards 'train' in it"),
        (lambda data: (data / "train" / "c").mkdir() or data, r"train/c: a class without pictures"),
        (lambda data: (data / "val" / "a").rename(data / "val" / "z") and data, "a class 'z' that .*train has not"),
        (lambda data: (data / "val").rename(data / "test") and data, "no folder, tar file or shards 'val' in it"),
    ],
)
def test_a_bad_folder_is_one_clear_line(change: Any, says: str, tmp_path: Path) -> None:
    data = change(image_folder(tmp_path / "data", 1))
    with pytest.raises(UsageError, match=says) as caught:
        train(tiny(), data, output=tmp_path / "out", quiet=True)
    assert "\n" not in str(caught.value)


def test_other_misfits_are_one_clear_line(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    for settings, says in [
        (("model.num_classes=5",), "model.num_classes is 5, but the data has 2 classes"),
        ((), "16 training images, less than one step's optimizer.global_batch=64"),
        ((*SMALL, "optimizer.name=adamx"), "optimizer: .*adamx"),
        ((*SMALL, "engine.compile=indactor"), "engine.compile=indactor: no such backend; there are .*inductor"),
        ((*SMALL, "logs.trackers=[nobody]"), "'nobody' is not installed"),
        ((*SMALL, "data.val_split=null"), "needs a split to evaluate on"),
        ((*SMALL, "model.frozen_stages=7"), "frozen_stages must be at most 2"),
    ]:
        with pytest.raises((UsageError, ValueError), match=says) as caught:
            train(tiny(*settings), data, output=tmp_path / "out", quiet=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="which recipe"):
        train()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "last.pth").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"last\.pth cannot be read"):
        train(tiny(*SMALL), data, output=tmp_path / "junk", resume=True, quiet=True)


def test_a_folder_of_that_name_does_not_hide_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(open_sources(tiny().data).train) == 1442
    with pytest.raises(UsageError, match="digits: no folder, tar file or shards 'train' in it"):
        open_sources(tiny().data, "digits")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    with Folder(tmp_path / "out").in_use(), pytest.raises(ToolError, match="another run is using this folder"):
        train(tiny(*SMALL), data, output=tmp_path / "out", quiet=True)
    train(tiny(*SMALL), data, output=tmp_path / "out", quiet=True)
