"""What the tests of the tools and of the command line share: real photos, and small networks that know nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models_common import SMALL, randomize
from PIL import Image
from skimage import data

from replknet_ext.models import RepLKNet, save_checkpoint

#: Photos inside scikit-image's wheel.
PHOTOS = ("chelsea", "astronaut", "coffee")


def photo(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)())


def save_photos(folder: Path, names: tuple[str, ...] = PHOTOS, suffix: str = ".png") -> list[Path]:
    """Real photos in a folder, quickly: a third of their size."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{suffix}" for name in names]
    for name, path in zip(names, paths, strict=True):
        image = photo(name)
        image.resize((image.width // 3, image.height // 3)).convert("RGB").save(path)
    return paths


def checkpoint(path: Path, num_classes: int = 1000, spread: float = 20.0, **kwargs: Any) -> Path:
    """A small RepLKNet with random weights and BatchNorm statistics, in a file."""
    torch.manual_seed(0)
    model = randomize(RepLKNet(SMALL, num_classes=num_classes, **kwargs))
    # Random logits lie close together; spread, they have a clear order.
    with torch.no_grad():
        model.head.weight.mul_(spread)  # type: ignore[union-attr, operator]
    return save_checkpoint(model, path)


class Run:
    """The command line, in this process: `cli("predict", ...)` gives exit status, stdout and stderr."""

    def __call__(self, *arguments: Any, code: int = 0, columns: int = 100) -> Any:
        from typer.testing import CliRunner

        from replknet_ext.cli.app import app

        environment = {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
        assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
        assert "Traceback" not in result.stderr
        return result

    def json(self, *arguments: Any, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).stdout)


cli = Run()


def gradient_picture(height: int, width: int) -> Image.Image:
    """Every pixel differs from its neighbours."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8))
