"""What a run tells: log.jsonl, trackers of accelerate, a progress bar or one line per epoch, and a picture."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ToolError, UsageError
from .recipe import Recipe

__all__ = ["Log", "draw", "read_log"]

LOG, PICTURE = "log.jsonl", "curves.png"


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a run's log.jsonl, oldest first; a last line that a killed run left half-written is left out."""
    path = Path(folder) / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def warn(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)


class Log:
    """Of the first process; on others nothing is written.

    Args:
        step: steps that are done; entries of later ones, which a stopped run left, are removed.
        total: steps of the run.
        quiet: no progress bar and no lines.
    """

    def __init__(self, folder: Path, recipe: Recipe, accelerator: Any, step: int, total: int, quiet: bool) -> None:
        self.accelerator, self.total, self.every = accelerator, total, recipe.logs.every
        self.first = accelerator.is_main_process
        self.quiet = quiet or not self.first
        self.batch = recipe.optimizer.global_batch
        self.bar: Any = None
        self.task: Any = None
        self.began, self.seen = time.perf_counter(), step
        self.file = None
        if self.first:
            kept = [entry for entry in read_log(folder) if entry["step"] <= step]
            try:
                self.file = open(folder / LOG, "w", encoding="utf-8")  # noqa: SIM115  # open for the run
                for entry in kept:
                    self._line(entry)
            except OSError as error:
                raise ToolError(f"cannot write {folder / LOG}: {error.strerror}") from None
        self.trackers = bool(recipe.logs.trackers)
        if self.trackers:
            try:
                accelerator.log_with = _trackers(recipe, folder)
                accelerator.project_configuration.set_directories(str(folder))
                accelerator.init_trackers(recipe.logs.project if "wandb" in recipe.logs.trackers else "tensorboard")
            except (ImportError, ValueError) as error:
                raise UsageError(f"logs.trackers: {error}") from None

    @contextmanager
    def shown(self, step: int) -> Iterator[None]:
        """A progress bar where stderr is a terminal."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=self.quiet or not console.is_terminal) as self.bar:
            self.task = self.bar.add_task("training", total=self.total, completed=step)
            try:
                yield
            finally:
                if self.file is not None:
                    self.file.close()
                if self.trackers:
                    self.accelerator.end_training()

    def step(self, step: int, epoch: int, loss: float, lr: float) -> None:
        """After each `every` steps; `loss` is the mean since the last call."""
        now = time.perf_counter()
        rate = (step - self.seen) * self.batch / max(now - self.began, 1e-9)
        self.began, self.seen = now, step
        entry = {"step": step, "epoch": epoch, "loss": loss, "lr": lr, "images_per_second": rate}
        self._write(entry)
        if self.bar is not None:
            words = f"epoch {epoch + 1}  loss {loss:.4f}  lr {lr:.1e}  {rate:,.0f} images/s"
            self.bar.update(self.task, completed=step, description=words)

    def epoch(self, step: int, epoch: int, epochs: int, loss: float, lr: float, scores: dict[str, float]) -> None:
        """After each epoch: (step, loss, learning rate, accuracies in percent) and one line for people."""
        self._write({"step": step, "epoch": epoch, "train_loss": loss, "lr": lr, **scores})
        words = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
        self.say(f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}  lr {lr:.2e}  {words}".rstrip())

    def say(self, line: str) -> None:
        """A line on stderr, above the bar."""
        if not self.quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """As `say`, but from every process and also a quiet one."""
        if self.bar is not None and not self.bar.disable:
            self.bar.console.print(line, highlight=False, markup=False)
        else:
            warn(line)

    def _write(self, entry: dict[str, Any]) -> None:
        if self.file is not None:
            self._line(entry)
        if self.trackers:
            self.accelerator.log({key: value for key, value in entry.items() if key != "step"}, step=entry["step"])

    def _line(self, entry: dict[str, Any]) -> None:
        assert self.file is not None
        try:
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()
        except OSError as error:
            raise ToolError(f"cannot write {self.file.name}: {error.strerror}") from None


def _trackers(recipe: Recipe, folder: Path) -> list[Any]:
    from accelerate.tracking import filter_trackers, get_available_trackers

    known = {str(tracker.value) for tracker in get_available_trackers()}
    missing = sorted(set(recipe.logs.trackers) - known)
    if missing:
        raise UsageError(
            f"logs.trackers: {missing[0]!r} is not installed; here are {', '.join(sorted(known)) or 'none'}"
        )
    return list(filter_trackers(list(recipe.logs.trackers), str(folder)))


def draw(folder: str | Path) -> Path:
    """A picture of loss, accuracy and learning rate over the steps, from log.jsonl.

    Raises:
        ToolError: matplotlib is missing.
    """
    from ..errors import needs
    from ..tools.files import replacing

    with needs("matplotlib", "train"):
        from matplotlib.figure import Figure
    entries = read_log(folder)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    parts = {
        "loss": ("loss", "train_loss"),
        "accuracy, percent": ("top1", "ema_top1"),
        "learning rate": ("lr",),
    }
    for axes, (title, keys) in zip(figure.subplots(1, 3), parts.items(), strict=True):
        for key in keys:
            points = [(entry["step"], entry[key]) for entry in entries if key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=key, linewidth=1.4)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(keys) > 1 and axes.get_legend_handles_labels()[0]:
            axes.legend()
    target = Path(folder) / PICTURE
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=120)
    return target
