"""The rivals of the GPU table, on the CPU with small sizes: each against float64, and a wrong one is found out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_ops, gpu_rivals, gpu_routes, gpu_table
from benchmarks.gpu_routes import Tensors
from benchmarks.shapes import GROUPS, PASSES, TRAINING, Layer

SMALL = Layer(2, 3, 14, 14, 5, 9)
EVERYTHING = (*PASSES, TRAINING)


def nvidia(x: Tensor, weight: Tensor, *, fft_size: int) -> Tensor:
    """What `fused_fft_conv2d` of subquadratic_ops_torch 0.3 is documented to compute."""
    assert weight.shape[:2] == (1, x.shape[1]) and max(weight.shape[2:]) <= fft_size
    assert fft_size in (8, 16, 32, 64, 128) and max(x.shape[2:]) <= fft_size // 2
    size, half = (fft_size, fft_size), fft_size // 2
    whole = torch.fft.irfft2(torch.fft.rfft2(x.float(), s=size) * torch.fft.rfft2(weight.float(), s=size), s=size)
    return whole[..., half : half + x.shape[2], half : half + x.shape[3]].to(x.dtype)


@pytest.fixture
def subquadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, computing on the CPU."""
    package, module = ModuleType(gpu_rivals.NVIDIA), ModuleType(f"{gpu_rivals.NVIDIA}.fused_fft_conv2d")
    module.fused_fft_conv2d = nvidia  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Tensors:
    monkeypatch.setattr(gpu_routes, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_rivals, "INDUCTOR", "aot_eager")
    return Tensors(SMALL, "float32", 2)


def table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rivals: list[str], passes: list[str], status: int = 0
) -> dict[str, Any]:
    """Results by pass, rows by route."""
    monkeypatch.setitem(GROUPS, "tiny", [SMALL])
    output = tmp_path / "part.json"
    arguments = ["--group", "tiny", "--passes", *passes, "--output", str(output)]
    assert gpu_table.main([*arguments, *(["--rivals", *rivals] if rivals else [])]) == status
    return {
        result["pass"]: result | {"rows": {row["route"]: row for row in result["rows"]}}
        for result in json.loads(output.read_text())["results"]
    }


@pytest.mark.usefixtures("subquadratic")
@pytest.mark.parametrize("pass_", EVERYTHING)
def test_values(small: Tensors, pass_: str) -> None:
    """Of every rival, in float32 against float64, everywhere; of the routes that go through autograd as well."""
    channels, images = list(range(SMALL.c)), list(range(SMALL.n))
    values = {part: gpu_routes.reference(small, part, channels, images) for part in gpu_table.parts_of(pass_)}
    routes = gpu_rivals.routes(small, pass_, list(gpu_rivals.KINDS))
    if pass_ == TRAINING:
        routes += gpu_routes.our_routes(small, pass_, every_variant=True, nhwc=True)
        routes += gpu_routes.their_routes(small, pass_, benchmark=True)
    for route in routes:
        exact = gpu_table.Exact(channels, images, values)
        assert gpu_table.compare(route, route.run(0), pass_, exact, 2e-6) < 2e-6
        if pass_ == "fwd" and route.exact is None:  # it can fail
            with pytest.raises(gpu_table.BenchmarkError):
                gpu_table.compare(route, route.run(1), pass_, exact, 1e-2)
    windows = [f"bmm {side}x{side}{how}" for side in (7, 14) for how in ("", " NCHW")]
    names = {
        "fwd": ["inductor", "torch.fft", "nvidia fft", *windows],
        "bwd_weight": ["inductor", *windows],
        TRAINING: ["inductor", "torch.fft", "nvidia fft", "ours auto", "ours nhwc", "torch nchw", "torch nhwc"],
    }
    names["bwd_input"] = names["fwd"]
    assert [route.name for route in routes] == names[pass_]


def test_windows_are_what_they_say(small: Tensors) -> None:
    """Cut and joined, a window is a square of the map; the passes are those of one product per channel."""
    x = small.x[0]
    cuts = gpu_rivals.cut(x, 7)
    assert torch.equal(gpu_rivals.joined(cuts, SMALL, 7), x)
    assert torch.equal(cuts[1, 4 + 2].view(7, 7), x[1, 1, 7:, :7]), "image 1, window 2"
    matrices, grad = torch.randn(3, 49, 49, dtype=torch.float64, requires_grad=True), torch.randn_like(cuts).double()
    pixels = cuts.double().requires_grad_()
    out = torch.einsum("cwi,cij->cwj", pixels, matrices)
    wanted = {"fwd": out, **dict(zip(PASSES[1:], torch.autograd.grad(out, (pixels, matrices), grad), strict=True))}
    for pass_, value in wanted.items():
        torch.testing.assert_close(gpu_rivals.product(pass_, pixels, matrices, grad), value)
    assert gpu_rivals.windows(Tensors(Layer(1, 2, 9, 9, 3, 3), "float32", 2), "fwd") == []


