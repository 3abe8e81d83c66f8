"""The effective receptive field: its scores, its squares, its picture."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tools_common import save_photos
from torch import Tensor, nn

from replknet_ext.data.transforms import Preprocessing
from replknet_ext.errors import ToolError, UsageError
from replknet_ext.models import RepLKNet, RepLKNetConfig
from replknet_ext.tools import erf


def plain_ratio(scores: np.ndarray, share: float) -> tuple[int, float] | None:
    """The definition, square by square; None where no square smaller than the picture is enough."""
    values = np.log10(scores + 1)
    height, width = values.shape
    for step in range(1, height // 2):
        y, x = height // 2, width // 2
        if values[y - step : y + step + 1, x - step : x + step + 1].sum() > share * values.sum():
            return 2 * step + 1, (2 * step + 1) ** 2 / (height * width)
    return None


@pytest.mark.parametrize("size", [(24, 24), (25, 25), (3, 3), (64, 64)])
def test_area_ratios_are_the_definition(size: tuple[int, int]) -> None:
    rows, columns = (torch.arange(length, dtype=torch.float64) - length // 2 for length in size)
    peak = torch.exp(-(rows.reshape(-1, 1) ** 2 + columns**2) / size[0])
    for scores in (torch.rand(size, dtype=torch.float64), 50 * peak, peak + 0.01 * torch.rand(size)):
        for area in erf.area_ratios(scores):
            expected = plain_ratio(scores.numpy(), area.share)
            if expected is None:
                assert (area.side, area.ratio) == (max(size), 1.0), "the official script crashes here"
            else:
                assert (area.side, area.ratio) == expected


def test_area_ratios_of_other_maps() -> None:
    one = torch.zeros(9, 9)
    one[4, 4] = 3
    assert [area.side for area in erf.area_ratios(one)] == [3, 3, 3, 3]
    wide = erf.area_ratios(torch.ones(8, 32), shares=(0.5, 0.9))
    # Rows run out first: 8 x 17 of 8 x 32 values are more than a half.
    assert [(area.side, area.ratio) for area in wide] == [(17, 17 / 32), (29, 29 / 32)]
    assert erf.area_ratios(torch.ones(1, 1))[0] == erf.Area(0.2, 1, 1.0)


@pytest.mark.parametrize(
    ("scores", "error", "words"),
    [
        (torch.zeros(8, 8), ToolError, "no receptive field"),
        (torch.full((8, 8), torch.nan), ToolError, "finite"),
        (-torch.ones(8, 8), ToolError, "not negative"),
        (torch.ones(8), ValueError, r"\(H, W\)"),
    ],
)
def test_maps_without_an_answer(scores: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        erf.area_ratios(scores)
    with pytest.raises(ValueError, match="between 0 and 1"):
        erf.area_ratios(torch.ones(4, 4), shares=(1.0,))


def test_scores_of_one_convolution_are_its_weights() -> None:
    conv = nn.Conv2d(2, 3, 5, padding=2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.rand_like(conv.weight) - 0.3)
        conv.weight[1] -= 1  # a centre below zero
    picture = torch.rand(2, 9, 9)
    picture[:, 2:7, 2:7] = 1.0
    out = conv(picture.unsqueeze(0))[0, :, 4, 4]
    assert (out > 0).tolist() == [True, False, True]
    expected = torch.zeros(9, 9)
    # Channels whose centre is rectified away have no gradient; of the rest the sum, rectified for each colour.
    expected[2:7, 2:7] = conv.weight[out > 0].sum(0).relu().sum(0)
    field = erf.measure(conv, [("", picture)])
    torch.testing.assert_close(field.scores.float(), expected)
    assert field.images == 1 and conv.weight.requires_grad


class Fragile(nn.Module):
    """A convolution whose output is NaN where the picture's first value is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.constant_(self.conv.weight, 1.0)
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, self.drop(self.conv(x) * x[..., :1, :1])


def test_pictures_without_a_finite_gradient_are_left_out() -> None:
    model = Fragile().train()
    model.conv.bias.requires_grad_(False)  # type: ignore[union-attr]
    bad = torch.ones(1, 6, 6)
    bad[0, 0, 0] = torch.nan
    field = erf.measure(model, [("a", torch.ones(1, 6, 6)), ("b", bad), ("c", 3 * torch.ones(1, 6, 6))])
    assert (field.images, field.skipped) == (2, ("b: its gradient is not finite",))
    assert field.scores[3, 3] == 2.0, "the mean of 1 and 3"
    assert model.training and model.drop.training
    assert model.conv.weight.requires_grad and not model.conv.bias.requires_grad
    with pytest.raises(ToolError, match="b: its gradient is not finite"):
        erf.measure(model, [("b", bad)])
    with pytest.raises(ValueError, match="one size"):
        erf.measure(model, [("a", torch.ones(1, 6, 6)), ("c", torch.ones(1, 7, 7))])
    with pytest.raises(ValueError, match="must return a map"):
        erf.measure(model, [("a", torch.ones(1, 6, 6))], features=lambda x: x.flatten(1))
    with pytest.raises(ValueError, match="differentiable"):
        erf.measure(model, [("a", torch.ones(1, 6, 6))], features=lambda x: model.conv(x.detach()))


