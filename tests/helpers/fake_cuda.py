"""What the GPU benchmark asks of CUDA, on the CPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_routes, gpu_table
from benchmarks.shapes import GROUPS, Layer

TINY = Layer(3, 4, 9, 10, 5, 5)
NATIVE_KERNEL = "at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<31, float>"
OUR_KERNEL = (
    "replknet_ext::cuda::toeplitz_fwd_kernel<true, 5, 2, 1, 7, true, true, 8, 2, 1>"
    "(replknet_ext::cuda::ToeplitzFwdArgs)"
)
CUDNN_KERNEL = "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32"
OTHER_KERNEL = "regular_fft_c2r<64u, EPT<8u>>"


class FakeEvent:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return max(1e3 * (other.at - self.at), 1e-4)


class FakeStream:
    def wait_stream(self, other: object) -> None:
        pass


class FakeGraph:
    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local", "another thread's allocation would be an error, there and here"

    def capture_end(self) -> None:
        pass

    replay = capture_end


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the table asks of torch.cuda, on the CPU; whatever runs counts as the kernel that it should."""
    properties = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, L2_cache_size=4096,
        shared_memory_per_block_optin=227 << 10, shared_memory_per_multiprocessor=228 << 10,
    )  # fmt: skip
    for name, value in {
        "Event": FakeEvent, "Stream": FakeStream, "current_stream": FakeStream, "CUDAGraph": FakeGraph,
        "stream": lambda stream: contextlib.nullcontext(), "synchronize": lambda: None, "empty_cache": lambda: None,
        "get_device_properties": lambda index: properties,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(gpu_routes, "DEVICE", "cpu")
    monkeypatch.setitem(GROUPS, "tiny", [TINY])
    monkeypatch.setattr(gpu_table, "ROUNDS", 4)
    monkeypatch.setattr(gpu_table, "GRAPH_SECONDS", 1e-6)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)

    original = gpu_routes._ours  # the CPU has no variants: all run as one
    monkeypatch.setattr(
        gpu_routes, "_ours", lambda t, pass_, variant, nhwc=False, backend="": original(t, pass_, -1, nhwc)
    )

    def kernels_of(run: Any) -> list[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        keys = {event.key for event in profile.key_averages()}
        if any(key.startswith("replknet_ext::") for key in keys):
            return [OUR_KERNEL]
        return [OTHER_KERNEL if keys & {"aten::bmm", "aten::fft_irfft2"} else NATIVE_KERNEL]

    monkeypatch.setattr(gpu_table, "kernels_of", kernels_of)

    def capture(run: Callable[[int], Any], calls: int, sets: int) -> Callable[[], None]:
        captured(run, calls, sets)
        return lambda: [run(i % sets) for i in range(calls)] and None

    captured = gpu_table.capture
    monkeypatch.setattr(gpu_table, "capture", capture)
