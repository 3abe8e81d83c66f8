"""Files that are written: all or nothing, with their mode and links, and never in the place of an input."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replknet_ext import _files
from replknet_ext.tools.errors import ToolError, UsageError
from replknet_ext.tools.files import check_destination, check_suffix, refuse_inputs, replacing


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_stay_and_new_files_have_the_usual_one(tmp_path: Path) -> None:
    old, read_only, new = tmp_path / "old.txt", tmp_path / "read_only.txt", tmp_path / "new.txt"
    for path, bits in [(old, 0o600), (read_only, 0o444)]:
        path.write_text("old")
        path.chmod(bits)
    before = os.umask(0o027)
    try:
        for path in (old, read_only, new):
            with _files.replacing(path) as temporary:
                assert os.access(temporary, os.W_OK) and mode(temporary) & stat.S_IWUSR
                temporary.write_text("new")
    finally:
        assert os.umask(before) == 0o027
    assert [path.read_text() for path in (old, read_only, new)] == ["new"] * 3
    assert [mode(path) for path in (old, read_only, new)] == [0o600, 0o444, 0o640]


def test_the_umask_of_the_process_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread might make a file meanwhile."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    with _files.replacing(tmp_path / "new.txt") as temporary:
        temporary.write_text("new")


def test_links_stay(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    real, link = tmp_path / "deep" / "real.bin", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    with _files.replacing(link) as temporary:
        assert temporary.suffix == ".txt", "writers choose their format by it"
        temporary.write_text("new")
    assert link.is_symlink() and real.read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "link.txt", "real.bin"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.txt")
    for path, words in [(tmp_path / "fifo.txt", "regular file"), (tmp_path, "folder")]:
        with pytest.raises(OSError, match=words) as caught, _files.replacing(path):
            pass
        assert caught.value.filename == str(path)
        with pytest.raises(ToolError, match=f"cannot write .*{path.name}: it is .*{words}"):
            check_destination(path)
    assert stat.S_ISFIFO((tmp_path / "fifo.txt").stat().st_mode)


def test_errors_name_the_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target.txt"
    with pytest.raises(OSError, match="No space left") as caught, _files.replacing(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(target)
    with pytest.raises(PermissionError) as denied, _files.replacing(target) as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    assert denied.value.filename == str(target)
    with pytest.raises(ToolError, match=r"^cannot write .*target\.txt: No space left on device$"), replacing(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ZeroDivisionError), replacing(target):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_nothing_for_ever(tmp_path: Path) -> None:
    program = f"""
import os, signal
from replknet_ext import _files
with _files.replacing({str(tmp_path / "out.pth")!r}) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -9
    (left,) = tmp_path.iterdir()
    mine = tmp_path / ".hidden.pth"
    mine.touch()
    os.utime(mine, (0, 0))
    _files._remove_left_behind.cache_clear()
    with _files.replacing(tmp_path / "other.pth"):
        pass
    assert left.exists(), "another process may be writing it"
    os.utime(left, (time.time() - 2 * _files._OLD,) * 2)
    _files._remove_left_behind.cache_clear()
    with _files.replacing(tmp_path / "other.pth"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.pth", "other.pth"]


def test_destinations_are_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_destination(tmp_path / "new.png")
    with pytest.raises(ToolError, match=r"cannot write .*x\.png: no such folder .*typo"):
        check_destination(tmp_path / "typo" / "x.png")
    (tmp_path / "file").touch()
    with pytest.raises(ToolError, match="not a folder"):
        check_destination(tmp_path / "file" / "x.png")
    with pytest.raises(UsageError, match=r"x\.gif: its suffix must be one of \.png, \.svg"):
        check_suffix("x.gif", (".png", ".svg"))
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(ToolError, match="no permission to write to"):
        check_destination(tmp_path / "new.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "and no folder is made"


def test_inputs_are_known_under_every_name(tmp_path: Path) -> None:
    real = tmp_path / "real.png"
    real.touch()
    (tmp_path / "soft.png").symlink_to(real)
    os.link(real, tmp_path / "hard.png")
    for name in ("real.png", "soft.png", "hard.png", "../" + tmp_path.name + "/real.png"):
        with pytest.raises(UsageError, match=r"would replace .*real\.png, which is read"):
            refuse_inputs([tmp_path / "other.png", tmp_path / name], [real])
    refuse_inputs([tmp_path / "new.png"], [real, tmp_path / "missing.png", "http://host/x.png", "a\0b"])
