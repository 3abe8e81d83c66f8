"""The host side on a device: threads, graphs, processes, tuning beside other work, long sums, a build for another GPU.

All but the choice of shapes is skipped without a GPU; tests/cuda/test_launch.py has the same rules on a stand-in.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import Case, Operands, assert_same_bits, expected, operands, same
from gpu_common import on_device, relative, run

import replknet_ext
from replknet_ext import _ext
from replknet_ext.backends import BACKENDS
from replknet_ext.backends.cuda import DEVICES

ROOT = Path(__file__).parents[2]
VARIANT = "rtw_3x4_t"  # the one whose launches differ most in shared memory
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif("dwconv2d" not in _ext.CUDA_OPS, reason="the extension was built without CUDA kernels"),
]


def gpu(test: object) -> object:
    """Marks of a test that launches."""
    for mark in GPU:
        test = mark(test)  # type: ignore[operator]
    return test


def number() -> int:
    return _ext.variant_names("cuda_variants", "bwd_weight").index(VARIANT)


def two_sizes(limits: dict[str, int]) -> tuple[tuple[Case, int], tuple[Case, int]]:
    """Problems of VARIANT that ask for the least shared memory above 48 KB and for the most, with that memory.

    Up to 48 KB a launch needs no permission.
    """
    found: dict[int, Case] = {}
    for n in (2, 16):
        for c in (2, 64):
            for size in (14, 28, 56, 96):
                for kernel in (3, 9, 13, 21, 31):
                    case = same(f"{n}x{c}x{size} K{kernel}", n, c, size, size, kernel, kernel)
                    sizes = [n, c, size, size, kernel, kernel, size, size, kernel // 2, kernel // 2]
                    plan = _ext.cuda_plan(sizes, torch.bfloat16, "bwd_weight", "ieee", "auto", limits, number())
                    if "unsupported" not in plan and plan["shared_bytes"] > 48 << 10:
                        found.setdefault(plan["shared_bytes"], case)
    return (found[min(found)], min(found)), (found[max(found)], max(found))


@pytest.mark.skipif(not _ext.HAS_EXT, reason="the planner is part of the extension")
@pytest.mark.parametrize("device", ["a100", "h200"])
def test_the_shapes_below_differ_in_shared_memory(device: str) -> None:
    (_, least), (_, most) = two_sizes(DEVICES[device])
    assert most > 2 * least


def on_gpu(case: Case) -> Operands:
    return on_device(operands(case, "exact").to(torch.bfloat16))


def run_variant(case: Case, o: Operands) -> torch.Tensor:
    result: torch.Tensor = run("bwd_weight", case, o, variant=number(), algorithm="auto")
    return result


@gpu
def test_two_threads_with_two_sizes_of_a_kernel() -> None:
    """Each launch used to set the kernel's limit to its own size, so that the other thread's larger launch failed."""
    errors: list[BaseException] = []
    start = threading.Barrier(2)

    def work(case: Case) -> None:
        try:
            o = on_gpu(case)
            wanted = expected("bwd_weight", case, operands(case, "exact")).to(torch.bfloat16)
            with torch.cuda.stream(torch.cuda.Stream()):
                start.wait(60)
                for _ in range(2000):
                    result = run_variant(case, o)
                torch.cuda.current_stream().synchronize()
            assert_same_bits(result.cpu(), wanted)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(case,)) for case, _ in two_sizes(_ext.cuda_devices()[0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@gpu
def test_a_graph_with_two_sizes_of_a_kernel() -> None:
    """The larger launch first: the limit is the smaller one's when the graph is instantiated."""
    (small, _), (large, _) = two_sizes(_ext.cuda_devices()[0])
    given = [(case, on_gpu(case)) for case in (large, small)]
    for case, o in given:
        run_variant(case, o)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [run_variant(case, o) for case, o in given]
    for result in results:
        result.zero_()
    graph.replay()
    for (case, _), result in zip(given, results, strict=True):
        assert_same_bits(result.cpu(), expected("bwd_weight", case, operands(case, "exact")).to(torch.bfloat16))


