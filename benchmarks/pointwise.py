"""How to run a 1x1 convolution: as convolution or as matrix product, in NCHW and in channels_last.

`python -m benchmarks.pointwise` times the 1x1 layers of RepLKNet-31B at 224 x 224 on the CPU and writes
results/cpu_pointwise.json. `replknet_ext.models.pointwise.PointwiseConv2d` does what wins for each layout.

`--device cuda` is a step of benchmarks/gpu.sh: the same layers in bf16, batch 64, by that very module, with
REPLKNET_EXT_NCHW_GEMM off and on; times are of CUDA graph replays. It decides what that switch should be.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from replknet_ext.models import ARCHS, pointwise
from replknet_ext.tuning.measure import capture, timed

from . import gpu_routes, harness

LIMIT, LIMIT_BF16 = 1e-5, 1e-2  # relative error against float64


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def matmul(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out: Tensor = (weight.flatten(1) @ x.flatten(2)).add_(bias[:, None])
    return out.view(*out.shape[:2], *x.shape[2:])


CANDIDATES: dict[str, tuple[torch.memory_format, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "NCHW conv2d": (torch.contiguous_format, conv),
    "NCHW matmul": (torch.contiguous_format, matmul),
    "channels_last conv2d": (torch.channels_last, conv),
    "channels_last linear": (torch.channels_last, linear),
}


def layers(batch: int) -> list[tuple[int, int, int, int]]:
    """(N, C in, C out, H) of each kind of 1x1 layer in a block: around the large kernel, into and out of the FFN."""
    arch = ARCHS["31B"]
    found = []
    for channels, reduction in zip(arch.channels, arch.reductions, strict=True):
        hidden = int(channels * arch.ffn_ratio)
        for c_in, c_out in ((channels, channels), (channels, hidden), (hidden, channels)):
            found.append((batch, c_in, c_out, 224 // reduction))
    return found


def measure(n: int, c_in: int, c_out: int, size: int) -> dict[str, Any]:
    """Milliseconds of each candidate for one layer, each checked against float64."""
    x, weight, bias = torch.randn(n, c_in, size, size), torch.randn(c_out, c_in, 1, 1) / c_in, torch.randn(c_out)
    exact = F.conv2d(x.double(), weight.double(), bias.double())
    runs = []
    for name, (layout, function) in CANDIDATES.items():
        run = partial(function, x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout), bias)
        harness.require_close(run(), exact, name=name, limit=LIMIT)
        runs.append(harness.Candidate(name, run))
    timings = harness.interleave(runs, budget_seconds=1.0)
    return {"n": n, "c_in": c_in, "c_out": c_out, "size": size} | {n: t.as_dict() for n, t in timings.items()}


# ---- the CPU ----


@torch.inference_mode()
def on_cpu(output: Path) -> None:
    """Measures, prints, writes."""
    results = []
    for batch in (1, 8):
        for layer in layers(batch):
            results.append(measure(*layer))
            times = "   ".join(f"{name} {results[-1][name]['median_ms']:.2f}" for name in CANDIDATES)
            print(f"{layer}: {times}")
    ratios = {}
    for layout, other in (("NCHW", "NCHW matmul"), ("channels_last", "channels_last linear")):
        logs = [math.log(r[f"{layout} conv2d"]["median_ms"] / r[other]["median_ms"]) for r in results]
        ratios[f"{other}: geometric mean of its speed over conv2d"] = round(math.exp(sum(logs) / len(logs)), 3)
    print(ratios)
    payload = {"metadata": harness.metadata(), "summary": ratios, "results": results}
    harness.write_json(output, payload)


# ---- a GPU ----

#: As `PointwiseConv2d` runs: memory format, and whether NCHW maps are multiplied.
FORMS = {
    "NCHW conv2d": (torch.contiguous_format, False),
    "NCHW gemm": (torch.contiguous_format, True),
    "channels_last linear": (torch.channels_last, False),
}


def _call(run: Callable[[], Tensor], i: int) -> Tensor:
    return run()


def measure_on_gpu(n: int, c_in: int, c_out: int, size: int) -> dict[str, Any]:
    """Microseconds of each form for one layer, whose first image is checked against float64."""
    x = torch.randn(n, c_in, size, size, device=gpu_routes.DEVICE, dtype=torch.bfloat16)
    conv = torch.nn.Conv2d(c_in, c_out, 1, device=gpu_routes.DEVICE, dtype=torch.bfloat16)
    weight, bias = (p.detach().cpu().double() for p in conv.parameters())
    exact = F.conv2d(x[:1].cpu().double(), weight, bias)
    pointwise.PointwiseConv2d.adopt(conv)
    replays: dict[str, tuple[Callable[[], None], int]] = {}
    alive = []  # with what the graphs read
    for name, (layout, product) in FORMS.items():
        layer: Any = copy.deepcopy(conv)
        run = partial(layer.to(memory_format=layout), x.contiguous(memory_format=layout))
        alive.append(run)
        with mock.patch.object(pointwise, "NCHW_GEMM_ON", (x.device.type,) if product else ()):
            harness.require_close(run()[:1].cpu(), exact, name=name, limit=LIMIT_BF16)
            once = min(timed(run) for _ in range(3))
            calls = max(1, min(100, int(1e-3 / max(once, 1e-6))))
            replays[name] = capture(partial(_call, run), calls, 1), calls
    samples: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(9):
        for name, (replay, calls) in replays.items():
            samples[name].append(timed(replay) / calls * 1e6)
    row: dict[str, Any] = {"n": n, "c_in": c_in, "c_out": c_out, "size": size}
    return row | {name: float(f"{statistics.median(times):.4g}") for name, times in samples.items()}


@torch.no_grad()
def on_gpu(output: Path, seconds: float, batch: int = 64) -> dict[str, Any]:
    """Every layer, and what they are together in a forward of RepLKNet-31B; the file grows with each."""
    deadline = time.monotonic() + seconds
    torch.backends.cudnn.benchmark = True
    payload: dict[str, Any] = {"dtype": "bfloat16", "rows": []}
    forward = dict.fromkeys(FORMS, 0.0)
    # Two layers of each block keep the channels, and one each goes into and out of the FFN.
    counts = [depth * count for depth in ARCHS["31B"].layers for count in (2, 1, 1)]
    try:
        for layer, count in zip(layers(batch), counts, strict=True):
            if time.monotonic() > deadline:
                raise harness.BenchmarkError("out of time")
            row = measure_on_gpu(*layer)
            payload["rows"].append(row)
            print(row, flush=True)
            for name in FORMS:
                forward[name] += row[name] * count * 1e-3
            harness.write_json(output, payload)
        payload["forward_ms"] = {name: round(ms, 3) for name, ms in forward.items()}
        print(payload["forward_ms"])
    except Exception:
        payload["failed"] = traceback.format_exc()[-3000:]
    harness.write_json(output, payload)
    return payload


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pointwise", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "cpu_pointwise.json")
    parser.add_argument("--seconds", type=float, default=60.0, help="on a GPU, start nothing new after this long")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        on_cpu(options.output)
        return 0
    return int("failed" in on_gpu(options.output, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
