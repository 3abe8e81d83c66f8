"""The one table of shapes, dtypes, layouts and tolerances that tests and benchmarks use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from benchmarks.shapes import stages
from replknet_ext.models import ARCHS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
PASSES = ("fwd", "bwd_input", "bwd_weight")
ACTIVATIONS = ("none", "relu", "gelu")


@dataclass(frozen=True)
class Case:
    """A stride-1 depthwise convolution. ``padding`` is (top, bottom, left, right); negative crops.

    A case that is `quick` runs in ``make test``, too: one of each kind.
    """

    name: str
    n: int
    c: int
    h: int
    w: int
    kh: int
    kw: int
    padding: tuple[int, int, int, int]
    quick: bool = False

    @property
    def output(self) -> tuple[int, int, int, int]:
        """(N, C, Ho, Wo)"""
        top, bottom, left, right = self.padding
        return self.n, self.c, self.h + top + bottom - self.kh + 1, self.w + left + right - self.kw + 1

    def small(self, channels: int = 3, batch: int = 2) -> Case:
        """The same planes and taps with few channels: what CI can afford."""
        return replace(self, n=min(self.n, batch), c=min(self.c, channels))


def same(name: str, n: int, c: int, h: int, w: int, kh: int, kw: int, *, quick: bool = False) -> Case:
    """A case with torch's padding="same": the odd pixel of an even kernel at the bottom and right."""
    top, left = (kh - 1) // 2, (kw - 1) // 2
    return Case(name, n, c, h, w, kh, kw, (top, kh - 1 - top, left, kw - 1 - left), quick)


def _stages(name: str, channels: tuple[int, ...], size: int, kernels: tuple[tuple[int, int], ...]) -> list[Case]:
    """A case a stage of a four-stage network: the planes halve from stage to stage."""
    return [
        same(f"{name}-{kh}x{kw}-s{i + 1}", 2, c, size >> i, size >> i, kh, kw)
        for i, (c, (kh, kw)) in enumerate(zip(channels, kernels, strict=True))
    ]


def _replknet(name: str, arch: str, pixels: int, *, quick: bool = False) -> list[Case]:
    """The large-kernel layers of a RepLKNet."""
    layers = enumerate(stages(2, ARCHS[arch], pixels), 1)
    return [same(f"{name}-{x.kh}x{x.kw}-s{i}", *astuple(x), quick=quick) for i, x in layers]


#: Layers of published networks at their published resolutions.
LAYERS: list[Case] = [
    *_replknet("replknet31b-224", "31B", 224, quick=True),
    *_replknet("replknet31l-384", "31L", 384),
    *_replknet("replknetxl-320", "XL", 320),
    *_stages("slak-t-tall", (124, 249, 499, 998), 56, ((51, 5), (49, 5), (47, 5), (13, 5))),
    *_stages("slak-t-wide", (124, 249, 499, 998), 56, ((5, 51), (5, 49), (5, 47), (5, 13))),
    same("replknet31b-small-branch", 2, 128, 56, 56, 5, 5),
    same("unireplknet-t-s3", 2, 320, 14, 14, 13, 13),
    same("unireplknet-t-s4", 2, 640, 7, 7, 13, 13, quick=True),
    same("convnext-t-s1", 2, 96, 56, 56, 7, 7, quick=True),
    same("convnext-t-s4", 2, 768, 7, 7, 7, 7),
    same("efficientnet-b0-28", 2, 240, 28, 28, 5, 5, quick=True),
    same("efficientnet-b0-7", 2, 1152, 7, 7, 5, 5),
]

#: Shapes at the edges of what the operator promises.
AWKWARD: list[Case] = [
    same("batch0", 0, 3, 8, 9, 5, 5, quick=True),
    same("batch1", 1, 17, 12, 12, 7, 7),
    same("batch3", 3, 5, 11, 13, 9, 9),
    same("batch20", 20, 2, 9, 9, 5, 5, quick=True),
    same("one-pixel", 1, 1, 1, 1, 1, 1, quick=True),
    same("one-channel", 2, 1, 17, 19, 11, 11),
    same("odd-channels", 2, 19, 10, 10, 5, 5, quick=True),
    same("channels33", 1, 33, 7, 7, 3, 3),
    same("tall", 2, 4, 41, 6, 7, 7, quick=True),
    same("wide", 2, 4, 5, 67, 7, 7),
    same("width1", 2, 3, 23, 1, 9, 9, quick=True),
    same("height1", 2, 3, 1, 23, 9, 9),
    same("kernel-exceeds-plane", 2, 3, 6, 5, 13, 15, quick=True),
    same("kernel-63", 1, 2, 20, 20, 63, 63),
    same("even-2", 2, 3, 9, 9, 2, 2),
    same("even-6x8", 2, 3, 13, 12, 6, 8, quick=True),
    same("even-30", 1, 3, 33, 34, 30, 30),
    same("rect-1x17", 2, 3, 12, 31, 1, 17),
    same("rect-17x1", 2, 3, 31, 12, 17, 1),
    same("rect-3x32", 1, 2, 9, 40, 3, 32, quick=True),
    same("pointwise", 2, 8, 7, 5, 1, 1),
    Case("valid", 2, 3, 20, 21, 7, 5, (0, 0, 0, 0), quick=True),
    Case("valid-to-one", 2, 3, 9, 7, 9, 7, (0, 0, 0, 0)),
    Case("over-padded", 2, 3, 7, 6, 3, 3, (5, 5, 6, 6)),
    Case("asymmetric", 2, 3, 11, 10, 5, 4, (0, 3, 4, 1), quick=True),
    Case("cropped", 2, 3, 16, 15, 5, 3, (-2, -1, -3, -2)),
    Case("cropped-away", 2, 3, 4, 5, 3, 3, (-5, 8, 1, 1)),
    Case("crop-and-pad", 2, 3, 16, 15, 5, 3, (-2, 6, 4, -3), quick=True),
]

