"""Fixtures of the CUDA emulator: its two builds, made once per session and kept between sessions."""

from __future__ import annotations

from types import ModuleType

import emulator_build
import pytest

_loaded: list[ModuleType] = []


@pytest.hookimpl(tryfirst=True)  # before the option -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the race build, a sanitizer's, is slow: it is compiled by itself."""
    for item in items:
        if "race_build" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def _load(module: str) -> ModuleType:
    why = emulator_build.missing()
    if why is not None:
        pytest.skip(why)
    _loaded.append(emulator_build.load(module))
    return _loaded[-1]


@pytest.fixture(autouse=True)
def _only_its_family(request: pytest.FixtureRequest) -> None:
    """A family's tests are of its kernels, also where another family's plan is faster."""
    folder = request.path.parent
    for emulator in _loaded:
        emulator.only(folder.name if (emulator_build.CUDA / folder.name).is_dir() else "")


@pytest.fixture(scope="session")
def plain_build() -> ModuleType:
    return _load("plain")


@pytest.fixture(scope="session")
def race_build() -> ModuleType:
    return _load("race")


@pytest.fixture
def plain(plain_build: ModuleType) -> ModuleType:
    """The build for values: fast, checks what goes through ptx.cuh."""
    plain_build.set_options()
    plain_build.take_counters()
    return plain_build


@pytest.fixture
def race(race_build: ModuleType) -> ModuleType:
    """The build that sees every load and store of a kernel."""
    race_build.set_options()
    race_build.take_counters()
    race_build.take_sites()
    return race_build
