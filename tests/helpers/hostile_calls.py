"""Calls of raw ops, planners and the public function with hostile arguments: ``hostile_calls.py SEED COUNT LOG``.

Run as a process of its own, as a mistake here ends it. Each call is written to LOG before it is made. It must return
what the oracle says or raise an exception that names an argument; the first that does neither is printed.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replknet_ext import depthwise_conv2d

RAW = torch.ops.replknet_ext
#: Ends of number ranges, and what the kernels' own limits are made of. None of them is a size that this machine might
#: hold: memory is limited to 1 GiB more than torch has taken.
FAR = [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**40 + 1, 2**48, 2**62, 2**63 - 1]
NAMES = ("auto", "direct", "fft", "none", "relu", "gelu", "ieee", "tf32", "bf16x3", "cpu", "cuda", "triton", "torch",
         "", "AUTO", "fft ", "\0", "nope", "é", "x" * 5000)  # fmt: skip
NAMED = re.compile(  # "Stride calculation overflowed": of torch, for an empty batch by its own convolution
    r"\b(padding|pads?|weight|input|grad_output|bias|variant|backend|algorithm|precision|activation|sizes?|dtype|pass|"
    r"limits|threads|allocate|device|[Ss]tride|dilation|memory)\b"
)
UNREADABLE = re.compile(r"API call failed|INTERNAL ASSERT|aoti_torch|torch_call_dispatcher")
EXTRA_MEMORY = 1 << 30


class WrongError(Exception):
    """A call that went wrong."""


def far(draw: random.Random) -> int:
    """A number far from every size that can be had, or one of the wrong sign."""
    return draw.choice(FAR) * draw.choice((1, 1, -1)) + draw.choice((0, 0, 0, -1 if draw.random() < 0.5 else 0))


def number(draw: random.Random, good: int, chance: float = 0.12) -> int:
    """`good`, or sometimes a number that isn't."""
    return max(-(2**63), min(2**63 - 1, far(draw))) if draw.random() < chance else good


def name(draw: random.Random, *good: str) -> str:
    return draw.choice(NAMES) if draw.random() < 0.04 else draw.choice(good)


def pads(draw: random.Random) -> list[int]:
    """Small ones, far ones, and pairs of far ones that leave a small result."""
    values = []
    for _ in range(2):
        first, second = draw.randint(-2, 4), draw.randint(-2, 4)
        kind = draw.random()
        if kind < 0.3:
            by = draw.choice(FAR[:-1])
            first, second = (first + by, second - by) if draw.random() < 0.5 else (first - by, second + by)
        elif kind < 0.45:
            first = number(draw, first, 1)
        elif kind < 0.5:
            second = number(draw, second, 1)
        values += [max(-(2**63), min(2**63 - 1, pad)) for pad in (first, second)]
    return values if draw.random() < 0.97 else values[: draw.randint(0, 3)]


DTYPES = (*(torch.float32, torch.float64, torch.float16, torch.bfloat16) * 4, torch.int32)


def tensor(draw: random.Random, dtype: torch.dtype, *shape: int) -> Tensor:
    """Of the shape, or sometimes of another device, dtype, rank or size: a view without end takes no memory."""
    dtype = dtype if draw.random() < 0.97 else draw.choice(DTYPES)
    device = "meta" if draw.random() < 0.05 else "cpu"
    t = torch.randn(shape, generator=torch.Generator().manual_seed(draw.randrange(1 << 30))).to(dtype).to(device)
    kind = draw.random()
    if kind < 0.03:
        sizes = list(t.shape)
        sizes[draw.randrange(len(sizes))] = draw.choice((0, *FAR[:8]))
        return torch.empty((1,) * len(sizes), dtype=dtype, device=device).expand(sizes)
    if kind < 0.04:
        return t.flatten() if draw.random() < 0.5 else t[None]
    return t.contiguous(memory_format=torch.channels_last) if kind < 0.3 and t.dim() == 4 else t


def gathered(x: Tensor, rows: int, columns: int, taps: tuple[int, int], top: int, left: int) -> Tensor:
    """x[n, c, y + i - top, x + j - left] as [n, c, y, i, x, j], zeros outside."""
    kh, kw = taps
    at_y = torch.tensor([[min(max(y + i - top, -1), x.shape[2]) for i in range(kh)] for y in range(rows)])
    at_x = torch.tensor([[min(max(c + j - left, -1), x.shape[3]) for j in range(kw)] for c in range(columns)])
    padded = torch.nn.functional.pad(x.double(), (1, 1, 1, 1))
    return padded[:, :, (at_y + 1)[:, :, None, None], (at_x + 1)[None, None]]


