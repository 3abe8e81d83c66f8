"""A recipe that trains in seconds, and runs of the trainer in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from replknet_ext.training import Recipe, load_recipe, trainer

#: On 8x8 digits; the large kernels see the whole map.
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "name": "replknet",
        "arch": {
            "large_kernel_sizes": [13, 5],
            "layers": [1, 1],
            "channels": [8, 16],
            "small_kernel": 3,
            "ffn_ratio": 2.0,
            "stem_strides": [1, 1],
        },
        "in_chans": 1,
        "drop_path_rate": 0.1,
    },
    "data": {"path": "digits", "input_size": 8, "mean": [0.5], "std": [0.5], "batch_size": 64, "workers": 0},
    "augment": {
        "rand_augment": None,
        "color_jitter": 0,
        "scale": [0.8, 1.0],
        "ratio": [0.9, 1.1],
        "hflip": 0,
        "erasing": 0,
        "mixup": 0,
        "cutmix": 0,
    },
    "optimizer": {"lr": 0.008, "global_batch": 64},
    "schedule": {"epochs": 1, "warmup_epochs": 0.5},
    "ema": {"decay": 0.9, "warmup": True},
    "engine": {"deterministic": True, "device": "cpu"},
    "logs": {"every": 5, "trackers": []},
}


def tiny(*settings: str) -> Recipe:
    """`TINY` with changes."""
    return load_recipe(TINY, settings)


def image_folder(root: Path, per_class: int = 8) -> Path:
    """`train` and `val` with two classes of 8x8 pictures."""
    for split in ("train", "val"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for number in range(per_class):
                Image.new("L", (8, 8), 20 * number + (label == "a")).save(root / split / label / f"{number}.png")
    return root


def weights(folder: Path, key: str = "model") -> dict[str, torch.Tensor]:
    """A state dict of a run's last checkpoint."""
    state: dict[str, torch.Tensor] = torch.load(folder / "last.pth", weights_only=True)[key]
    return state


def equal(one: Any, other: Any) -> bool:
    """Whether two nested structures of tensors and plain values are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def signal_at(monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGTERM) -> None:
    """The signal arrives while step `at` is computed."""
    real = trainer.seed_all

    def seed_all(*position: int) -> None:
        real(*position)
        if position[2] == at:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(trainer, "seed_all", seed_all)


def environment() -> dict[str, str]:
    """Of a process that finds the package and the tests' helpers."""
    helpers = Path(__file__).resolve().parent
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(helpers.parents[1]), str(helpers), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }


def start(*command: str, launcher: tuple[str, ...] = ("-m",), **kwargs: Any) -> subprocess.Popen[str]:
    """`python -m ...` with pipes."""
    return subprocess.Popen(
        [sys.executable, *launcher, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(), **kwargs,
    )  # fmt: skip
