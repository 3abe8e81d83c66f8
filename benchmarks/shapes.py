"""The layers that the benchmarks and the performance model measure and predict."""

from __future__ import annotations

from dataclasses import dataclass

from replknet_ext.models import ARCHS, RepLKNetConfig

PASSES = ("fwd", "bwd_input", "bwd_weight")
TRAINING = "fwd+bwd"  # all three as one, through autograd: what the table measures beside `PASSES`


@dataclass(frozen=True)
class Layer:
    """A depthwise layer of stride 1, padded by half a kernel on every side: "same" for odd kernels."""

    n: int
    c: int
    h: int
    w: int
    kh: int
    kw: int

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros on each side."""
        return self.kh // 2, self.kw // 2

    @property
    def output(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        return self.h + 2 * (self.kh // 2) - self.kh + 1, self.w + 2 * (self.kw // 2) - self.kw + 1

    @property
    def name(self) -> str:
        kernel = f"{self.kh}" if self.kh == self.kw else f"{self.kh}x{self.kw}"
        return f"N{self.n} C{self.c} {self.h}x{self.w} K{kernel}"


def taps(size: int, kernel: int) -> int:
    """(output, tap) pairs along one axis of a layer whose tap lies inside the image."""
    pad = kernel // 2
    return sum(min(size, out - pad + kernel) - max(0, out - pad) for out in range(size + 2 * pad - kernel + 1))


def clipped_flop(layer: Layer) -> int:
    """Multiplications and additions of taps inside the image; the same for all three passes."""
    return 2 * layer.n * layer.c * taps(layer.h, layer.kh) * taps(layer.w, layer.kw)


def square(n: int, c: int, size: int, kernel: int) -> Layer:
    """A layer with square planes and kernel."""
    return Layer(n, c, size, size, kernel, kernel)


def stages(n: int, arch: RepLKNetConfig, pixels: int) -> list[Layer]:
    """The large-kernel layers of a network's stages for square images of `pixels`."""
    rows = zip(arch.dw_channels, arch.reductions, arch.large_kernel_sizes, strict=True)
    return [square(n, c, pixels // reduction, k) for c, reduction, k in rows]


K56, K28, K14, K7 = MAIN = tuple(stages(64, ARCHS["31B"], 224))
LARGE = square(64, 128, 96, 31)
SMALL_KERNEL = square(64, 128, 56, 7)

#: Name -> layers measured in one process. "main" is RepLKNet-31B at 224 x 224; the others follow by importance.
GROUPS: dict[str, list[Layer]] = {
    "main": list(MAIN),
    "large and small": [LARGE, SMALL_KERNEL],
    "small batches": [square(1, 128, 56, 31), square(8, 128, 56, 31), square(20, 128, 56, 31)],
    "31B at 384": stages(64, ARCHS["31B"], 384)[1:],
    "XL at 384": stages(16, ARCHS["XL"], 384),
    "stripes": [Layer(64, 124, 56, 56, 51, 5), Layer(64, 124, 56, 56, 5, 51)],
    "XL at 320": stages(16, ARCHS["XL"], 320),
    "ring and wgmma": [K56, LARGE, square(64, 256, 48, 29), K28],  # on wide planes the one or the other
    # What NVIDIA publishes of its fused FFT convolution: filters of twice the map, less one
    "powers of two": [square(8, 768, size, 2 * size - 1) for size in (16, 32, 64)],
    # What WBMM (arXiv 2607.02097) replaces by products inside windows: gpu_rivals.py
    "windows": [square(64, 128, 56, 13), K56],
}


@dataclass(frozen=True)
class Numbers:
    """What the operands are and how exact the arithmetic is."""

    dtype: str  # of the tensors
    precision: str  # of float32, "ieee" otherwise
    error: float  # largest relative error (of norms) that counts as right

    @property
    def element(self) -> int:
        """Bytes of a value."""
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)


#: By the name that the tables use. Half of a 16-bit type's error is the rounding of the result alone.
NUMBERS = {
    "bfloat16": Numbers("bfloat16", "ieee", 1e-2),
    "float16": Numbers("float16", "ieee", 2e-3),
    "float32": Numbers("float32", "ieee", 1e-5),
    "tf32": Numbers("float32", "tf32", 2e-3),
    "bf16x3": Numbers("float32", "bf16x3", 1e-4),
    "float64": Numbers("float64", "ieee", 1e-13),
}

#: Microseconds with a cold L2 that the design set as goals for an H200: (layer, pass, numbers). bwd_input has fwd's.
GOALS_US: dict[tuple[Layer, str, str], float] = {
    (layer, pass_, numbers): us
    for passes, numbers, goals in (
        (PASSES[:2], "bfloat16", {K56: 92, K28: 31, K14: 7.5, K7: 4.8, LARGE: 310, SMALL_KERNEL: 27}),
        (PASSES[2:], "bfloat16", {K56: 96, K28: 32, K14: 9, K7: 5}),
        (PASSES[:2], "float32", {K56: 150}),
        (PASSES[:2], "tf32", {K56: 200}),
        (PASSES[:2], "bf16x3", {K56: 300}),
    )
    for layer, us in goals.items()
    for pass_ in passes
}


def all_layers() -> list[Layer]:
    """Every layer once, in the order of `GROUPS`."""
    return list(dict.fromkeys(layer for group in GROUPS.values() for layer in group))