def same(got: Tensor, wanted: Tensor, like: Tensor) -> None:
    if got.shape != wanted.shape or got.dtype != like.dtype or got.device != like.device:
        raise WrongError(f"{tuple(got.shape)} {got.dtype} {got.device} instead of {tuple(wanted.shape)}")
    if got.device.type == "cpu":
        eps = max(torch.finfo(got.dtype).eps, 1e-6 if got.dtype != torch.float64 else 0)
        error = (got.double() - wanted).abs().max().item() if got.numel() else 0.0
        if not error <= 40 * eps * max(1.0, wanted.abs().max().item() if wanted.numel() else 1.0):
            raise WrongError(f"an error of {error}")


def check_fwd(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, pad: list[int], activation: str) -> None:
    """The result of fwd; `weight` and `pad` of bwd_input are those of the convolution that it is."""
    top, bottom, left, right = pad
    (n, c, h, w), (kh, kw) = x.shape, weight.shape[2:]
    ho, wo = h + top + bottom - kh + 1, w + left + right - kw + 1
    if n == 0 or n * c * ho * kh * wo * kw > 1 << 18 or got.device.type != "cpu":
        return same(got, torch.empty(n, c, ho, wo, device="meta"), x)
    out = torch.einsum("ncyixj,cij->ncyx", gathered(x, ho, wo, (kh, kw), top, left), weight.double()[:, 0])
    out = out + (bias.double()[None, :, None, None] if bias is not None else 0)
    return same(got, {"relu": torch.relu, "gelu": torch.nn.functional.gelu}.get(activation, lambda t: t)(out), x)


def check_weight(got: Tensor, grad: Tensor, x: Tensor, pad: list[int]) -> None:
    top, _, left, _ = pad
    kh, kw = (
        size + sum(by) - out + 1 for size, by, out in zip(x.shape[2:], (pad[:2], pad[2:]), grad.shape[2:], strict=True)
    )
    c = x.shape[1]
    if (
        x.shape[0] == 0
        or x.shape[0] * c * kh * grad.shape[2] * kw * grad.shape[3] > 1 << 18
        or got.device.type != "cpu"
    ):
        return same(got, torch.empty(c, 1, kh, kw, device="meta"), x)
    windows = gathered(x, kh, kw, (grad.shape[2], grad.shape[3]), top, left)
    return same(got, torch.einsum("ncaybx,ncyx->cab", windows, grad.double())[:, None], x)


def raw(draw: random.Random) -> tuple[str, Callable[[], Any]]:
    """A raw op: what is called, and the call with its check."""
    n, c, h, w, kh, kw = (draw.randint(low, 5) for low in (0, 1, 1, 1, 1, 1))
    pad = pads(draw)
    rest = (name(draw, "ieee", "tf32"), name(draw, "auto", "direct", "fft"), name(draw, "auto", "cpu", "torch"),
            number(draw, draw.choice((-1, -1, -1, -1, -1, 0, 1, 99)), 0.08))  # fmt: skip
    pass_ = draw.choice(
        ("dwconv2d", "dwconv2d_backward_input", "dwconv2d_backward_weight", "dwconv2d_backward_weight_bias")
    )
    dtype = draw.choice(DTYPES)
    x, weight = tensor(draw, dtype, n, c, h, w), tensor(draw, dtype, c, 1, kh, kw)
    op = getattr(RAW, pass_)

    def about(*operands: Any) -> str:
        shown = [(tuple(t.shape), t.dtype, t.device.type) if isinstance(t, Tensor) else t for t in operands]
        return f"{pass_}{(*shown, pad, *rest)}"[:3000]

    if pass_ == "dwconv2d":
        bias = None if draw.random() < 0.5 else tensor(draw, dtype, c)
        activation = name(draw, "none", "relu", "gelu")
        call = lambda: check_fwd(op(x, weight, bias, pad, activation, *rest), x, weight, bias, pad, activation)  # noqa: E731
        return about(x, weight, bias, activation), call
    if pass_ == "dwconv2d_backward_input":

        def backward_input() -> None:
            result = op(x, weight, pad, *rest)
            mirrored = [k - 1 - p for k, p in zip((kh, kh, kw, kw), pad, strict=True)]
            check_fwd(result, x, weight.flip(2, 3), None, mirrored, "none")

        return about(x, weight), backward_input
    gh, gw = (size + sum(by) - k + 1 for size, by, k in zip((h, w), (pad[:2], pad[2:4]), (kh, kw), strict=True))
    fits = len(pad) == 4 and 0 < gh < 50 and 0 < gw < 50
    grad = tensor(draw, dtype, n, c, gh if fits else draw.randint(1, 4), gw if fits else draw.randint(1, 4))

    def backward_weight() -> None:
        result = op(grad, x, pad, *rest)
        check_weight(result[0] if isinstance(result, tuple) else result, grad, x, pad)

    return about(grad, x), backward_weight


