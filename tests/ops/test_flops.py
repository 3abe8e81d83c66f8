"""FLOP counts of the operator, and that nobody pays for the counter who does not use it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from replknet_ext import depthwise_conv2d

raw = torch.ops.replknet_ext


@pytest.mark.parametrize("compiled", [False, True], ids=["function", "raw"])
def test_flops_are_two_per_tap_in_every_pass(compiled: bool) -> None:
    x = torch.randn(2, 3, 10, 12, requires_grad=True)
    w = torch.randn(3, 1, 5, 7, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        if compiled:
            y = raw.dwconv2d(x, w, None, (2, 2, 3, 3), "none", "ieee", "auto", "auto", -1)
        else:
            y = depthwise_conv2d(x, w, padding="same")
        forward = counter.get_total_flops()
        y.sum().backward()
    with FlopCounterMode(display=False) as theirs:
        F.conv2d(x, w, padding="same", groups=3)
    assert forward == theirs.get_total_flops() == 2 * (2 * 3 * 10 * 12) * 5 * 7
    assert counter.get_total_flops() == 3 * forward


#: torch.utils.flop_counter imports triton; torch itself imports neither (2.11 to 2.13).
LIGHT = """
import sys, torch
from_torch = set(sys.modules)
import replknet_ext
loaded = {"triton", "torch.utils.flop_counter"} & set(sys.modules) - from_torch
assert not loaded, loaded
"""
COUNT = """
from torch.utils.flop_counter import FlopCounterMode
import replknet_ext, torch
with FlopCounterMode(display=False) as counter:
    replknet_ext.depthwise_conv2d(torch.zeros(1, 2, 5, 5), torch.zeros(2, 1, 3, 3), padding="same")
assert counter.get_total_flops() == 2 * 2 * 25 * 9, counter.get_total_flops()
"""


@pytest.mark.parametrize("program", [COUNT, LIGHT + COUNT], ids=["before", "after"])
def test_the_counter_may_be_imported_before_or_after_this_package(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
