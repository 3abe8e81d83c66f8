"""One layer on the CPU: operands, float64 reference, every contender of a pass, and the proof of what each one ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import replknet_ext
from benchmarks import cpu_peak, harness
from benchmarks.harness import Candidate
from benchmarks.shapes import PASSES, Layer
from replknet_ext import _ext

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
TORCH, OURS, PEAK = "nn.Conv2d", "replknet_ext", "FMA peak"
#: Which operators a provider must run and must not run, as regular expressions.
OPERATORS = {TORCH: (r"^aten::\w*conv", r"^replknet_ext::"), OURS: (r"^replknet_ext::", r"^aten::\w*conv")}
ALGORITHMS = ("auto", "direct", "fft")
#: Relative, in both norms. In float32, sums over a whole batch and map reach a quarter of it; in bfloat16 the rounding
#: of the result alone is 4e-3.
ERROR_LIMITS = {"float32": 2e-5, "bfloat16": 1e-2}
CHECKED_CHANNELS = 8  # at either end; the others are compared with torch's result in the same dtype


@dataclass
class Job(Candidate):
    """A candidate with the labels of its result row."""

    provider: str
    layout: str = ""
    algorithm: str = ""
    dtype: str = "float32"
    kernel: str = ""  # the variant that ours runs
    gflop: float = 0.0  # of a call


class Problem:
    """One layer's tensors, float64 references on some channels, and the callables of each pass."""

    def __init__(self, layer: Layer, dtype: str = "float32", seed: int = 0) -> None:
        self.layer, self.dtype = layer, dtype
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(getattr(torch, dtype))

        self.input = draw(layer.n, layer.c, layer.h, layer.w)
        self.grad = draw(layer.n, layer.c, *layer.output)
        self.weight = draw(layer.c, 1, layer.kh, layer.kw)
        few = min(CHECKED_CHANNELS, layer.c)
        self.sample = sorted({*range(few), *range(layer.c - few, layer.c)})

    def reference(self, pass_: str) -> Tensor:
        """Result in float64 for the channels in `sample`, by torch."""
        x, g, w = (t[:, self.sample].double() for t in (self.input, self.grad, self.weight.transpose(0, 1)))
        return self._torch(pass_, x, g, w.transpose(0, 1).contiguous())()

    def pick(self, pass_: str, result: Tensor) -> Tensor:
        """The sampled channels of a result."""
        return result[self.sample] if pass_ == "bwd_weight" else result[:, self.sample]

    def _torch(self, pass_: str, x: Tensor, g: Tensor, w: Tensor) -> Callable[[], Tensor]:
        pad, kernel, channels = self.layer.padding, (self.layer.kh, self.layer.kw), w.shape[0]
        if pass_ == "fwd":
            conv = nn.Conv2d(channels, channels, kernel, padding=pad, groups=channels, bias=False)
            conv.weight = nn.Parameter(w, requires_grad=False)
            return lambda: conv(x)
        index = PASSES.index(pass_) - 1
        mask = [index == 0, index == 1, False]

        def backward() -> Tensor:
            gradients = torch.ops.aten.convolution_backward(
                g, x, w, None, (1, 1), pad, (1, 1), False, (0, 0), channels, mask
            )
            result: Tensor = gradients[index]
            return result

        return backward

    def _ours(self, pass_: str, x: Tensor, g: Tensor, w: Tensor, algorithm: str = "auto") -> Callable[[], Tensor]:
        rows, columns = self.layer.padding
        if pass_ == "fwd":
            return lambda: replknet_ext.depthwise_conv2d(x, w, padding=(rows, columns), algorithm=algorithm)
        ops, tail = torch.ops.replknet_ext, ((rows, rows, columns, columns), "ieee", algorithm, "auto", -1)
        if pass_ == "bwd_input":
            return lambda: ops.dwconv2d_backward_input(g, w, *tail)
        return lambda: ops.dwconv2d_backward_weight(g, x, *tail)

    def plan(self, pass_: str, layout: str, algorithm: str) -> dict[str, Any]:
        """What the CPU backend says that it will run: "name", or "unsupported" with the reason."""
        layer = self.layer
        (top, left), (ho, wo), (kh, kw) = layer.padding, layer.output, (layer.kh, layer.kw)
        sizes = [layer.n, layer.c, layer.h, layer.w, kh, kw, ho, wo, top, left]
        if pass_ == "bwd_input":
            sizes = [layer.n, layer.c, ho, wo, kh, kw, layer.h, layer.w, kh - 1 - top, kw - 1 - left]
        return _ext.cpu_plan(
            sizes,
            getattr(torch, self.dtype),
            pass_,
            algorithm,
            torch.get_num_threads(),
            channels_last=layout == "channels_last",
        )

    def jobs(
        self,
        pass_: str,
        *,
        theirs: Sequence[str] = tuple(LAYOUTS),
        ours: Sequence[str] = ("NCHW",),
        algorithms: Sequence[str] = ("auto",),
    ) -> Iterator[Job]:
        """torch on the layouts `theirs`, ours on the layouts `ours` with every algorithm that can."""
        for layout, memory_format in LAYOUTS.items():
            tensors = [t.contiguous(memory_format=memory_format) for t in (self.input, self.grad, self.weight)]
            if layout in theirs:
                run = self._torch(pass_, *tensors)
                yield Job(f"{TORCH} {layout}", run, TORCH, layout, dtype=self.dtype)
            for algorithm in algorithms if layout in ours else ():
                plan = self.plan(pass_, layout, algorithm)
                if "unsupported" not in plan:
                    run, kernel = self._ours(pass_, tensors[0], tensors[1], tensors[2], algorithm), str(plan["name"])
                    yield Job(f"{OURS} {layout} {algorithm}", run, OURS, layout, algorithm, self.dtype, kernel)


def peak_job(isa: str) -> Job:
    """The FMA peak as a contender."""
    run, gflop = cpu_peak.job(isa)
    return Job(PEAK, run, PEAK, gflop=gflop)


def verify(problem: Problem, pass_: str, jobs: Sequence[Job]) -> tuple[dict[str, float], dict[str, float]]:
    """Traces one call of each job and checks operator and result.

    Returns:
        Relative error against float64, and seconds of the call, each by the job's name.

    Raises:
        BenchmarkError: a wrong result, or an operator other than the one that the label claims.
    """
    exact = problem.reference(pass_)
    limit = ERROR_LIMITS[problem.dtype]
    suffix = "" if pass_ == "fwd" else f"_{pass_.replace('bwd', 'backward')}"
    needs = OPERATORS | {OURS: (rf"^replknet_ext::dwconv2d{suffix}$", OPERATORS[OURS][1])}
    errors, seconds = {}, {}
    first: Tensor | None = None
    for job in jobs:
        label = f"{problem.layer.name} {pass_}, {job.name}"
        seen = harness.trace(job.run)
        need, forbid = needs[job.provider]
        harness.require_ops(seen.ops, name=label, need=need, forbid=forbid)
        picked = problem.pick(pass_, seen.result)
        errors[job.name] = harness.require_close(picked, exact, name=label, limit=limit)
        first = seen.result if first is None else first
        harness.require_close(seen.result, first, name=f"{label}, all channels", limit=2 * limit)
        seconds[job.name] = seen.seconds
    return errors, seconds
