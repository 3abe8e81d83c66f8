"""Top-1 and top-5 accuracy on a folder of classes, on one process or, under torchrun, on many.

Every process takes every n-th picture, so the pictures are counted once whatever the number of processes; nothing is
padded, and the processes meet only at the end, to add their counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.folder import ImageFolder, collate
from ..data.transforms import Preprocessing
from ..errors import ToolError, UsageError
from . import show

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Result", "Team", "evaluate", "first_alone", "hits", "progress", "render", "team"]

UNREADABLE_SHOWN = 20
TOPK = 5


@dataclass(frozen=True)
class Result:
    """Counts over all processes.

    Attributes:
        images: pictures that counted; unreadable ones do not.
        correct1, correct5: those whose label was the best, or among the best `topk`.
        topk: 5, or the number of classes if that is less.
        classes: classes that the folder has.
        unreadable: paths of pictures that could not be read.
        not_finite: pictures for which the network's outputs are not finite; they count, as wrong.
        seconds: wall-clock time, data included.
        processes: how many shared the work.
        interrupted: Ctrl-C came before the end: the counts are of the pictures until then.
    """

    images: int
    correct1: int
    correct5: int
    topk: int
    classes: int
    unreadable: tuple[str, ...]
    seconds: float
    processes: int
    not_finite: int = 0
    interrupted: bool = False

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct1 / self.images

    @property
    def top5(self) -> float:
        """Percent, among the best `topk`."""
        return 100 * self.correct5 / self.images

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return {"top1": self.top1, "top5": self.top5, **asdict(self), "unreadable": list(self.unreadable)}


@dataclass(frozen=True)
class Team:
    """The processes that torchrun started: the rank of this one, and how many there are."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


@contextmanager
def team(device: str = "auto") -> Iterator[Team]:
    """This process among those of torchrun, by its environment variables; alone without them.

    Sets up and tears down torch.distributed: nccl where each process has a GPU, else gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield Team()
        return
    here = Team(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    gpus = device != "cpu" and torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(here.local_rank % torch.cuda.device_count())
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield here
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone(here: Team) -> Iterator[None]:
    """The block runs on the first process, then on all others, which find what the first has downloaded."""
    if here.size > 1 and here.rank > 0:
        dist.barrier()
    yield
    if here.size > 1 and here.rank == 0:
        dist.barrier()


def evaluate(
    model: nn.Module,
    items: Sequence[tuple[Path, int]],
    preprocessing: Preprocessing,
    *,
    classes: int,
    batch_size: int = 64,
    workers: int | None = None,
    amp: torch.dtype | None = None,
    channels_last: bool = False,
    here: Team | None = None,
    on_batch: Callable[[int, int, int], object] = lambda images, correct1, correct5: None,
) -> Result:
    """Runs `model`, a classifier in eval mode, on all pictures.

    Args:
        items: all pictures with their labels, the same on every process.
        classes: how many classes they are of, for the result.
        batch_size: per process.
        workers: processes that read pictures, per process; None: one per processor, at most 4.
        amp: autocast to this dtype, None for none.
        channels_last: memory layout of the inputs.
        here: this process among others, see `team`.
        on_batch: called with this process's counts so far, for a progress bar.

    After Ctrl-C the result is of what was done so far; of several processes no one knows what the others did, so there
    KeyboardInterrupt is raised.

    Raises:
        ToolError: no picture could be read.
    """
    if workers is None:
        workers = min(4, len(os.sched_getaffinity(0)))
    if batch_size < 1 or workers < 0:
        raise UsageError(f"batch size must be at least 1 and workers 0; got {batch_size} and {workers}")
    here = here or Team()
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    mine = items[here.rank :: here.size]
    loader = DataLoader(
        ImageFolder(mine, preprocessing), batch_size, num_workers=workers, collate_fn=collate,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    autocast = torch.autocast(device.type, amp) if amp is not None else nullcontext()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    counts, topk = torch.zeros(4, dtype=torch.int64), 1
    bad: list[str] = []
    start = time.perf_counter()
    interrupted = False
    try:
        with torch.inference_mode(), autocast:
            for pixels, labels, unreadable in loader:
                bad += [str(mine[index][0]) for index in unreadable]
                if len(labels):
                    logits = model(pixels.to(device, dtype, non_blocking=True, memory_format=layout))
                    topk = min(TOPK, logits.shape[1])
                    counts += hits(logits, labels)
                on_batch(int(counts[0]) + len(bad), int(counts[1]), int(counts[2]))
    except KeyboardInterrupt:
        if here.size > 1 or not counts[0]:
            raise
        interrupted = True
    if here.size > 1:
        counts, topk, bad = _together(counts, topk, bad, device)
    images, correct1, correct5, not_finite = counts.tolist()
    if images == 0:
        raise ToolError(f"none of {len(items)} pictures could be read")
    seconds = time.perf_counter() - start
    return Result(
        images, correct1, correct5, topk, classes, tuple(sorted(bad)), seconds, here.size, not_finite, interrupted
    )


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts of images: all, those whose label has the best logit, among the best `TOPK`, not finite.

    Args:
        logits: (N, classes), on any device. An image whose scores are not all finite counts as no hit.
        labels: (N,) int64, on the CPU.

    Returns:
        (4,) int64 on the CPU.
    """
    logits = logits.float()
    finite = logits.softmax(1).isfinite().all(1).cpu()
    best = logits.topk(min(TOPK, logits.shape[1]), dim=1).indices.cpu() == labels.unsqueeze(1)
    found = best & finite.unsqueeze(1)
    return torch.stack([torch.tensor(len(labels)), found[:, 0].sum(), found.sum(), (~finite).sum()])


def _together(counts: Tensor, topk: int, bad: list[str], device: torch.device) -> tuple[Tensor, int, list[str]]:
    """The sums over all processes, on all processes."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (counts.tolist(), topk, bad))
    total = torch.tensor([entry[0] for entry in gathered]).sum(0)
    return total, max(entry[1] for entry in gathered), [path for entry in gathered for path in entry[2]]


# ---- for people ----

OnBatch = Callable[[int, int, int], object]


@contextmanager
def progress(images: int, here: Team, hidden: bool = False) -> Iterator[OnBatch]:
    """A progress bar with the accuracy so far, for `evaluate`'s `on_batch`; on the first process only."""
    with show.progress(hidden=hidden or here.rank > 0) as shown:
        task = shown.add_task("evaluating", total=len(range(here.rank, images, here.size)))

        def update(done: int, correct1: int, correct5: int) -> None:
            shown.update(task, completed=done, description=f"top-1 {100 * correct1 / max(done, 1):.2f}")

        yield update


def render(name: str, result: Result, console: Console) -> None:
    """Print a result; made for 60 columns and more."""
    table = show.table(name, "", "percent", "correct", "of", numbers="lrrr")
    table.add_row("top-1", f"{result.top1:.2f}", f"{result.correct1:,}", f"{result.images:,}")
    table.add_row(f"top-{result.topk}", f"{result.top5:.2f}", f"{result.correct5:,}", f"{result.images:,}")
    console.print(table)
    rate = result.images / max(result.seconds, 1e-9)
    team = f", {result.processes} processes" if result.processes > 1 else ""
    console.print(
        f"{result.classes} classes, {result.seconds:.1f} s, {rate:,.1f} images per second{team}", highlight=False
    )
    if result.unreadable:
        count = len(result.unreadable)
        console.print(f"{count} {'picture' if count == 1 else 'pictures'} could not be read", style="yellow")
