"""``replknet-ext tune``: the kernels of a network's depthwise layers, predicted or measured."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..backends import PASSES, Candidate, Problem, candidates, tunable
from ..backends.cuda import DEVICES
from ..choices import table
from ..choices.device import identity, stem_of
from ..errors import ToolError, UsageError
from ..models import MODELS, get_model
from ..operator import checks
from ..tuning import TuneReport, api, problems
from ..tuning.report import layer_of, us
from ..tuning.search import MOST
from . import show
from .loading import device_of

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["MOST", "Prediction", "layers", "measure", "passes_of", "predict", "render_predictions", "render_report"]

#: Candidates of a pass that a table shows.
SHOWN = 3


@dataclass(frozen=True)
class Prediction:
    """One pass of one problem, how many layers have it, and what could run it, by the cost models."""

    problem: Problem
    count: int
    candidates: tuple[Candidate, ...]

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        listed = [candidate.as_dict() for candidate in self.candidates]
        return {"problem": table.key_of(self.problem), "layers": self.count, "candidates": listed}


def passes_of(text: str | None) -> tuple[str, ...]:
    """Names of passes between commas; all without a text."""
    try:
        return (
            PASSES if text is None else tuple(checks.name("passes", part.strip(), PASSES) for part in text.split(","))
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def layers(
    name: str, device_type: str, *, input_size: int | None = None, batch: int = 1, dtype: torch.dtype = torch.float32,
    channels_last: bool = False, precision: str = "ieee", deploy: Literal["merge", "full"] | None = None,
) -> Counter[Problem]:  # fmt: skip
    """The depthwise problems of a named network, and how many layers have each. Computes and allocates nothing.

    Raises:
        UsageError: no such name, or a size that the network does not take.
    """
    size = input_size or (MODELS[name].input_size[-1] if name in MODELS else 224)
    try:
        with torch.device("meta"):
            model = get_model(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    model.to(dtype)
    if deploy is not None:
        model.switch_to_deploy(level=deploy)
    try:
        found = problems.of_model(model, (batch, 3, size, size), channels_last)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{name} does not take pictures of {size} x {size}: {error}") from None
    moved: Counter[Problem] = Counter()
    for problem, count in found.items():
        moved[replace(problem, device_type=device_type, precision=precision)] += count
    return moved


def predict(
    found: Counter[Problem], passes: Sequence[str], backend: str, limits: str | None
) -> tuple[str, list[Prediction]]:
    """What could run each pass, on the present device or on one whose limits are known.

    Returns:
        The device in words, and the predictions.

    Raises:
        ToolError: nothing can be said of any of them.
    """
    known = None if limits is None else DEVICES[limits]
    device = torch.device("cuda" if limits is not None else next(iter(found)).device_type)
    rows = []
    for problem, count in found.items():
        for pass_ in passes:
            one = replace(problem, pass_=pass_)
            rows.append(Prediction(one, count, tuple(candidates(one, backend, known))))
    if not any(row.candidates for row in rows):
        raise ToolError(f"no kernel of backend {backend!r} runs these layers here; `replknet-ext doctor` says why")
    return f"limits of {limits}" if limits is not None else identity(device)["device"], rows


def measure(
    found: Counter[Problem], device: str, passes: Sequence[str], *, backend: str, most: int, force: bool, hidden: bool,
    on_start: Callable[[str], object] = lambda label: None, config: Path | None = None,
) -> TuneReport:  # fmt: skip
    """See `replknet_ext.tune`; the choices also go to the file `config`, see `tuning.table.save_config`.

    Raises:
        UsageError: `config` can't be written, which is known before anything is measured.
    """
    where = device_of(device)
    if config is not None:
        try:
            table.config_at(config, identity(where))
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not os.access(config if config.exists() else config.parent, os.W_OK):
            raise UsageError(f"cannot write {config}: no such folder, or not yours")
    report = api.run(
        found, where, passes, backend=backend, most=most, force=force, progress=not hidden, on_start=on_start
    )
    if config is not None:
        report.save_config(config)
    return report


def shipped_name(report: TuneReport) -> str:
    """Where a package has to hold the choices of a report."""
    return f"replknet_ext/choices/shipped/{stem_of(report.device)}.json"


def checked_backend(name: str) -> str:
    """The name of a backend that has candidates, or "auto"."""
    try:
        return checks.name("backend", name, tunable())
    except ValueError as error:
        raise UsageError(str(error)) from None


# ---- for people ----


def render_predictions(device: str, rows: Sequence[Prediction], most: int, console: Console) -> None:
    """Print predictions, the best few of each pass; made for 80 columns and more."""
    for layer in dict.fromkeys(layer_of(row.problem) for row in rows):
        same = [row for row in rows if layer_of(row.problem) == layer]
        title = f"{layer}, {same[0].count} layer{'s' if same[0].count > 1 else ''}"
        table = show.table(title, "pass", "kernel", "predicted us", "takes", numbers="llrl")
        for row in same:
            shown = row.candidates[:most]
            for index, candidate in enumerate(shown):
                name = "" if index else row.problem.pass_
                table.add_row(name, candidate.label, us(candidate.predicted_us), _takes(candidate))
            rest = len(row.candidates) - len(shown)
            table.add_row("" if shown else row.problem.pass_, f"and {rest} more" if shown else "none", "", "")
        console.print(table)
    console.print(_totals(rows), highlight=False)
    console.print(
        f"Cost-model PREDICTIONS for {device}; nothing was measured. The first of a pass is what runs untuned; "
        "CPU times are for one thread.",
        style="dim",
    )


def _totals(rows: Sequence[Prediction]) -> str:
    """What all layers take by the first choices, pass by pass."""
    sums: dict[str, float] = {}
    for row in rows:
        time = row.candidates[0].predicted_us if row.candidates else None
        sums[row.problem.pass_] = sums.get(row.problem.pass_, 0.0) + row.count * (math.nan if time is None else time)
    layers = sum(row.count for row in rows if row.problem.pass_ == rows[0].problem.pass_)
    times = (f"{pass_} {'-' if math.isnan(total) else f'{total / 1e3:.3g} ms'}" for pass_, total in sums.items())
    return f"all {layers} layers, predicted: {', '.join(times)}"


def _takes(candidate: Candidate) -> str:
    takes = dict(candidate.resources)
    parts = []
    if "warps" in takes:
        parts.append(f"{takes['warps']} warp{'s' if takes['warps'] > 1 else ''}")
    if takes.get("shared_bytes"):
        parts.append(f"{_bytes(takes['shared_bytes'])} shared memory each")
        parts.insert(0, f"{takes['blocks_per_sm']} blocks/SM")
    if takes.get("workspace_bytes"):
        parts.append(f"workspace {_bytes(takes['workspace_bytes'])}")
    if takes.get("scratch_bytes"):
        parts.append(f"scratch {_bytes(takes['scratch_bytes'])} per thread")
    return ", ".join(parts)


def _bytes(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.0f} KB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MB"


def render_report(report: TuneReport, console: Console) -> None:
    """Print what was measured; made for 80 columns and more."""
    heading, cells = report.table()
    about = [report.device["device"], report.device.get("isa"), report.kind]
    title = ", ".join(filter(None, about))
    table = show.table(title, *heading, numbers="lrllrrr")
    for texts in cells:
        table.add_row(*texts)
    console.print(table)
    for note in report.notes():
        console.print(note, style="dim", markup=False)
    if report.path is not None:
        console.print(f"kept in {report.path}", style="dim", soft_wrap=True)
