"""Small exact cases of every CUDA variant: what the sanitizer and the profiler run, and a first sign of life.

    python -m benchmarks.gpu_cases               # passes, dtypes, layouts, variants: exit status 1 if a bit is wrong
    python -m benchmarks.gpu_cases --sanitizer   # few and tiny: for compute-sanitizer, which slows kernels down a lot
    python -m benchmarks.gpu_cases --profile     # one launch of each of the four main layers: for the profiler

Inputs are multiples of 1/32, so every order of summation gives the same bits. They are made on the CPU: the sanitizer,
told to look at our kernels alone, must see who initialised their memory.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import replknet_ext
from benchmarks.gpu_plan import device_limits, supported
from benchmarks.shapes import MAIN, NUMBERS, PASSES, Layer
from replknet_ext.backends import BACKENDS
from replknet_ext.operator.problem import OP_OF_PASS

BACKEND = "cuda"  # whose variants are tried

#: Plane widths and kernels that between them need every variant; few rows, so that they stay small.
CASES = [
    Layer(9, 2, 13, 56, 31, 31),
    Layer(3, 2, 56, 56, 31, 31),
    Layer(9, 2, 28, 28, 29, 29),
    Layer(17, 3, 14, 14, 27, 27),
    Layer(20, 3, 7, 7, 13, 13),
    Layer(1, 2, 56, 56, 7, 7),
    Layer(8, 2, 12, 28, 5, 5),
    Layer(3, 2, 9, 24, 3, 3),
    Layer(2, 2, 24, 24, 27, 27),
    Layer(1, 1, 12, 40, 29, 29),
    Layer(1, 1, 10, 48, 29, 29),
    Layer(9, 2, 10, 48, 21, 21),
    Layer(9, 2, 8, 40, 13, 13),
    Layer(9, 2, 8, 48, 13, 13),
    Layer(9, 2, 9, 56, 13, 41),
    Layer(1, 1, 8, 80, 31, 31),
    Layer(8, 1, 9, 96, 31, 31),
    Layer(2, 1, 11, 56, 5, 51),
    Layer(2, 1, 11, 28, 5, 49),
    Layer(3, 2, 23, 67, 9, 9),
    Layer(1, 1, 33, 70, 63, 63),
    Layer(9, 2, 10, 28, 9, 21),
    Layer(9, 2, 10, 28, 13, 13),
    Layer(2, 1, 20, 20, 27, 27),
    Layer(9, 2, 10, 20, 13, 13),
    Layer(9, 2, 12, 12, 13, 13),
    Layer(9, 2, 14, 14, 13, 5),
    Layer(1, 1, 8, 36, 29, 29),
    Layer(1, 1, 8, 44, 29, 29),
    Layer(1, 1, 8, 52, 29, 29),
    Layer(1, 1, 8, 60, 31, 31),
]


def _fwd(x: Tensor, weight: Tensor, grad: Tensor, pads: Sequence[int]) -> Tensor:
    return BACKENDS["torch"].fwd(x, weight, None, pads, "none", "ieee", "auto", -1)


def _bwd_input(x: Tensor, weight: Tensor, grad: Tensor, pads: Sequence[int]) -> Tensor:
    return BACKENDS["torch"].bwd_input(grad, weight, pads, "ieee", "auto", -1)


def _bwd_weight(x: Tensor, weight: Tensor, grad: Tensor, pads: Sequence[int]) -> Tensor:
    return BACKENDS["torch"].bwd_weight(grad, x, pads, "ieee", "auto", -1)


#: The passes in float64 by torch on the CPU.
EXACT = {"fwd": _fwd, "bwd_input": _bwd_input, "bwd_weight": _bwd_weight}


def draw(*size: int, seed: int) -> Tensor:
    """Multiples of 1/32 up to 1/2, on the CPU."""
    return torch.randint(-16, 17, size, generator=torch.Generator().manual_seed(seed)).float() / 32


@functools.lru_cache(maxsize=2 * len(PASSES))
def case(layer: Layer, pass_: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, filter, gradient and the result in float64, once for all numbers and memory formats."""
    x, grad = (draw(layer.n, layer.c, layer.h, layer.w, seed=seed) for seed in (1, 3))
    weight = draw(layer.c, 1, layer.kh, layer.kw, seed=2)
    if pass_ == "bwd_weight":  # long sums: fewer and coarser values keep them exact
        x, grad = (torch.sign(t) * (t.abs() > 0.4) for t in (x, grad))
    return x, weight, grad, EXACT[pass_](x.double(), weight.double(), grad.double(), pads_of(layer))


def pads_of(layer: Layer) -> tuple[int, int, int, int]:
    top, left = layer.padding
    return top, top, left, left


