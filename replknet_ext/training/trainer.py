"""A run from its recipe to merged weights: `train`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .._files import replacing
from ..errors import ToolError, UsageError
from ..models import RepLKNet, save_checkpoint
from .checkpoints import Folder, load_state, state_of
from .data import Batch, Sources, open_sources
from .engine import Engine, make_mixup
from .evaluation import Accuracy, Merged, evaluate, merge_and_evaluate
from .libraries import library
from .logs import Log, draw, warn
from .networks import build_network
from .order import Order, Passes, seed_all
from .reading import changed, dump, load_recipe
from .recipe import Recipe
from .schedule import make_schedule
from .signals import Request, Stopped, stop_requests

__all__ = ["Result", "train"]

WEIGHTS, DEPLOY, CLASSES, RECIPE = "model.safetensors", "deploy.safetensors", "classes.txt", "recipe.yaml"


@dataclass(frozen=True)
class Result:
    """What a run reached; accuracies in percent on the validation images, None without any.

    Attributes:
        folder: where everything is.
        steps: optimizer steps.
        loss: mean training loss of the last epoch.
        top1: of the weights that are written: the averaged ones if the recipe has them.
        merged_top1: of the same after `switch_to_deploy`; None for networks that have none.
        difference: largest difference of two logits between those two.
        seconds: of this process, data included.
    """

    folder: Path
    steps: int
    loss: float
    top1: float | None
    merged_top1: float | None
    difference: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return {**asdict(self), "folder": str(self.folder)}


def train(
    recipe: Recipe | str | Path | None = None,
    data: Any = None,
    *,
    output: str | Path | None = None,
    settings: tuple[str, ...] | list[str] = (),
    weights: str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Result:
    """Trains, evaluates, merges and writes a network; on one process, or on those that torchrun or accelerate started.

    Args:
        recipe: a `Recipe`, a name of `recipe_names()` or a YAML file. None with `resume`: that of the run.
        data: a folder in place of the recipe's own, or a pair of map-style data sets (train, val or None)
            of (Pillow image or tensor, label).
        output: the run's folder; `runs/NAME` by default.
        settings: "key=value" each, as `--set`.
        weights: what training starts from, in place of the recipe's `model.weights`.
        resume: continue from the folder's last checkpoint.
        quiet: no progress bar and no lines on stderr.

    Raises:
        UsageError: recipe, data and options do not fit together.
        Stopped: a signal ended the run; resuming continues it.
        ToolError: the loss is not finite, an image or the disk cannot be used; says where.
    """
    for name in ("pydantic", "accelerate", "rich"):
        library(name)
    recipe, folder = _resolve(recipe, output, settings, weights, resume)
    if resume:
        saved = folder.read()
        _check_same(recipe, saved, folder)
    elif recipe.model.fine_tunes and recipe.model.weights is None:
        raise UsageError(f"recipe {recipe.name} fine-tunes {recipe.model.fine_tunes}: give its weights (--from)")
    else:
        saved = None
    sources = open_sources(data=recipe.data, given=data, evaluate=recipe.evaluate, mode=_mode(recipe))
    run = Run(recipe, sources, folder, saved, quiet)
    # One process holds the folder for all.
    with stop_requests() as request:
        if run.engine.rank:
            return run.run(request)
        with folder.in_use():
            if not resume and folder.last.exists():
                raise UsageError(f"{folder.path} holds a run already: resume it, or choose another output folder")
            return run.run(request)


def _mode(recipe: Recipe) -> str:
    return "L" if recipe.model.in_chans == 1 else "RGB"


def _resolve(
    recipe: Recipe | str | Path | None, output: str | Path | None, settings: Any, weights: str | None, resume: bool
) -> tuple[Recipe, Folder]:
    """The recipe with all that was said beside it, and the run's folder."""
    if recipe is None:
        if not resume or output is None:
            raise UsageError("which recipe? Give a name or a YAML file, or the folder of a run to resume")
        stored = Path(output) / RECIPE
        if not stored.is_file():
            raise UsageError(f"nothing to resume: {output} is no folder of a run")
        recipe = stored
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, settings)
    elif settings:
        recipe = load_recipe(recipe.model_dump(), settings)
    if weights is not None:
        recipe = recipe.model_copy(deep=True)
        recipe.model.weights = weights
    return recipe, Folder(output if output is not None else Path("runs") / recipe.name)


def _check_same(recipe: Recipe, saved: dict[str, Any], folder: Folder) -> None:
    """Resuming with another network, data order or schedule would be another run."""
    before = Recipe.model_validate(saved["recipe"])
    free = ("about", "checkpoints.", "logs.", "data.workers", "data.eval_batch_size", "data.path", "model.weights")
    differ = [line for line in changed(before, recipe) if not line.startswith(free)]
    if differ:
        raise UsageError(f"{folder.path} is a run of another recipe: {differ[0]}")


