"""Devices, precision and processes of a run, by Hugging Face accelerate; FSDP2 by torch's own `fully_shard`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..models import RepLKNet
from .batchnorm import sync_batchnorm
from .groups import parameter_groups
from .libraries import library, timm
from .networks import build_network, keep_norms
from .recipe import Recipe

__all__ = ["Engine", "make_ema", "make_mixup", "make_optimizer"]

_BACKEND = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}  # gloo carries flags without waiting for the GPU


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer over `parameter_groups`.

    Raises:
        UsageError: timm has no such optimizer, or it has not these options.
    """
    timm()
    from timm.optim import create_optimizer_v2

    wanted = recipe.optimizer
    groups = parameter_groups(model, wanted.weight_decay, wanted.layer_decay)
    options = {key: value for key, value in (("eps", wanted.eps), ("betas", wanted.betas)) if value is not None}
    try:
        made: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=wanted.name, lr=wanted.lr, weight_decay=wanted.weight_decay, momentum=wanted.momentum, **options
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise UsageError(f"optimizer: {error} (eps: null leaves timm's default)") from None
    return made


def make_ema(model: nn.Module, recipe: Recipe) -> Any:
    """timm's `ModelEmaV3` of a network, or None."""
    if not recipe.ema.enabled:
        return None
    timm()
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup)


def make_mixup(recipe: Recipe, num_classes: int) -> Any:
    """timm's `Mixup`, or None; labels are soft then, with the label smoothing in them."""
    augment = recipe.augment
    if not augment.mixes:
        return None
    timm()
    from timm.data import Mixup

    return Mixup(
        mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, prob=augment.mix_prob, switch_prob=augment.mix_switch,
        label_smoothing=augment.label_smoothing, num_classes=num_classes,
    )  # fmt: skip