def check(
    layer: Layer, numbers: str, pass_: str, *, every_variant: bool, nhwc: bool = False, known: set[str] | None = None
) -> tuple[int, list[str]]:
    """Runs one case by the automatic choice and, if asked, by every variant; an FFT rounds, so it gets a tolerance.

    Variants in `known` are left out; those that ran are added to it.

    Returns:
        The number of launches, and a line for each that was wrong.
    """
    what = NUMBERS[numbers]
    dtype: torch.dtype = getattr(torch, what.dtype)
    x, weight, grad, exact = case(layer, pass_)
    pads = pads_of(layer)
    layout = torch.channels_last if nhwc else torch.contiguous_format
    on_gpu = [t.to(dtype).cuda().contiguous(memory_format=layout) for t in (x, grad)]
    weight_gpu = weight.to(dtype).cuda()
    first = {"fwd": (on_gpu[0], weight_gpu), "bwd_input": (on_gpu[1], weight_gpu), "bwd_weight": (on_gpu[1], on_gpu[0])}
    wanted = exact.to(dtype)
    variants = {-1: "auto"}
    if every_variant:
        form: dict[str, Any] = {"channels_last": nhwc, "precision": what.precision}
        plans = supported(layer, pass_, what.dtype, device_limits(), **form)
        plans = {number: plan for number, plan in plans.items() if not plan.copied}
        keys = {number: f"{pass_} {numbers} {nhwc} {plan.name}" for number, plan in plans.items()}
        variants |= {number: plan.name for number, plan in plans.items() if known is None or keys[number] not in known}
        if known is not None:
            known |= set(keys.values())
    wrong = []
    for number, name in variants.items():
        run = getattr(torch.ops.replknet_ext, OP_OF_PASS[pass_])
        extra = (None, pads, "none") if pass_ == "fwd" else (pads,)
        backend = "auto" if number < 0 else BACKEND
        actual = run(*first[pass_], *extra, what.precision, "auto", backend, number).cpu()
        may_be_fft = numbers == "float32" or (numbers != "float64" and max(layer.h, layer.w) > 64)
        rounds = name.startswith("fft") or (name == "auto" and may_be_fft)
        eps = 1e-5 if what.element == 4 else torch.finfo(dtype).eps
        tolerance = eps * float(wanted.abs().max()) if rounds else 0.0
        difference = ~((actual.double() - wanted.double()).abs() <= tolerance)
        if bool(difference.any()):
            place = difference.nonzero()[0].tolist()
            form_ = f"{numbers}{' nhwc' if nhwc else ''}"
            wrong.append(f"{layer.name} {pass_} {form_} {name}: {int(difference.sum())} wrong, the first at {place}")
    return len(variants), wrong


def stream_is_followed() -> bool:
    """Whether a kernel waits for a late write of its input on the same side stream, as torch's kernels do.

    This library has a CUDA runtime of its own beside torch's: were a launch to miss torch's stream, it would read the
    input before it is written.
    """
    layer = CASES[2]
    x = draw(layer.n, layer.c, layer.h, layer.w, seed=1).bfloat16().cuda()
    weight = draw(layer.c, 1, layer.kh, layer.kw, seed=2).bfloat16().cuda()
    pads = (layer.kh // 2,) * 4

    def run(t: Tensor) -> Tensor:
        result: Tensor = torch.ops.replknet_ext.dwconv2d(t, weight, None, pads, "none", "ieee", "auto", "auto", -1)
        return result

    wanted, late = run(x), torch.zeros_like(x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        actual = run(late)
    side.synchronize()
    return bool(torch.equal(actual, wanted))


def profile() -> None:
    """One launch of each main layer, after the library has been loaded by another shape's."""
    for layer in MAIN:
        x = torch.randn(layer.n, layer.c, layer.h, layer.w, dtype=torch.bfloat16, device="cuda")
        weight = torch.randn(layer.c, 1, layer.kh, layer.kw, dtype=torch.bfloat16, device="cuda") / layer.kh
        pads = pads_of(layer)
        torch.ops.replknet_ext.dwconv2d(x, weight, None, pads, "none", "ieee", "auto", "auto", -1)
        torch.ops.replknet_ext.dwconv2d_backward_weight(x, x, pads, "ieee", "auto", "auto", -1)
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_cases", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sanitizer", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    if "dwconv2d" not in replknet_ext._ext.CUDA_OPS:
        print(f"no CUDA kernels: {replknet_ext._ext.WHY_NOT or 'the extension was built without them'}")
        return 1
    if options.profile:
        profile()
        return 0
    launches, wrong = 0, []
    known: set[str] | None = set() if options.sanitizer else None  # it slows kernels down: each variant once
    for layer in CASES:
        if options.sanitizer and layer.h * layer.w * layer.kh * layer.kw > 1_000_000:
            continue
        for numbers in ("bfloat16", "float32") if options.sanitizer else NUMBERS:
            for pass_ in PASSES:
                for nhwc in (False, True):
                    every = not options.sanitizer or (pass_ != "bwd_input" and not nhwc)
                    count, lines = check(layer, numbers, pass_, every_variant=every, nhwc=nhwc, known=known)
                    launches += count
                    wrong += lines
    if not options.sanitizer and not stream_is_followed():
        wrong.append("a kernel did not wait for earlier work of its stream")
    for text in wrong[:40]:
        print(text)
    print(f"{launches} launches, {len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
