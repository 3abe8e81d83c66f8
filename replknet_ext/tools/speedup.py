"""``replknet-ext speedup``: whether these kernels help a model here, measured against `nn.Conv2d` in both layouts."""

from __future__ import annotations

import copy
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..backends.torch import activate
from ..choices.device import identity
from ..errors import ToolError, UsageError, needs
from ..models import get_model, list_models
from ..modules import DepthwiseConv2dLarge
from ..patch import ReplaceEntry, replace_depthwise
from ..tuning.measure import LARGEST_DIFFERENCE, difference
from . import show
from .timing import Candidate, Timing, interleave

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FORWARD", "TRAINING", "Report", "Row", "load", "measure", "render"]

FORWARD, TRAINING = "forward", "training step"
TORCH, OURS = "nn.Conv2d", "these kernels"
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
AS_CALLED = f"{TORCH} NCHW"


@dataclass(frozen=True)
class Row:
    """One pass of the model, or of one of its layers alone.

    Attributes:
        what: "model", or the layer's input and kernel.
        names: paths of all layers that are like it; () for the model.
        pass_: FORWARD or TRAINING.
        timings: of each that ran, by names such as "nn.Conv2d NCHW".
        failed: why the others did not.
        difference: of the outputs from those of `nn.Conv2d`, relative, the largest; None where nothing is compared.
    """

    what: str
    names: tuple[str, ...]
    pass_: str
    timings: dict[str, Timing]
    failed: dict[str, str]
    difference: float | None

    def ms(self, kind: str) -> float | None:
        """Median milliseconds of TORCH or OURS in its faster layout; None if it ran in neither."""
        return min((timing.median for name, timing in self.timings.items() if name.startswith(kind)), default=None)

    @property
    def gain(self) -> float | None:
        """How many times faster than `nn.Conv2d`, each in its faster layout; less than 1 is a loss."""
        return _ratio(self.ms(TORCH), self.ms(OURS))

    @property
    def gain_as_called(self) -> float | None:
        """The same against `nn.Conv2d` in NCHW, as models are called unless somebody changes their layout."""
        return _ratio(self.ms(AS_CALLED), self.ms(OURS))

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        timings = {name: timing.as_dict() for name, timing in self.timings.items()}
        gap = self.difference if self.difference is None or self.difference < float("inf") else None
        return {
            "what": self.what, "names": list(self.names), "pass": self.pass_, "gain": self.gain,
            "gain_as_called": self.gain_as_called, "difference": gap, "timings": timings, "failed": self.failed,
        }  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What was measured, of what, where and how.

    Attributes:
        model: as it was named.
        shape: of the input.
        amp: dtype of autocast, None for none.
        where: see `choices.device.identity`.
        load: processes that ran or waited on this machine when the measurement began, on average over a minute.
        rows: the model's passes first; none if no layer is for these kernels.
        kept: depthwise layers that stay on torch in both, and why.
    """

    model: str
    shape: tuple[int, ...]
    amp: str | None
    where: dict[str, str]
    load: float
    rows: tuple[Row, ...]
    kept: tuple[ReplaceEntry, ...]

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        kept = [{"name": entry.name, "shape": list(entry.shape), "reason": entry.reason} for entry in self.kept]
        return {
            "model": self.model, "input": list(self.shape), "amp": self.amp, "measured_on": self.where,
            "load": round(self.load, 2), "rows": [row.as_dict() for row in self.rows], "kept": kept,
        }  # fmt: skip


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


# ---- the model ----


def load(name: str, deploy: Literal["merge", "full"] | None = None) -> nn.Module:
    """A model with random weights.

    Args:
        name: one of `list_models()`, any name of timm's, or "module:function", of which the function (or class) is
            called without arguments; the module may lie in the current folder.
        deploy: the merging level of `switch_to_deploy`.

    Raises:
        UsageError: no such name, or nothing to merge.
        ToolError: the module cannot be imported, or does not build a model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if ":" in name:
            model = _imported(name)
        else:
            model = get_model(name) if name in list_models() else _of_timm(name)
    if deploy is not None:
        if not hasattr(model, "switch_to_deploy"):
            raise UsageError(f"{name} has nothing to merge: leave --deploy out")
        cast(Any, model).switch_to_deploy(level=deploy)
    return model


