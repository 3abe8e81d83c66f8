"""The effective receptive field: how much each input pixel moves the centre of the last feature map.

As in the paper (appendix; github.com/DingXiaoH/RepLKNet-pytorch, erf/): the gradient of the rectified values at the
centre, summed over channels, with respect to the picture; rectified, summed over colours, averaged over pictures. Area
ratios are of log10(score + 1): the side of the smallest square around the centre that holds a share of the total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..data.transforms import open_image, pictures
from ..errors import ToolError, needs
from . import show
from .files import check_destination, check_suffix, refuse_inputs, replacing
from .show import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image
    from rich.console import Console

    from .loading import Loaded

__all__ = ["PHOTOS", "SHARES", "Area", "EffectiveReceptiveField", "area_ratios", "contribution", "heat_map", "measure"]

#: The shares of the paper's table.
SHARES = (0.2, 0.3, 0.5, 0.99)

#: Photos inside scikit-image's wheel, used when no others are given.
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "camera", "coins", "moon", "brick",
          "grass", "gravel")  # fmt: skip


@dataclass(frozen=True)
class Area:
    """The smallest centred square of `side` pixels that holds more than `share` of the total; `ratio` of the area."""

    share: float
    side: int
    ratio: float


@dataclass(frozen=True)
class EffectiveReceptiveField:
    """Scores (H, W) float64, averaged over `images` pictures; `skipped` says why others did not count."""

    scores: Tensor
    images: int
    skipped: tuple[str, ...] = ()

    @property
    def areas(self) -> list[Area]:
        return area_ratios(self.scores)

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold, without the scores."""
        return {
            "size": list(self.scores.shape),
            "images": self.images,
            "skipped": list(self.skipped),
            "areas": [asdict(area) for area in self.areas],
        }


def of(
    loaded: Loaded,
    data: Sequence[str | Path] | None,
    num_images: int,
    on_picture: Callable[[int, int], object] = lambda done, total: None,
) -> EffectiveReceptiveField:
    """The field of a loaded model on pictures, warped to its input size.

    Args:
        data: files and folders; `PHOTOS` when None. Files that cannot be read are skipped.
        num_images: how many to take at most, in sorted order.
        on_picture: called with the numbers of pictures that are done and that there are.

    Raises:
        ToolError: there is no picture, none can be read, or none left a finite gradient.
    """
    prepare = replace(loaded.preprocessing, crop=False)
    unreadable: list[str] = []
    done = 0

    def read(path: Path) -> Image | None:
        try:
            return open_image(path)
        except ToolError as error:
            unreadable.append(f"{path}: {error}")
            return None

    def inputs() -> Iterator[tuple[str, Tensor]]:
        found = photos(num_images) if paths is None else ((str(path), read(path)) for path in paths)
        for name, photo in found:
            if photo is None:
                continue
            try:
                yield name, prepare(photo)
            except ToolError as error:
                unreadable.append(f"{name}: {error}")

    def count(name: str) -> None:
        nonlocal done
        done += 1
        on_picture(done, total)

    paths = pictures(data)[:num_images] if data is not None else None
    if paths is not None and not paths:
        raise ToolError(f"no pictures in {', '.join(map(str, data or ()))}")
    total = min(num_images, len(PHOTOS)) if paths is None else len(paths)
    try:
        field = measure(loaded.model, inputs(), on_picture=count)
    except ToolError:
        if unreadable and done == 0:
            raise ToolError(unreadable[0]) from None
        raise
    return replace(field, skipped=(*unreadable, *field.skipped))


