"""Objects of the tests' compiler are kept by what they are made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import compile_cache
import pytest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source with a header; the cache is this test's own."""
    monkeypatch.setattr(compile_cache, "OBJECTS", tmp_path / "objects")
    made = tmp_path / "csrc"
    made.mkdir()
    (made / "a.h").write_text("constexpr int kTwo = 2;\n")
    (made / "a.cu").write_text('#include "a.h"\nint two() { return kTwo; }\n')
    return made


def compile_(folder: Path, *flags: str) -> tuple[bytes, int]:
    """The object, and how many the cache holds."""
    out = folder.parent / "a.o"
    command = ["g++", "-g1", f"-I{folder}", f"-ffile-prefix-map={folder}=csrc", *flags]
    assert compile_cache.compile_source(folder / "a.cu", out, command) == 0
    assert str(folder / "a.h") in Path(f"{out}.d").read_text()
    return out.read_bytes(), len(list(compile_cache.OBJECTS.rglob("*.o")))


def test_the_same_content_is_compiled_once(folder: Path) -> None:
    first, count = compile_(folder)
    assert count == 1
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    (copy / "a.h").write_text("constexpr int kTwo = 2;  // a comment\n")
    assert compile_(copy) == (first, 1)


def test_headers_and_flags_count(folder: Path) -> None:
    first, _ = compile_(folder)
    assert compile_(folder, "-DUNUSED", "-O2")[1] == 2
    (folder / "a.h").write_text("constexpr int kTwo = 22;\n")
    changed, count = compile_(folder)
    assert count == 3
    assert changed != first


def test_what_does_not_compile_leaves_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "a.cu").write_text("int two() { return; }\n")
    assert compile_cache.compile_source(folder / "a.cu", folder / "a.o", ["g++"]) != 0
    assert "error" in capfd.readouterr().err
    assert not list(compile_cache.OBJECTS.rglob("*.o"))