class Run:
    """The state of a run, and its loop."""

    def __init__(
        self, recipe: Recipe, sources: Sources, folder: Folder, saved: dict[str, Any] | None, quiet: bool
    ) -> None:
        self.recipe, self.folder, self.saved, self.quiet, self.sources = recipe, folder, saved, quiet, sources
        classes = None if sources.classes is None else len(sources.classes)
        self.engine = engine = Engine(recipe, classes, weights=saved is None)
        self.classes: int = recipe.model.num_classes or classes or 0
        unit = 2 if recipe.augment.mixes else 1
        self.passes = Passes(recipe.optimizer.global_batch, engine.world, recipe.data.batch_size, unit)
        self.order = Order(len(sources.train), self.passes, engine.rank, recipe.engine.seed)
        self.train_loader, self.val_loader = sources.loaders(recipe, self.order, engine.world, engine.device)
        self.mixup = make_mixup(recipe, self.classes)
        self.schedule = make_schedule(engine.optimizer, recipe.schedule, self.order.steps)
        self.step, self.best, self.loss_sum = 0, -math.inf, 0.0
        self.warn: Callable[[str], None] = warn
        self.epoch, self.loss = 0, math.nan  # epochs that are over, with their evaluation; mean loss of the last one
        if saved is not None:
            self._restore(saved)

    def _restore(self, saved: dict[str, Any]) -> None:
        engine = self.engine
        if saved["steps_per_epoch"] != self.order.steps:
            raise UsageError(
                f"{self.folder.path} is a run with {saved['steps_per_epoch']} steps per epoch, and this data gives "
                f"{self.order.steps}: other images"
            )
        load_state(engine.net, saved["model"], engine.optimizer, saved["optimizer"])
        if engine.ema is not None:
            load_state(engine.ema.module, saved["model_ema"])
        if engine.scaler is not None:
            engine.scaler.load_state_dict(saved["scaler"])
        self.step, self.best, self.loss_sum = saved["step"], saved["best"], saved["loss_sum"]
        self.epoch, self.loss = saved["epoch"], saved["loss"]

    def save(self, *, best: bool = False, number: int | None = None) -> None:
        """A checkpoint of this step; every process must call it."""
        engine = self.engine
        model, optimizer = state_of(engine.net, engine.optimizer)
        content: dict[str, Any] = {
            "model": model,
            "optimizer": optimizer,
            "step": self.step,
            "epoch": self.epoch,
            "steps_per_epoch": self.order.steps,
            "best": self.best,
            "loss_sum": self.loss_sum,
            "loss": self.loss,
            "recipe": self.recipe.model_dump(mode="json"),
        }
        if engine.ema is not None:
            content["model_ema"] = state_of(engine.ema.module)[0]
        if engine.scaler is not None:
            content["scaler"] = engine.scaler.state_dict()
        if isinstance(engine.net, RepLKNet):
            content["meta"] = {"config": asdict(engine.net.config)}
        if engine.rank == 0:
            self.folder.save(content, best=best, number=number, keep=self.recipe.checkpoints.keep)
        engine.wait()  # torchrun ends all processes as soon as one has ended

    def run(self, request: Request) -> Result:
        """From where it stands to the end."""
        began = time.perf_counter()
        engine, epochs = self.engine, self.recipe.schedule.epochs
        total = epochs * self.order.steps
        if engine.rank == 0:
            with replacing(self.folder.path / RECIPE) as path:
                path.write_text(dump(self.recipe), encoding="utf-8")
            if self.sources.classes is not None:
                with replacing(self.folder.path / CLASSES) as path:
                    path.write_text("\n".join(self.sources.classes) + "\n", encoding="utf-8")
        log = Log(self.folder.path, self.recipe, engine.accelerator, self.step, total, self.quiet)
        self.warn = log.warn
        with log.shown(self.step):
            while self.epoch < epochs:
                self.loss = self._steps(log, request)
                scores = self._scores()
                lr = max(group["lr"] for group in engine.optimizer.param_groups)
                log.epoch(self.step, self.epoch, epochs, self.loss, lr, scores)
                score = scores.get("ema_top1", scores.get("top1", -math.inf))
                best = score > self.best
                self.best = max(score, self.best)
                self.epoch += 1
                every = self.recipe.checkpoints.every
                self.save(best=best, number=self.epoch if every and self.epoch % every == 0 else None)
                if engine.agree(False, bool(request))[1]:  # it came in the evaluation
                    raise self._stopped(request)
            return self._finish(log, time.perf_counter() - began)

    def _stopped(self, request: Request) -> Stopped:
        return Stopped(f"{request.name or 'a signal'}: saved {self.folder.last} at step {self.step}; resume it")

    def _steps(self, log: Log, request: Request) -> float:
        """The steps of the epoch that are left; returns its mean loss, which counts those before a resume, too."""
        engine, recipe, order, epoch = self.engine, self.recipe, self.order, self.epoch
        engine.training_mode()
        order.epoch, order.start = epoch, self.step - epoch * order.steps
        batches = iter(self.train_loader)
        recent, since = 0.0, 0
        for index in range(order.start, order.steps):
            loss = self.one_step(batches, request)
            recent, since = recent + loss, since + 1
            if self.step % recipe.logs.every == 0:
                rate = max(group["lr"] for group in engine.optimizer.param_groups)
                log.step(self.step, epoch, engine.total(recent) / since, rate)
                recent, since = 0.0, 0
            if self.stop:
                self.save()
                raise self._stopped(request)
            steps = recipe.checkpoints.every_steps
            if steps and self.step % steps == 0 and index + 1 < order.steps:
                self.save()
        mean = engine.total(self.loss_sum) / order.steps
        self.loss_sum = 0.0
        return mean

    def one_step(self, batches: Iterator[Batch], request: Request) -> float:
        """A step of the optimizer on its next passes; returns this process's share of its loss."""
        engine = self.engine
        self.schedule.step_update(self.step)
        seed_all(self.recipe.engine.seed, 3, self.step, engine.rank)
        loss = self._passes(batches, request)
        engine.update(self.step + 1)
        self.step += 1
        self.loss_sum += loss
        return loss

    def _passes(self, batches: Iterator[Batch], request: Request) -> float:
        """Gradients of one step; returns this process's share of its loss."""
        engine, step_loss = self.engine, 0.0
        for number in range(self.passes.count):
            batch = next(batches)
            for line in batch.broken:
                if self.recipe.data.broken_images == "stop":
                    raise ToolError(f"an image cannot be read: {line} (data.broken_images=skip goes on without it)")
                self.warn(f"skipped: {line}")
            images, labels = engine.to_device(batch.images), batch.labels.to(engine.device, non_blocking=True)
            wrong = batch.labels[(batch.labels < 0) | (batch.labels >= self.classes)]
            if len(wrong):  # on a GPU it would be a failed assertion of a kernel
                raise UsageError(f"the data has the label {wrong[0]}, but there are {self.classes} classes, from 0 on")
            if self.mixup is not None:
                images, labels = self.mixup(images, labels)
            loss = float(engine.run_pass(images, labels, last=number + 1 == self.passes.count))
            broken, self.stop = engine.agree(not math.isfinite(loss), bool(request))
            if broken:
                where = engine.first_bad_layer(images)
                left = f"; {self.folder.last} is from before" if self.folder.last.exists() else ""
                raise ToolError(f"the loss is {loss} at step {self.step + 1}: {where}{left}")
            step_loss += loss
        return step_loss

    def _scores(self) -> dict[str, float]:
        """Accuracies in percent, of the weights and of the averaged ones."""
        if self.val_loader is None:
            return {}
        engine, scores = self.engine, {}
        for name, net in (("top1", engine.net), ("ema_top1", engine.ema and engine.ema.module)):
            if net is not None:
                autocast = engine.accelerator.autocast()
                scores[name] = evaluate(
                    net, self.val_loader, engine.device, autocast=autocast, memory_format=engine.memory_format
                ).top1
        return scores

    def _finish(self, log: Log, seconds: float) -> Result:
        """The averaged weights, merged and not, evaluated and written."""
        engine, recipe, folder = self.engine, self.recipe, self.folder.path
        averaged = engine.net if engine.ema is None else engine.ema.module
        net: Any = build_network(recipe.model, self.classes, weights=False)
        net.load_state_dict(state_of(averaged, everywhere=True)[0])
        net.to(engine.device).eval()
        accuracy: Accuracy | None = None
        merged: Merged | None = None
        deploys = hasattr(net, "switch_to_deploy")
        if self.val_loader is not None and deploys:
            merged = merge_and_evaluate(net, self.val_loader, engine.device)
            accuracy = merged.before
        elif self.val_loader is not None:
            accuracy = evaluate(net, self.val_loader, engine.device)
        if engine.rank == 0:
            save_checkpoint(net, folder / WEIGHTS)
            if deploys:
                small: nn.Module = merged.model if merged is not None else net.switch_to_deploy()
                save_checkpoint(small, folder / DEPLOY)
            draw(folder)
        if accuracy is not None:
            of = f" of {accuracy.images} images"
            line = f"{'averaged' if engine.ema is not None else 'final'} weights: top-1 {accuracy.top1:.2f} %{of}"
            if merged is not None:
                line += f"; merged: {merged.after.top1:.2f} %, largest logit difference {merged.difference:.1e}"
            log.say(line)
        log.say(f"wrote {folder / WEIGHTS}" + (f" and {folder / DEPLOY}" if deploys else ""))
        return Result(
            folder=folder,
            steps=self.step,
            loss=self.loss,
            top1=None if accuracy is None else accuracy.top1,
            merged_top1=None if merged is None else merged.after.top1,
            difference=None if merged is None else merged.difference,
            seconds=seconds,
        )
