"""The steps of the GPU benchmark that are of whole networks, without a GPU."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import CUDNN_KERNEL, NATIVE_KERNEL, OUR_KERNEL
from models_common import SMALL
from torch.autograd import DeviceType

from benchmarks import gpu_routes, gpu_training, pointwise
from replknet_ext.models import ARCHS, RepLKNet
from replknet_ext.models import pointwise as models_pointwise


@pytest.mark.slow
@pytest.mark.usefixtures("fake_cuda")
def test_training_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Share and proof from the kernels that the profiler names; a batch that does not fit is halved."""
    asked: list[int] = []

    def device_times(run: Any) -> dict[str, float]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        ours = any(event.key.startswith("replknet_ext::") for event in profile.key_averages())
        return {CUDNN_KERNEL: 900.0, OUR_KERNEL if ours else NATIVE_KERNEL: 100.0}

    def step(model: torch.nn.Module, batch: int, *rest: Any) -> Any:
        asked.append(batch)
        if batch == gpu_training.BATCHES[0]:
            raise torch.OutOfMemoryError
        return real(model, 2, *rest)

    real = gpu_training.training_step
    monkeypatch.setattr(gpu_training, "training_step", step)
    monkeypatch.setattr(gpu_routes, "device_times", device_times)
    monkeypatch.setattr(gpu_training, "build", lambda arch: RepLKNet(SMALL, num_classes=1000))
    monkeypatch.setattr(gpu_training, "SIZE", 32)
    monkeypatch.setattr(gpu_training, "STEPS", 2)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1 << 30)
    output = tmp_path / "part.json"
    assert gpu_training.main(["--output", str(output), "--seconds", "60"]) == 0
    found = json.loads(output.read_text())
    assert asked == [64, 32] * 4
    assert [(row["provider"], row["our_share"], row["batch"]) for row in found["rows"]] == [
        *[("replknet_ext", 0.1, 32)] * 2, *[("nn.Conv2d", 0.0, 32)] * 2
    ]  # fmt: skip
    assert found["share"] == {"measured": 0.1, "at_most": 0.12, "kept": True}
    assert found["prediction"]["kind"].startswith("PREDICTION") and 0.5 < found["prediction"]["large_kernels_ms"] < 5
    monkeypatch.setattr(gpu_training, "plain", lambda model: model)  # a baseline on our kernels is found out
    assert gpu_training.main(["--output", str(output), "--seconds", "60"]) == 1
    assert "nn.Conv2d NCHW: our kernels ran in the step of nn.Conv2d" in json.loads(output.read_text())["failed"]


def test_device_times_add_up_by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(elapsed_us=lambda us=us: us))
        for name, kind, us in (
            (f"void {OUR_KERNEL}", DeviceType.CUDA, 2.0), (NATIVE_KERNEL, DeviceType.CUDA, 5.0),
            (f"void {OUR_KERNEL}", DeviceType.CUDA, 3.0), ("aten::conv2d", DeviceType.CPU, 50.0),
        )
    ]  # fmt: skip
    profile = contextlib.nullcontext(SimpleNamespace(events=lambda: events))
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    times = gpu_routes.device_times(lambda: None)
    assert list(times.values()) == [5.0, 5.0]
    assert [gpu_routes.is_ours(name) for name in times] == [True, False]


@pytest.mark.usefixtures("fake_cuda")
def test_pointwise_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 1x1 layer with the switch off and on, each checked; what a forward is made of is counted."""
    monkeypatch.setattr(pointwise, "layers", lambda batch: [(2, 4 + i, 6, 5) for i in range(12)])
    monkeypatch.setattr(pointwise, "timed", lambda run: run() is None or 2e-3)
    monkeypatch.setattr(pointwise, "capture", lambda run, calls, sets: lambda: run(0) is None)
    output = tmp_path / "part.json"
    assert pointwise.main(["--device", "cuda", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert [row["c_in"] for row in found["rows"]] == list(range(4, 16))
    convolutions = 4 * sum(ARCHS["31B"].layers)
    each = {name: found["rows"][0][name] for name in pointwise.FORMS}
    assert found["forward_ms"] == pytest.approx({n: convolutions * us * 1e-3 for n, us in each.items()}, abs=1e-3)
    assert not models_pointwise.NCHW_GEMM_ON
    monkeypatch.setattr(models_pointwise, "_gemm", lambda x, weight, bias: x.new_zeros(2, 6, 5, 5))
    assert pointwise.main(["--device", "cuda", "--output", str(output)]) == 1
    assert "NCHW gemm: relative error" in json.loads(output.read_text())["failed"]
    assert pointwise.main(["--device", "cuda", "--output", str(output), "--seconds", "-1"]) == 1
    assert "out of time" in json.loads(output.read_text())["failed"]
