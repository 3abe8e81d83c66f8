"""What the Triton backend says of itself, its choice of tiles, and its place among the ops; needs no triton."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import warnings
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from cases import CASES, same

import replknet_ext
from benchmarks import triton_model
from benchmarks.shapes import MAIN, all_layers
from replknet_ext import _ext
from replknet_ext.backends import Problem, by_pass
from replknet_ext.backends.triton import backend, device, tiles
from replknet_ext.backends.triton.tiles import Sizes, Toeplitz
from replknet_ext.operator import ops
from replknet_ext.operator.problem import Geometry

ROOT = Path(__file__).resolve().parents[2]
ON_GPU = Problem((8, 128, 56, 56), (128, 1, 31, 31), True, Geometry((1, 1), (15,) * 4, (1, 1)), torch.bfloat16, "cuda")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU of compute capability 9.0 and a triton that fits."""
    monkeypatch.setattr(backend, "WHY_NOT", None)
    monkeypatch.setattr(backend, "_import", lambda: (object(), None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_supports_says_why_not(served: None, monkeypatch: pytest.MonkeyPatch) -> None:
    supports = backend.TritonBackend().supports
    assert supports(ON_GPU) is None
    for change, reason in (
        ({"device_type": "cpu"}, "runs CUDA tensors, not cpu"),
        ({"device_type": "mps"}, "runs CUDA tensors, not mps"),
        ({"dtype": torch.float64}, "no Triton kernels for float64"),
        ({"algorithm": "fft"}, "not by FFT"),
        ({"geometry": Geometry((2, 2), (15,) * 4, (1, 1))}, "only stride 1"),
        ({"geometry": Geometry((1, 1), (15,) * 4, (2, 2))}, "only dilation 1"),
        ({"weight_shape": (256, 1, 31, 31)}, "only one filter per channel"),
    ):
        assert reason in str(supports(replace(ON_GPU, **change)))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "needs compute capability 8.0, not 7.5" in str(supports(ON_GPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA device" in str(supports(ON_GPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "_import", lambda: (None, "triton could not be imported: broken"))
    assert "could not be imported" in str(supports(ON_GPU))


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.5.1", "triton 3.5.1 is installed"),
        ("3.6.0", None),
        ("3.9.0", None),
        ("3.10.0", None),
        ("4.0.0", None),
        (None, "pip"),
    ],
)
def test_versions(version: str | None, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)
    problem = device._version_problem()
    assert problem is None if reason is None else reason in str(problem)


@pytest.mark.parametrize(("version", "told"), [("3.9.7", 0), ("3.10.0", 1)])
def test_a_newer_triton_than_tested_is_tried_with_one_warning(
    version: str, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(backend, "WHY_NOT", device._version_problem())
    monkeypatch.setattr(backend, "_no_device", lambda *arguments: None)
    monkeypatch.setattr(importlib, "import_module", lambda *arguments: object())
    backend._import.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                assert backend.TritonBackend().supports(ON_GPU) is None
    finally:
        backend._import.cache_clear()
    assert len(caught) == told
    assert all(f"triton {version} is newer than 3.9" in str(warning.message) for warning in caught)


def test_takes_what_the_extension_lacks(served: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ext, "CUDA_OPS", frozenset())
    assert replknet_ext.backends.select(ON_GPU).name == "triton"
    assert set(by_pass(ON_GPU, "triton")[0].values()) == {"triton"}
    assert replknet_ext.backends.select(replace(ON_GPU, dtype=torch.float64)).name == "torch"
    assert "toeplitz_fwd" in str(backend.TritonBackend().kernel(ON_GPU))


def test_named_on_cpu_is_an_error_with_the_reason() -> None:
    x = torch.ones(1, 3, 8, 8)
    with pytest.raises(ValueError, match='backend="triton" cannot run this problem: runs CUDA tensors'):
        replknet_ext.depthwise_conv2d(x, torch.ones(3, 1, 3, 3), backend="triton")


def test_meta_tensors_need_no_triton() -> None:
    options = ((2, 2, 2, 2), "none", "ieee", "auto", "triton", -1)
    assert ops.RAW.fwd(
        torch.empty(2, 3, 9, 9, device="meta"), torch.empty(3, 1, 5, 5, device="meta"), None, *options
    ).shape == (2, 3, 9, 9)


def test_nothing_imports_triton_before_it_is_needed() -> None:
    code = "import sys, torch, replknet_ext as r; r.depthwise_conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3)); "
    code += "assert 'replknet_ext.backends.triton.launch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---- tiles ----


def _sizes(case: object) -> Sizes:
    n, c, h, w, kh, kw, (top, bottom, left, right) = (
        getattr(case, k) for k in ("n", "c", "h", "w", "kh", "kw", "padding")
    )
    return Sizes(n, c, h, w, kh, kw, h + top + bottom - kh + 1, w + left + right - kw + 1, top, left)


def test_every_case_gets_tiles_that_fit() -> None:
    for case in CASES:
        sizes = _sizes(case)
        if sizes.n == 0:
            continue
        for dtype, precision in (("float16", "ieee"), ("float32", "tf32"), ("float32", "ieee")):
            element = 4 if dtype == "float32" else 2
            t = tiles.toeplitz(sizes, dtype, precision)
            m, n, k = t.BI * t.G, t.R * t.BX, t.KR * t.BXI
            assert min(m, n, k) >= 16
            assert all(v & (v - 1) == 0 for v in (*t[:6],))
            assert t.num_stages * (m + n) * k * element <= tiles.SHARED_BYTES
            w = tiles.weight(sizes, dtype, precision)
            assert min(w.G * w.BX, w.R * w.BXI, w.BI * w.BQ) >= 16
            assert w.num_stages * (w.G * w.BX + w.R * w.BXI) * w.BI * w.BQ * element <= tiles.SHARED_BYTES
            # One column tile of the gradient must see every input column that its taps reach.
            offset = tiles.weight_offset(sizes, w)
            if w.whole:
                assert sizes.wo <= w.BX and sizes.w <= w.BXI
            else:
                assert offset <= -sizes.left and w.BX - 1 + sizes.kw - 1 - sizes.left <= offset + w.BXI - 1


def test_main_layers_get_large_tiles_for_tensor_cores() -> None:
    for layer in MAIN[:2]:
        tile = tiles.forward(_sizes(same("layer", *astuple(layer))), "bfloat16", "ieee")
        assert isinstance(tile, Toeplitz)
        assert tile.BI * tile.G * tile.R * tile.BX >= 64 * 256


def test_an_override_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(3, 1, 31, 31, 9, 9, 31, 31, 4, 4)
    wanted = tiles.toeplitz(sizes, "float16", "ieee")._replace(num_stages=3)
    monkeypatch.setattr(tiles, "override", lambda pass_, *_: wanted if pass_ == "fwd" else None)
    tiles.forward.cache_clear()
    assert tiles.forward(sizes, "float16", "ieee") is wanted
    tiles.forward.cache_clear()


def test_strict_float32_has_no_tensor_cores() -> None:
    for layer in all_layers():
        sizes = _sizes(same("layer", *astuple(layer)))
        assert isinstance(tiles.forward(sizes, "float32", "ieee"), tiles.Sliding)


def test_stored_predictions_are_what_the_code_predicts() -> None:
    payload = triton_model.predictions()
    assert triton_model.RESULT.read_text() == triton_model.render(payload)
    assert payload["kind"].startswith("PREDICTION")
    first = payload["rows"][0]
    assert first["pass"] == "fwd" and first["layer"] == MAIN[0].name and first["clipped_tflops"] >= 100
