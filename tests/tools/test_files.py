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
from replknet_ext.errors import ToolError, UsageError
from replknet_ext.tools.files import check_destination, check_suffix, refuse_inputs, replacing


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
    with _files.replacing(tmp_path / "out.pth"):
        pass
    assert left.exists(), "another process may be writing it"
    os.utime(left, (time.time() - 2 * _files._LEFT_BEHIND,) * 2)
    with _files.replacing(tmp_path / "out.pth"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]


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
