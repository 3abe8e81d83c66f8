"""Machines with other GPUs, drivers and builds than one: what the backends answer, from limits alone."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from replknet_ext import _ext, functional
from replknet_ext.backends import BACKENDS, by_pass, select
from replknet_ext.backends.cuda import DEVICES, why_not_on
from replknet_ext.backends.triton import backend as triton
from replknet_ext.backends.triton import device as triton_device
from replknet_ext.choices import lookup
from replknet_ext.operator.call import prepare
from replknet_ext.operator.problem import OP_OF_PASS, Geometry, Problem, problem_of
from replknet_ext.tools import doctor
from replknet_ext.tuning import api, search

ON_GPU = Problem((8, 128, 56, 56), (128, 1, 31, 31), True, Geometry((1, 1), (15,) * 4, (1, 1)), torch.bfloat16, "cuda")
TURING = {"capability": 75, "multiprocessors": 40, "shared_per_block": 64 << 10, "shared_per_sm": 64 << 10}

pytestmark = pytest.mark.skipif(not _ext.HAS_EXT, reason="the compiled extension is not installed")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What the runtime in the extension sees, the architectures that it is built for, and the current GPU."""
    played = SimpleNamespace(devices=(TURING, DEVICES["h200"]), archs="8.0;8.6;9.0;12.0+PTX", current=0)
    info = _ext.build_info()
    monkeypatch.setattr(_ext, "build_info", lambda: {**info, "cuda_archs": played.archs, "cuda_toolkit": "13.0"})
    monkeypatch.setattr(_ext, "cuda_devices", lambda: played.devices)
    monkeypatch.setattr(_ext, "CUDA_OPS", frozenset(OP_OF_PASS.values()))
    properties = [SimpleNamespace(name="T4", major=7, minor=5), SimpleNamespace(name="H200", major=9, minor=0)]
    shared = [64 << 10, 227 << 10]
    for p, most in zip(properties, shared, strict=True):
        p.shared_memory_per_block_optin = most
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: played.current)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda i=None: (properties[i or 0].major, properties[i or 0].minor)
    )
    monkeypatch.setattr(triton, "WHY_NOT", None)
    monkeypatch.setattr(triton, "_import", lambda: (object(), None))
    triton_device._shared_bytes.cache_clear()
    functional._plans.clear()
    yield played
    triton_device._shared_bytes.cache_clear()
    functional._plans.clear()


# ---- which device is asked about ----


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_backends_ask_about_the_device_of_the_input(name: str, machine: SimpleNamespace) -> None:
    backend = BACKENDS[name]
    assert "7.5" in str(backend.supports(ON_GPU)), "without an index: the current one"
    assert "7.5" in str(backend.supports(replace(ON_GPU, device_index=0)))
    there = replace(ON_GPU, device_index=1)
    assert backend.supports(there) is None
    assert backend.candidates(replace(ON_GPU, device_index=0)) == []
    listed = backend.candidates(there)
    assert listed == backend.candidates(ON_GPU, DEVICES["h200"])
    assert backend.kernel(there) is not None
    assert backend.variant(there, listed[-1].name) == listed[-1].variant
    assert select(there).name == "cuda"


def test_a_call_is_of_the_device_of_its_input(machine: SimpleNamespace) -> None:
    for index in (0, 1):
        with FakeTensorMode():
            x = torch.empty(2, 3, 9, 9, device=f"cuda:{index}")
            weight = torch.empty(3, 1, 5, 5, device=f"cuda:{index}")
        assert prepare(x, weight).problem().device == x.device
        for pass_, second in (("fwd", weight), ("bwd_input", weight), ("bwd_weight", x)):
            assert problem_of(pass_, x, second, None, (0,) * 4, "none", "ieee", "auto").device == x.device


