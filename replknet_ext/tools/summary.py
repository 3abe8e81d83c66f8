"""Parameters and operations of a RepLKNet, by both definitions in use. Counted on the meta device: no memory, no time.

The paper's (and the official README's): multiply-adds of convolutions and linear layers, of the merged model.
The mmpretrain page's: the train-time model in eval mode without its head, convolutions, plus 5 for each value that a
BatchNorm puts out, plus 1 for each value that the final pooling takes in.
Both call one multiply-add one operation; `torch.utils.flop_counter` calls it two.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UsageError
from ..models import ARCHS, MODELS, RepLKNet, RepLKNetConfig, list_models, model_from_checkpoint
from . import show

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Counts", "Part", "Summary", "count", "of", "render", "summarise"]

BATCHNORM_COST = 5


@dataclass(frozen=True)
class Counts:
    """One form of a model.

    Attributes:
        params: elements of all parameters.
        macs: multiply-adds of convolutions and linear layers for one picture: the paper's definition.
        flops: the mmpretrain page's definition; see the module.
        large_macs: the part of `macs` that the large depthwise kernels, with their small branches, have.
    """

    params: int
    macs: int
    flops: int
    large_macs: int


@dataclass(frozen=True)
class Part:
    """The stem, a stage (with the transition before it) or the tail: size of its output map, and its counts."""

    name: str
    channels: int
    height: int
    width: int
    kernel: int | None
    layers: int | None
    params: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """Counts of each form of a model at one input size, and of the parts of its merged form."""

    name: str
    input_size: tuple[int, int, int]
    forms: Mapping[str, Counts]
    parts: tuple[Part, ...]

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return asdict(self)


def of(model: str, input_size: int | None = None, num_classes: int | None = None) -> Summary:
    """The summary of a named model, of an architecture such as "31B", or of the one that a checkpoint file is of.

    Args:
        input_size: side of the input; the named model's own, else 224, when None.
        num_classes: outputs of the head; the checkpoint's, else 1000, when None.

    Raises:
        UsageError: no such name or file.
        CheckpointError: the file is no checkpoint of a RepLKNet.
    """
    channels, size, classes = 3, 224, 1000
    if Path(model).is_file():
        found = model_from_checkpoint(model)
        config, channels, classes = found.config, found.in_chans, found.num_classes or 1
        model = Path(model).name
    elif model.upper() in ARCHS:
        config = ARCHS[model.upper()]
    elif model in MODELS:
        config, size = ARCHS[MODELS[model].arch], MODELS[model].input_size[-1]
    elif model in list_models():
        raise UsageError(f"{model!r} is not a RepLKNet: summary counts those alone")
    else:
        names = [*MODELS, *ARCHS]
        near = difflib.get_close_matches(model, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"names are {', '.join(names)}"
        raise UsageError(f"{model!r} is neither a known model nor a file; {hint}")
    return summarise(model, config, (channels, input_size or size, input_size or size), num_classes or classes)


def summarise(name: str, config: RepLKNetConfig, input_size: tuple[int, int, int], num_classes: int = 1000) -> Summary:
    """Counts a model that is never allocated.

    Args:
        input_size: channels, height and width of one picture.
    """
    with torch.device("meta"):
        model = RepLKNet(config, num_classes=num_classes, in_chans=input_size[0]).eval()
    forms = {"train": _counts(_trace(model, input_size))}
    merged = _trace(model.switch_to_deploy(), input_size)
    forms["merged"] = _counts(merged)
    forms["full"] = _counts(_trace(model.switch_to_deploy(level="full"), input_size))
    return Summary(name, input_size, forms, _parts(merged))


def count(model: RepLKNet, input_size: tuple[int, int, int]) -> Counts:
    """Counts one forward pass of one picture (C, H, W), in eval mode; the model stays as it is."""
    return _counts(_trace(model, input_size))


@dataclass(frozen=True)
class _Trace:
    """One forward pass: a copy of the model, its operations, and the sizes (C, H, W) of what its modules put out.

    The operations are counted as torch runs them, so the form of a layer (convolution or matrix product) is no matter.
    """

    model: RepLKNet
    counter: FlopCounterMode
    maps: dict[str, torch.Size]
    normalised: int
    pooled: int

    def macs(self, module: str) -> int:
        return sum(self.counter.get_flop_counts().get(f"{RepLKNet.__name__}.{module}", {}).values()) // 2


def _trace(model: RepLKNet, input_size: tuple[int, int, int]) -> _Trace:
    model = copy.deepcopy(model).to("meta").eval()
    maps: dict[str, torch.Size] = {}
    normalised = pooled = 0

    def norm(x: Tensor) -> Tensor:
        nonlocal normalised
        normalised += x.numel()
        return x

    def head(x: Tensor) -> Tensor:
        nonlocal pooled
        pooled = x.numel()
        return RepLKNet.forward_head(model, x)

    def remember(name: str) -> Any:
        return lambda module, args, out: maps.__setitem__(name, out.shape[1:])

    model.forward_head = head  # type: ignore[method-assign, assignment]
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            module.forward = norm  # type: ignore[assignment, method-assign]  # torch takes long over one on the meta device
        if name.rpartition(".")[0] in ("stem", "stages"):
            module.register_forward_hook(remember(name))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.empty(1, *input_size, device="meta"))
    return _Trace(model, counter, maps, normalised, pooled)


def _counts(trace: _Trace) -> Counts:
    macs = trace.counter.get_total_flops() // 2
    large = [name for name, _ in trace.model.named_modules() if name.rpartition(".")[2] == "large_kernel"]
    return Counts(
        params=sum(parameter.numel() for parameter in trace.model.parameters()),
        macs=macs,
        flops=macs - trace.macs("head") + BATCHNORM_COST * trace.normalised + trace.pooled,
        large_macs=sum(map(trace.macs, large)),
    )


def _parts(trace: _Trace) -> tuple[Part, ...]:
    """The parts in the order in which a picture passes them."""

    def part(name: str, last: str, inside: list[str], kernel: int | None = None, layers: int | None = None) -> Part:
        params = sum(p.numel() for key in inside for p in trace.model.get_submodule(key).parameters())
        channels, height, width = trace.maps[last]
        return Part(name, channels, height, width, kernel, layers, params, sum(map(trace.macs, inside)))

    cfg = trace.model.config
    stem = [f"stem.{index}" for index in range(len(trace.model.stem))]
    found = [part("stem", stem[-1], stem)]
    for index, (kernel, layers) in enumerate(zip(cfg.large_kernel_sizes, cfg.layers, strict=True)):
        inside = [f"stages.{index}", *([f"transitions.{index - 1}"] if index else [])]
        found.append(part(f"stage {index + 1}", f"stages.{index}", inside, kernel, layers))
    found.append(part("head", f"stages.{len(cfg.layers) - 1}", ["norm", "head"]))
    return tuple(found)


# ---- for people ----


def render(summary: Summary, console: Console) -> None:
    """Print a summary; made for 60 columns and more."""
    short = console.width < 80
    channels, height, width = summary.input_size
    title = f"{summary.name}, {channels} x {height} x {width}"
    table = show.table(title, "form", "params", "MACs", "large kernels", "FLOPs", numbers="lrrrr")
    for form, counts in summary.forms.items():
        share = f"{counts.large_macs / counts.macs:.2%}"
        macs, flops = (show.number(value, "G", short) for value in (counts.macs, counts.flops))
        table.add_row(form, show.number(counts.params, "M", short), macs, share, flops)
    console.print(table)

    table = show.table("Parts, merged", "part", "map", "blocks", "params", "MACs", numbers="lrrrr")
    for part in summary.parts:
        blocks = f"{part.layers} of {part.kernel}x{part.kernel}" if part.kernel else ""
        params, macs = show.number(part.params, "M", short), show.number(part.macs, "G", short)
        table.add_row(part.name, f"{part.channels} {part.height}x{part.width}", blocks, params, macs)
    console.print(table)
    console.print(
        "MACs: multiply-adds of convolutions and linear layers. The paper gives those of the merged model.\n"
        "FLOPs: as on mmpretrain's page, which gives those of the train-time model: convolutions, 5 for each "
        "value of a BatchNorm, 1 for each pooled value, no head; 1 for a multiply-add.",
        highlight=False,
    )
