"""Small exact cases of every CUDA variant: what the sanitizer and the profiler run, and a first sign of life.

    python -m benchmarks.gpu_cases               # both passes and dtypes, all variants; exit status 1 if a bit is wrong
    python -m benchmarks.gpu_cases --sanitizer   # few and tiny: for compute-sanitizer, which slows kernels down a lot
    python -m benchmarks.gpu_cases --profile     # one launch of each of the four main layers: for the profiler

Inputs are multiples of 1/32, so every order of summation gives the same bits. They are made on the CPU: the sanitizer,
told to look at our kernels alone, must see who initialised their memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import replknet_ext
from benchmarks.gpu_plan import supported
from benchmarks.gpu_table import DTYPES, device_limits
from benchmarks.shapes import MAIN, Layer

#: Plane widths and kernels that between them need every variant; few rows, so that they stay small.
CASES = [
    Layer(9, 2, 13, 56, 31, 31),
    Layer(3, 2, 56, 56, 31, 31),
    Layer(9, 2, 28, 28, 29, 29),
    Layer(17, 3, 14, 14, 27, 27),
    Layer(20, 3, 7, 7, 13, 13),
    Layer(1, 2, 56, 56, 7, 7),
    Layer(8, 2, 12, 28, 5, 5),
    Layer(2, 2, 24, 24, 27, 27),
    Layer(1, 1, 12, 40, 29, 29),
    Layer(1, 1, 10, 48, 29, 29),
    Layer(1, 1, 8, 80, 31, 31),
    Layer(8, 1, 9, 96, 31, 31),
    Layer(2, 1, 11, 56, 5, 51),
    Layer(2, 1, 11, 28, 5, 49),
    Layer(3, 2, 23, 67, 9, 9),
    Layer(1, 1, 33, 70, 63, 63),
]


def draw(*size: int, seed: int) -> Tensor:
    """Multiples of 1/32 up to 1/2, on the CPU."""
    return torch.randint(-16, 17, size, generator=torch.Generator().manual_seed(seed)).float() / 32


def check(layer: Layer, dtype: str, pass_: str, *, every_variant: bool) -> tuple[int, list[str]]:
    """Runs one case by the automatic choice and, if asked, by every variant.

    Returns:
        The number of launches, and a line for each that was wrong.
    """
    x = draw(layer.n, layer.c, layer.h, layer.w, seed=1)
    weight = draw(layer.c, 1, layer.kh, layer.kw, seed=2)
    top, left = layer.padding
    convolve = F.conv2d if pass_ == "fwd" else F.conv_transpose2d
    wanted = convolve(x.double(), weight.double(), padding=layer.padding, groups=layer.c).to(DTYPES[dtype])
    x_gpu, weight_gpu = x.to(DTYPES[dtype]).cuda(), weight.to(DTYPES[dtype]).cuda()
    ops, pads = torch.ops.replknet_ext, (top, top, left, left)
    variants = {-1: "auto"}
    if every_variant:
        plans = supported(layer, pass_, dtype, device_limits())
        variants |= {number: plan.name for number, plan in plans.items()}
    wrong = []
    for number, name in variants.items():
        if pass_ == "fwd":
            actual = ops.dwconv2d(x_gpu, weight_gpu, None, pads, "none", "ieee", "auto", number)
        else:
            actual = ops.dwconv2d_backward_input(x_gpu, weight_gpu, pads, "ieee", "auto", number)
        difference = actual.cpu() != wanted
        if bool(difference.any()):
            place = difference.nonzero()[0].tolist()
            wrong.append(f"{layer.name} {pass_} {dtype} {name}: {int(difference.sum())} wrong, the first at {place}")
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
        result: Tensor = torch.ops.replknet_ext.dwconv2d(t, weight, None, pads, "none", "ieee", "auto", -1)
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
        top, left = layer.padding
        torch.ops.replknet_ext.dwconv2d(x, weight, None, (top, top, left, left), "none", "ieee", "auto", -1)
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
    for layer in CASES:
        if options.sanitizer and layer.h * layer.w * layer.kh * layer.kw > 1_000_000:
            continue
        for dtype in ["bfloat16"] if options.sanitizer else list(DTYPES):
            for pass_ in ("fwd", "bwd_input"):
                count, lines = check(layer, dtype, pass_, every_variant=pass_ == "fwd" or not options.sanitizer)
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
