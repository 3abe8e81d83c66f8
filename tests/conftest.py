"""Fixtures and options of the whole suite."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

# torch's own depthwise convolution in float16 takes minutes for some small sizes on processors with AVX512-FP16.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")  # read once, at torch's first convolution

import torch
import torchvision_shim  # noqa: F401  # before anything that imports torchvision
from hypothesis import HealthCheck, settings

# The same examples on every run; `make fuzz` draws new ones and prints how to repeat a failure.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, max_examples=500, database=None, **_common)
settings.register_profile("fuzz", max_examples=10_000, print_blob=True, **_common)
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip gpu tests where there is no GPU, and say so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Downloads, also of `file:` addresses, and measured choices are in folders of this run, not the user's."""
    os.environ["TORCH_HOME"] = str(tmp_path_factory.mktemp("torch_home"))
    os.environ["REPLKNET_EXT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def own_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of measured choices, which the test has for itself; nothing has been warned of or given up yet."""
    from replknet_ext import set_autotune
    from replknet_ext.choices import table
    from replknet_ext.tuning import first_use

    monkeypatch.setenv("REPLKNET_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "_warned", set())
    monkeypatch.setattr(first_use, "_done", set())
    table.forget()
    yield tmp_path / "cache" / "tuned"
    set_autotune(False)
    table.forget()


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """`tuning_common.invented_variants`, with times that do not depend on the machine; the names of those timed."""
    from tuning_common import invented_times, invented_variants

    with invented_variants(monkeypatch):
        yield invented_times(monkeypatch)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """Every test starts from random states of its own, the same in any order and selection."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
