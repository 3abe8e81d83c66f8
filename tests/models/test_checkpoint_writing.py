"""Files that the package writes: there completely or not at all, in the place and with the mode that they had."""

from __future__ import annotations

import os
import stat
import time

import pytest

from replknet_ext._files import replacing


def write(path, text="new"):
    with replacing(path) as temporary:
        assert temporary.suffix == path.suffix
        temporary.write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_modes(tmp_path, umask):
    path = tmp_path / "a.pth"
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    for mode in (0o600, 0o444):
        path.chmod(mode)
        write(path, f"{mode}")
        assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (mode, f"{mode}")


def test_the_umask_is_never_changed(tmp_path, umask, monkeypatch):
    monkeypatch.setattr("os.umask", lambda mask: pytest.fail("it is one for all threads"))
    write(tmp_path / "a.pth")


def test_links_stay(tmp_path):
    for name in ("there", "to be"):
        (tmp_path / name).mkdir()
    target, link = tmp_path / "there" / "b.json", tmp_path / "a.pth"
    target.write_text("old")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "new"
    link.unlink()
    link.symlink_to("to be/b.pth")  # which is not there yet
    write(link)
    assert (tmp_path / "to be" / "b.pth").read_text() == "new"
    assert names(tmp_path) == ["a.pth", "there", "to be"]
    assert names(tmp_path / "there") == ["b.json"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.pth"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.pth"]


def test_what_killed_runs_left(tmp_path):
    stale, fresh, other = (tmp_path / name for name in (".a[1]-0123abcd.pth", ".a[1]-01234567.pth", ".a[1]-keep.pth"))
    for path in (stale, fresh, other):
        path.touch()
    for path in (stale, other):
        os.utime(path, (time.time() - 90_000,) * 2)
    write(tmp_path / "a[1].pth")
    assert names(tmp_path) == sorted([fresh.name, other.name, "a[1].pth"])


@pytest.mark.parametrize("kind", ["folder", "fifo", "below a file", "long"])
def test_errors_name_the_destination(tmp_path, kind):
    path = tmp_path / "a.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "long":
        path = tmp_path / ("a" * 300)
    else:
        path.touch()
        path /= "b.pth"
    with pytest.raises(OSError) as error:
        write(path)
    assert error.value.filename == str(path)
    assert names(tmp_path) == ([] if kind == "long" else ["a.pth"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as error:
        write(tmp_path / "a.pth")
    assert error.value.filename == str(tmp_path / "a.pth")
