"""Two processes (gloo) compute what one does, with DistributedDataParallel and with FSDP2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate")

from processes import start_two
from training_common import TINY, start, tiny, weights

from replknet_ext.training import build_network, train
from replknet_ext.training.logs import read_log

pytestmark = pytest.mark.xdist_group("training")

#: Not Adam: it divides gradients that are 0 but for rounding, as those of a bias before a BatchNorm, by their size.
SETTINGS = (
    "optimizer.global_batch=16", "data.batch_size=16", "model.drop_path_rate=0", "logs.every=1", "schedule.epochs=2",
    "optimizer.name=momentum", "optimizer.eps=null", "optimizer.lr=0.05",
)  # fmt: skip
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ACCELERATE = ("accelerate_launcher", "launch", "--cpu", "--num_processes", "1", "-m")  # more need MPI on the CPU


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("val", 5)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 200, (8, 8), generator=generator, dtype=torch.uint8) + 50 * (label == "b")
                Image.fromarray(pixels.numpy()).save(root / split / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(tiny(*SETTINGS), data, output=folder, quiet=True)
    return folder


def arguments(data: Path, folder: Path, *settings: str) -> list[str]:
    recipe = folder / "tiny.yaml"
    recipe.write_text(json.dumps(TINY))
    chosen = [word for setting in (*SETTINGS, *settings) for word in ("-s", setting)]
    return ["train", str(data), "--recipe", str(recipe), "-o", str(folder / "out"), *chosen]


def launch(launcher: tuple[str, ...], data: Path, folder: Path, *settings: str) -> None:
    done = start(*launcher, "replknet_ext", *arguments(data, folder, *settings))
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, out + err
    assert err.count("epoch 1/2  loss") == 1  # one voice


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(folder) if "images_per_second" in entry]


def assert_same(folder: Path, alone: Path) -> None:
    assert len(losses(alone)) == 4
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-4)
    one, two = weights(alone), weights(folder)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5, msg=key)
    told = [{k: e[k] for k in ("top1", "ema_top1")} for e in read_log(folder) if "top1" in e]
    assert told == [{k: e[k] for k in ("top1", "ema_top1")} for e in read_log(alone) if "top1" in e]


def test_two_processes_are_one(data: Path, alone: Path, tmp_path: Path) -> None:
    """With BatchNorms over both halves."""
    log = tmp_path / "log"
    for process in start_two(*arguments(data, tmp_path, "data.batch_size=8"), log=log, folder=tmp_path):
        process.join()
        assert process.exitcode == 0, log.read_text()
    assert log.read_text().count("epoch 1/2  loss") == 1  # one voice
    assert_same(tmp_path / "out", alone)


@pytest.mark.slow
def test_torchrun_starts_it(data: Path, alone: Path, tmp_path: Path) -> None:
    launch(TORCHRUN, data, tmp_path, "data.batch_size=8")
    assert_same(tmp_path / "out", alone)


@pytest.mark.slow
def test_norms_of_each_process_would_be_others(data: Path, alone: Path, tmp_path: Path) -> None:
    launch(TORCHRUN, data, tmp_path, "data.batch_size=8", "model.sync_bn=false")
    assert losses(tmp_path / "out") != pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slow
def test_fsdp_saves_what_one_process_loads(data: Path, alone: Path, tmp_path: Path) -> None:
    launch(TORCHRUN, data, tmp_path, "data.batch_size=8", "engine.strategy=fsdp", "checkpoints.every_steps=1")
    assert_same(tmp_path / "out", alone)
    saved = torch.load(tmp_path / "out" / "last.pth", weights_only=True)
    net = build_network(tiny("model.num_classes=2").model)
    for key in ("model", "model_ema"):
        assert all(type(value) is torch.Tensor for value in saved[key].values())
        net.load_state_dict(saved[key])
    # One process goes on where two stopped.
    result = train(
        tiny(*SETTINGS, "data.batch_size=8", "engine.strategy=fsdp"), data, output=tmp_path / "out", resume=True,
        quiet=True,
    )  # fmt: skip
    assert result.steps == 4


@pytest.mark.slow
def test_accelerate_launch_starts_it(data: Path, alone: Path, tmp_path: Path) -> None:
    launch(ACCELERATE, data, tmp_path)
    assert_same(tmp_path / "out", alone)
