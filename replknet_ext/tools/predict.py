"""What is on a picture: `inference_model` as in mmpretrain, and many files for the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data.labels import class_names, short_name
from ..data.transforms import Preprocessing, open_image, to_image, with_channels
from ..errors import ToolError, needs
from ..models import get_model
from .files import check_destination, refuse_inputs, replacing
from .show import bar, plain

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from rich.console import Console

__all__ = [
    "NOT_FINITE",
    "Prediction",
    "ToolError",
    "Unreadable",
    "annotate",
    "inference_model",
    "picture_names",
    "predict_files",
    "render",
]

NOT_FINITE = "the network's outputs for it are not finite"


def inference_model(
    model: nn.Module | str,
    image: str | Path | Image | np.ndarray[Any, Any],
    *,
    classes: Sequence[str] | None = None,
    input_size: int | None = None,
    channel_order: str = "rgb",
) -> dict[str, Any]:
    """Classifies one picture, with the result that mmpretrain's function of this name gives.

    Args:
        model: a classifier, or the name of one, whose published weights are then used. It runs on its device, in its
            dtype and in eval mode, and is left as it was.
        image: a path, a Pillow image, or an array (H, W[, C]), uint8 or floating in [0, 1].
        classes: names of the classes; ImageNet's for 1000 classes, else "class 0" and so on, when None.
        input_size: side of the network's input, when not the one that the model was trained for.
        channel_order: of an array, "rgb" or "bgr". mmpretrain takes arrays as BGR, as OpenCV reads them.

    Returns:
        `pred_scores`, all probabilities, float32 numpy; `pred_label`, the index of the largest; `pred_score`, itself;
        `pred_class`, its name.

    Raises:
        ToolError: the picture cannot be read, or the network's outputs are not finite.
        TypeError, ValueError: arguments that make no sense; says which.
    """
    if isinstance(model, str):
        model = get_model(model, pretrained=True)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module or a name; got {type(model).__name__}")
    pixels = Preprocessing.of(model, input_size)(to_image(image, channel_order=channel_order))
    scores = _scores(model, pixels.unsqueeze(0))[0]
    if not scores.isfinite().all():
        raise ToolError(NOT_FINITE)
    names = class_names(len(scores), classes)
    label = int(scores.argmax())
    return {
        "pred_scores": scores.numpy(),
        "pred_label": label,
        "pred_score": float(scores[label]),
        "pred_class": names[label],
    }


@dataclass(frozen=True)
class Prediction:
    """The best classes of a file, best first: label, probability, name."""

    path: Path
    top: tuple[tuple[int, float, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        label, score, name = self.top[0]
        best = [{"label": label, "score": score, "class": name} for label, score, name in self.top]
        return {"path": str(self.path), "pred_label": label, "pred_score": score, "pred_class": name, "top": best}


@dataclass(frozen=True)
class Unreadable:
    """A file without a prediction, and why: it is no picture, or `NOT_FINITE`."""

    path: Path
    error: str

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold."""
        return {"path": str(self.path), "error": self.error}


def predict_files(
    model: nn.Module,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    names: Sequence[str],
    topk: int = 5,
    batch_size: int = 8,
) -> Iterator[Prediction | Unreadable]:
    """A result for each file, in their order; a bad file stops nothing."""
    for start in range(0, len(paths), batch_size):
        batch = [(path, _read(path, preprocessing)) for path in paths[start : start + batch_size]]
        pixels = [content for _, content in batch if isinstance(content, Tensor)]
        scores = iter(_scores(model, torch.stack(pixels)) if pixels else ())
        for path, content in batch:
            if isinstance(content, Unreadable):
                yield content
                continue
            of_path = next(scores)
            good = bool(of_path.isfinite().all())
            yield Prediction(path, _best(of_path, names, topk)) if good else Unreadable(path, NOT_FINITE)


def _read(path: Path, preprocessing: Preprocessing) -> Tensor | Unreadable:
    try:
        return preprocessing(open_image(path))
    except ToolError as error:
        return Unreadable(path, str(error))


