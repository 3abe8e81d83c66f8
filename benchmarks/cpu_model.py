"""RepLKNet-31B as a whole on the CPU: a training step and deploy inference, ours beside `nn.Conv2d`.

    python -m benchmarks.cpu_model [--batch 8] [--rounds 3]      # -> benchmarks/results/cpu_model_ISA_Nt.json

The same weights and images everywhere, in the default layout (NCHW) and converted to channels_last. A training step is
forward, cross entropy, backward and SGD in train mode with the parallel small kernels; deploy is the merged model in
inference mode. Before anything is timed, logits, loss and the gradients of all depthwise filters are compared with
float64.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import replknet_ext
from benchmarks import harness
from benchmarks.cpu_compare import milliseconds, times
from benchmarks.cpu_problem import LAYOUTS, OPERATORS, OURS, TORCH
from benchmarks.harness import Candidate
from replknet_ext import DepthwiseConv2dLarge
from replknet_ext.models import RepLKNet, create_model

#: Speed-ups that this project set out to reach at batch 8: over nn.Conv2d in the default layout, and in its best.
GOALS = {"training step": (5.0, 2.5), "deploy": (5.0, 1.15)}
#: Largest relative error, in both norms.
LIMITS = {"logits": 1e-4, "loss": 1e-4}
#: Rounding grows through 24 blocks and batch statistics, in channels_last to 5 % of the gradients whoever computes
#: them: ours may be so many times as far from float64 as torch is in the same layout.
GRADIENTS = 1.5


def build(arch: str) -> RepLKNet:
    """The model on our kernels, with batch statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    model = create_model(arch, num_classes=1000)
    if not isinstance(model, RepLKNet):
        raise harness.BenchmarkError(f"{arch} is not a RepLKNet")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.25)
    return model


def plain(model: nn.Module) -> nn.Module:
    """A copy with nn.Conv2d in place of every module of ours."""
    result = copy.deepcopy(model)
    for module in result.modules():
        if isinstance(module, DepthwiseConv2dLarge):
            module.activation = "none"  # the block then applies its own
            module.__class__ = nn.Conv2d  # type: ignore[assignment]  # it is one, with the same attributes
    return result


def accelerated(model: nn.Module) -> nn.Module:
    """A copy, with the depthwise layers of stride 1 that the model leaves to torch on our kernels, too."""
    result = copy.deepcopy(model)
    replknet_ext.replace_depthwise(result, min_kernel=1)
    return result


