"""`replknet_ext.tune`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import settings
from .._progress import steps
from ..backends import PASSES, Problem, tunable
from ..choices import lookup, table
from ..choices.device import identity
from ..choices.table import Entry
from ..operator import checks
from ..operator.problem import ACTIVATIONS
from . import measure as measuring
from . import problems as collecting
from . import search
from .report import Row, TuneReport, layer_of

__all__ = ["run", "tune"]


def tune(
    model_or_shapes: nn.Module | Iterable[Any],
    input: Any = None,
    *,
    passes: Sequence[str] = PASSES,
    backend: str = "auto",
    padding: int | tuple[int, int] | str = "same",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    channels_last: bool = False,
    bias: bool = False,
    activation: str = "none",
    algorithm: str | None = None,
    precision: str | None = None,
    most: int = search.MOST,
    force: bool = False,
    save: bool = True,
    progress: bool = True,
) -> TuneReport:
    """Measures which kernel is fastest for each depthwise convolution of a model, or for shapes, and remembers it.

    `depthwise_conv2d` and all that is built on it then take these kernels, in this process and, from the user's cache,
    in later ones. A choice belongs to everything that was measured: shapes (the batch size too), dtype, memory format,
    padding, precision, algorithm, bias and activation; GPU and driver, or CPU, instruction set and threads; versions of
    torch, triton and this package. All kernels are deterministic and a choice stays as it is, so results are the same
    on every run, also under `torch.use_deterministic_algorithms`; two kernels may differ in the last bits. Choices are
    looked up when an operator runs, so compiled and exported code has them without being compiled again.

    Candidates are timed in turn, round after round, and their medians compared; on a GPU by replays of CUDA graphs over
    more operands than the L2 cache holds. Each must give the untuned kernel's result before it counts. Does not run
    while other work should be timed or is in the way: leave the device alone meanwhile.

    Args:
        model_or_shapes: a module, of which one forward pass on `input` (in eval mode, without gradients) says what
            problems there are, under the autocast that is in force; or pairs ((N, C, H, W), kernel), with K, (Kh, Kw)
            or the weight's shape as the kernel.
        input: for a module: a tensor, a tuple or dict of arguments, or the shape of a random tensor.
        passes: of "fwd", "bwd_input", "bwd_weight".
        backend: "auto", or one backend, whose kernels alone are tried.
        padding, dtype, device, bias, activation, algorithm, precision: for shapes; as in `depthwise_conv2d`. `device`
            is the first GPU, else the CPU, if None.
        channels_last: memory format, for shapes and for a module's random tensor.
        most: how many candidates of each backend are measured, by the order of its cost model.
        force: measure again what has been measured.
        save: write the user's cache (``$REPLKNET_EXT_CACHE``, else replknet_ext in ``$XDG_CACHE_HOME`` or ~/.cache).
        progress: show a progress bar on a terminal, with rich.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """
    checks.name("backend", backend, tunable())
    chosen = (passes,) if isinstance(passes, str) else tuple(passes)
    for pass_ in chosen:
        checks.name("passes", pass_, PASSES)
    for argument, value in (("channels_last", channels_last), ("bias", bias), ("force", force), ("save", save)):
        checks.flag(argument, value)
    most = checks.integer("most", most, 1)
    if isinstance(model_or_shapes, nn.Module):
        found = collecting.of_model(model_or_shapes, input, channels_last)
        where = _device_of(model_or_shapes)
    else:
        if input is not None:
            raise TypeError("input is for a module; shapes hold their own sizes")
        checks.name("activation", activation, ACTIVATIONS)
        checks.choices(algorithm, precision)
        where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        found = collecting.of_shapes(
            model_or_shapes, padding=padding, dtype=dtype, device=where, channels_last=channels_last, bias=bias,
            activation=activation, algorithm=algorithm or settings.get_algorithm(),
            precision=precision or settings.get_float32_precision(),
        )  # fmt: skip
    if where.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be a CPU or a CUDA device; got {where}")
    return run(found, where, chosen, backend=backend, most=most, force=force, save=save, progress=progress)


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def run(
    found: Counter[Problem], device: torch.device, passes: Sequence[str] = PASSES, *, backend: str = "auto",
    most: int = search.MOST, force: bool = False, save: bool = True, progress: bool = True,
    on_start: Callable[[str], object] = lambda label: None,
) -> TuneReport:  # fmt: skip
    """`tune` for problems with their counts; `on_start` is told of each pass that is measured."""
    rows: list[Row] = []
    path: Path | None = table.path_of(identity(device)) if save else None
    jobs = [
        (replace(problem, pass_=pass_, device_index=device.index), count)
        for problem, count in found.items()
        for pass_ in passes
    ]
    with steps(len(jobs), hidden=not progress) as begin:
        for problem, count in jobs:
            begin(f"{problem.pass_:<10} {layer_of(problem)}")
            key = table.key_of(problem, backend)
            if not force and lookup.tuned(problem, backend, device):
                rows.append(Row(problem, count, lookup.entry(problem, backend, device)))
                continue
            on_start(f"{problem.pass_} {layer_of(problem)}")
            listed = search.shortlist(problem, backend, most)
            measured = measuring.measure(problem, listed, device)
            entry = search.entry_of(measured)
            rows.append(Row(problem, count, entry, tuple(measured)))
            if entry is None:
                continue
            kept: dict[str, Entry] = {key: entry}
            if save:
                path = table.save(device, kept, replace=True) and path
            else:
                table.remember(device, kept)
    return TuneReport(tuple(rows), dict(identity(device)), path, backend)
