"""The walk-through of the Toeplitz product: right, and with the products that the kernels do."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_plan
from benchmarks.shapes import square
from examples import toeplitz_walkthrough as walk
from replknet_ext._ext import HAS_EXT


@pytest.mark.parametrize(("size", "kernel"), [(28, 13), (14, 27), (7, 13), (9, 3), (11, 7), (13, 1)])
def test_both_passes_equal_the_direct_convolution(size: int, kernel: int) -> None:
    assert walk.main(size, kernel)


def test_a_wrong_block_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = walk.toeplitz_blocks
    monkeypatch.setattr(walk, "toeplitz_blocks", lambda weight: {at: a.roll(1, 1) for at, a in blocks(weight).items()})
    assert not walk.main(9, 3)
    assert "float64: False" in capsys.readouterr().out


@pytest.mark.skipif(not HAS_EXT, reason="the compiled extension, which holds the planner, is missing")
@pytest.mark.parametrize(("size", "kernel", "name"), [(56, 31, "rt_5x7_w"), (28, 29, "rt_5x4_w"), (7, 13, "rt_1x1_w")])
def test_the_kernels_do_the_same_products(size: int, kernel: int, name: str) -> None:
    _, count = walk.forward(torch.ones(8, size, size), torch.ones(kernel, kernel))
    plan = gpu_plan.plan(square(8, 1, size, kernel), variant=gpu_plan.variants().index(name))
    assert plan.mmas == count
