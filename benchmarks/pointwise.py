"""How to run a 1x1 convolution on the CPU: as convolution or as matrix product, in NCHW and in channels_last.

`python -m benchmarks.pointwise` times the 1x1 layers of RepLKNet-31B at 224 x 224 and writes
results/cpu_pointwise.json. `replknet_ext.models.pointwise.PointwiseConv2d` does what wins for each layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from replknet_ext.models import ARCHS

from . import harness

LIMIT = 1e-5  # relative error against float64


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


@torch.inference_mode()
def main() -> None:
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
    harness.write_json(harness.RESULTS / "cpu_pointwise.json", payload)


if __name__ == "__main__":
    main()
