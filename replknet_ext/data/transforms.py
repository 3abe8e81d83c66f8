"""From pictures to a network's input: the official evaluation preprocessing, on Pillow alone.

Below 384 pixels a picture's short side becomes int(size / 0.875) and the centre is cut out; from 384 on, and for the
tiny pictures of 32 pixels and less, the whole picture is warped to the square. Bicubic in both. The arithmetic is
torchvision's, so that numbers agree to the bit (github.com/DingXiaoH/RepLKNet-pytorch, datasets.py).
"""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ToolError, needs

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SUFFIXES",
    "Preprocessing",
    "open_image",
    "pictures",
    "pictures_below",
    "to_image",
    "with_channels",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_RATIO = 224 / 256
WARP_FROM, KEEP_UP_TO = 384, 32

#: What counts as a picture in a folder.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

#: Pillow's names of the formats that are read, whatever a file's suffix. Not EPS: Pillow starts Ghostscript for it.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")

#: The path that stands for standard input.
STDIN = Path("-")

#: Above this many pixels between Pillow's two passes (256 MB), thin pictures are resized without them.
LARGEST_MAP = 1 << 26


@dataclass(frozen=True)
class Preprocessing:
    """A picture to a (C, height, width) float32 tensor.

    Attributes:
        size: height and width of the result.
        mean, std: of each channel, for values in [0, 1]; their number is the number of channels, 1 or 3.
        crop: resize the short side and cut out the centre, instead of warping; squares only.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: bool = True

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be a height and a width of at least 1; got {self.size}")
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(f"mean and std must have 1 or 3 values each; got {len(self.mean)} and {len(self.std)}")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean must be finite; got {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std must be positive and finite; got {self.std}")
        if self.crop and self.size[0] != self.size[1]:
            raise ValueError(f"crop needs a square size; got {self.size}")

    @classmethod
    def of(cls, model: Any, input_size: int | None = None) -> Preprocessing:
        """What `model` was trained for, by its `pretrained_cfg`; the ImageNet values without one.

        Args:
            input_size: another side length, which brings the official crop rule for it.
        """
        cfg = getattr(model, "pretrained_cfg", None)
        channels = int(getattr(model, "in_chans", 3))
        if cfg is not None and len(cfg.mean) == channels:
            mean, std = tuple(cfg.mean), tuple(cfg.std)
            size, crop = tuple(cfg.input_size[-2:]), bool(cfg.crop)
        else:
            if channels not in (1, 3):
                raise ToolError(f"pictures have 1 or 3 channels, and this model takes {channels}")
            mean = IMAGENET_MEAN if channels == 3 else (0.5,)
            std = IMAGENET_STD if channels == 3 else (0.5,)
            size, crop = (224, 224), True
        if input_size is not None and size != (input_size, input_size):
            size, crop = (input_size, input_size), KEEP_UP_TO < input_size < WARP_FROM
        return cls(size, mean, std, crop)

    def __call__(self, image: Image) -> Tensor:
        """See the class.

        Raises:
            ToolError: see `with_channels`.
        """
        return self.normalise(self.fit(image))

    def fit(self, image: Image) -> Image:
        """The picture at its final size and number of channels, before any arithmetic; for display, too."""
        with _reading():
            return self._fit(with_channels(image, len(self.mean)))

    def _fit(self, image: Image) -> Image:
        height, width = self.size
        if not self.crop:
            return _resize(image, width, height)
        short = int(height / CROP_RATIO)
        w, h = image.size
        # As torchvision: the long side is rounded down, the corner of the crop to the nearest even.
        w, h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
        top, left = round((h - height) / 2), round((w - width) / 2)
        if w * max(h, image.height) > LARGEST_MAP:
            # The centre alone: the same but for rounding, which torchvision's order of the two steps decides.
            x, y = image.width / w, image.height / h
            box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
            return image.resize((width, height), _bicubic(), box)
        return _resize(image, w, h).crop((left, top, left + width, top + height))

    def normalise(self, image: Image) -> Tensor:
        """(C, H, W) float32, scaled to [0, 1], then by mean and std."""
        import numpy as np

        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
        pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels.contiguous().float().div(255) - mean) / std


def open_image(path: str | Path, *, exif: bool = True) -> Image:
    """The picture in a file, completely read.

    Args:
        path: "-" is standard input.
        exif: turn it as its camera says. The published accuracies are of pictures taken as they lie in the file.

    Raises:
        ToolError: no such file, or not a picture in one of `FORMATS` that Pillow reads to its end.
    """
    with needs("Pillow"):
        from PIL import Image, ImageOps
    path = Path(path)
    if path != STDIN and not path.is_file():
        raise ToolError("not a file" if path.exists() else "no such file or folder")
    Image.init()  # type: ignore[no-untyped-call]
    with _reading(), Image.open(_stdin() if path == STDIN else path, formats=_formats()) as image:
        image.load()
        if image.mode == "I" and image.format in ("PNG", "PPM"):
            image = image.convert("I;16")  # those have 16 bits; Pillow 10 and its PGM reader widen them
        return ImageOps.exif_transpose(image) if exif else image.copy()


def _formats() -> list[str]:
    from PIL import Image

    return [name for name in FORMATS if name in Image.OPEN]


@cache
def _stdin() -> io.BytesIO:
    """What standard input has, which can be read only once."""
    return io.BytesIO(sys.stdin.buffer.read())


@contextmanager
def _reading() -> Iterator[None]:
    """Whatever Pillow raises, as a ToolError: damaged bytes lead to errors of every kind."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except ToolError:
        raise
    except UnidentifiedImageError:
        raise ToolError("not a picture that Pillow can read") from None
    except MemoryError:
        raise ToolError("cannot be read: not enough memory") from None
    except Exception as error:
        raise ToolError(f"cannot be read: {error or type(error).__name__}") from None