def test_large_kernels_see_more() -> None:
    areas = []
    for kernels in ((3, 3), (15, 9)):
        config = RepLKNetConfig(kernels, (2, 2), (16, 16), small_kernel=None, stem_strides=(2, 1))
        model = RepLKNet(config, num_classes=2)
        areas.append(erf.measure(model, [(str(i), torch.rand(3, 64, 64)) for i in range(4)]).areas)
    for small, large in zip(*(found[2:] for found in areas), strict=True):
        assert small.ratio < large.ratio
    # Pixels further away than 3x3 kernels reach, at most 1 + 2 * (1 + 1) + 2 * 2 + 2 + 2 * 4, have no gradient at all.
    assert areas[0][-1].side <= 2 * 19 + 1 < areas[1][-1].side


def test_the_script_behind_the_documented_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from examples import demo_digits, erf_digits

    digits = demo_digits.load_digits(16)
    few = demo_digits.Digits((digits.train[0][:64], digits.train[1][:64]), digits.test)
    tiny = {
        name: RepLKNetConfig(kernels, (1,), (8,), small_kernel=None, ffn_ratio=1.0)
        for name, kernels in {"small": (3,), "large": (9,)}.items()
    }
    monkeypatch.setattr(demo_digits, "load_digits", lambda size: few)
    monkeypatch.setattr(erf_digits, "NETWORKS", tiny)
    assert erf_digits.main(["--epochs", "1", "--output", str(tmp_path / "two.png")]) == 0
    width, height = Image.open(tmp_path / "two.png").size
    assert width > 1.5 * height > 700


def test_photos_of_scikit_image() -> None:
    found = list(erf.photos(50))
    assert [name for name, _ in found] == list(erf.PHOTOS)
    assert all(min(photo.size) >= 300 for _, photo in found)


def test_files_of_a_user(tmp_path: Path) -> None:
    save_photos(tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_text("no picture")
    loaded = SimpleNamespace(model=nn.Conv2d(3, 4, 3, padding=1), preprocessing=Preprocessing((20, 20)))
    seen: list[tuple[int, int]] = []
    field = erf.of(loaded, [tmp_path], 4, lambda *done: seen.append(done))  # type: ignore[arg-type]
    assert (field.images, seen[-1]) == (3, (3, 4))
    assert len(field.skipped) == 1 and "broken.jpg: not a picture" in field.skipped[0]
    assert erf.of(loaded, [tmp_path / "photos" / "chelsea.png"], 50).images == 1  # type: ignore[arg-type]
    with pytest.raises(ToolError, match=r"broken\.jpg: not a picture"):
        erf.of(loaded, [tmp_path / "photos" / "broken.jpg"], 50)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ToolError, match=r"no pictures in .*empty"):
        erf.of(loaded, [tmp_path / "empty"], 50)  # type: ignore[arg-type]


def test_the_heat_map(tmp_path: Path) -> None:
    rows = torch.arange(64).reshape(-1, 1) - 32
    field = erf.EffectiveReceptiveField(torch.exp(-(rows**2 + rows.T**2) / 200.0), 3)
    path = tmp_path / "deep" / "map.png"
    erf.heat_map(field, path, "title")
    shown = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width = shown.shape[:2]
    assert min(height, width) > 700
    # Bright in the middle of the map and dark at its rim.
    assert shown[height * 2 // 5, width * 2 // 5].sum() > 3 * shown[height // 12, width // 6].sum()
    with pytest.raises(ToolError, match=r"suffix must be one of .*png"):
        erf.heat_map(field, tmp_path / "map.docx")
    with pytest.raises(UsageError, match=r"\.npy"):
        erf.save_scores(field, tmp_path / "map.txt")
    erf.save_scores(field, tmp_path / "map.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), field.scores.numpy())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["deep", "map.npy"]


def test_a_picture_is_there_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def full_disk(self: Figure, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    target = tmp_path / "map.png"
    target.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(ToolError, match=r"^cannot write .*map\.png: disk full$"):
        erf.heat_map(erf.EffectiveReceptiveField(torch.ones(8, 8), 1), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