def deploy_call(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Inference of a merged model."""
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(images)
            return logits

    return run


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """One step of SGD; the loss."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # timed like any other, but every step has the same result

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def gradients(model: nn.Module) -> Tensor:
    """Of all depthwise filters, in one vector."""
    return torch.cat(
        [
            module.weight.grad.flatten()
            for module in model.modules()
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels and module.weight.grad is not None
        ]
    )


def call(what: str, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """One of GOALS; the logits or the loss. Random numbers (drop path) are the same at every call."""
    run = deploy_call(model, images) if what == "deploy" else training_step(model, images, labels)

    def seeded() -> Tensor:
        torch.manual_seed(0)
        return run()

    return seeded


def results_of(what: str, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What is compared: the logits, or the loss and the gradients."""
    if what == "deploy":
        return {"logits": call(what, model, images, labels)()}
    return {"loss": call(what, model, images, labels)(), "gradients": gradients(model)}


def depthwise_share(run: Callable[[], Tensor]) -> float:
    """Part of a call's time that our operators take."""
    seen = harness.trace(run)
    ours = sum(seconds for op, seconds in seen.op_seconds.items() if op.startswith("replknet_ext::"))
    return float(f"{ours / seen.seconds:.3g}")


def measure(
    what: str, model: RepLKNet, images: Tensor, labels: Tensor, rounds: int, budget_seconds: float
) -> list[dict[str, Any]]:
    """Checks and times one of GOALS on every layout.

    Raises:
        BenchmarkError: results are wrong, or a baseline runs our kernels.
    """
    jobs, seconds = [], {}
    off: dict[str, float] = {}  # how far the gradients are from float64
    if what == "deploy":
        model = copy.deepcopy(model).switch_to_deploy()
    exact = results_of(what, accelerated(model).double(), images.double(), labels)
    for provider, make in ((OURS, accelerated), (TORCH, plain)):
        for layout, memory_format in LAYOUTS.items():
            name = f"{provider} {layout}"
            candidate = make(model).to(memory_format=memory_format)  # type: ignore[call-overload]
            x = images.contiguous(memory_format=memory_format)
            run = call(what, candidate, x, labels)
            seen = harness.trace(run)
            need, forbid = (
                (OPERATORS[OURS][0], "^$") if provider == OURS else OPERATORS[TORCH]
            )  # ours: also 1x1 by torch
            harness.require_ops(seen.ops, name=f"{what}, {name}", need=need, forbid=forbid)
            key = "logits" if what == "deploy" else "loss"
            harness.require_close(seen.result, exact[key], name=f"{what}, {name}, {key}", limit=LIMITS[key])
            if what != "deploy":
                off[name] = harness.relative_error(gradients(candidate), exact["gradients"])
            jobs.append(Candidate(name, run))
            seconds[name] = seen.seconds
    for layout in LAYOUTS if off else ():
        mine, theirs = off[f"{OURS} {layout}"], off[f"{TORCH} {layout}"]
        if not mine <= GRADIENTS * theirs:
            raise harness.BenchmarkError(f"gradients in {layout} are off by {mine:.1e}, those of torch by {theirs:.1e}")
    timings = harness.interleave(jobs, rounds=rounds, min_rounds=1, budget_seconds=budget_seconds, warm=seconds)
    shares = {job.name: depthwise_share(job.run) for job in jobs if job.name.startswith(OURS)}
    return [
        {
            "what": what,
            "batch": images.shape[0],
            "provider": job.name.split()[0],
            "layout": job.name.split()[1],
            **timings[job.name].as_dict(),
            **({"depthwise_share": shares[job.name]} if job.name in shares else {}),
            **({"gradients_off": float(f"{off[job.name]:.2g}")} if off else {}),
        }
        for job in jobs
    ]


def _median(row: dict[str, Any]) -> float:
    return float(row["median_ms"])


def goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Speed-ups of ours in its better layout, what was aimed at, and what depthwise layers in no time would reach."""
    results = []
    for what in dict.fromkeys(row["what"] for row in rows):
        ms = {(row["provider"], row["layout"]): float(row["median_ms"]) for row in rows if row["what"] == what}
        best = min((row for row in rows if row["what"] == what and row["provider"] == OURS), key=_median)
        ours, others = float(best["median_ms"]), 1 - best["depthwise_share"]
        theirs = [ms[TORCH, "NCHW"], min(value for (provider, _), value in ms.items() if provider == TORCH)]
        for figure, value, least in zip(("vs_default", "vs_best"), theirs, GOALS[what], strict=True):
            ratio, most = (float(f"{value / mine:.4g}") for mine in (ours, ours * others))
            results.append(
                {"what": what, "figure": figure, "at_least": least, "measured": ratio, "kept": ratio >= least}
                | {"without_depthwise": most}
            )
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", default="replknet_31b")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each contender; a slow one is timed once")
    parser.add_argument("--what", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/cpu_model_ISA_Nt.json")
    options = parser.parse_args(arguments)
    from rich.console import Console  # not where the GPU benchmark imports this file

    torch.set_num_threads(options.threads)
    console = Console()
    model = build(options.arch)
    images, labels = torch.randn(options.batch, 3, options.size, options.size), torch.randint(1000, (options.batch,))
    rows = []
    for what in options.what:
        rows += measure(what, model, images, labels, options.rounds, options.seconds)
        for row in rows[-4:]:
            name = f"{what:<14} {row['provider']:<13} {row['layout']:<14}"
            console.print(f"{name} {milliseconds(row['median_ms']):>8} ms")
    meta = harness.metadata()
    results = goals(rows)
    for goal in results:
        verdict = "[green]reached" if goal["kept"] else "[yellow]missed"
        name, most = f"{goal['what']} {goal['figure']}", times(goal["without_depthwise"])
        console.print(f"{name}: {times(goal['measured'])}, goal {goal['at_least']}x: {verdict}[/], at most {most}")
    console.print(harness.describe(meta), style="dim", soft_wrap=True)
    output = options.output or harness.RESULTS / f"cpu_model_{meta['kernel_isa']}_{meta['threads']}t.json"
    harness.write_json(output, {"benchmark": "cpu_model", "meta": meta, "rows": rows, "goals": results})
    console.print(f"wrote {output}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