def to_image(source: str | Path | Image | np.ndarray[Any, Any], *, channel_order: str = "rgb") -> Image:
    """A picture from a path, a Pillow image or an array; turned as its camera says.

    Args:
        source: an array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or, in [0, 1], floating.
        channel_order: "rgb" or "bgr", of an array. OpenCV and mmpretrain have BGR arrays.

    Raises:
        ToolError: see `open_image`.
        TypeError, ValueError: not one of those sources.
    """
    with needs("Pillow"):
        import numpy as np
        from PIL import Image, ImageOps
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f"channel_order must be 'rgb' or 'bgr'; got {channel_order!r}")
    if isinstance(source, (str, Path)):
        try:
            return open_image(source)
        except ToolError as error:
            raise ToolError(f"{source}: {error}") from None
    if isinstance(source, Image.Image):
        with _reading():
            return ImageOps.exif_transpose(source)
    if not isinstance(source, np.ndarray):
        raise TypeError(f"image must be a path, a Pillow image or a numpy array; got {type(source).__name__}")
    array = source
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ValueError(f"an image array must be (H, W) or (H, W, 1, 3 or 4); got {source.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("a floating image array must have values in [0, 1]")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 or floating; got {array.dtype}")
    if array.ndim == 3:
        array = array[..., [2, 1, 0]] if channel_order == "bgr" else array[..., :3]
    return Image.fromarray(np.ascontiguousarray(array))


def pictures(sources: Sequence[str | Path]) -> list[Path]:
    """The files that are named and, sorted, the pictures below the folders that are named; duplicates once."""
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        found.update(dict.fromkeys(pictures_below(source) if source.is_dir() else [source]))
    return list(found)


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder and its folders, by their suffixes, sorted.

    Links to folders are followed, but no folder is entered twice, whatever leads to it: what can be reached without
    links is found there. A folder that cannot be listed is left out with a warning.
    """
    visited: set[tuple[int, int]] = set()
    found: list[Path] = []
    folders = [folder]
    while folders:
        links: list[Path] = []
        for top in sorted(folders):
            if not _enter(top, visited):
                continue
            for inside, names, files in os.walk(top, onerror=_not_listed):
                at = [Path(inside, name) for name in names]
                links += (path for path in at if path.is_symlink())
                names[:] = [path.name for path in at if not path.is_symlink() and _enter(path, visited)]
                found += (Path(inside, name) for name in files)
        folders = links
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def _enter(folder: Path, visited: set[tuple[int, int]]) -> bool:
    """Whether a folder is there and new; remembers it."""
    try:
        status = folder.stat()
    except OSError as error:
        _not_listed(error)
        return False
    key = (status.st_dev, status.st_ino)
    new = key not in visited
    visited.add(key)
    return new


def _not_listed(error: OSError) -> None:
    warnings.warn(f"{error.filename} is left out: {error.strerror}", stacklevel=3)


def with_channels(image: Image, channels: int) -> Image:
    """The picture with 8 bits in 1 channel (grey) or 3 (RGB).

    16 bits are scaled, and so are floating values, in [0, 1] as those of arrays.

    Raises:
        ToolError: 32-bit integers, whose range nobody knows, or floating values outside of [0, 1].
    """
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "F"):  # Pillow's own conversion would clip
        import numpy as np
        from PIL import Image as pillow  # noqa: N813

        values = np.asarray(image)
        if image.mode != "F":
            values = values.astype(np.uint16) >> 8
        elif np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
            values = np.rint(values * 255)
        else:
            raise ToolError(
                "floating values must be in [0, 1], and here they "
                f"{f'are in [{values.min():g}, {values.max():g}]' if np.isfinite(values).all() else 'are not finite'}"
            )
        image = pillow.fromarray(values.astype(np.uint8))
    if image.mode == "I":
        raise ToolError(
            "pictures of signed or 32-bit integers have no known range: save it with 8 bits, or 16 without a sign"
        )
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image, width: int, height: int) -> Image:
    if image.size == (width, height):
        return image
    if width * image.height > LARGEST_MAP:  # Pillow resizes rows first, and there are too many
        image = image.resize((image.width, height), _bicubic())
    return image.resize((width, height), _bicubic())


def _bicubic() -> Any:
    from PIL.Image import Resampling

    return Resampling.BICUBIC