def measure(
    model: nn.Module,
    pictures: Iterable[tuple[str, Tensor]],
    features: Callable[[Tensor], Tensor] | None = None,
    on_picture: Callable[[str], object] = lambda name: None,
) -> EffectiveReceptiveField:
    """The effective receptive field of `model`, in eval mode and without gradients of its parameters.

    Args:
        pictures: names and inputs (C, H, W), all of one size; taken to the model's device and dtype.
        features: a picture (1, C, H, W) to the last feature map (1, C', H', W'); the model's `forward_features`, or
            else the model itself, when None. Of several maps the last counts.
        on_picture: called with the name of each picture that is done.

    Raises:
        ToolError: no picture left a finite gradient.
        ValueError: the pictures differ in size, or `features` returns no map.
    """
    if features is None:
        features = cast(Callable[[Tensor], Tensor], getattr(model, "forward_features", model))
    parameter = next(model.parameters(), torch.empty(0))
    total: Tensor | None = None
    count, skipped = 0, []
    with _only_inputs(model):
        for name, picture in pictures:
            scores = contribution(features, picture.to(parameter.device, parameter.dtype).unsqueeze(0)).double().cpu()
            if total is not None and total.shape != scores.shape:
                raise ValueError(f"pictures must have one size: {tuple(total.shape)} and {tuple(scores.shape)}")
            if not scores.isfinite().all():
                skipped.append(f"{name}: its gradient is not finite")
            else:
                total = scores if total is None else total + scores
                count += 1
            on_picture(name)
    if total is None:
        raise ToolError(skipped[0] if len(skipped) == 1 else "no picture with a finite gradient")
    return EffectiveReceptiveField(total / count, count, tuple(skipped))


