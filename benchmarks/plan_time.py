"""Time to make one plan, by the CPU's and the CUDA planners, for ordinary maps and for ones of any size.

`python -m benchmarks.plan_time` prints microseconds of the thread's own time (so that other programs do not count), the
query through torch's dispatcher and its JSON included. Needs no GPU. A plan is made once per problem and then kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from replknet_ext import _ext
from replknet_ext.backends.cuda import DEVICES

GOAL_US = 300.0
H200 = DEVICES["h200"]
#: name: c, h, w, kh, kw; "same" padding.
MAPS: dict[str, tuple[int, int, int, int, int]] = {
    "56x56 K31": (128, 56, 56, 31, 31),
    "28x28 K29": (256, 28, 28, 29, 29),
    "14x14 K27": (512, 14, 14, 27, 27),
    "7x7 K13": (1024, 7, 7, 13, 13),
    "56x56 K3": (128, 56, 56, 3, 3),
    "512x512 K31": (64, 512, 512, 31, 31),
    "2048x2048 K31": (64, 2048, 2048, 31, 31),
    "1x65536 K1x31": (1, 1, 1 << 16, 1, 31),
    "1x2^26 K1x31": (1, 1, 1 << 26, 1, 31),
    "2^26x1 K31x1": (1, 1 << 26, 1, 31, 1),
    "1000x1000 K1001": (8, 1000, 1000, 1001, 1001),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def least(plan: Callable[..., object], batches: range = range(61, 68)) -> float:
    """Microseconds of the quickest of some plans, each of another batch size: a known one is only found again."""
    times = []
    for n in batches:
        start = time.thread_time()
        plan(n)
        times.append(time.thread_time() - start)
    return 1e6 * min(times)


def main() -> None:
    """Print the table."""
    print(f"{'':34}{'CPU':>8}{'CUDA':>8}   us; * above {GOAL_US:.0f}")
    for name, (c, h, w, kh, kw) in MAPS.items():
        for dtype in DTYPES:
            for pass_ in ("fwd", "bwd_weight"):
                rest = (c, h, w, kh, kw, h + (1 - kh % 2), w + (1 - kw % 2), kh // 2, kw // 2)

                times = [
                    least(lambda n, r=rest, d=dtype, p=pass_: _ext.cpu_plan([n, *r], d, p, "auto", 2)),
                    least(lambda n, r=rest, d=dtype, p=pass_: _ext.cuda_plan([n, *r], d, p, "ieee", "auto", H200)),
                ]
                marks = "".join(f"{us:7.0f}{'*' if us > GOAL_US else ' '}" for us in times)
                print(f"{name:16} {str(dtype).removeprefix('torch.'):9} {pass_:8}{marks}")


if __name__ == "__main__":
    main()
