"""A cache that can't be looked at, named or read never breaks an operator: at most one warning, then the cost model."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from tuning_common import CPU

import replknet_ext as r
from replknet_ext.choices import table

pytestmark = pytest.mark.skipif(not r.HAS_EXT, reason="the compiled extension is not installed")


def run() -> list[str]:
    """One call with an empty memory; the warnings that it gave."""
    table.forget()
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(4, 1, 7, 7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = r.depthwise_conv2d(x, weight, padding=3)
    wanted = torch.nn.functional.conv2d(x.double(), weight.double(), padding=3, groups=4)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["~nosuchuser/cache", "x" * 5000, "file/cache", "loop/cache", "closed/cache"])
def test_folders_that_are_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "closed").mkdir(mode=0)  # but root looks into it
    monkeypatch.setenv("REPLKNET_EXT_CACHE", name if name.startswith("~") else str(tmp_path / name))
    assert len(run()) <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert r.explain(torch.randn(1, 4, 9, 9), torch.randn(4, 1, 7, 7), padding=3).chosen


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REPLKNET_EXT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def expanduser(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", expanduser)
    assert len(run()) <= 1


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 1, "us": ' + "9" * 400 + "}", '{"format": ' + "9" * 5000 + "}"]
)
@pytest.mark.usefixtures("own_choices")
def test_files_that_no_parser_takes(text: str) -> None:
    path = table.path_of(table.identity(CPU))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert len(run()) <= 1


@pytest.mark.usefixtures("own_choices")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_in_its_place_is_not_waited_for() -> None:
    path = table.path_of(table.identity(CPU))
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    assert len(run()) <= 1