CASES: list[Case] = [*(case.small() for case in LAYERS), *AWKWARD]


def by_name(*names: str) -> list[Case]:
    """Cases of `CASES` by name."""
    table = {case.name: case for case in CASES}
    return [table[name] for name in names]


def rows(cases: list[Case]) -> list[Any]:
    """Cases as parameters of a test: `make test` leaves to `make test-all` those that are not quick."""
    return [pytest.param(case, id=case.name, marks=() if case.quick else pytest.mark.slow) for case in cases]


# ---- layouts: the same values in other memory ----


def _misaligned(t: Tensor) -> Tensor:
    """Contiguous, but one element off any alignment."""
    return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t)


def _channels_last_slice(t: Tensor) -> Tensor:
    """Channels 1..C of a channels_last tensor with C + 2 channels: pixels are not adjacent."""
    n, c, h, w = t.shape
    wide = torch.full((n, c + 2, h, w), float("nan"), dtype=t.dtype, device=t.device)
    return wide.contiguous(memory_format=torch.channels_last)[:, 1 : c + 1].copy_(t)


def _every_other_column(t: Tensor) -> Tensor:
    wide = torch.full((*t.shape[:3], 2 * t.shape[3]), float("nan"), dtype=t.dtype, device=t.device)
    return wide[..., ::2].copy_(t)


#: Name -> a function that gives the values of a contiguous 4-D tensor in that layout.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t.contiguous(),
    "nhwc": lambda t: t.contiguous(memory_format=torch.channels_last),
    "misaligned": _misaligned,
    "nhwc-slice": _channels_last_slice,
    "columns": _every_other_column,
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch-last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


# ---- operands ----


