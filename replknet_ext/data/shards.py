"""WebDataset shards with random access: tar files of `KEY.jpg` beside `KEY.cls`, which holds the label as a number."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ToolError, UsageError
from .transforms import SUFFIXES

__all__ = ["Shards", "find_shards"]


def find_shards(root: Path, split: str) -> list[Path]:
    """The shards of a split, in the order of their names.

    Args:
        split: a name, for `SPLIT-*.tar` in the folder or `*.tar` in its folder `SPLIT`; or a pattern that ends in .tar.
    """
    if split.endswith(".tar"):
        return sorted(root.glob(split))
    if found := sorted(root.glob(f"{split}-*.tar")):
        return found
    inside = sorted((root / split).glob("*.tar"))
    return [] if any(path.is_dir() for path in (root / split).glob("*")) else inside  # folders are those of classes


class Shards:
    """A reader for timm's `ImageDataset`: `shards[number]` is (file, label).

    The headers of all files are read once, so that any image can be read without those before it: a run continues in
    the middle of an epoch, and images are shuffled over all shards.

    Args:
        paths: uncompressed tar files.

    Raises:
        ToolError: a file cannot be read.
        UsageError: a picture without label, or none at all.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        rows: list[tuple[int, int, int, int]] = []  # shard, offset, bytes, label
        names: list[bytes] = []
        for number, path in enumerate(self.paths):
            try:
                pictures, labels = _content(path)
            except (OSError, tarfile.TarError) as error:
                raise ToolError(f"{path}: cannot be read ({error})") from None
            for key, (name, offset, size) in pictures.items():
                if key not in labels:
                    raise UsageError(f"{path}: {name} has no label: {key}.cls, with a number in it, must be beside it")
                rows.append((number, offset, size, labels[key]))
                names.append(name.encode())
        if not rows:
            raise UsageError(f"{self.paths[0]}: no pictures ({', '.join(SUFFIXES)}) in it")
        # Arrays: reading processes that were forked share them, whereas counting references copies lists.
        self.rows, self.names = np.array(rows, dtype=np.int64), np.array(names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        shard, offset, size, label = self.rows[index].tolist()
        with open(self.paths[shard], "rb") as file:  # of its own: reading processes move their positions
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """The shard and the picture in it; `basename` and `absolute` as timm's readers have them."""
        path = self.paths[self.rows[index, 0]]
        return f"{path.name if basename else path}: {self.names[index].decode()}"


def _content(path: Path) -> tuple[dict[str, tuple[str, int, int]], dict[str, int]]:
    """Of a shard: name, offset and bytes of each key's picture, and each key's label."""
    pictures: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            # A key ends at the first point of the file's own name.
            folder, slash, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            key = folder + slash + stem
            if not member.isfile() or not stem:
                continue
            if f".{suffix.lower()}" in SUFFIXES:
                pictures[key] = (member.name, member.offset_data, member.size)
            elif suffix == "cls":
                file = archive.extractfile(member)
                text = b"" if file is None else file.read()
                if not text.strip().isdigit():
                    raise UsageError(f"{path}: {member.name} must hold a number from 0 on; it holds {text[:20]!r}")
                labels[key] = int(text)
    return pictures, labels