def test_plans_are_kept_per_device(machine: SimpleNamespace) -> None:
    for current, index in itertools.product((0, 1), (0, 1)):
        machine.current = current
        with FakeTensorMode():
            x = torch.empty(2, 64, 56, 56, device=f"cuda:{index}", dtype=torch.float64)
            weight = torch.empty(64, 1, 31, 31, device=f"cuda:{index}", dtype=torch.float64)
        plan = functional._cached_plan(prepare(x, weight, padding=15), "auto")
        assert plan.backend.name == ("torch", "cuda")[index]


def test_measured_choices_are_looked_up_for_the_device(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = BACKENDS["cuda"].candidates(ON_GPU, DEVICES["h200"])[0].name
    entry = SimpleNamespace(best=(("cuda", name, 1.0),))
    monkeypatch.setattr(lookup, "_found", lambda *arguments: [("tuned", entry)])
    assert lookup.lookup(ON_GPU, "auto", torch.device("cuda:0")) is None
    found = lookup.lookup(ON_GPU, "auto", torch.device("cuda:1"))
    assert found is not None
    assert found.name == name


def test_tuning_lists_the_candidates_of_its_device(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def shortlist(problem: Problem, *rest: object) -> list[object]:
        asked.append(problem.device)
        return []

    monkeypatch.setattr(search, "shortlist", shortlist)
    monkeypatch.setattr(api, "identity", lambda device: {"device": str(device)})
    monkeypatch.setattr(lookup, "tuned", lambda *arguments: False)
    monkeypatch.setattr(api.measuring, "measure", lambda *arguments: [])
    api.run(Counter({ON_GPU: 1}), torch.device("cuda:1"), ("fwd",), save=False, progress=False)
    assert asked == [torch.device("cuda:1")]


# ---- builds and drivers that do not serve a GPU ----


def test_a_driver_older_than_the_build(machine: SimpleNamespace) -> None:
    """torch's own runtime is older and has its GPUs; the extension's sees none."""
    machine.devices = ()
    there = replace(ON_GPU, device_index=1)
    why = "the driver is older than CUDA 13.0, which the extension was built with, needs"
    assert BACKENDS["cuda"].supports(there) == why
    assert BACKENDS["cuda"].candidates(there) == []
    assert BACKENDS["cuda"].kernel(there) is None
    assert BACKENDS["cuda"].variant(there, "rt_5x7_w") is None
    runs, reasons = by_pass(there)
    assert set(runs.values()) == {"triton"}
    assert {of_pass["cuda"] for of_pass in reasons.values()} == {why}
    assert [gpu["kernels"] for gpu in doctor._gpus()] == [f"none: {why}"] * 2
    assert [gpu["limits"] for gpu in doctor._gpus()] == [None] * 2


@pytest.mark.parametrize("archs", ["8.0;8.6;8.9;9.0;10.0;12.0+PTX", "9.0", "9.0a+PTX", ""])
def test_a_build_without_code_for_the_gpu(archs: str, machine: SimpleNamespace) -> None:
    machine.devices, machine.archs = (DEVICES["h200"], {**DEVICES["h200"], "capability": 110}), archs
    there = replace(ON_GPU, device_index=1)
    why = BACKENDS["cuda"].supports(there)
    assert why is not None
    assert why == why_not_on(1)
    assert "not for compute capability 11.0" in why
    assert BACKENDS["cuda"].candidates(there) == []
    assert set(by_pass(there)[0].values()) == {"triton"}


def test_the_planner_refuses_a_device_that_no_code_runs_on() -> None:
    """As the raw ops see it: `usable_limits` gives no capability (tests/cuda/test_launch.py)."""
    nothing = dict.fromkeys(("capability", "multiprocessors", "shared_per_block", "shared_per_sm"), 0)
    plan = _ext.cuda_plan([2, 3, 9, 9, 5, 5, 9, 9, 2, 2], torch.float32, "fwd", "ieee", "auto", nothing)
    assert plan == {"unsupported": "this build has no code for the GPU, or its CUDA runtime needs a newer driver"}
