"""The extension alone, as programs without Python have it: what no compiled kernel runs goes to torch's convolution."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replknet_ext import _ext

SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
ops = torch.ops.replknet_ext
torch.manual_seed(0)
for pad in ((2, 2, 2, 2), (1, 3, -1, 2), (-2, 0, 4, 4)):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 5, 9, 11).contiguous(memory_format=layout)
        w, b = torch.randn(5, 1, 5, 3), torch.randn(5)
        for act in ("none", "relu", "gelu"):
            own = ops.dwconv2d(x.double(), w.double(), b.double(), pad, act, "ieee", "direct", "auto", -1)
            got = ops.dwconv2d(x, w, b, pad, act, "ieee", "auto", "torch", -1)
            assert got.stride() == own.stride()
            torch.testing.assert_close(got.double(), own, rtol=1e-5, atol=1e-5)
        g = torch.randn_like(got)
        for op, first in ((ops.dwconv2d_backward_input, w), (ops.dwconv2d_backward_weight, x)):
            own = op(g.double(), first.double(), pad, "ieee", "direct", "auto", -1)
            got = op(g, first, pad, "ieee", "auto", "torch", -1)
            assert got.stride() == own.stride()
            torch.testing.assert_close(got.double(), own, rtol=1e-5, atol=1e-4)
assert "replknet_ext" not in sys.modules
try:
    ops.dwconv2d(x, w, b, pad, act, "ieee", "auto", "triton", -1)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")
def test_the_ops_fall_back_to_torch(tmp_path: Path) -> None:
    library = next(Path(_ext.__file__).parent.glob("_C*.so"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