def checked(text: str, *keys: str) -> None:
    """A plan's numbers are some that a launch could have."""
    plan = json.loads(text)
    for key in keys if "unsupported" not in plan else ():
        if not (math.isfinite(plan[key]) and 0 <= plan[key] < 2**62):
            raise WrongError(f"{key} of the plan is {plan[key]}")


def planner(draw: random.Random) -> tuple[str, Callable[[], Any]]:
    h, w, kh, kw = (draw.choice((1, 5, 9, 31, 56, 2**20)) for _ in range(4))
    top, left = kh // 2, kw // 2
    sizes = [
        number(draw, size, 0.07)
        for size in (draw.choice((0, 1, 8)), draw.choice((1, 64)), h, w, kh, kw, h, w, top, left)
    ]
    sizes = sizes if draw.random() < 0.95 else sizes[: draw.randint(0, 9)]
    about = (name(draw, "float32", "float64", "float16", "bfloat16"), draw.random() < 0.3)
    pass_, algorithm = name(draw, "fwd", "bwd_input", "bwd_weight"), name(draw, "auto", "direct", "fft")
    variant = number(draw, draw.choice((-1, -1, 0, 3, 99)), 0.1)
    if draw.random() < 0.4:
        arguments = (sizes, *about, pass_, algorithm, number(draw, draw.choice((0, 1, 3)), 0.1), variant)
        keys = ("variant", "units", "scratch_bytes", "shared_bytes", "microseconds")
        return f"_cpu_plan{arguments}"[:3000], lambda: checked(RAW._cpu_plan(*arguments), *keys)
    limits = [number(draw, draw.choice((good, good, good, 0)), 0.08) for good in (90, 132, 227 << 10, 228 << 10)]
    limits = limits if draw.random() < 0.95 else limits[: draw.randint(0, 3)]
    arguments = (sizes, *about, pass_, name(draw, "ieee", "tf32", "bf16x3"), algorithm, limits, variant)
    keys = ("variant", "blocks", "workspace_bytes", "cycles")
    return f"_cuda_plan{arguments}"[:3000], lambda: checked(RAW._cuda_plan(*arguments), *keys)


def public(draw: random.Random) -> tuple[str, Callable[[], Any]]:
    c, h, w, kh, kw = (draw.randint(1, 5) for _ in range(5))
    dtype = draw.choice(DTYPES)
    x, weight = tensor(draw, dtype, 2, c, h, w), tensor(draw, dtype, c, 1, kh, kw)
    values = {
        key: tuple(number(draw, draw.randint(low, 4), 0.2) for _ in range(2))
        for key, low in (("padding", 0), ("stride", 1), ("dilation", 1))
        if draw.random() < (0.9 if key == "padding" else 0.3)
    }

    def call() -> None:
        try:
            got = depthwise_conv2d(x, weight, **values)  # type: ignore[arg-type]
        except RuntimeError:
            if values.get("stride", (1, 1)) == values.get("dilation", (1, 1)) == (1, 1):
                raise
            raise ValueError("stride or dilation: torch's convolution ran, and its words are its own") from None
        wanted = torch.nn.functional.conv2d(x.double(), weight.double(), groups=c, **values)  # type: ignore[call-overload]
        same(got, wanted, x)

    return (
        f"depthwise_conv2d({tuple(x.shape)} {x.dtype} {x.device}, {tuple(weight.shape)} {weight.dtype}, {values})",
        call,
    )


def main(seed: int, count: int, log: str) -> int:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY,) * 2)
    ends: Counter[str] = Counter()
    with open(log, "wb", buffering=0) as file:
        for i in range(count):
            draw = random.Random(seed * 1_000_003 + i)
            about, call = (raw, raw, raw, planner, planner, public)[i % 6](draw)
            os.pwrite(file.fileno(), f"{i}: {about}\n".ljust(3200).encode(), 0)
            try:
                call()
                ends["result"] += 1
            except (RuntimeError, ValueError, TypeError) as error:
                ends["refused"] += 1
                text = str(error)
                if UNREADABLE.search(text) or not NAMED.search(text):
                    print(f"{i}: {about}\nraised {type(error).__name__}: {text[:500]}")
                    return 1
            except Exception as error:
                print(f"{i}: {about}\n{type(error).__name__}: {str(error)[:500]}")
                return 1
    print(json.dumps(ends))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
