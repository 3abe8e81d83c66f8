"""The launch as host threads, graphs, devices and drivers see it, on the stand-in runtime of tests/cuda_launch."""

from __future__ import annotations

import re
import subprocess
from functools import cache

import launch_build
import pytest

WHY_NOT = launch_build.missing()
pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.xdist_group("cuda_launch"),
]

ALL = 227 << 10  # shared memory that a block of device 0 may have
INVALID_VALUE, NO_CODE, CAPTURE = 1, 209, 900


@cache
def calls(situation: str) -> list[tuple[str, ...]]:
    """What the runtime was asked and answered, and what the program says, in order: a process of its own."""
    program = launch_build.build()
    done = subprocess.run([str(program), situation], capture_output=True, text=True, check=True, timeout=60)
    return [tuple(line.split()) for line in done.stdout.splitlines()]


def of(situation: str, what: str) -> list[tuple[int, ...]]:
    """The numbers of every call of a kind: device, bytes and error of a "set" or "launch"."""
    return [tuple(int(word) for word in call[1:] if word.isdecimal()) for call in calls(situation) if call[0] == what]


def test_two_threads_with_two_sizes_of_a_kernel() -> None:
    assert [e for *_, e in of("threads", "launch")] == [0] * 2000
    assert of("threads", "set") == [(0, ALL, 0)]


def test_the_limit_is_raised_once_per_kernel_and_only_where_needed() -> None:
    assert [e for *_, e in of("kernels", "launch")] == [0] * 4
    assert [call[1:] for call in calls("kernels") if call[0] == "set"] == [
        (name, "0", str(ALL), "0") for name in dict.fromkeys(call[1] for call in calls("kernels"))
    ]


def test_every_device_has_a_limit_of_its_own() -> None:
    assert [e for *_, e in of("devices", "launch")] == [0] * 4
    assert of("devices", "set") == [(0, ALL, 0), (1, 99 << 10, 0)]


def test_no_kernel_has_static_shared_memory() -> None:
    """It would be taken from what `allow_shared` asks for."""
    sources = [*launch_build.CUDA.rglob("*.cu"), *launch_build.CUDA.rglob("*.cuh")]
    found = {path.name: re.findall(r".*__shared__.*", path.read_text()) for path in sources}
    assert {name: lines for name, lines in found.items() if lines} == {
        "ptx.cuh": ["#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]"]
    }


def test_a_graph_may_hold_two_sizes_of_a_kernel() -> None:
    """Instantiation looks at a function's limit as it is then."""
    assert [shared for _, shared, _ in of("graph", "launch")] == [222 << 10, 52 << 10]
    assert of("graph", "instantiate") == [(0,)]


def test_the_first_launch_of_a_process_may_be_in_a_capture() -> None:
    assert of("graph", "limits") == [(0, 90, ALL, 1)]
    assert all(e == 0 for what in ("ask", "set", "launch") for *_, e in of("graph", what))


def test_a_capture_on_an_older_driver_leaves_nothing_behind() -> None:
    """Before 12.3 a driver loads no kernel in a capture: an error of that call, not an answer about the device."""
    situation = "graph_before_12_3"
    assert of(situation, "limits") == [(0, 90, ALL, 0), (0, 90, ALL, 1)]
    assert of(situation, "set") == [(0, ALL, CAPTURE), (0, ALL, 0)]
    assert of(situation, "launch") == [(0, 222 << 10, 0)]
    assert of(situation, "left") == []


def test_more_shared_memory_than_there_is_is_the_error_of_its_launch() -> None:
    assert of("too_large", "launch") == [(0, 228 << 10, INVALID_VALUE), (0, 222 << 10, 0)]
    assert of("too_large", "left") == []


def test_limits_are_those_of_the_device() -> None:
    assert of("limits", "limits") == [(0, 90, ALL, 1), (1, 89, 99 << 10, 1)]


def test_a_device_without_code_has_no_capability() -> None:
    assert of("no_code", "limits") == [(0, 90, ALL, 1), (1, 0, 0, 1)]
    assert [e for *_, e in of("no_code", "ask")] == [0, NO_CODE]
    assert of("no_code", "left") == []


def test_under_an_old_driver_no_device_has_a_capability() -> None:
    assert of("old_driver", "limits") == [(0, 0, 0, 1)]
    assert of("old_driver", "left") == []