@pytest.mark.parametrize("layer", [*GROUPS["powers of two"], SMALL, Layer(1, 1, 5, 5, 31, 31)])
def test_tiles_are_those_of_nvidias_kernel(layer: Layer) -> None:
    tile = gpu_rivals.tile_of(layer)
    assert tile == {16: 32, 32: 64, 64: 128, 14: 32, 5: 32}[layer.h]
    assert gpu_rivals.tile_of(Layer(1, 1, 65, 5, 3, 3)) is None
    assert "too large" in str(gpu_rivals.nvidia_convolution(Layer(1, 1, 65, 5, 3, 3)))


def test_what_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_rivals.nvidia_convolution(SMALL) == "not installed"

    def broken(name: str) -> ModuleType:
        raise OSError("libcufft.so.12: cannot open shared object file")

    monkeypatch.setattr(gpu_rivals.importlib, "import_module", broken)
    assert str(gpu_rivals.nvidia_convolution(SMALL)).startswith("OSError: libcufft")


@pytest.mark.usefixtures("fake_cuda")
def test_table_with_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed beside ours; another operator is no rival of the summary; what is not installed is in the table."""
    found = table(tmp_path, monkeypatch, ["fft", "windows"], ["fwd", TRAINING])
    rows, summary = found["fwd"]["rows"], found["fwd"]["summary"]
    assert rows["nvidia fft"] == {"route": "nvidia fft", "variant": -1, "skipped": "not installed"}
    assert rows["torch.fft"]["ran"] == "other" and rows["torch.fft"]["cold"]["median_us"] > 0
    windows = summary["another_operator_us"]
    assert list(windows) == ["bmm 7x7", "bmm 7x7 NCHW", "bmm 14x14", "bmm 14x14 NCHW"]
    assert all("no convolution" in rows[name]["operator"] for name in windows)
    assert summary["best_other"] in ("torch nchw", "torch.fft")
    both = found[TRAINING]
    assert both["complete"] and both["rows"]["torch.fft"]["error"] < 1e-2
    assert both["rows"]["ours auto"]["predicted_us"] > rows["ours auto"]["predicted_us"] > 0
    assert not {"cudnn nchw", "nvidia fft timed"} & set(both["rows"]) and "cold" in both["rows"]["ours nhwc"]
    assert "bmm 7x7 " in gpu_table.line(found["fwd"] | {"rows": []})


@pytest.mark.usefixtures("fake_cuda", "subquadratic")
def test_a_wrong_rival_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift by one pixel, which is what NVIDIA's kernel gives without the zeros before the filter."""
    module = sys.modules[f"{gpu_rivals.NVIDIA}.fused_fft_conv2d"]
    monkeypatch.setattr(module, "fused_fft_conv2d", lambda *a, **b: nvidia(*a, **b).roll(1, 2))
    rows = table(tmp_path, monkeypatch, ["fft"], ["fwd"])["fwd"]["rows"]
    assert "wrong result is not timed" in rows["nvidia fft"]["failed"] and "cold" not in rows["nvidia fft"]


@pytest.mark.usefixtures("fake_cuda")
def test_results_are_checked_after_the_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN before 9.24 may be wrong after a convolution of another size; a replay may also write nothing."""
    disturbed: list[Layer] = []

    def convolve(x: Tensor, turned: Tensor) -> Tensor:
        result = right(x, turned)
        return result + 1 if disturbed else result

    right = gpu_rivals.fft_convolution
    monkeypatch.setattr(gpu_rivals, "fft_convolution", convolve)
    other = gpu_table.of_another_size

    def of_another_size(layer: Layer, numbers: str) -> Any:
        run = other(layer, numbers)
        return lambda: (run(), disturbed.append(layer))

    monkeypatch.setattr(gpu_table, "of_another_size", of_another_size)
    row = table(tmp_path, monkeypatch, ["fft"], ["fwd"])["fwd"]["rows"]["torch.fft"]
    assert row["failed"].startswith("after the timing, warm: torch.fft: relative error")
    assert not {"cold", "warm"} & set(row) and disturbed
    monkeypatch.setattr(gpu_table, "capture", lambda run, calls, sets: [run(0)] and (lambda: None))
    rows = table(tmp_path, monkeypatch, [], ["fwd"], status=1)["fwd"]["rows"]
    assert all("relative error inf" in rows[name]["failed"] for name in ("ours auto", "torch nchw"))


def test_steps_of_the_rivals() -> None:
    steps = {step.name: step.arguments for step in gpu_ops.STEPS}
    published = steps["table: powers of two"]
    assert {*PASSES, TRAINING, "fft", "inductor"} <= set(published)
    assert "windows" in steps["table: windows"] and "inductor" in steps["table: main, torch's defaults"]
    assert [(layer.n, layer.c, layer.h, layer.kh) for layer in GROUPS["powers of two"]] == [
        (8, 768, 16, 31), (8, 768, 32, 63), (8, 768, 64, 127)
    ]  # fmt: skip
