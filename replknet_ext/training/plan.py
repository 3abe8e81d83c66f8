"""What a recipe comes to before anything is trained: steps, learning rates, parameter groups, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import open_sources
from .groups import parameter_groups
from .networks import build_network
from .order import Order, Passes
from .reading import dump
from .recipe import Recipe
from .schedule import learning_rates

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Group", "Memory", "Plan", "catalogue", "make_plan", "render"]

_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOMENTS = {"sgd": 1, "momentum": 1, "nesterov": 1, "lion": 1}  # tensors that an optimizer keeps per parameter; else 2


@dataclass(frozen=True)
class Group:
    """Of parameters: how many tensors and values, and the two numbers that differ."""

    name: str
    tensors: int
    values: int
    lr_scale: float
    weight_decay: float


@dataclass(frozen=True)
class Memory:
    """Bytes on one process, without what the allocator wastes and kernels need for a moment.

    `activations` are the tensors that autograd keeps for the backward pass of one pass of `images`.
    """

    images: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


@dataclass(frozen=True)
class Plan:
    """What `make_plan` found; `rates` are (epoch, learning rate)."""

    recipe: Recipe
    images: int
    processes: int
    passes: int
    pass_images: int
    steps_per_epoch: int
    steps: int
    rates: list[tuple[float, float]]
    groups: list[Group]
    memory: Memory

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return {
            **{key: getattr(self, key) for key in ("images", "processes", "passes", "pass_images", "steps_per_epoch")},
            "steps": self.steps,
            "learning_rates": self.rates,
            "groups": [asdict(group) for group in self.groups],
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "recipe": self.recipe.model_dump(mode="json"),
        }


def make_plan(recipe: Recipe, data: Any = None, processes: int | None = None) -> Plan:
    """Plans a run; no weights are made or loaded, and without data none is needed where the recipe has `num_train`.

    Args:
        data: as `train`.
        processes: as many as torchrun started when None.

    Raises:
        UsageError: as `train`.
    """
    world = processes or int(os.environ.get("WORLD_SIZE", "1"))
    classes = None
    if data is None and recipe.data.num_train is not None:
        images = recipe.data.num_train
    else:
        sources = open_sources(recipe.data, data, recipe.evaluate, "L" if recipe.model.in_chans == 1 else "RGB")
        images, classes = len(sources.train), None if sources.classes is None else len(sources.classes)
    passes = Passes(recipe.optimizer.global_batch, world, recipe.data.batch_size, 2 if recipe.augment.mixes else 1)
    order = Order(images, passes, 0, recipe.engine.seed)
    with torch.device("meta"):
        net = build_network(recipe.model, classes, weights=False)
    wanted = recipe.optimizer
    groups = [
        Group(
            group["name"], len(group["params"]), sum(p.numel() for p in group["params"]), group["lr_scale"],
            group["weight_decay"],
        )
        for group in parameter_groups(net, wanted.weight_decay, wanted.layer_decay)
    ]  # fmt: skip
    largest = max(max(sizes) for sizes in passes.sizes())
    return Plan(
        recipe, images, world, passes.count, largest, order.steps, order.steps * recipe.schedule.epochs,
        learning_rates(wanted.lr, recipe.schedule, order.steps), groups, _memory(recipe, classes, largest, world),
    )  # fmt: skip


def _memory(recipe: Recipe, classes: int | None, images: int, world: int) -> Memory:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        net = build_network(recipe.model, classes, weights=False)
        parameters = list(net.parameters())
        everything = sum(t.numel() * t.element_size() for t in (*parameters, *net.buffers()))
        trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        activations = _activations(net, recipe, images)
    parts = world if recipe.engine.strategy == "fsdp" else 1
    moments = _MOMENTS.get(recipe.optimizer.name, 2)
    return Memory(
        images=images,
        weights=everything // parts,
        gradients=trained // parts,
        optimizer=moments * trained // parts,
        ema=everything // parts if recipe.ema.enabled else 0,
        activations=activations,
    )


def _activations(net: nn.Module, recipe: Recipe, images: int) -> int:
    """Bytes that autograd keeps, counted in a forward pass that computes nothing."""
    size = recipe.data.input_size
    inputs = torch.empty(images, recipe.model.in_chans, size, size)
    dtype = _DTYPES[recipe.engine.amp]
    owned = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    with _kept(owned) as kept, torch.autocast("cpu", dtype) if dtype else nullcontext():
        logits = net(inputs)
        F.cross_entropy(logits.float(), torch.empty(images, dtype=torch.int64))
    return sum(kept.values())


@contextmanager
def _kept(but: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd saves in the block."""
    kept: dict[int, int] = {}
    alive = []  # a storage that is gone could give its address to another

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in but:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield kept


def render(plan: Plan, console: Console) -> None:
    """Prints a plan for people."""
    from ..tools import show

    console.print(dump(plan.recipe).rstrip(), highlight=False, markup=False)
    console.print()
    console.print(
        f"{plan.images:,} images, {plan.steps_per_epoch:,} steps per epoch, {plan.steps:,} in all. A step: "
        f"{plan.recipe.optimizer.global_batch} images = {plan.processes} processes x {plan.passes} passes x "
        f"at most {plan.pass_images}",
        highlight=False,
    )
    table = show.table("Learning rate", "epoch", "lr", numbers="rr")
    for epoch, rate in plan.rates:
        table.add_row(f"{epoch:.2f}", f"{rate:.3e}")
    console.print(table)
    table = show.table("Parameter groups", "group", "tensors", "values", "lr scale", "weight decay", numbers="lrrrr")
    for group in plan.groups:
        table.add_row(
            group.name, str(group.tensors), f"{group.values:,}", f"{group.lr_scale:.4g}", f"{group.weight_decay:g}"
        )
    console.print(table)
    memory = plan.memory
    table = show.table("Memory of one process, estimated", "what", "GiB", numbers="lr")
    for name in ("weights", "gradients", "optimizer", "ema", "activations", "total"):
        words = f"activations of {memory.images} images" if name == "activations" else name
        table.add_row(words, f"{getattr(memory, name) / 2**30:.2f}")
    console.print(table)


def catalogue() -> list[dict[str, Any]]:
    """The recipes of the package, for `replknet-ext recipes`."""
    from .reading import load_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        rows.append(
            {
                "name": name,
                "about": recipe.about,
                "epochs": recipe.schedule.epochs,
                "global_batch": recipe.optimizer.global_batch,
                "lr": recipe.optimizer.lr,
                "input_size": recipe.data.input_size,
            }
        )
    return rows
