"""Every command and snippet of docs/training.md runs, on small data and a small network."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from training_common import TINY, environment

from replknet_ext.training.logs import read_log

pytestmark = pytest.mark.xdist_group("training")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

#: What stands in for other programs; each gets its arguments as they are on the page.
PROGRAMS = {
    "replknet-ext": '-m replknet_ext "$@"',
    "torchrun": '-m torch.distributed.run "$@"',
    "accelerate": '-m accelerate_launcher "$@"',
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with programs, pictures of two classes, weights, and a recipe that is small."""
    from PIL import Image

    root = tmp_path_factory.mktemp("docs")
    (root / "bin").mkdir()
    for name, line in PROGRAMS.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\nexec {sys.executable} {line}\n")
    (root / "bin/srun").write_text(f'#!/bin/sh\necho $$ > {root}/srun.pid\nexec "$@"\n')
    (root / "bin/scancel").write_text(
        f'#!/bin/sh\ntest "$*" = "--signal=TERM 7" && kill -TERM $(cat {root}/srun.pid)\n'
    )
    (root / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> {root}/scontrol.log\necho localhost\necho other\n')
    for program in (root / "bin").iterdir():
        program.chmod(0o755)
    for split in ("train", "val"):
        for label in ("daisy", "rose"):
            (root / "data" / split / label).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (20, 16), (10 * number, 90, 200 * (label == "rose"))).save(
                    root / "data" / split / label / f"{number}.png"
                )
    small = json.loads(json.dumps(TINY))
    small["model"] |= {"in_chans": 3, "num_classes": 2}
    small["data"] |= {"path": None, "input_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "batch_size": 4}
    small["optimizer"] |= {"global_batch": 16}
    small["engine"] |= {"deterministic": False}
    (root / "small.yaml").write_text(json.dumps(small))
    arch = small["model"]["arch"]
    from replknet_ext.models import RepLKNet, save_checkpoint

    save_checkpoint(RepLKNet(arch, num_classes=5), root / "pretrained.pth")
    return root


def small(block: str, place: Path) -> str:
    """The block for two processes, the small recipe and the small data."""
    for old, new in {
        r"--recipe replknet_\w+(?!.*--dry-run)": f"--recipe {place}/small.yaml",
        r"--recipe digits": f"--recipe {place}/digits.yaml",
        r"/data/\w+": f"{place}/data",
        r"replknet-31B_in21k-pre_3rdparty_in1k": f"{place}/pretrained.pth",
        r"--nnodes (\S+)": "--nnodes 1",
        r"(--nproc-per-node|--num_processes) 8": r"\1 2",
        r"global_batch=64": "global_batch=8",
        r"accelerate launch": "accelerate launch --cpu",
        r"\$HEAD:29500|29500": "localhost:0",
        r'"localhost:0"': "localhost:0",
        r"model.name=timm/convnext_atto": "model.name=timm/convnext_atto --set model.arch=null",
    }.items():
        block = re.sub(old, new, block)
    return block


def begin(text: str, place: Path) -> subprocess.Popen[str]:
    slurm = {"SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "7"}
    return subprocess.Popen(
        ["bash", "-euc", text], cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**environment(), **slurm, "PATH": f"{place}/bin:{environment()['PATH']}", "HEAD": "localhost"},
    )  # fmt: skip


def shell(text: str, place: Path) -> str:
    process = begin(text, place)
    told, _ = process.communicate(timeout=500)
    assert process.returncode == 0, f"{text}\n{told}"
    return told


def number(words: str) -> int:
    """Of the one block with these words."""
    found = [index for index, block in enumerate(BLOCKS) if words in block]
    assert len(found) == 1, words
    return found[0]


def test_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SNIPPETS) == 1
    exec(compile(SNIPPETS[0], "training.md", "exec"), {"__name__": "__main__"})
    before, after, difference = map(float, capsys.readouterr().out.split())
    assert before == after and difference < 1e-3


def test_every_block_is_run_by_a_test() -> None:
    assert len(BLOCKS) == 9  # a new one needs its words below


@pytest.mark.slow
def test_digits_and_going_on(place: Path) -> None:
    """The page's first run; going on after its end writes the same again."""
    digits = json.loads(json.dumps(TINY))
    (place / "digits.yaml").write_text(json.dumps(digits))
    assert "wrote runs/digits/model.safetensors" in shell(small(BLOCKS[0], place), place)
    names = re.findall(r"`([a-z]+\.\w+|tensorboard/)`", PAGE.partition("## Recipes")[0])
    missing = [name for name in names if not (place / "runs/digits" / name).exists()]
    assert missing == ["tensorboard/"]  # the small recipe has no trackers
    assert "wrote runs/digits" in shell(small(BLOCKS[number("--resume\n")], place), place)


@pytest.mark.slow
def test_dry_runs(place: Path) -> None:
    told = shell(BLOCKS[number("--dry-run")], place)
    assert "replknet_xl_in1k_320" in told and told.count("steps per epoch") == 2 and "amp: bf16" in told


@pytest.mark.slow
def test_one_gpu(place: Path) -> None:
    shell(small(BLOCKS[number("channels_last")], place), place)
    assert read_log(place / "runs/31b")


@pytest.mark.slow
def test_eight_gpus(place: Path) -> None:
    block = small(BLOCKS[number("accelerate launch")], place).replace("runs/31b", "runs/eight")
    assert shell(block, place).count("wrote runs/eight") == 2


@pytest.mark.slow
def test_many_nodes_and_slurm(place: Path) -> None:
    assert "wrote runs/31b-nodes" in shell(small(BLOCKS[number("31b-nodes")], place), place)
    script = small(BLOCKS[number("#SBATCH")], place)
    script = script.replace("$RESUME &", "--set schedule.epochs=40 --set logs.every=1 $RESUME &")
    folder = place / "runs/31b-slurm"
    process = begin(script, place)
    while not read_log(folder):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)  # as Slurm does before the time is over
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "stopped: SIGTERM: saved runs/31b-slurm/last.pth" in told, told
    assert (place / "scontrol.log").read_text().splitlines()[-1] == "requeue 7"
    assert "wrote runs/31b-slurm" in shell(script, place)
    assert len([entry for entry in read_log(folder) if "train_loss" in entry]) == 40
    assert (place / "scontrol.log").read_text().count("requeue") == 1
    assert begin(script.replace(" train ", " trian "), place).wait(100) == 1  # a run that fails is not queued again


@pytest.mark.slow
def test_fine_tuning(place: Path) -> None:
    block = small(BLOCKS[number("flowers --checkpoint")], place).replace("--classes", "--input-size 32 --classes")
    told = shell(block, place)
    assert "a classifier for 5 classes; that for num_classes=2 is freshly initialised" in told and "top-1" in told


@pytest.mark.slow
def test_a_model_of_timm(place: Path) -> None:
    assert "wrote runs/convnext/model.safetensors" in shell(small(BLOCKS[number("timm/convnext_atto")], place), place)