def _best(scores: Tensor, names: Sequence[str], topk: int) -> tuple[tuple[int, float, str], ...]:
    values, labels = scores.topk(min(topk, len(scores)))
    return tuple((label, value, names[label]) for label, value in zip(labels.tolist(), values.tolist(), strict=True))


@torch.inference_mode()
def _scores(model: nn.Module, pixels: Tensor) -> Tensor:
    """Probabilities (N, classes) float32 on the CPU of inputs (N, C, H, W)."""
    parameter = next(model.parameters(), torch.empty(0))
    with _evaluating(model):
        logits = model(pixels.to(parameter.device, parameter.dtype))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError("the model must be a classifier: it returns no (N, classes) tensor")
    return logits.float().softmax(1).cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# ---- pictures with labels ----

_BAR, _TEXT, _DIM, _PAPER = "#3b82c4", "#1b1f24", "#6b7480", "#ffffff"
_WIDTH, _ROW, _MARGIN = 640, 34, 16
_HIGHEST = 2 * _WIDTH


def annotate(prediction: Prediction, path: str | Path) -> None:
    """Draws the picture with its best classes, as bars below it, into a file.

    A picture that is more than twice as high as wide is scaled down to that height.

    Raises:
        ToolError: the picture is no longer there, or the file cannot be written.
    """
    with needs("Pillow"):
        from PIL import Image, ImageDraw, ImageFont
    photo = with_channels(open_image(prediction.path), 3)
    height = min(max(1, round(photo.height * _WIDTH / photo.width)), _HIGHEST)
    width = min(_WIDTH, max(1, round(photo.width * height / photo.height)))
    photo = photo.resize((width, height), Image.Resampling.LANCZOS)
    panel = 2 * _MARGIN + _ROW * len(prediction.top)
    sheet = Image.new("RGB", (_WIDTH, height + panel), _PAPER)
    sheet.paste(photo, ((_WIDTH - width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    names_to, bar_from, bar_to = 270, 286, _WIDTH - 90
    for row, (_, score, name) in enumerate(prediction.top):
        middle = height + _MARGIN + _ROW * row + _ROW // 2
        colour = _TEXT if row == 0 else _DIM
        draw.text(
            (names_to, middle), _fitted(plain(short_name(name)), font, names_to - _MARGIN), colour, font, anchor="rm"
        )
        draw.rounded_rectangle((bar_from, middle - 8, bar_to, middle + 8), 4, "#e9edf1")
        length = round((bar_to - bar_from) * score)
        if length > 1:
            draw.rounded_rectangle((bar_from, middle - 8, bar_from + length, middle + 8), min(4, length // 2), _BAR)
        draw.text((_WIDTH - _MARGIN, middle), f"{score:.1%}", colour, font, anchor="rm")
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def _fitted(text: str, font: Any, width: int) -> str:
    while font.getlength(text) > width and len(text) > 2:
        text = text[:-2].rstrip() + "…"
    return text


def render(prediction: Prediction, console: Console) -> None:
    """Print a prediction: the file, then a line for each class; made for 60 columns and more."""
    from rich.text import Text

    console.print(Text(plain(prediction.path), style="bold cyan"), soft_wrap=True)
    room = max(16, console.width - 34)
    for row, (_, score, name) in enumerate(prediction.top):
        line = Text.assemble(f" {score:7.2%}  ", (bar(score), "blue"), "  ", plain(short_name(name, room)))
        line.stylize("bold" if row == 0 else "dim", 0)
        console.print(line, no_wrap=True)


def destinations(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """`picture_names` in a folder, which is made if need be; asked before the work.

    Raises:
        UsageError: a file that is read would be replaced.
        ToolError: the folder cannot be made or written to.
    """
    targets = picture_names(paths, folder)
    refuse_inputs(targets.values(), paths)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(f"cannot make the folder {folder}: {error.strerror}") from None
    for target in targets.values():
        check_destination(target)
    return targets


def picture_names(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the annotated picture of each file goes: its own name as PNG, numbered where two files share one."""
    taken: set[str] = set()
    result = {}
    for path in paths:
        name, number = f"{path.stem}.png", 2
        while name in taken:
            name, number = f"{path.stem}-{number}.png", number + 1
        taken.add(name)
        result[path] = folder / name
    return result
