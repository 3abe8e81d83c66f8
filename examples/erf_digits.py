"""docs/images/erf_digits.png: what a large kernel changes in the effective receptive field, on two small networks.

`python -m examples.erf_digits` trains them on scikit-learn's digits, 64 x 64 pixels, alike but for the size of the
depthwise kernels, and draws the fields that the held-out digits have, side by side. About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console

from examples import demo_digits
from replknet_ext.models import RepLKNet, RepLKNetConfig
from replknet_ext.tools import erf

SIZE, EPOCHS, PICTURES = 64, 4, 50

# The map of the first stage has 32 x 32 values, that of the second 16 x 16.
LARGE = RepLKNetConfig((31, 15), (2, 2), (16, 32), small_kernel=5, ffn_ratio=2.0, stem_strides=(2, 1))
SMALL = replace(LARGE, large_kernel_sizes=(3, 3), small_kernel=None)
NETWORKS = {"3x3 kernels": SMALL, "31x31 and 15x15 kernels": LARGE}


def train(digits: demo_digits.Digits, epochs: int, *, config: RepLKNetConfig, seed: int = 0) -> RepLKNet:
    """A RepLKNet of `config`, trained with AdamW and a one-cycle schedule, as it was for the documented picture."""
    torch.manual_seed(seed)
    model = RepLKNet(config, num_classes=10, in_chans=1)
    images, labels = digits.train
    steps = epochs * (len(images) // demo_digits.BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, demo_digits.LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        # The incomplete last batch is dropped: another shuffle brings its images in the next epoch.
        for chosen in torch.randperm(len(images)).split(demo_digits.BATCH)[: len(images) // demo_digits.BATCH]:
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: RepLKNet, digits: demo_digits.Digits) -> float:
    """Of the held-out digits."""
    images, labels = digits.test
    with torch.inference_mode():
        return float((model(images).argmax(1) == labels).double().mean())


def draw(fields: dict[str, erf.EffectiveReceptiveField], titles: dict[str, str], path: Path) -> None:
    """The fields side by side, in one scale of colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.0), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(fields))
    for axes, (name, field) in zip(panels, fields.items(), strict=True):
        shown = erf.draw(axes, field, titles[name])
    bar = figure.colorbar(shown, ax=panels, shrink=0.8, pad=0.015)
    bar.set_label("log10(contribution + 1), relative to the largest")
    erf.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.erf_digits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/images/erf_digits.png"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)

    console = Console(stderr=True)
    digits = demo_digits.load_digits(SIZE)
    pictures = [(str(index), picture) for index, picture in enumerate(digits.test[0][:PICTURES])]
    fields, titles, report = {}, {}, {}
    for name, config in NETWORKS.items():
        with console.status(f"training with {name}"):
            model = train(digits, options.epochs, config=config)
        reached = accuracy(model, digits)
        fields[name] = field = erf.measure(model, pictures)
        titles[name] = f"{name}, {reached:.1%} accuracy"
        report[name] = {"accuracy": reached, **field.as_dict()}
        erf.render(name, field, console)
    draw(fields, titles, options.output)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
