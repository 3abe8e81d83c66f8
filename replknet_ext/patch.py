"""Swaps the depthwise convolutions of any model for `DepthwiseConv2dLarge`, and back.

A swap changes the class of the module object, nothing else: the object, its parameters, hooks and every reference to
it (shared modules, lists outside the module tree, the model itself being one Conv2d) stay as they are, and `restore`
is exact.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from .backends.cpu import left_to_torch
from .modules import DepthwiseConv2dLarge, why_not_convertible
from .operator import checks

__all__ = ["ReplaceEntry", "ReplaceReport", "replace_depthwise", "restore"]

_MARK = "_swapped_from_conv2d"  # instance attribute of a swapped module; copies and pickles keep it


@dataclass(frozen=True)
class ReplaceEntry:
    """What `replace_depthwise` did with one Conv2d of the model.

    Attributes:
        name: its first path in the model; "" for the model itself.
        shape: the shape of its weight.
        action: "swapped" or "kept".
        reason: why, in words.
        aliases: further paths under which the model holds the same module.
    """

    name: str
    shape: tuple[int, ...]
    action: Literal["swapped", "kept"]
    reason: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReplaceReport:
    """The outcome of `replace_depthwise`, one entry for each Conv2d; `print` it for a table.

    Attributes:
        model: the model that was changed: the argument itself, or its copy with `inplace=False`.
        entries: one `ReplaceEntry` for each distinct Conv2d, in the order of `model.named_modules()`.
    """

    model: nn.Module = field(repr=False)
    entries: tuple[ReplaceEntry, ...]
    _modules: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)

    @property
    def swapped(self) -> tuple[ReplaceEntry, ...]:
        """The entries of the modules that were swapped."""
        return tuple(entry for entry in self.entries if entry.action == "swapped")

    @property
    def kept(self) -> tuple[ReplaceEntry, ...]:
        """The entries of the modules that were left alone."""
        return tuple(entry for entry in self.entries if entry.action == "kept")

    def restore(self) -> tuple[str, ...]:
        """Undoes this call and returns the names it restored; swaps of other calls stay."""
        named = [(e.name, m) for e, m in zip(self.entries, self._modules, strict=True) if e.action == "swapped"]
        return _restore(named)

    def __iter__(self) -> Iterator[ReplaceEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        lines = [f"replace_depthwise: {len(self.swapped)} swapped, {len(self.kept)} kept"]
        # A depthwise weight has one input channel; the others are every model's bulk and get one line together.
        shown = [entry for entry in self.entries if entry.action == "swapped" or entry.shape[1] == 1]
        names = [" = ".join((entry.name or "(the model)", *entry.aliases)) for entry in shown]
        shapes = ["x".join(map(str, entry.shape)) for entry in shown]
        name_width = max(map(len, names), default=0)
        shape_width = max(map(len, shapes), default=0)
        for entry, name, shape in zip(shown, names, shapes, strict=True):
            lines.append(f"  {entry.action:7}  {name:{name_width}}  {shape:>{shape_width}}  {entry.reason}")
        others = Counter(entry.reason.split(" (")[0] for entry in self.entries if entry not in shown)
        lines += [f"  kept     {count} more: {reason}" for reason, count in others.items()]
        return "\n".join(lines)


def replace_depthwise(
    model: nn.Module,
    min_kernel: int = 5,
    filter_fn: Callable[[str, nn.Conv2d], bool] | None = None,
    *,
    inplace: bool = True,
    algorithm: str | None = None,
    precision: str | None = None,
    backend: str = "auto",
) -> ReplaceReport:
    """Swaps every eligible depthwise `nn.Conv2d` of `model` for a `DepthwiseConv2dLarge`.

    Eligible are exact `nn.Conv2d` instances with in_channels == out_channels == groups, stride 1, dilation 1 and a
    kernel of at least `min_kernel`. Weights are not copied: the modules stay the same objects with the same
    Parameters and hooks, so optimizers, shared modules and state dicts are unaffected.

    Args:
        model: any module; it may be a Conv2d itself.
        min_kernel: smallest max(Kh, Kw) to swap. The default leaves 1x1 and 3x3 to torch, which is nearly as fast
            there; from 5x5 on its depthwise gradients fall behind several times (measured on CPU).
        filter_fn: called as `filter_fn(name, conv)` for each eligible module; False keeps it.
        inplace: False leaves `model` alone and changes a deep copy, `report.model`.
        algorithm, precision, backend: given to every swapped module.

    Narrow filters that oneDNN runs faster in float32 and channels_last on the CPU are swapped, for the other formats
    and devices, but run on torch there; the report says so. ``backend="cpu"`` keeps them on these kernels.

    Returns:
        A `ReplaceReport`: what was swapped, what was kept and why; `report.restore()` undoes it.

    Raises:
        TypeError: `model` is not a module, or is a TorchScript module, whose code is already fixed; `min_kernel` is
            not an int.
        ValueError: `min_kernel` is less than 1, or an unknown algorithm or precision.
    """
    _check_model(model)
    checks.integer("min_kernel", min_kernel, 1)
    checks.choices(algorithm, precision)
    if not inplace:
        model = copy.deepcopy(model)

    paths: dict[nn.Conv2d, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            paths.setdefault(module, []).append(name)

    entries = []
    for conv, (name, *aliases) in paths.items():
        reason = why_not_convertible(conv) or _why_not_worthwhile(conv, min_kernel)
        if reason is None and filter_fn is not None and not filter_fn(name, conv):
            reason = "filter_fn declined it"
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        if reason is None:
            kh, kw = conv.kernel_size
            why = f"depthwise {kh}x{kw}, stride 1" + (_exception((kh, kw)) if backend == "auto" else "")
            entry = ReplaceEntry(name, shape, "swapped", why, tuple(aliases))
        else:
            entry = ReplaceEntry(name, shape, "kept", reason, tuple(aliases))
        entries.append(entry)
    # Only now, so that a filter_fn that raises leaves the model as it was.
    for entry, conv in zip(entries, paths, strict=True):
        if entry.action == "swapped":
            _swap(conv, algorithm=algorithm, precision=precision, backend=backend)
    return ReplaceReport(model, tuple(entries), tuple(paths))


def restore(model: nn.Module) -> tuple[str, ...]:
    """Turns every module of `model` that `replace_depthwise` swapped back into the `nn.Conv2d` it was.

    Modules that were built as `DepthwiseConv2dLarge` stay. Works on copies and on unpickled models too.

    Returns:
        The names of the restored modules.

    Raises:
        TypeError: `model` is not a module.
        RuntimeError: a swapped module was parametrized since; names it and changes nothing.
    """
    _check_model(model)
    return _restore(list(model.named_modules()))


def _why_not_worthwhile(conv: nn.Conv2d, min_kernel: int) -> str | None:
    """Why a convertible `conv` gains nothing from the swap, or None."""
    kh, kw = conv.kernel_size
    if conv.stride != (1, 1):
        return f"stride {conv.stride}: the kernels cover stride 1, torch runs this one either way"
    if conv.dilation != (1, 1):
        return f"dilation {conv.dilation}: the kernels cover dilation 1, torch runs this one either way"
    if max(kh, kw) < min_kernel:
        return f"kernel {kh}x{kw} is smaller than min_kernel={min_kernel}"
    return None


def _exception(kernel_size: tuple[int, int]) -> str:
    """What of a swapped layer runs on torch all the same, being faster there."""
    if not left_to_torch(kernel_size, training=False):
        return ""
    when = "" if left_to_torch(kernel_size, training=True) else " in inference"
    return f"; torch's for channels_last on the CPU{when}"


def _swap(conv: nn.Conv2d, **options: str | None) -> None:
    conv.__class__ = DepthwiseConv2dLarge
    conv.__dict__.update({_MARK: True, **options})


def _restore(named: list[tuple[str, nn.Module]]) -> tuple[str, ...]:
    swapped = [(name, module) for name, module in named if module.__dict__.get(_MARK, False)]
    for name, module in swapped:
        if type(module) is not DepthwiseConv2dLarge:
            raise RuntimeError(
                f"cannot restore {name or 'the model'!r}: its class became {type(module).__name__} after the swap; "
                "remove its parametrizations first"
            )
    for _, module in swapped:
        for attribute in (_MARK, "activation", "algorithm", "precision", "backend"):
            module.__dict__.pop(attribute, None)
        module.__class__ = nn.Conv2d
    return tuple(name for name, _ in swapped)


def _check_model(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model is a TorchScript module, whose code is fixed: replace before tracing it; "
            "torch.jit.script would leave the kernels out"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
