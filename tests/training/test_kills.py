"""Runs of the command line that are killed or signalled, alone and under torchrun, and go on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")

from processes import start, until
from training_common import TINY, equal, image_folder
from training_common import start as start_slowly

from replknet_ext.training.logs import read_log
from replknet_ext.training.signals import STOPPED, TOGETHER

pytestmark = pytest.mark.xdist_group("training")

SMALL = ("optimizer.global_batch=8", "data.batch_size=8", "evaluate=false")
KEYS = ("model", "model_ema", "optimizer", "step", "epoch", "loss")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 16 pictures and a small recipe."""
    root = tmp_path_factory.mktemp("kills")
    image_folder(root / "data")
    (root / "tiny.yaml").write_text(json.dumps(TINY))
    return root


def train(place: Path, output: Path, *settings: str, resume: bool = False) -> ForkServerProcess:
    return start(
        "train", "data", "--recipe", "tiny.yaml", "-o", output,
        *(word for each in (*SMALL, *settings) for word in ("-s", each)),
        *(["--resume"] if resume else []), log=output.with_suffix(".log"), folder=place,
    )  # fmt: skip


def saved(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(output / "last.pth", weights_only=True)
    return content


def written(output: Path) -> int:
    """Changes with every new `last.pth`."""
    path = output / "last.pth"
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("moments", [20])
def test_killed_at_any_moment_it_goes_on(place: Path, tmp_path: Path, moments: int) -> None:
    """Each kill leaves a checkpoint that loads, and the run that goes on has the bits of one that was left alone."""
    settings = (f"schedule.epochs={10 * moments}", "checkpoints.every_steps=1", "checkpoints.every=1")
    output, whole = tmp_path / "killed", tmp_path / "whole"
    in_a_save, step = 0, 0
    for moment in range(moments):
        process, before = train(place, output, *settings, resume=moment > 0), written(output)
        until(lambda before=before: written(output) != before, process, output.with_suffix(".log"))  # type: ignore[misc]
        if moment % 2:
            until(lambda: list(output.glob(".last-*")), process, output.with_suffix(".log"))
        else:
            time.sleep(0.1 * random.random())
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        content = saved(output)
        assert content["step"] > step and content["epoch"] == content["step"] // 2
        step = content["step"]
        for path in (*output.glob("epoch-*.pth"), *output.glob("best.pth")):
            torch.load(path, weights_only=True)
        in_a_save += bool(list(output.glob(".last-*")))
    assert in_a_save >= moments // 4  # the test has seen kills during saves
    for process in (train(place, output, *settings, resume=True), train(place, whole, *settings[:1])):
        process.join()
        assert process.exitcode == 0
    assert step < saved(whole)["step"] == 20 * moments
    assert all(equal(saved(output)[key], saved(whole)[key]) for key in KEYS)
    assert not list(output.glob(".*-*"))  # what killed runs left is gone


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_saves(place: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As Slurm and terminals send it: processes that read images go on until the step is done."""
    output = tmp_path / "out"
    process = train(place, output, "schedule.epochs=1000", "data.workers=1", "logs.every=1")
    until(lambda: read_log(output), process, output.with_suffix(".log"))
    os.killpg(process.pid or 0, number)
    process.join(30)
    told = output.with_suffix(".log").read_text()
    assert process.exitcode == STOPPED, told
    assert f"stopped: {number.name}: saved" in told and f"at step {saved(output)['step']}; resume it" in told


def test_a_second_signal_ends_the_command_at_once(place: Path, tmp_path: Path) -> None:
    """In a step of 1,442 passes, at the end of which the first signal would have its effect."""
    output, log = tmp_path / "out", tmp_path / "out.log"
    long = ("optimizer.global_batch=1442", "data.batch_size=1", "evaluate=false", "schedule.epochs=2")
    process = start(
        "train", "--recipe", "tiny.yaml", "-o", output, *(word for each in long for word in ("-s", each)),
        log=log, folder=place,
    )  # fmt: skip
    until((output / "log.jsonl").exists, process, log)
    os.kill(process.pid or 0, signal.SIGTERM)
    os.kill(process.pid or 0, signal.SIGTERM)  # the same request, as torchrun passes it on
    time.sleep(TOGETHER + 0.2)
    assert process.is_alive(), log.read_text()
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM and not (output / "last.pth").exists()


def ranks(agent: int) -> dict[str, int]:
    """The processes of torchrun by their rank."""
    found = {}
    for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {each.decode()[5:]: int(pid) for each in environment if each.startswith(b"RANK=")}
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("to", ["torchrun", "0", "1"])
def test_signals_under_torchrun(place: Path, tmp_path: Path, to: str) -> None:
    """Whoever gets it, all save once and end with the same status, however long the first process writes."""
    output = tmp_path / "out"
    settings = ("schedule.epochs=100", "logs.every=1")
    chosen = [word for each in (*SMALL, *settings) for word in ("-s", each)]
    agent = start_slowly(
        "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training_slow_save", "train",
        str(place / "data"), "--recipe", str(place / "tiny.yaml"), "-o", str(output), *chosen,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not read_log(output):
        assert agent.poll() is None and time.monotonic() < end, agent.communicate()
        time.sleep(0.01)
    if to == "torchrun":
        agent.terminate()
    else:
        os.kill(ranks(agent.pid)[to], signal.SIGUSR1)
    _, told = agent.communicate(timeout=60)
    assert agent.returncode == 1
    assert told.count("saving") == 1, told
    step = saved(output)["step"]
    assert 0 < step < 200
    assert told.count(f"saved {output / 'last.pth'} at step {step}; resume it") == 2, told
    if to != "torchrun":
        assert f"exitcode  : {STOPPED}" in told, told  # torchrun ends the other one, if it has not yet ended
    process = train(place, output, *settings, resume=True)  # one process goes on
    process.join()
    assert process.exitcode == 0 and saved(output)["step"] == 200
