"""The plan that is chosen is the fastest of all variants' own: bounds leave out only what can't win."""

from __future__ import annotations

import random

import pytest
import torch

from replknet_ext import _ext
from replknet_ext.backends.cuda import DEVICES

pytestmark = pytest.mark.skipif(not _ext.HAS_EXT, reason="the planners are part of the extension")


def problem(draw: random.Random) -> tuple[list[int], torch.dtype, str, str, str, bool]:
    """Sizes, dtype, pass, precision, algorithm and memory format: of ordinary layers, large maps and odd ones."""
    most = draw.choice((56, 56, 600, 3000))
    h = draw.choice((7, 14, 28, 56, draw.randint(1, most)))
    w = h if draw.random() < 0.7 else draw.randint(1, most)
    kh = draw.choice((3, 5, 7, 13, 31, draw.randint(1, 2 * h)))
    kw = kh if draw.random() < 0.7 else draw.randint(1, 2 * w)
    top, left = kh // 2, kw // 2
    if draw.random() < 0.2:
        top, left = draw.randint(-h // 2, kh), draw.randint(-w // 2, kw)
    sizes = [draw.choice((1, 2, 8, 33, 64)), draw.choice((1, 3, 64, 512)), h, w, kh, kw, h, w, top, left]
    dtype = draw.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
    pass_, precision = draw.choice(("fwd", "bwd_weight")), draw.choice(("ieee", "tf32", "bf16x3"))
    return sizes, dtype, pass_, precision, draw.choice(("auto", "auto", "direct")), draw.random() < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_plan_is_the_fastest_of_all_variants(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(15):
        sizes, dtype, pass_, precision, algorithm, last = problem(draw)
        limits = DEVICES[draw.choice(sorted(DEVICES))]
        about = (sizes, dtype, pass_, precision, algorithm, limits)
        plans = [
            _ext.cuda_plan(*about, variant, channels_last=last)
            for variant in range(len(_ext.variant_names("cuda_variants", pass_)))
        ]
        # what no device has measured is not chosen
        cycles = [plan["cycles"] for plan in plans if plan.get("family") not in (None, "toeplitz_wgmma")]
        chosen = _ext.cuda_plan(*about, channels_last=last)
        assert ("unsupported" in chosen) == (cycles == []), about
        if cycles:
            assert chosen["cycles"] == pytest.approx(min(cycles), rel=1e-9), (about, chosen["name"])
            assert plans[chosen["variant"]]["cycles"] == pytest.approx(chosen["cycles"], rel=1e-9), about
