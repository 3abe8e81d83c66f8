"""The cache of CUDA launch plans, through the planner's own code: a training step makes its plans once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from benchmarks import gpu_plan, plan_cache
from benchmarks.shapes import Layer
from replknet_ext import _ext
from replknet_ext.models import ARCHS, RepLKNetConfig

pytestmark = pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")


def made_again(ask: Callable[[], gpu_plan.Cost]) -> int:
    """Plans that a later step makes. Other tests may have filled the cache, which empties it; then a step has room."""
    ask()
    return min(ask().made, ask().made)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", plan_cache.DTYPES)
@pytest.mark.parametrize("batch", plan_cache.BATCHES)
def test_a_second_training_step_makes_no_plan(batch: int, dtype: str, channels_last: bool) -> None:
    step = plan_cache.step(batch, ARCHS["31B"])
    assert len(step) == 24 * 2 * 3
    assert made_again(gpu_plan.planner(step, dtype, channels_last=channels_last)) == 0


def test_the_first_step_makes_each_plan_once() -> None:
    steps = [plan_cache.step(batch, ARCHS["31B"]) for batch in (11, 13)]  # one may meet a full cache
    assert min(gpu_plan.planner(step, "float16")().made for step in steps) == len(set(steps[0])) == 4 * 2 * 3


def test_steps_of_several_networks_keep_their_plans() -> None:
    """600 kinds of layers, each in three passes: more than any published network has."""
    many = RepLKNetConfig((5,) * 600, (1,) * 600, tuple(range(1, 601)), small_kernel=None, stem_strides=(1, 1))
    layers = [Layer(2, channels, 8, 8, 5, 5) for channels in many.channels]
    ask = gpu_plan.planner(
        [(layer, pass_) for layer in layers for pass_ in ("fwd", "bwd_input", "bwd_weight")], "float16"
    )
    assert ask().made >= 1800 - 1
    assert made_again(ask) == 0


def test_a_step_needs_ten_numbers_per_pass() -> None:
    how = ("float16", False, "fwd bwd_weight", "ieee", "auto", [90, 132, 227 << 10, 228 << 10])
    with pytest.raises(RuntimeError, match="ten numbers per pass"):
        torch.ops.replknet_ext._cuda_plan_cost([1] * 19, *how)


def test_the_cache_is_bounded() -> None:
    first = gpu_plan.planner([(Layer(1, 1, 5, 5, 3, 3), "fwd")], "float16")
    first()
    assert first().made == 0
    gpu_plan.planner([(Layer(n, 2, 6, 6, 3, 3), "fwd") for n in range(1, 4098)], "float16")()
    assert first().made == 1


def test_refusals_are_kept() -> None:
    """A step whose convolutions no kernel runs asks for the reason once."""
    limits = gpu_plan.Limits(75, 40, 64 << 10, 64 << 10)
    ask = gpu_plan.planner([(Layer(1, 3, 9, 9, 3, 3), "fwd")], "float16", limits)
    assert (ask().made, ask().made) == (1, 0)


def test_threads_share_plans() -> None:
    """Backward runs on another thread than forward."""
    ask = gpu_plan.planner([(Layer(5, 3, 9, 9, 3, 3), "fwd")], "float16")
    assert ask().made == 1
    made: list[int] = []
    thread = threading.Thread(target=lambda: made.append(ask().made))
    thread.start()
    thread.join()
    assert made == [0]


def test_threads_that_fill_the_cache_together() -> None:
    """Four threads plan the same and different problems at once; afterwards every plan is there."""
    steps = [(Layer(n, 3, 12, 12, 3, 3), "fwd") for n in range(1, 200)]
    threads = [threading.Thread(target=gpu_plan.planner(steps, "bfloat16")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made_again(gpu_plan.planner(steps, "bfloat16")) == 0
