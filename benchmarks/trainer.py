"""What the trainer costs over a bare loop, per step: `python -m benchmarks.trainer`.

Both train the same network on the same data loader with the same optimizer, schedule and averaged weights; the trainer
adds seeds, its check for a finite loss and its look at signals. Steps are interleaved, the overhead is the median of
differences between neighbours. Goals: at most 2 % of a step of 1 s, and at most 5 ms of a shorter one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch.utils.data import TensorDataset

from benchmarks import harness
from benchmarks.harness import Candidate
from replknet_ext.training import load_recipe, make_ema, make_optimizer, make_schedule
from replknet_ext.training.checkpoints import Folder
from replknet_ext.training.data import Sources
from replknet_ext.training.networks import build_network
from replknet_ext.training.recipe import Recipe
from replknet_ext.training.signals import Request
from replknet_ext.training.trainer import Run

SHARE, MILLISECONDS = 0.02, 5.0
STEPS = 1000  # of an epoch; more than a measurement takes

#: name: (input size, batch, fields of the network): steps of milliseconds, and of about a second on two cores.
PROBLEMS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "short steps": (16, 8, {"large_kernel_sizes": [13], "layers": [1], "channels": [16], "stem_strides": [2, 2]}),
    "long steps": (
        96,
        4,
        {
            "large_kernel_sizes": [31, 29, 27, 13],
            "layers": [2, 2, 18, 2],
            "channels": [128, 256, 512, 1024],
        },
    ),
}


def recipe_of(size: int, batch: int, arch: dict[str, Any]) -> Recipe:
    return load_recipe(
        {
            "name": "trainer",
            "evaluate": False,
            "model": {"name": "replknet", "arch": arch, "num_classes": 10},
            "data": {"input_size": size, "batch_size": batch, "workers": 0},
            "augment": {"mixup": 0, "cutmix": 0},
            "optimizer": {"global_batch": batch},
            "schedule": {"epochs": 1, "warmup_epochs": 0.5},
            "engine": {"device": "cpu"},
            "logs": {"trackers": []},
        }
    )


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def candidates(recipe: Recipe) -> list[Candidate]:
    """A step of a bare loop and one of the trainer; each call is the next step."""
    size, batch = recipe.data.input_size, recipe.optimizer.global_batch
    images = torch.randn(64, 3, size, size)
    indices = torch.arange(STEPS * batch) % 64

    class Repeated(TensorDataset):
        def __len__(self) -> int:
            return STEPS * batch

        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(int(indices[index]))

    data = Repeated(images, torch.arange(64) % 10)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, Sources(data, None, None), Folder(Path(folder)), None, True)
    batches, request = endless(run.train_loader), Request()

    net = build_network(recipe.model)
    net.load_state_dict(run.engine.net.state_dict())
    optimizer = make_optimizer(net, recipe)
    ema, schedule = make_ema(net, recipe), make_schedule(optimizer, recipe.schedule, STEPS)
    bare_batches = endless(run.train_loader)
    done = 0

    def bare() -> float:
        nonlocal done
        schedule.step_update(done)
        got = next(bare_batches)
        loss = F.cross_entropy(net(got.images), got.labels, label_smoothing=recipe.augment.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(net)
        done += 1
        return float(loss.detach())

    return [Candidate("bare loop", bare), Candidate("trainer", lambda: run.one_step(batches, request))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes benchmarks/results; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=f"of: {', '.join(PROBLEMS)}; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "trainer.json")
    options = parser.parse_args(arguments)
    console, rows, missed = Console(), [], []
    for name in options.problems or PROBLEMS:
        made = candidates(recipe_of(*PROBLEMS[name]))
        first = [candidate.run() for candidate in made]
        if abs(first[0] - first[1]) > 1e-3 * abs(first[0]):
            raise harness.BenchmarkError(f"{name}: the first losses differ: {first}")
        timings = harness.interleave(made, rounds=options.rounds, budget_seconds=1e9)
        bare, trainer = timings["bare loop"], timings["trainer"]
        # Of neighbours: a slow minute of the machine is in both.
        extra = statistics.median(two - one for one, two in zip(bare.samples, trainer.samples, strict=True))
        allowed = max(MILLISECONDS, SHARE * bare.median)
        console.print(f"{name}: bare {bare.median:.2f} ms, trainer {trainer.median:.2f} ms, {extra:+.2f} ms per step")
        times = {"bare": bare.as_dict(), "trainer": trainer.as_dict()}
        goal = {"extra_ms": float(f"{extra:.3g}"), "allowed_ms": float(f"{allowed:.4g}"), "kept": extra <= allowed}
        rows.append({"problem": name, **times, **goal})
        if extra > allowed:
            missed.append(name)
    harness.write_json(options.output, {"benchmark": "trainer", "meta": harness.metadata(), "rows": rows})
    console.print(f"wrote {options.output}", soft_wrap=True)
    if missed:
        console.print(f"[red]more than allowed: {', '.join(missed)}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