def driver_version() -> int:
    """1000 major + 10 minor of the CUDA version that the driver serves."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


FIRST_IN_A_CAPTURE = """
import torch, torch.nn.functional as F, replknet_ext
x = torch.randint(-16, 17, (3, 5, 41, 43)).div(32).to("cuda", torch.float16)
w = torch.randint(-16, 17, (5, 1, 15, 15)).div(32).to("cuda", torch.float16)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = torch.ops.replknet_ext.dwconv2d(x, w, None, (7,) * 4, "none", "ieee", "direct", "auto", -1)
graph.replay()
wanted = F.conv2d(x.cpu().double(), w.cpu().double(), padding=7, groups=5).half()
assert torch.equal(y.cpu(), wanted)
"""


@gpu
def test_the_first_use_of_a_process_may_be_in_a_capture() -> None:
    """Nothing has loaded the kernels, read the device's limits or asked for shared memory."""
    if driver_version() < 12030:
        pytest.skip("drivers before 12.3 load no kernel during a capture (docs/faq.md)")
    done = subprocess.run(
        [sys.executable, "-c", FIRST_IN_A_CAPTURE], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


@gpu
def test_tuning_beside_a_thread_that_pins_memory() -> None:
    """As a data loader's thread does: a capture in mode "global" is an error in that thread, and is broken by it."""
    errors: list[BaseException] = []
    ready, stop = threading.Event(), threading.Event()

    def pin() -> None:
        kept: list[torch.Tensor] = []
        try:
            while not stop.is_set():
                kept = [*kept[-15:], torch.empty((1 << 20) + 4096 * len(kept)).pin_memory()]  # not all from the cache
                ready.set()
        except BaseException as error:
            errors.append(error)
            ready.set()

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        assert ready.wait(60)
        shapes = [((2, 64, 14, 14), 13), ((2, 32, 28, 28), 5)]
        report = replknet_ext.tune(
            shapes, device="cuda", dtype=torch.bfloat16, backend="cuda", most=3, save=False, force=True, progress=False
        )
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert report.rows
    assert [m.failed for row in report.rows for m in row.measured if m.failed] == []


@gpu
def test_long_sums_of_split_bfloat16(record_property: Callable[[str, object], None]) -> None:
    """Tensor cores cut sums off where IEEE rounds: the emulator's model of that says about 4e-5 here."""
    n, c, size, kernel = 64, 128, 56, 31
    draw = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(n, c, size, size, generator=draw) for _ in range(2))
    pads = (kernel // 2,) * 4
    actual = torch.ops.replknet_ext.dwconv2d_backward_weight(
        grad.cuda(), x.cuda(), pads, "bf16x3", "direct", "auto", -1
    ).cpu()
    channels = [0, 63, 127]
    wanted = BACKENDS["torch"].bwd_weight(
        grad[:, channels].double(), x[:, channels].double(), pads, "ieee", "auto", -1
    )  # fmt: skip
    error = relative(actual[channels], wanted)
    record_property("norm_error", error)
    print(f"bwd_weight bf16x3, batch 64, 56x56 K31: {error:.2e} in norm")
    assert error <= 8e-5  # as tests/cuda/test_gpu_float32.py


FOREIGN = """
import sys, torch, torch.nn.functional as F
sys.path.insert(0, sys.argv[1])
import replknet_ext
from replknet_ext import _ext
assert _ext.__file__.startswith(sys.argv[1]) and "dwconv2d" in _ext.CUDA_OPS
x, w = torch.randn(2, 3, 14, 14, device="cuda"), torch.randn(3, 1, 5, 5, device="cuda")
wanted = F.conv2d(x.double(), w.double(), padding=2, groups=3)
step = torch.compile(lambda: torch.ops.replknet_ext.dwconv2d(x, w, None, (2,) * 4, "none", "ieee", "auto", "auto", -1))
for run in (step, lambda: replknet_ext.depthwise_conv2d(x, w, padding=2), lambda: step()):
    torch.testing.assert_close(run().double(), wanted, rtol=1e-4, atol=1e-4)
explanation = str(replknet_ext.explain(x, w, padding=2))
assert "not for compute capability" in explanation, explanation
"""


@gpu
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("REPLKNET_EXT_GPU_BUILD") != "1", reason="builds; set REPLKNET_EXT_GPU_BUILD=1")
def test_a_build_for_another_gpu_falls_back(tmp_path: Path) -> None:
    arch = "9.0" if torch.cuda.get_device_capability() < (9, 0) else "8.9"
    shutil.copytree(ROOT / "replknet_ext", tmp_path / "replknet_ext", ignore=shutil.ignore_patterns("*.so"))
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path / "temp"),
    ]
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": arch, "REPLKNET_EXT_FORCE_CUDA": "1"}
    environment.setdefault("NVCC_APPEND_FLAGS", "--split-compile=0")
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FOREIGN), str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