class Engine:
    """A network with its optimizer, averaged weights and gradient scaler, on the devices of this run.

    Attributes:
        accelerator: of accelerate.
        net: the network itself; `model`: what runs in training, which may be inside DistributedDataParallel.
        optimizer: timm's; `ema`: timm's `ModelEmaV3` or None.
    """

    def __init__(self, recipe: Recipe, num_classes: int | None, *, weights: bool = True) -> None:
        self.recipe = recipe
        self.accelerator = _accelerator(recipe)
        self.device: torch.device = self.accelerator.device
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        engine, model = recipe.engine, recipe.model
        if engine.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        torch.manual_seed(engine.seed)  # of the weights, on every process
        with self.accelerator.main_process_first():  # one downloads, the others find it
            net = build_network(model, num_classes, weights=weights)
        if model.sync_bn and self.world > 1:
            net = sync_batchnorm(net, self.device)
        self.memory_format = torch.channels_last if engine.channels_last else torch.contiguous_format
        net = net.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.net: Any = net
        self.ema = make_ema(net, recipe)
        self.sharded = engine.strategy == "fsdp" and self.world > 1
        if self.sharded:
            _shard(net, self.device)
            if self.ema is not None:
                _shard(self.ema.module, self.device)
                self.ema.foreach = False  # those calls do not mix split parameters with buffers
        if engine.compile is not None:
            if engine.compile not in torch.compiler.list_backends(exclude_tags=()):  # those for debugging, too
                usual = ", ".join(torch.compiler.list_backends())
                raise UsageError(f"engine.compile={engine.compile}: no such backend; there are {usual}")
            net.compile(backend=engine.compile)
        optimizer = make_optimizer(net, recipe)
        self.model: Any = net
        if self.world > 1 and not self.sharded:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True)
        self.optimizer = optimizer
        self.scaler = self.accelerator.scaler
        self.flags = torch.zeros(2, dtype=torch.int64)
        self.training_mode()

    def training_mode(self) -> None:
        """`train()`, without the norms that keep their statistics."""
        self.model.train()
        if self.recipe.model.norm_eval:
            keep_norms(self.net)

    @contextmanager
    def _last_pass(self, last: bool) -> Iterator[None]:
        """Gradients are exchanged in the last of a step's passes only."""
        if self.sharded:
            self.net.set_requires_gradient_sync(last)
            yield
        elif self.world > 1 and not last:
            with self.model.no_sync():
                yield
        else:
            yield

    def run_pass(self, images: Tensor, labels: Tensor, last: bool) -> Tensor:
        """Forward and backward of one pass; returns its share of the step's loss, as a number on the host.

        The loss is the sum over images divided by the global batch, so that passes may differ in size.

        Args:
            images: (N, C, H, W) on the device.
            labels: (N,) int64, or (N, classes) from mixup.
            last: the last pass of the step.
        """
        smoothing = self.recipe.augment.label_smoothing if labels.ndim == 1 else 0.0
        with self._last_pass(last):
            with self.accelerator.autocast():
                logits = self.model(images)
            total = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
            share = total / self.recipe.optimizer.global_batch
            # The host reads it while the backward pass runs.
            host = share.detach().to("cpu", non_blocking=True)
            arrived = torch.cuda.Event() if self.device.type == "cuda" else None
            if arrived is not None:
                arrived.record()
            self.accelerator.backward(share * self.world)  # gradients are averaged over the processes
        if arrived is not None:
            arrived.synchronize()
        return host

    def agree(self, broken: bool, stop: bool) -> tuple[bool, bool]:
        """Whether on any process the loss is not finite, and whether any was asked to stop."""
        if self.world == 1:
            return broken, stop
        self.flags[0], self.flags[1] = int(broken), int(stop)
        dist.all_reduce(self.flags, dist.ReduceOp.MAX)
        return bool(self.flags[0]), bool(self.flags[1])

    def wait(self) -> None:
        """Until every process is here."""
        self.total(0.0)

    def update(self, step: int) -> None:
        """Clips, steps and averages; `step` counts from 1."""
        clip = self.recipe.optimizer.clip_grad
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.net, step=step if self.recipe.ema.warmup else None)

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.world == 1:
            return value
        sums = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(sums)
        return float(sums)

    def to_device(self, images: Tensor) -> Tensor:
        """On the device, in the recipe's memory format."""
        return images.to(self.device, non_blocking=True, memory_format=self.memory_format)

    def first_bad_layer(self, images: Tensor) -> str:
        """Which layer's output, or else which weight, is the first that is not finite; in words."""
        bad = [name for name, value in self.net.named_parameters() if not torch.isfinite(_local(value)).all()]
        if self.total(len(bad)):  # decided together: the forward pass below has exchanges in it
            return f"the weights {bad[0]} are not finite" if bad else "weights on another process are not finite"
        if self.total(int(not torch.isfinite(images).all())):
            return "the images are not finite"
        found: list[str] = []

        def look(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                    found.append(name)

            return hook

        leaves = [(name, module) for name, module in self.net.named_modules() if not next(module.children(), None)]
        hooks = [module.register_forward_hook(look(name)) for name, module in leaves]
        try:
            with torch.no_grad(), self.accelerator.autocast():
                # As it is written, not as it was compiled; parameters that are split need their own call.
                (self.net if self.sharded else self.net.forward)(images)
        finally:
            for hook in hooks:
                hook.remove()
        return f"the first output that is not finite is of the layer {found[0]}" if found else "in the loss alone"


def _local(parameter: Tensor) -> Tensor:
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local


def _accelerator(recipe: Recipe) -> Any:
    accelerate = library("accelerate")
    engine = recipe.engine
    on_cpu = engine.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and engine.amp == "fp16":  # accelerate says so only in the first run of a process
        raise UsageError("engine.amp=fp16 needs a GPU; the CPU takes bf16")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and not dist.is_initialized():
        if not on_cpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group(_BACKEND["cpu" if on_cpu else "cuda"])
    # accelerate keeps one state per process; another run in it may want another precision or device.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return accelerate.Accelerator(cpu=on_cpu, mixed_precision=engine.amp)
    except ValueError as error:
        raise UsageError(f"engine.amp={engine.amp}: {error}") from None


def _shard(net: nn.Module, device: torch.device) -> None:
    """FSDP2: every block of a RepLKNet, then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    if isinstance(net, RepLKNet):
        for stage in net.stages:
            for block in stage.blocks:  # type: ignore[union-attr]
                fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