@dataclass
class Operands:
    """Contiguous operands of one case, all of one dtype."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    grad: Tensor

    def to(self, dtype: torch.dtype) -> Operands:
        """All four in another dtype."""
        return Operands(self.x.to(dtype), self.weight.to(dtype), self.bias.to(dtype), self.grad.to(dtype))


def operands(case: Case, kind: str) -> Operands:
    """Operands of ``case``, the same at every call.

    Args:
        case: the shapes.
        kind: ``"float64"``, ``"float32"``, ``"half"`` (values that bfloat16 and float16 both hold exactly), each
            returned in the widest dtype that it names, or ``"exact"`` (multiples of 1/32 up to 1/2: every product and
            sum is exact in float32, so any order of summation gives the same bits).
    """
    generator = torch.Generator().manual_seed(sum(map(ord, case.name + kind)))

    def draw(*size: int) -> Tensor:
        if kind == "exact":
            return torch.randint(-16, 17, size, generator=generator).to(torch.float32) / 32
        value = torch.randn(size, generator=generator, dtype=torch.float64)
        if kind == "half":
            # clamped away from bfloat16's range that float16 lacks
            return (value.sign() * value.abs().clamp(2.0**-6)).to(torch.bfloat16).to(torch.float32)
        return value if kind == "float64" else value.to(torch.float32)

    return Operands(
        draw(case.n, case.c, case.h, case.w), draw(case.c, 1, case.kh, case.kw), draw(case.c), draw(*case.output)
    )


def kind_of(dtype: torch.dtype) -> str:
    """The kind of `operands` that tests a dtype."""
    return "half" if dtype in HALVES else str(dtype).removeprefix("torch.")


def expected(pass_: str, case: Case, o: Operands, activation: str = "none", *, with_bias: bool = True) -> Tensor:
    """float64 result of a pass by the oracle."""
    if pass_ == "fwd":
        return reference.fwd(o.x, o.weight, o.bias if with_bias else None, case.padding, activation)
    if pass_ == "bwd_input":
        return reference.bwd_input(o.grad, o.weight, case.padding)
    return reference.bwd_weight(o.grad, o.x, case.padding)


def magnitude(pass_: str, case: Case, o: Operands) -> Tensor:
    """Sum of |x||w| for every output of a pass: the scale of its rounding errors."""
    return expected(pass_, case, Operands(o.x.abs(), o.weight.abs(), o.bias.abs(), o.grad.abs()))


# ---- tolerances ----


@dataclass(frozen=True)
class Tolerance:
    """Allowed error of a dtype.

    float64, float32: |error| <= ``ulps`` * eps * sum of |x||w|, for each output, of the operands of `operands`. Sums of
    one sign err more: `tests.ops.test_values.test_rounding_of_sums_of_one_sign`.
    halves: max |error| <= ``of_torch`` * max |error of torch's own result in that dtype| + one rounding of the largest
    result.
    by FFT: |error| <= ``of_plane`` * the largest sum of |x||w| of its plane, + one rounding of a 16-bit result.
    """

    ulps: float | None = None
    of_torch: float | None = None
    of_plane: float | None = None


TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(ulps=8),  # the oracle rounds, too
    torch.float32: Tolerance(ulps=4),
    torch.bfloat16: Tolerance(of_torch=2),
    torch.float16: Tolerance(of_torch=2),
}

#: float32 on tensor cores, in float32's eps as for ieee. tf32 rounds both operands by up to 2^-11 of their size: 2^-10
#: of a product, 8192 eps. bf16x3 drops lo * lo (2^-16) and the rests of both operands (2^-17 each): 2^-15, 256 eps.
#: The remainder is for sums in float32.
PRECISIONS: dict[str, Tolerance] = {
    "ieee": TOLERANCES[torch.float32],
    "tf32": Tolerance(ulps=8192 + 16),
    "bf16x3": Tolerance(ulps=256 + 16),
}

#: By FFT, float32 inside. On the layers of the papers it also holds of the plane's largest result and in the norm.
FFT_TOLERANCE = Tolerance(of_plane=1e-6)


def assert_close_by_fft(actual: Tensor, wanted: Tensor, scale: Tensor) -> None:
    """Hold ``actual`` to `FFT_TOLERANCE`; ``scale``: sum of |x||w|. The last two axes are a plane."""
    assert actual.shape == wanted.shape, f"shape {tuple(actual.shape)}, wanted {tuple(wanted.shape)}"
    if actual.numel() == 0:
        return
    assert bool(torch.isfinite(actual).all()), "not finite"
    assert FFT_TOLERANCE.of_plane is not None
    largest = scale.amax((-2, -1), keepdim=True)
    error = (actual.double() - wanted).abs()
    if actual.dtype in HALVES:  # and the rounding of what is within the tolerance
        rounding = torch.finfo(actual.dtype).eps / 2 * (wanted.abs() + FFT_TOLERANCE.of_plane * largest)
        error = (error - rounding.clamp_min(torch.finfo(actual.dtype).smallest_normal * 2**-10)).clamp_min(0)
    worst = (error / largest.clamp_min(torch.finfo(torch.float64).tiny)).max().item()
    assert worst <= FFT_TOLERANCE.of_plane, f"error is {worst:.2g} of the plane's largest sum |x||w|"


def assert_close(
    actual: Tensor,
    wanted: Tensor,
    *,
    scale: Tensor | None = None,
    torch_result: Tensor | None = None,
    precision: str = "ieee",
) -> None:
    """Hold ``actual`` to `TOLERANCES` of its dtype, float32 to those of its precision.

    Args:
        actual: the result under test.
        wanted: float64 oracle.
        scale: sum of |x||w| (float64 and float32).
        torch_result: what torch computes in this dtype (halves).
        precision: of float32, a key of `PRECISIONS`.
    """
    assert actual.shape == wanted.shape, f"shape {tuple(actual.shape)}, wanted {tuple(wanted.shape)}"
    if actual.numel() == 0:
        return
    assert bool(torch.isfinite(actual).all()), "not finite"
    tolerance = PRECISIONS[precision] if actual.dtype == torch.float32 else TOLERANCES[actual.dtype]
    error = (actual.double() - wanted).abs()
    eps = torch.finfo(actual.dtype).eps
    if tolerance.ulps is not None:
        assert scale is not None
        worst = (error / (eps * scale).clamp_min(torch.finfo(torch.float64).tiny)).max().item()
        assert worst <= tolerance.ulps, f"error is {worst:.2f} ulp of sum |x||w|, allowed {tolerance.ulps}"
    else:
        assert torch_result is not None
        assert tolerance.of_torch is not None
        of_torch = (torch_result.double() - wanted).abs().max().item()
        allowed = tolerance.of_torch * of_torch + eps / 2 * wanted.abs().max().item()
        assert error.max().item() <= allowed, f"error {error.max():.3g}, allowed {allowed:.3g} (torch {of_torch:.3g})"


def assert_same_bits(actual: Tensor, wanted: Tensor) -> None:
    """Equal values, NaN where NaN, equal dtype and shape."""
    assert actual.dtype == wanted.dtype
    torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)


def assert_format(actual: Tensor, pass_: str, o: Operands) -> None:
    """The memory format that conv2d gives: channels_last if either operand is; weight gradients are contiguous."""
    laid = {"fwd": (o.x, o.weight), "bwd_input": (o.grad, o.weight)}.get(pass_, ())
    either = torch.channels_last in map(torch._prims_common.suggest_memory_format, laid)
    wanted = torch.channels_last if either else torch.contiguous_format
    assert actual.stride() == torch.empty(actual.shape, memory_format=wanted).stride(), pass_
