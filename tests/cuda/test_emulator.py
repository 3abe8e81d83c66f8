"""The emulator itself: every detector fires on a planted bug and stays silent on clean kernels."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import emulator_build
import numpy as np
import pytest

SCHEDULES = [("ordered", 0), ("reversed", 0), ("lockstep", 0), *(("random", seed) for seed in range(1, 5))]

# bug -> what the race build says of it
FOUND = {
    "no_barrier_after_copy": "before cp.async.wait_group|race: read after write|uninitialised",
    "no_barrier_before_reuse": "race: write after read|before cp.async.wait_group",
    "no_wait": "read before cp.async.wait_group",
    "late_wait": "read before cp.async.wait_group",
    "pending_at_exit": "exits with cp.async copies",
    "uninitialised": "read of uninitialised shared memory at byte 20",
    "shared_out_of_bounds": "out of bounds of dynamic shared memory at byte 4096",
    "write_after_write": "race: write after write",
    "no_syncwarp": "race: read after write|race: write after read",
    "readers_then_writer": "race: write after read|race: read after write",
    "two_barriers": "threads of the block are at different barriers",
    "exit_before_barrier": "__syncthreads after a part of the block has exited",
    "half_at_barrier": "__syncthreads after a part of the block has exited",
    "lane_exits": "exits while others of its warp wait|a lane of the mask has exited",
    "mask_mismatch": "overlapping masks|a lane of the mask has exited",
    "mixed_collectives": "different collectives",
    "ldmatrix_out_of_bounds": "ldmatrix: out of bounds",
    "ldmatrix_misaligned": "ldmatrix: misaligned",
    "copy_misaligned": "cp.async: misaligned source",
    "global_out_of_bounds": "out of bounds of global buffer x",
    "global_twice": "two threads write byte",
    "write_read_only": "write to the read-only global buffer x",
}
# what the plain build finds too: everything that goes through ptx.cuh and the scheduler
PLAIN = ["pending_at_exit", "two_barriers", "exit_before_barrier", "half_at_barrier", "lane_exits", "mask_mismatch",
         "mixed_collectives", "ldmatrix_out_of_bounds", "ldmatrix_misaligned", "copy_misaligned"]  # fmt: skip


def run_planted(emulator: ModuleType, bug: str) -> tuple[str, np.ndarray, np.ndarray]:
    x = np.arange(1, 1 + 256 + 64, dtype=np.uint32)
    y = np.zeros(256, np.uint32)
    emulator.watch("x", x.ctypes.data, 1024, 256, False)
    emulator.watch("y", y.ctypes.data, 1024, 0, True)
    try:
        return emulator.planted(bug, x.ctypes.data, y.ctypes.data), x[:256], y
    finally:
        emulator.unwatch()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("bug", FOUND)
def test_race_build_finds_every_planted_bug(race: ModuleType, bug: str, schedule: tuple[str, int]) -> None:
    race.set_options(*schedule)
    error, _, _ = run_planted(race, bug)
    assert any(part in error for part in FOUND[bug].split("|")), f"{bug}: {error or 'nothing found'}"


@pytest.mark.parametrize("bug", PLAIN)
def test_plain_build_finds_what_passes_through_ptx(plain: ModuleType, bug: str) -> None:
    error, _, _ = run_planted(plain, bug)
    assert any(part in error for part in FOUND[bug].split("|"))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("build", ["plain", pytest.param("race", marks=pytest.mark.slow)])
def test_clean_kernels_run_without_a_finding(
    build: str, schedule: tuple[str, int], request: pytest.FixtureRequest
) -> None:
    emulator = request.getfixturevalue(build)
    emulator.set_options(*schedule)
    error, x, y = run_planted(emulator, "clean_stream")
    assert error == ""
    assert np.array_equal(y.reshape(4, 64), x.reshape(4, 64)[:, ::-1])
    assert run_planted(emulator, "clean")[0] == ""


@pytest.mark.parametrize("bug", ["no_barrier_after_copy", "no_wait"])
def test_plain_build_shows_wrong_values(plain: ModuleType, bug: str) -> None:
    error, x, y = run_planted(plain, bug)
    assert error == "" and not np.array_equal(y.reshape(4, 64), x.reshape(4, 64)[:, ::-1])


def test_bank_conflicts_of_ldmatrix(plain: ModuleType) -> None:
    run_planted(plain, "clean")
    assert plain.take_counters()["ldmatrix_conflicts"] == 0
    run_planted(plain, "ldmatrix_conflict")
    counters = plain.take_counters()
    assert counters["ldmatrix"] == 2 and counters["ldmatrix_conflicts"] == 2 * 4 * 7


def test_bank_conflicts_of_ordinary_accesses(race: ModuleType) -> None:
    race.set_options(banks=True)
    run_planted(race, "clean")
    counters = race.take_counters()
    assert counters["accesses"] > 0 and counters["access_conflicts"] == 0
    race.take_sites()
    run_planted(race, "load_conflict")  # two warps, two words a bank: one wavefront more each
    assert race.take_counters()["access_conflicts"] == 2
    assert [extra for _, _, extra in race.take_sites() if extra] == [2]
    run_planted(race, "wide_conflict")  # stride 64 bytes: each quarter of 8 lanes hits 2 groups of banks, 4 words each
    assert race.take_counters()["access_conflicts"] == 2 * 4 * 3


@pytest.mark.parametrize("bf16", [False, True])
def test_fragment_layouts_are_those_of_the_ptx_manual(plain: ModuleType, bf16: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 16)).astype(np.float32), rng.integers(-4, 5, (16, 8)).astype(np.float32)
    bits = (lambda m: (m.view(np.uint32) >> 16).astype(np.uint32)) if bf16 else (
        lambda m: m.astype(np.float16).view(np.uint16).astype(np.uint32))  # fmt: skip
    x = np.zeros(320, np.uint32)
    tiles = rng.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint32)  # four 8x8 matrices of 16-bit elements
    x[:128] = (tiles[..., ::2] | tiles[..., 1::2] << 16).reshape(-1)
    for lane in range(32):
        g, t = lane // 4, lane % 4 * 2
        for i in range(4):  # a: registers by (row half, column half)
            row, col = g + 8 * (i % 2), t + 8 * (i // 2)
            x[128 + lane * 4 + i] = bits(a[row, col]) | bits(a[row, col + 1]) << 16
        for i in range(2):
            x[256 + lane * 2 + i] = bits(b[t + 8 * i, g]) | bits(b[t + 8 * i + 1, g]) << 16
    y = np.zeros(256, np.uint32)
    plain.fragments("bf16" if bf16 else "f16", x.ctypes.data, y.ctypes.data)
    d = y[128:].view(np.float32)
    want = a @ b
    for lane in range(32):
        g, t = lane // 4, lane % 4 * 2
        for i in range(4):
            assert y[lane * 4 + i] == tiles[i, g, t] | tiles[i, g, t + 1] << 16
            assert d[lane * 4 + i] == want[g + 8 * (i // 2), t + i % 2] + 1 + i


def test_tf32_fragments_are_those_of_the_ptx_manual(plain: ModuleType) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 8)).astype(np.float32), rng.integers(-4, 5, (8, 8)).astype(np.float32)
    x = np.zeros(320, np.uint32)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        for i in range(4):  # a: registers by (row half, column half); the low 13 bits are not read
            x[128 + lane * 4 + i] = a[g + 8 * (i % 2), t + 4 * (i // 2)].view(np.uint32) | 0x1FFF
        for i in range(2):
            x[256 + lane * 2 + i] = b[t + 4 * i, g].view(np.uint32) | 0x1000
    y = np.zeros(256, np.uint32)
    plain.fragments("tf32", x.ctypes.data, y.ctypes.data)
    d, want = y[128:].view(np.float32), a @ b
    for lane in range(32):
        for i in range(4):
            assert d[lane * 4 + i] == want[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2] + 1 + i


@pytest.mark.parametrize("dtype", ["f16", "tf32"])
def test_sums_may_be_cut_off_as_on_a_gpu(plain: ModuleType, dtype: str) -> None:
    """d = 1 + lane element ... + products of 3 * 2^-24: rounded to nearest they count, cut off they do not all."""
    x = np.zeros(320, np.uint32)
    small = np.float32(3 * 2**-12)
    bits = np.uint32(small.astype(np.float16).view(np.uint16)) if dtype == "f16" else small.view(np.uint32)
    if dtype == "f16":
        bits = bits | bits << np.uint32(16)
    x[128:] = bits
    terms, product = (16, 8)[dtype == "tf32"], float(small) ** 2
    sums = {}
    for truncate in (False, True):
        plain.set_options(truncate=truncate)
        y = np.zeros(256, np.uint32)
        plain.fragments(dtype, x.ctypes.data, y.ctypes.data)
        sums[truncate] = y[128:132].view(np.float32).astype(np.float64)
    for i, acc in enumerate((1.0, 2.0, 3.0, 4.0)):
        exact = acc + terms * product
        unit = 2.0 ** (np.floor(np.log2(acc)) - 25)
        cut = acc + terms * np.floor(product / unit) * unit
        ulp = 4 * unit
        assert sums[True][i] == np.floor(cut / ulp) * ulp
        assert sums[False][i] == np.float32(exact)
        assert sums[True][i] <= exact
    assert (sums[True] < sums[False]).any()


def test_static_shared_memory_does_not_compile(tmp_path: Path) -> None:
    if emulator_build.missing():
        pytest.skip("no compiler")
    source = tmp_path / "k.cu"
    source.write_text('#include "ptx.cuh"\n__global__ void k() { __shared__ int a[4]; a[threadIdx.x] = 0; }\n')
    includes = [f"-I{emulator_build.HERE}", f"-I{emulator_build.CUDA}"]
    command = ["g++", "-std=c++17", "-fsyntax-only", *includes, "-x", "c++", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "static_shared_memory_is_not_checked_use_DYN_SMEM" in done.stderr