def _imported(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        build: Any = importlib.import_module(module)
        for part in function.split("."):
            build = getattr(build, part)
    except (Exception, SystemExit) as error:  # what a module does when it is imported is its own affair
        raise ToolError(f"cannot import {name}: {type(error).__name__}: {error}") from error
    try:
        model = build if isinstance(build, nn.Module) else build()
    except (Exception, SystemExit) as error:
        raise ToolError(f"{name}() raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ToolError(f"{name} must be an nn.Module or return one; got {type(model).__name__}")
    return model


def _of_timm(name: str) -> nn.Module:
    try:
        with needs("timm", "timm"):
            from ..data.torchvision_names import import_torchvision

            import_torchvision()
            import timm
    except ToolError as error:
        raise ToolError(f"{name!r} is no model of `replknet-ext models`, nor module:function, and {error}") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*list_models(), *timm.list_models()], 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(f"{name!r} is no model of `replknet-ext models`, none of timm's and no module:function{hint}")
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _input_shape(model: nn.Module, batch_size: int, input_size: int | None) -> tuple[int, int, int, int]:
    """(N, C, H, W) of a batch of images, by the model's own configuration."""
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = cfg.get("input_size") if isinstance(cfg, dict) else getattr(cfg, "input_size", None)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    height, width = (224, 224) if size is None else size[-2:]
    return (batch_size, channels, input_size or height, input_size or width)


class _Plain(nn.Conv2d):
    """What a `DepthwiseConv2dLarge` computes, by torch."""

    activation: str

    def forward(self, input: Tensor) -> Tensor:
        return activate(super().forward(input), self.activation)


def _shared(model: nn.Module) -> nn.Module:
    """A copy of the modules on the same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _is_ours(module: nn.Module) -> bool:
    """Whether these kernels run it."""
    return isinstance(module, DepthwiseConv2dLarge) and module.stride == module.dilation == (1, 1)


def _on_torch(model: nn.Module) -> nn.Module:
    result = _shared(model)
    for module in result.modules():
        if type(module) is DepthwiseConv2dLarge:
            plain = module.activation == "none"
            module.__class__ = nn.Conv2d if plain else _Plain  # type: ignore[assignment]
    return result


# ---- the measurement ----

_Job = tuple[str, tuple[str, ...], nn.Module, Tensor]  # description, paths (none of the model), module, its input


def measure(
    model: nn.Module, name: str, *, device: torch.device, batch_size: int, input_size: int | None = None,
    min_kernel: int = 5, amp: torch.dtype | None = None, rounds: int = 15, seconds: float = 3.0,
    begin: Callable[[int], Callable[[str], object]] = lambda total: lambda description: None,
) -> Report:  # fmt: skip
    """Times the model and each kind of its depthwise layers: on `nn.Conv2d` and on these kernels, both in both layouts.

    Args:
        model: called with one batch of images. It goes to the device and stays as it is: copies of it run.
        name: for the report.
        device: where.
        batch_size, input_size: of the input; without a size the model's own, else 224.
        min_kernel: see `replace_depthwise`.
        amp: autocast to this dtype, None for none.
        rounds: samples of each of the four, taken in turn.
        seconds: time for each of the four; a slow one has fewer samples, at least 3.
        begin: called with the number of rows; gives a function that is told what is measured next.

    Raises:
        ToolError: the model does not take the input.
    """
    load_now = os.getloadavg()[0]
    model = model.to(device)
    shape = _input_shape(model, batch_size, input_size)
    report = replace_depthwise(_shared(model), min_kernel)
    kept = tuple(
        entry for entry in report.kept
        if entry.shape[0] > 1 == entry.shape[1] and not _is_ours(report.model.get_submodule(entry.name))
    )  # fmt: skip
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        x = torch.randn(shape, device=device)
        try:
            layers = _layers(report.model, x, amp)
        except Exception as error:
            raise ToolError(f"{name} does not take an input of {shape}: {type(error).__name__}: {error}") from error
        rows = []
        jobs: list[_Job] = [("model", (), model, x), *layers] if layers else []
        say = begin(2 * len(jobs))
        for what, names, part, given in jobs:
            for pass_ in (FORWARD, TRAINING):
                say(f"{what}, {pass_}")
                rows.append(_row(what, names, part, given, pass_, min_kernel, amp, rounds, seconds))
    dtype = None if amp is None else str(amp).removeprefix("torch.")
    return Report(name, shape, dtype, identity(device), load_now, tuple(rows), kept)


def _layers(model: nn.Module, x: Tensor, amp: torch.dtype | None) -> list[_Job]:
    """Each kind of layer that these kernels run: its description, paths, one of them alone, and an input for it."""
    found: dict[tuple[Any, ...], tuple[list[str], nn.Module, Tensor]] = {}
    hooks = []
    for path, module in model.named_modules():
        if _is_ours(module):

            def note(layer: DepthwiseConv2dLarge, given: tuple[Tensor, ...], path: str = path) -> None:
                key = (tuple(given[0].shape), given[0].dtype, layer.extra_repr(), layer.activation)
                found.setdefault(key, ([], layer, torch.randn_like(given[0])))[0].append(path or "(the model)")

            hooks.append(module.register_forward_pre_hook(note))
    try:
        with torch.no_grad(), _autocast(x.device, amp):
            model.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
    result = []
    for paths, layer, given in found.values():
        kh, kw = layer.kernel_size  # type: ignore[misc]
        what = f"{'x'.join(map(str, given.shape[-3:]))}, {kh}x{kw}"
        result.append((what, tuple(paths), copy.deepcopy(layer), given))
    return result


def _row(
    what: str, names: tuple[str, ...], part: nn.Module, x: Tensor, pass_: str, min_kernel: int,
    amp: torch.dtype | None, rounds: int, seconds: float,
) -> Row:  # fmt: skip
    """One pass, on both kinds of layers and in both layouts."""
    candidates, failed, gap = [], {}, None
    reference: list[Tensor] = []  # of torch, in NCHW
    for layout, format_ in LAYOUTS.items():
        laid = copy.deepcopy(part).to(memory_format=format_)  # type: ignore[call-overload]  # missing in torch's stubs
        ours = replace_depthwise(_shared(laid), min_kernel).model
        for kind, network in ((TORCH, _on_torch(laid)), (OURS, ours)):
            given = x.detach().contiguous(memory_format=format_).requires_grad_(pass_ == TRAINING and bool(names))
            run = _call(network, given, pass_, amp)
            try:
                output = run()
                if pass_ == FORWARD and not reference:
                    reference = output
                elif pass_ == FORWARD and kind == OURS:
                    found = max(map(difference, output, reference), default=0.0)
                    gap = max(gap or 0.0, found)
                    if names and found > _limit(output[0]):
                        raise ToolError(f"another result than {TORCH}'s, by {found:.1e}")
            except Exception as error:
                failed[f"{kind} {layout}"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                continue
            candidates.append(Candidate(f"{kind} {layout}", run))
    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    timings = interleave(candidates, rounds=rounds, budget_seconds=seconds, synchronize=wait)
    return Row(what, names, pass_, timings, failed, gap)


def _call(network: nn.Module, x: Tensor, pass_: str, amp: torch.dtype | None) -> Callable[[], list[Tensor]]:
    """A forward pass, or one with the gradients of all parameters (and of a layer's input)."""
    network.train(pass_ == TRAINING)
    gradients: list[Tensor] = []

    def forward() -> list[Tensor]:
        with torch.inference_mode(), _autocast(x.device, amp):
            return list(_tensors(network(x)))

    def step() -> list[Tensor]:
        network.zero_grad(set_to_none=True)
        x.grad = None
        with _autocast(x.device, amp):
            outputs = [output for output in _tensors(network(x)) if output.requires_grad]
        if not gradients:
            gradients.extend(torch.randn_like(output) for output in outputs)
        torch.autograd.backward(outputs, gradients)
        return outputs

    return step if pass_ == TRAINING else forward


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Those of a result, which may be a tuple or a dict, too."""
    return (leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point())


def _autocast(device: torch.device, amp: torch.dtype | None) -> Any:
    return nullcontext() if amp is None else torch.autocast(device.type, amp)


def _limit(output: Tensor) -> float:
    """Of `difference`; on a GPU torch may compute float32 in TF32."""
    kind = str(output.dtype).removeprefix("torch.")
    if kind == "float32":
        kind += " tf32" if output.device.type == "cuda" else " ieee"
    return LARGEST_DIFFERENCE[kind]


# ---- for people ----


def render(report: Report, console: Console) -> None:
    """Print a report; made for 80 columns and more."""
    if not report.rows:
        console.print(f"{report.model}: no layer for these kernels; nothing was measured.")
    for pass_ in dict.fromkeys(row.pass_ for row in report.rows):
        rows = [row for row in report.rows if row.pass_ == pass_]
        _table(f"{report.model}, {pass_}, milliseconds", rows, console)
    for line in _notes(report):
        console.print(line, style="dim")


def _table(title: str, rows: Sequence[Row], console: Console) -> None:
    from rich.text import Text

    columns = [f"{kind} {layout}" for kind in (TORCH, OURS) for layout in LAYOUTS]
    heads = [f"{kind} {layout}" for kind in ("Conv2d", "ours") for layout in ("NCHW", "NHWC")]
    table = show.table(title, "", "layers", *heads, "gain", numbers="lrrrrrr")
    for row in rows:
        cells = [f"{row.timings[name].median:.3g}" if name in row.timings else "-" for name in columns]
        gain = "-" if row.gain is None else f"{row.gain:.2f}x"
        loss = row.gain is not None and row.gain < 1
        table.add_row(row.what, str(len(row.names) or ""), *cells, Text(gain, style="red" if loss else ""))
    console.print(table)
    whole = rows[0]
    if whole.gain is not None and whole.gain_as_called is not None:
        console.print(
            f"{whole.pass_} of the model: {whole.gain:.2f}x of nn.Conv2d in its faster layout, "
            f"{whole.gain_as_called:.2f}x of it as called (NCHW)"
        )


def _notes(report: Report) -> Iterator[str]:
    """What the numbers hold for, and what speaks against them."""
    reasons: dict[str, int] = {}
    for entry in report.kept:
        reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    for reason, count in reasons.items():
        yield f"{count} more depthwise {'layer stays' if count == 1 else 'layers stay'} on torch in both: {reason}"
    if not report.rows:
        return
    for row in report.rows:
        for name, reason in row.failed.items():
            yield f"{row.what}, {row.pass_}: {name} did not run: {reason}"
    where = ", ".join(f"{key} {value}" for key, value in report.where.items() if key not in ("device", "variants"))
    precision = f"autocast to {report.amp}" if report.amp else "no autocast"
    yield (
        f"Measured now on {report.where['device']} ({where}), input {'x'.join(map(str, report.shape))}, {precision}, "
        "random weights; medians, all four in turn. NHWC is channels_last. gain: the faster Conv2d over the faster of "
        "ours, so below 1.00x is a loss. A training step is forward and backward, without an optimizer."
    )
    samples = [timing for row in report.rows for timing in row.timings.values()]
    spread = max((t.percentile(90) - t.percentile(10)) / t.median for t in samples) if samples else 0.0
    gaps = [row.difference for row in report.rows if row.difference is not None]
    yield (
        f"{min((len(t.samples) for t in samples), default=0)} samples or more of each; they spread by up to "
        f"{100 * spread:.0f} % (p10 to p90). Outputs differ by up to {max(gaps, default=0.0):.1e}, relative."
    )
    if report.load > 0.5 * (os.cpu_count() or 1):
        yield (
            f"This machine was busy when this began (load {report.load:.1f} on {os.cpu_count()} processors): times are "
            "too long and ratios uncertain. Repeat it on an idle one."
        )