def contribution(features: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Scores (H, W) of pictures (N, C, H, W), in their dtype."""
    with torch.enable_grad():
        pictures = pictures.detach().requires_grad_(True)
        out = features(pictures)
        if isinstance(out, (tuple, list)):
            out = out[-1]
        if not isinstance(out, Tensor) or out.ndim != 4:
            raise ValueError("features must return a map (N, C, H, W)")
        centre = out[:, :, out.shape[2] // 2, out.shape[3] // 2].relu().sum()
        if not centre.requires_grad:
            raise ValueError("features must be differentiable in the picture")
        (gradient,) = torch.autograd.grad(centre, pictures)
    return gradient.relu().sum((0, 1))


def area_ratios(scores: Tensor, shares: Sequence[float] = SHARES) -> list[Area]:
    """How much area the shares of log10(score + 1) take, in squares that grow around pixel (H // 2, W // 2).

    The numbers are those of the official script. Where that has no answer, because the last row is needed, the answer
    here is the whole picture.

    Raises:
        ValueError: not a map, or a share outside of (0, 1).
        ToolError: nothing contributes, or a score is negative or not finite.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be (H, W); got {tuple(scores.shape)}")
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares must be between 0 and 1; got {tuple(shares)}")
    values = readable(scores)
    height, width = values.shape
    rows = (torch.arange(height) - height // 2).abs().unsqueeze(1)
    columns = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows, columns).flatten()
    inside = torch.bincount(ring, weights=values.flatten()).cumsum(0) / values.sum()
    pixels = torch.bincount(ring).cumsum(0)
    largest = len(pixels) - 1
    found = []
    for share in shares:
        # The official script starts with a square of 3 pixels.
        reached = [step for step in range(min(1, largest), largest) if float(inside[step]) > share]
        step = reached[0] if reached else largest
        side = min(2 * step + 1, max(height, width))
        found.append(Area(share, side, int(pixels[step]) / (height * width)))
    return found


def readable(scores: Tensor) -> Tensor:
    """log10(score + 1) over its largest value, in float64: what is shown and measured."""
    scores = scores.double().cpu()
    if scores.numel() == 0 or not scores.isfinite().all() or scores.min() < 0:
        raise ToolError("scores must be finite and not negative")
    values = torch.log1p(scores) / torch.log(torch.tensor(10.0, dtype=torch.float64))
    if values.max() == 0:
        raise ToolError("no input pixel moves the centre of the last map: there is no receptive field to show")
    return values / values.max()


def photos(limit: int) -> Iterator[tuple[str, Image]]:
    """The first `limit` of `PHOTOS`."""
    with needs("scikit-image", "demo"):
        from skimage import data
    with needs("Pillow"):
        from PIL import Image
    for name in PHOTOS[:limit]:
        yield name, Image.fromarray(getattr(data, name)())


def heat_map(field: EffectiveReceptiveField, path: str | Path, title: str = "") -> None:
    """Draws the field with its squares; the file's suffix chooses the format.

    Raises:
        ToolError: matplotlib is missing, knows no such format, or the file cannot be written.
    """
    with needs("matplotlib"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7.2, 6.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    picture = draw(axes, field, title)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("log10(contribution + 1), relative to the largest")
    save(figure, path)


def draw(axes: Axes, field: EffectiveReceptiveField, title: str = "", legend: bool = True) -> Any:
    """The heat map with its squares on matplotlib axes; returns the image, for a colour bar."""
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    values = readable(field.scores)
    height, width = values.shape
    # The rim is faint and is what tells networks apart: colours follow the square root.
    picture = axes.imshow(values.numpy(), cmap="magma", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    colours = ("#7fe5d1", "#9be15d", "#ffd166", "#4aa8ff")
    for area, colour in zip(field.areas, colours, strict=True):
        side = area.side
        left, top = (max(-0.5, size // 2 - side // 2 - 0.5) for size in (width, height))
        label = f"{area.share:.0%} in {area.ratio:.1%} of the area"
        axes.add_patch(
            Rectangle((left, top), min(side, width), min(side, height), fill=False, edgecolor=colour, linewidth=1.6,
                      label=label, clip_on=False)
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(plain(title), parse_math=False)  # names may hold dollars
    if legend:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.005), ncols=2, frameon=False, labelcolor="#222222", fontsize=9,
            handlelength=1.3, handletextpad=0.6, columnspacing=1.6, borderaxespad=0.2,
        )  # fmt: skip
    return picture


def save_scores(field: EffectiveReceptiveField, path: str | Path) -> None:
    """Writes the scores (H, W) as float64 .npy, as the official script does."""
    import numpy as np

    check_suffix(path, (".npy",))
    with replacing(path) as temporary:
        np.save(temporary, field.scores.numpy())


def render(name: str, field: EffectiveReceptiveField, console: Console) -> None:
    """Print the area ratios; made for 60 columns and more."""
    height, width = field.scores.shape
    table = show.table(f"{name}, {height} x {width}", "contribution", "side", "area", "", numbers="rrrl")
    for area in field.areas:
        table.add_row(f"{area.share:.0%}", f"{area.side}", f"{area.ratio:.2%}", show.bar(area.ratio))
    console.print(table)
    console.print(f"mean of {field.images} {'picture' if field.images == 1 else 'pictures'}", highlight=False)


@contextmanager
def progress(hidden: bool = False) -> Iterator[Callable[[int, int], object]]:
    """A progress bar for `of`'s `on_picture`."""
    with show.progress(hidden=hidden) as shown:
        task = shown.add_task("pictures", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def check(heat_map: Path, scores: Path | None, data: Sequence[str | Path] | None) -> None:
    """What can be known of the destinations before anything is measured.

    Raises:
        UsageError: another suffix, or a picture would be replaced.
        ToolError: a destination cannot be written.
    """
    check_suffix(heat_map, figure_suffixes())
    targets = [heat_map]
    if scores is not None:
        check_suffix(scores, (".npy",))
        targets.append(scores)
    refuse_inputs(targets, pictures(data or ()))
    for target in targets:
        check_destination(target)


def figure_suffixes() -> list[str]:
    """The suffixes of the formats that matplotlib writes."""
    with needs("matplotlib"):
        from matplotlib.figure import Figure
    return [f".{name}" for name in sorted(Figure().canvas.get_supported_filetypes())]


def save(figure: Any, path: str | Path) -> None:
    """Writes a matplotlib figure, completely or not at all."""
    check_suffix(path, figure_suffixes())
    with replacing(path) as temporary:
        figure.savefig(temporary)


@contextmanager
def _only_inputs(model: nn.Module) -> Iterator[None]:
    """Eval mode, and gradients of no parameter: that halves what autograd keeps."""
    training = [module for module in model.modules() if module.training]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
