"""A step of the GPU benchmark: training steps of RepLKNet-31B in bf16, and the part of them that our kernels take.

    python -m benchmarks.gpu_training --output part.json --seconds 60 [--quick]

A training step is forward in autocast, cross entropy, backward and AdamW. Contenders are the network as it is and the
same with `nn.Conv2d`, in both layouts; what each runs is proved by the profiler. The share is of the device time of all
kernels of one step; small parallel kernels are in it, as they run on the same operators.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import gpu_routes, roofline
from benchmarks.cpu_model import build, plain
from benchmarks.harness import write_json
from benchmarks.shapes import MAIN, PASSES
from replknet_ext.models import ARCHS
from replknet_ext.tuning.measure import timed

ARCH, SIZE, BATCHES = "replknet_31b", 224, (64, 32, 16)  # the first batch that fits
STEPS = 10
SHARE = 0.12  # of a step that large kernels should take at most
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def prediction() -> dict[str, Any]:
    """What the cost model says of the 24 large kernels of a step, forward and both backward passes, on an H200."""
    us = sum(
        count * roofline.predict(layer, pass_)["predicted_us"]
        for layer, count in zip(MAIN, ARCHS["31B"].layers, strict=True)
        for pass_ in PASSES
    )
    return {
        "kind": "PREDICTION: from a model, not measured",
        "device": "NVIDIA H200",
        "large_kernels_ms": round(us * 1e-3, 2),
        "share_at_most": SHARE,
    }


def training_step(model: nn.Module, batch: int, size: int, classes: int, layout: str) -> Callable[[], None]:
    """One step on fixed random images; the learning rate is 0, so that every step does the same."""
    device = gpu_routes.DEVICE
    model = model.to(device, memory_format=LAYOUTS[layout]).train()  # type: ignore[call-overload]
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=LAYOUTS[layout])
    labels = torch.randint(classes, (batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def run() -> None:
        with torch.autocast(device, torch.bfloat16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def measure(run: Callable[[], None], ours: bool, seconds: float) -> dict[str, Any]:
    """Milliseconds of a step, its memory, and the device time of our kernels in it.

    A contender that needs more than its time gets one step, after the one that warms up.
    """
    started = time.monotonic()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    samples: list[float] = []
    while len(samples) < STEPS and (not samples or time.monotonic() - started < seconds):
        samples.append(timed(run))
    kernels = gpu_routes.device_times(run)
    mine = sum(us for name, us in kernels.items() if gpu_routes.is_ours(name))
    row: dict[str, Any] = {
        "step_ms": round(statistics.median(samples) * 1e3, 2),
        "steps": len(samples),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "kernels_ms": round(sum(kernels.values()) * 1e-3, 2),
        "our_kernels_ms": round(mine * 1e-3, 2),
        "our_share": round(mine / max(sum(kernels.values()), 1e-9), 4),
        "longest_ms": {
            name: round(us * 1e-3, 2) for name, us in sorted(kernels.items(), key=lambda item: -item[1])[:12]
        },
    }
    if (mine > 0) is not ours:
        row["failed"] = "our kernels did not run" if ours else "our kernels ran in the step of nn.Conv2d"
    return row


def contender(model: nn.Module, layout: str, ours: bool, size: int, seconds: float) -> dict[str, Any]:
    """The row of a contender at the largest batch that fits."""
    for batch in BATCHES:
        try:
            return {"batch": batch, **measure(training_step(model, batch, size, 1000, layout), ours, seconds)}
        except torch.OutOfMemoryError:  # noqa: PERF203  # a smaller batch may fit
            torch.cuda.empty_cache()
    return {"failed": f"no memory for a batch of {BATCHES[-1]}"}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All contenders, ours first; the file grows with each."""
    payload: dict[str, Any] = {"arch": ARCH, "size": SIZE, "dtype": "bf16 autocast", "prediction": prediction()}
    payload["rows"] = rows = []
    names = [(provider, layout) for provider in ("replknet_ext", "nn.Conv2d") for layout in LAYOUTS]
    deadline = time.monotonic() + 0.8 * options.seconds  # a step that has begun ends
    for number, (provider, layout) in enumerate(names):
        row: dict[str, Any] = {"provider": provider, "layout": layout}
        rows.append(row)
        left = deadline - time.monotonic()
        if left < 2:
            row["skipped"] = "no time was left"
            continue
        ours = provider == "replknet_ext"
        model = build(ARCH) if ours else plain(build(ARCH))
        try:
            row |= contender(model, layout, ours, SIZE, left / (len(names) - number) / 2)
        except Exception as error:  # the others still run
            row["failed"] = f"{type(error).__name__}: {error}"[:600]
        del model
        torch.cuda.empty_cache()
        words = row.get("failed") or f"{row['step_ms']} ms, our kernels {100 * row['our_share']:.1f} %"
        print(f"{provider} {layout}: batch {row.get('batch')}, {words}", flush=True)
        write_json(options.output, payload)
    shares = [row["our_share"] for row in rows if row["provider"] == "replknet_ext" and "our_share" in row]
    if shares:
        payload["share"] = {"measured": min(shares), "at_most": SHARE, "kept": min(shares) <= SHARE}
    bad = [f"{row['provider']} {row['layout']}: {row['failed']}" for row in rows if "failed" in row]
    if bad:
        payload["failed"] = "; ".join(bad)[:2000]
    write_json(options.output, payload)
    return payload


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_training", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="no difference here")
    options = parser.parse_args(arguments)
    try:
        payload = run(options)
    except Exception:
        payload = {"failed": traceback.format_exc()[-3000:]}
        write_json(options.output, payload)
    return int("failed" in payload)


if __name__ == "__main__":
    sys.exit(main())
