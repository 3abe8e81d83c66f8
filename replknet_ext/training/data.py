"""Training and validation images: timm's data sets and augmentation, and this package's evaluation preprocessing."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..data.shards import Shards, find_shards
from ..data.transforms import KEEP_UP_TO, SUFFIXES, WARP_FROM, Preprocessing, pictures_below
from ..errors import ToolError, UsageError
from .builtin import BUILTIN, builtin_folder
from .libraries import timm
from .order import Order, seed_of
from .recipe import Augment, Data, Recipe
from .signals import reading_process

__all__ = ["Batch", "Images", "Source", "open_sources", "preprocessing", "training_transform"]

_STREAMS = ("wds", "hfids", "tfds")  # prefixes of timm's names
_NO_STREAMS = (
    "a run could not continue in the middle of one. Use an image folder, tar shards (train-*.tar with NAME.jpg and "
    "NAME.cls), hfds/..., or any data set with len() and numbered images"
)

_RETRIES = 10  # images in the place of a broken one that are tried


class Source(Protocol):
    """Images and labels by number, from timm or from the user's own data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Batch:
    """Of one pass.

    Attributes:
        images: (N, C, H, W) float32.
        labels: (N,) int64.
        broken: one line for each file that could not be read, with its name.
    """

    images: Tensor
    labels: Tensor
    broken: list[str] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """As torch's DataLoader asks for it."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.broken)


class Images(Dataset[tuple[Tensor | None, int, list[str]]]):
    """Transformed images of a source; what random transforms do is a function of (seed, epoch, index).

    An item is asked for by its number, or by (epoch, number) in training. It is (image, label, broken files); without
    `skip` the image of a broken file is None.
    """

    def __init__(self, source: Source, transform: Any, mode: str, seed: int = 0, skip: bool = False) -> None:
        self.source, self.transform, self.mode, self.seed, self.skip = source, transform, mode, seed, skip

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, where: int | tuple[int, int]) -> tuple[Tensor | None, int, list[str]]:
        epoch, index = where if isinstance(where, tuple) else (0, where)
        broken: list[str] = []
        for number in range(index, index + _RETRIES):
            number %= len(self.source)
            try:
                image, label = self._read(number)
                with _seeded(seed_of(self.seed, 2, epoch, index)):
                    return self._tensor(image), label, broken
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                broken.append(f"{_name(self.source, number)}: {' '.join(str(error).split())}")
                if not self.skip:
                    return None, 0, broken
        raise ToolError(f"{_RETRIES} images in a row cannot be read; the first is {broken[0]}")

    def _read(self, number: int) -> tuple[Any, int]:
        reader = getattr(self.source, "reader", None)
        if reader is None:
            image, label = self.source[number]
            return (image.convert(self.mode) if hasattr(image, "convert") else image), int(label)
        # Not by timm's own __getitem__, which skips broken images by itself and only logs their index.
        from PIL import Image

        file, label = reader[number]
        with Image.open(file) as image:
            return image.convert(self.mode), int(label)

    def _tensor(self, image: Any) -> Tensor:
        made: Tensor = image if isinstance(image, Tensor) else self.transform(image)
        return made


class _seeded:  # noqa: N801
    """In the block Python, numpy and torch (CPU) draw from a seed; afterwards they go on as before."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        random.setstate(self.before[0])
        np.random.set_state(self.before[1])
        torch.set_rng_state(self.before[2])


def _name(source: Any, number: int) -> str:
    try:
        return str(source.filename(number, absolute=True))
    except (AttributeError, NotImplementedError, TypeError):
        return f"image {number}"


def collate(samples: Sequence[tuple[Tensor | None, int, list[str]]]) -> Batch:
    """A batch of the images that could be read."""
    good = [(image, label) for image, label, _ in samples if image is not None]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return Batch(images, torch.tensor([label for _, label in good]), [line for *_, lines in samples for line in lines])


def training_transform(data: Data, augment: Augment) -> Any:
    """timm's augmentation from a Pillow image to a normalised (C, size, size) tensor."""
    timm()
    from timm.data import create_transform

    return create_transform(
        data.input_size,
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.rand_augment,
        interpolation="bicubic",
        mean=data.mean,
        std=data.std,
        re_prob=augment.erasing,
        re_mode=augment.erasing_mode,
        re_count=augment.erasing_count,
    )


def preprocessing(data: Data) -> Preprocessing:
    """What images go through in evaluation, as in `replknet-ext evaluate`."""
    crop = KEEP_UP_TO < data.input_size < WARP_FROM if data.crop is None else data.crop
    return Preprocessing((data.input_size, data.input_size), tuple(data.mean), tuple(data.std), crop)


