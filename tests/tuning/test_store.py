"""Files of measured choices: round trip, damage, other versions, several writers, folders that can't be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tuning_common import CPU, entry, problem

from replknet_ext import _files
from replknet_ext.choices import device, table

pytestmark = pytest.mark.usefixtures("own_choices")


def path() -> Path:
    return table.path_of(table.identity(CPU))


def read_anew() -> dict[str, table.Entry]:
    table.forget()
    return dict(table.entries(CPU))


def quiet_read() -> dict[str, table.Entry]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_anew()


def test_round_trip(own_choices: Path) -> None:
    found = {"a": entry("x", 1.5), "b": table.Entry((("cpu", "y", 2.0), ("triton", "t(1)", 3.0)), None)}
    assert table.save(CPU, found, replace=True) == path()
    assert quiet_read() == found
    assert table.save(CPU, {"a": entry("z")}, replace=True) == path()
    assert quiet_read() == {**found, "a": entry("z")}, "what was there stays"
    assert table.save(CPU, {"a": entry("late"), "c": entry("new")}, replace=False) == path()
    assert quiet_read()["a"] == entry("z"), "on first use the choice of the one who wrote first holds"
    assert quiet_read()["c"] == entry("new")
    assert path().stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert [p.name for p in own_choices.iterdir() if not p.name.endswith(".lock")] == [path().name], (
        "nothing is left over"
    )


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _files.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("REPLKNET_EXT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _files.cache_dir() == tmp_path / "xdg" / "replknet_ext"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _files.cache_dir() == tmp_path / ".cache" / "replknet_ext"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("\x00\x01", "cannot be read"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"format": 99}', "has format 99, not 1"),
        ("NO CHOICES", "is damaged"),
        ("NO TIME", "is damaged"),
        ("NO BACKEND", "is damaged"),
        ("OTHER TORCH", "is of another device or version (torch 1.0, here"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_out_with_one_warning(text: str, words: str) -> None:
    good: Any = {"format": 1, "identity": table.identity(CPU), "choices": {"a": entry("x").as_json()}}
    if text == "NO CHOICES":
        good["choices"] = None
    elif text == "NO TIME":
        good["choices"]["a"]["best"][0]["us"] = "soon"
    elif text == "NO BACKEND":
        good["choices"]["a"]["best"][0]["backend"] = "abacus"
    elif text == "OTHER TORCH":
        good["identity"]["torch"] = "1.0"
    path().parent.mkdir(parents=True)
    path().write_text(json.dumps(good) if text.isupper() else text)
    with pytest.warns(UserWarning) as caught:
        assert read_anew() == {}
    (warning,) = caught
    assert words in str(warning.message) and str(path()) in str(warning.message)
    assert "`replknet-ext tune` measures anew" in str(warning.message)
    assert quiet_read() == {}, "one warning is enough"
    # And it is built again.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table.save(CPU, {"b": entry("y")}, replace=True) == path()
    assert quiet_read() == {"b": entry("y")}


def test_a_folder_in_its_place_is_no_crash() -> None:
    path().mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert read_anew() == {}
    with pytest.warns(UserWarning, match="hold for this process only"):
        assert table.save(CPU, {"a": entry("x")}, replace=True) is None
    assert table.entries(CPU) == {"a": entry("x")}


@pytest.mark.parametrize("what", ["torch", "replknet_ext", "variants", "isa", "device"])
def test_another_version_has_another_file(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table.save(CPU, {"a": entry("x")}, replace=True)
    before = path()
    fixed = {key: value for key, value in table.identity(CPU).items() if key != "threads"}
    monkeypatch.setattr(device, "_fixed", lambda *_: {**fixed, what: "other"})
    assert path() != before
    table.forget()
    with warnings.catch_warnings():  # two environments of a user share the folder: neither is told of the other
        warnings.simplefilter("error")
        assert dict(table.entries(CPU)) == {}
    noted = table.of_other_versions(table.identity(CPU))
    if what == "device":
        assert noted is None, "another device is not this one's older version"
    else:
        assert noted is not None and noted.startswith(f"{what} ") and noted.endswith("here other")
    table.save(CPU, {"a": entry("y")}, replace=True)
    assert json.loads(before.read_text())["choices"]["a"]["best"][0]["variant"] == "x", "the other's file is untouched"


def test_threads_are_part_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    table.save(CPU, {"a": entry("x")}, replace=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert quiet_read() == {}, "and other threads are no reason for a warning"


def test_a_read_only_folder_works_in_memory(own_choices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_choices.parent.mkdir(parents=True)
    own_choices.parent.chmod(0o555)
    if os.access(own_choices.parent, os.W_OK):  # root may write anywhere: let the system refuse

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(13, "Permission denied", str(own_choices))

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.warns(
        UserWarning, match="Permission denied.*hold for this process only; REPLKNET_EXT_CACHE names"
    ) as caught:
        assert table.save(CPU, {"a": entry("x")}, replace=True) is None
        assert table.save(CPU, {"b": entry("y")}, replace=True) is None
    assert len(caught) == 1
    assert table.entries(CPU) == {"a": entry("x"), "b": entry("y")}
    own_choices.parent.chmod(0o755)


WRITER = """
import sys, torch
from replknet_ext.choices import table
from replknet_ext.choices.table import Entry
name, count = sys.argv[1], int(sys.argv[2])
for i in range(count):
    assert table.save(torch.device("cpu"), {f"{name} {i}": Entry((("cpu", name, 1.0),), 2.0)}, replace=True)
    shared = {f"shared {i}": Entry((("cpu", name, 1.0),), 2.0)}
    table.save(torch.device("cpu"), shared, replace=False)
"""


def test_two_processes_at_once_lose_nothing() -> None:
    count = 25
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", WRITER, name, str(count)], stderr=subprocess.PIPE
        )
        for name in ("first", "second")
    ]
    torn = 0
    while any(writer.poll() is None for writer in writers):
        if path().exists():
            try:
                json.loads(path().read_text())
            except ValueError:
                torn += 1
    for writer in writers:
        assert writer.wait() == 0, writer.communicate()[1].decode()[-2000:]
    assert torn == 0, "a reader never sees half a file"
    found = quiet_read()
    wanted = {f"{name} {i}" for name in ("first", "second", "shared") for i in range(count)}
    assert set(found) == wanted


def test_keys_tell_apart_what_may_differ() -> None:
    one = problem()
    keys = [
        table.key_of(p)
        for p in (
            one, problem(n=3), problem(c=5), problem(size=10), problem(kernel=7), problem(pass_="bwd_input"),
            problem(dtype=torch.bfloat16), problem(channels_last=True), problem(precision="tf32"),
            problem(algorithm="direct"), problem(activation="relu"), problem(has_bias=True),
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert table.key_of(one, "triton") != table.key_of(one)
    backward = {
        table.key_of(problem(pass_="bwd_input", activation=a, has_bias=b)) for a in ("none", "relu") for b in (0, 1)
    }
    assert len(backward) == 1, "the gradient of the input knows neither bias nor activation"
