"""ptx_run notices every misuse of Hopper's asynchronous instructions, and says nothing of kernels without one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import ptx_build
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ptx_run")]

SCHEDULES = range(6)  # 0: warps in order, all that is asynchronous as late as it may be; else at random

# bug -> what ptx_run says of it in every schedule; with | either
FOUND = {
    "read_sums": "a sum of a wgmma in flight is read",
    "edit_sums": "a sum of a wgmma in flight is written",
    "edit_a": "A of a wgmma in flight is written",
    "no_commit": "write to shared memory that a wgmma in flight reads|of a wgmma in flight is|in flight",
    "wait_for_one_fewer": "was read by warp|write to shared memory that a wgmma in flight reads",
    "freed_before_wait": "was read by warp|write to shared memory that a wgmma in flight reads",
    "no_wgmma_fence": "a register was written after the last wgmma.fence",
    "no_proxy_fence": "no fence.proxy.async after the write of shared byte",
    "no_proxy_fence_noinc": "no fence.proxy.async after the write of shared byte",
    "no_proxy_fence_shared_a": "no fence.proxy.async after the write of shared byte",
    "not_full": "wgmma reads shared byte|race: shared byte",
    "not_empty": "all warps wait|was read by warp|wgmma in flight reads",
    "other_parity": "wgmma reads shared byte|race: shared byte|all warps wait",
    "no_arrival": "all warps wait",
    "one_arrival_more": "all warps wait",
    "one_arrival_fewer": "all warps wait|race: shared byte",
    "no_barrier_after_init": "race: the mbarrier's mbarrier.init|no mbarrier there",
    "tx_never": "all warps wait",
    "copies_not_waited_for": "a cp.async destination before its wait",
    "registers_pool": "all warps wait",
    "registers_fewer": "a thread has 168 registers",
    "no_named_barrier": "never written|race: shared byte",
    "named_barrier_of_others": "never written|race: shared byte",
    "named_barrier_never": "all warps wait",
    "stride": "never written|race: shared byte|wrong values",
    "leading": "wrong values",
    "swizzle": "a descriptor with a swizzle",
    "transposed": "transposed operands are not modelled",
    "one_warp_fewer": "another warp of the warpgroup is at",
    "another_descriptor": "descriptors differ between warps of the warpgroup",
    "another_shape": "sums of a wgmma of another shape in flight",
    "exit_in_flight": "exit with a wgmma in flight",
    "read_mbarrier": "read of an mbarrier",
    "scale_0": "wrong values",
    "beyond_shared": "byte 6272 of shared memory",
}
CLEAN = ("clean", "clean_noinc", "clean_shared_a", "clean_f16", "clean_tx")


@pytest.fixture(scope="module")
def planted() -> Path:
    why = ptx_build.missing()
    if why is not None:
        pytest.skip(why)
    return ptx_build.build_planted()


def said(program: Path, name: str, schedule: int) -> str:
    return subprocess.run([program, name, str(schedule)], capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("bug", FOUND)
def test_a_planted_bug_is_noticed(planted: Path, bug: str) -> None:
    for schedule in SCHEDULES:
        report = said(planted, bug, schedule)
        assert any(part in report for part in FOUND[bug].split("|")), f"schedule {schedule}: {report or 'nothing'}"


@pytest.mark.parametrize("name", CLEAN)
def test_right_kernels_run_without_a_finding(planted: Path, name: str) -> None:
    assert [said(planted, name, schedule) for schedule in SCHEDULES] == [""] * len(SCHEDULES)