@dataclass(frozen=True)
class Sources:
    """Opened data: `classes` are their names in the order of the labels, None where the data does not tell."""

    train: Source
    val: Source | None
    classes: list[str] | None

    def loaders(
        self, recipe: Recipe, order: Order, world: int, device: torch.device
    ) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
        """Training passes in `order`, and this process's part of the validation images."""
        data, mode = recipe.data, "L" if recipe.model.in_chans == 1 else "RGB"
        common: dict[str, Any] = {
            "num_workers": data.workers,
            "collate_fn": collate,
            "pin_memory": device.type == "cuda",
            "worker_init_fn": reading_process,
        }
        images = Images(
            self.train, training_transform(data, recipe.augment), mode, recipe.engine.seed, data.broken_images == "skip"
        )
        train: DataLoader[Any] = DataLoader(images, batch_sampler=order, persistent_workers=data.workers > 0, **common)
        if self.val is None or not recipe.evaluate:
            return train, None
        held_out = Images(self.val, preprocessing(data), mode)
        mine = Subset(held_out, range(order.rank, len(held_out), world))
        return train, DataLoader(mine, data.eval_batch_size, **common)


def open_sources(data: Data, given: Any = None, evaluate: bool = True, mode: str = "RGB") -> Sources:
    """Opens what a recipe or its user names.

    Args:
        data: that part of a recipe.
        given: in place of `data.path`: a folder, or a pair of map-style data sets (train, val or None) of (Pillow image
            or tensor, label).
        evaluate: a validation split is needed.
        mode: of Pillow, "RGB" or "L".

    Raises:
        UsageError: no such folder, no images, an empty class, splits with different classes, or a stream; says which.
    """
    if isinstance(given, (tuple, list)) and len(given) == 2:
        train, val = given
        if evaluate and val is None:
            raise UsageError("evaluate: there is no validation data; set evaluate=false or give some")
        for source in (train, val):
            if source is not None and not _numbered(source):
                raise UsageError(f"data: {type(source).__name__} is a stream; {_NO_STREAMS}")
        return Sources(train, val, None)
    path = data.path if given is None else str(given)
    if data.dataset:
        return _named(data, path, evaluate, mode)
    if path is None:
        raise UsageError("which data? Give a folder with train/CLASS/... and val/CLASS/..., or a recipe with its own")
    if path in BUILTIN and (given is None or not os.path.exists(path)):  # a recipe means the data set
        path = str(builtin_folder(path))
    root = Path(path)
    if not root.exists():
        raise UsageError(f"{path}: no such folder")
    val_split = data.val_split if evaluate else None
    if evaluate and val_split is None:
        raise UsageError("data.val_split: evaluate=true needs a split to evaluate on")
    train_at, classes = _split(root, data.train_split)
    train = _opened(train_at, classes, mode)
    val = None
    if val_split is not None:
        val_at, val_classes = _split(root, val_split)
        if classes is not None and val_classes is not None and set(val_classes) - set(classes):
            extra = sorted(set(val_classes) - set(classes))[0]
            raise UsageError(f"{val_at}: there is a class {extra!r} that {train_at} has not")
        val = _opened(val_at, classes or _labels(train), mode)
    return Sources(train, val, classes or _labels(train))


def _split(root: Path, split: str) -> tuple[Path | list[Path], list[str] | None]:
    """The folder, tar file or shards of a split, and for a folder its classes."""
    archive = root / f"{split}.tar"
    if archive.is_file():
        return archive, None
    if shards := find_shards(root, split):
        return shards, None
    folder = root / split
    if not folder.is_dir():
        what = f"no folder, tar file or shards {split!r} in it" if root.is_dir() else "no such folder"
        raise UsageError(f"{root}: {what}")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UsageError(f"{folder}: no class folders in it")
    for name in classes:
        if not pictures_below(folder / name):
            raise UsageError(f"{folder / name}: a class without pictures ({', '.join(SUFFIXES)})")
    return folder, classes


def _opened(at: Path | list[Path], classes: list[str] | None, mode: str) -> Any:
    """timm's data set of a folder, a tar file or shards."""
    timm()
    from timm.data import ImageDataset, create_dataset

    if isinstance(at, list):
        return ImageDataset(str(at[0].parent), reader=Shards(at), input_img_mode=mode)
    class_map = None if classes is None else {label: index for index, label in enumerate(classes)}
    return create_dataset("", root=str(at), search_split=False, class_map=class_map, input_img_mode=mode)


def _named(data: Data, path: str | None, evaluate: bool, mode: str) -> Sources:
    """Data sets that timm opens by name, such as "hfds/..."."""
    timm()
    from timm.data import create_dataset

    name = f"data.dataset={data.dataset}"
    if data.dataset.partition("/")[0].lower() in _STREAMS:
        raise UsageError(f"{name} is a stream; {_NO_STREAMS}")
    opened: list[Any] = []
    for split in (data.train_split, data.val_split if evaluate else None):
        try:
            made = create_dataset(data.dataset, root=path, split=split, input_img_mode=mode) if split else None
        except Exception as error:  # whatever the library behind the name raises
            raise ToolError(
                f"{name}, split {split!r}: {' '.join(str(error).split()) or type(error).__name__}"
            ) from None
        opened.append(made)
    return Sources(opened[0], opened[1], _labels(opened[0]))


def _numbered(source: Any) -> bool:
    """Whether images can be had by number; torch's streams have a `__getitem__` that only raises."""
    return not isinstance(source, IterableDataset) and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _labels(source: Any) -> list[str] | None:
    reader = getattr(source, "reader", None)
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    return sorted(mapping, key=mapping.get) if mapping else None
