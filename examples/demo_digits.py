"""Part 2: a small RepLKNet trained on scikit-learn's handwritten digits, then merged with `switch_to_deploy`."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import harness
from replknet_ext import training
from replknet_ext.models import RepLKNet, RepLKNetConfig, model_from_checkpoint

# 8x8 digits doubled to 16x16: maps of 16x16 and 8x8, so that each kernel sees nearly the whole map.
CONFIG = RepLKNetConfig(
    large_kernel_sizes=(15, 7), layers=(2, 2), channels=(32, 64), small_kernel=5, ffn_ratio=2.0, stem_strides=(1, 1)
)
EPOCHS, BATCH, LEARNING_RATE = 8, 32, 4e-3
ACCURACY = 0.97
LOGIT_LIMIT = 1e-3


@dataclass(frozen=True)
class Digits:
    """1,797 digits of the UCI set in scikit-learn: (N, 1, S, S) float32 in [-1, 1] and (N,) int64 labels."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load_digits(size: int = 16) -> Digits:
    """A fixed, stratified split: 80 % to train, 20 % held out and never looked at before the end; S is `size`."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    images, labels = datasets.load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = (torch.as_tensor(part) for part in parts)

    def prepare(flat: Tensor) -> Tensor:
        small = flat.float().reshape(-1, 1, 8, 8) / 8 - 1
        return F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)

    return Digits((prepare(train_images), train_labels.long()), (prepare(test_images), test_labels.long()))


def train(
    digits: Digits, epochs: int = EPOCHS, *, config: RepLKNetConfig = CONFIG, seed: int = 0, quiet: bool = True
) -> RepLKNet:
    """A RepLKNet of `config`, trained on the train part by `replknet_ext.training`: AdamW, warm-up and cosine."""
    recipe = training.load_recipe(
        {
            "name": "demo_digits",
            "evaluate": False,
            "model": {"name": "replknet", "arch": asdict(config), "in_chans": 1, "num_classes": 10},
            "data": {"input_size": digits.train[0].shape[-1], "mean": [0.5], "std": [0.5], "workers": 0},
            "augment": {"mixup": 0, "cutmix": 0, "label_smoothing": 0},
            "optimizer": {"lr": LEARNING_RATE, "global_batch": BATCH},
            "schedule": {"epochs": epochs, "warmup_epochs": epochs / 4},
            "ema": {"enabled": False},
            "engine": {"device": "cpu", "seed": seed},
            "logs": {"trackers": []},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        result = training.train(recipe, (TensorDataset(*digits.train), None), output=folder, quiet=quiet)
        return model_from_checkpoint(result.folder / "model.safetensors").eval()


@dataclass(frozen=True)
class Merge:
    """A trained model's logits of the test images before and after merging, and what the merging took away.

    `calls` are those of this package's kernel in one forward pass, counted by torch's profiler.
    """

    labels: Tensor
    before: Tensor
    after: Tensor
    parameters: tuple[int, int]
    calls: tuple[int, int]

    @property
    def accuracy(self) -> float:
        return float((self.before.argmax(1) == self.labels).double().mean())

    @property
    def same(self) -> int:
        """Images with the same prediction before and after."""
        return int((self.before.argmax(1) == self.after.argmax(1)).sum())

    @property
    def difference(self) -> float:
        return float((self.before - self.after).abs().max())


@torch.inference_mode()
def merge(model: RepLKNet, digits: Digits) -> Merge:
    """Merges a copy of `model` and runs both on the test part."""
    images, labels = digits.test
    merged = copy.deepcopy(model).switch_to_deploy()
    before = harness.trace(lambda: model(images))
    after = harness.trace(lambda: merged(images))
    return Merge(
        labels,
        before.result,
        after.result,
        parameters=(_parameters(model), _parameters(merged)),
        calls=(before.ops["replknet_ext::dwconv2d"], after.ops["replknet_ext::dwconv2d"]),
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def show(console: Console, output: Path) -> bool:
    """Trains, merges and prints part 2; True if the accuracy is reached and no prediction changed. Writes nothing."""
    digits = load_digits()
    count, held_out = len(digits.train[0]), len(digits.test[0])
    console.print(
        f"scikit-learn's digits: {count} to train on, {held_out} held out. A RepLKNet with kernels "
        f"{CONFIG.large_kernel_sizes[0]}x{CONFIG.large_kernel_sizes[0]} on 16x16 maps and "
        f"{CONFIG.large_kernel_sizes[1]}x{CONFIG.large_kernel_sizes[1]} on 8x8 maps, each with a parallel "
        f"{CONFIG.small_kernel}x{CONFIG.small_kernel} branch, float32.\n"
    )
    model = train(digits, quiet=False)
    result = merge(model, digits)
    reached = result.accuracy >= ACCURACY
    console.print(
        f"\ntest accuracy {result.accuracy:.2%} ({round(result.accuracy * held_out)} of {held_out}), "
        f"at least {ACCURACY:.0%} claimed: {'[green]reached[/]' if reached else '[red]NOT reached[/]'}"
    )
    unchanged = result.same == held_out and result.difference <= LOGIT_LIMIT
    console.print(
        f"merged with switch_to_deploy(): {result.same} of {held_out} predictions the same, largest logit difference "
        f"{result.difference:.1e}: {'[green]unchanged[/]' if unchanged else '[red]CHANGED[/]'}"
    )
    console.print(
        f"parameters {result.parameters[0]:,} -> {result.parameters[1]:,}; "
        f"calls of this package's kernel in a forward pass {result.calls[0]} -> {result.calls[1]}"
    )
    return reached and unchanged and min(result.calls) > 0
