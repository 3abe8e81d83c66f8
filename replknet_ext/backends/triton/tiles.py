"""Tile sizes of the Triton kernels, chosen by a small model of their time. Needs neither triton nor a GPU.

The model counts, for a whole launch on one SM's share: products at a tensor core rate, bytes read through L2, and
starts of programs. Its constants are those of an H200; they rank tiles well enough elsewhere. The `variant` of the raw
ops is a tile's place in `forward_tiles` or `weight_tiles`, which the tuner measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

SMS = 132
MACS_PER_CYCLE = {"half": 2048, "tf32": 1024, "bf16x3": 680, "ieee": 100}  # dense products per SM
FMAS_PER_CYCLE = 64.0  # of 128: the rest is loads and masks
L2_BYTES_PER_CYCLE = 40.0  # per SM
MEMORY_BYTES_PER_CYCLE = 18.0  # an SM's share of HBM
STEP_CYCLES = 40.0  # barriers of one step, which nothing hides
STEP_INSTRUCTIONS, LOAD_INSTRUCTIONS = 60, 7  # per warp: of the step itself, and per load (counted in SASS)
START_CYCLES = 2500.0  # start, first loads, epilogue
LAUNCH_CYCLES = 5000.0
SHARED_BYTES = 96 << 10  # of one block, so that two fit an SM; every GPU that these kernels run on has it
MAX_WORKSPACE = 256 << 20


class Sizes(NamedTuple):
    """The convolution that runs: bwd_input is one over its output gradient."""

    n: int
    c: int
    h: int
    w: int
    kh: int
    kw: int
    ho: int
    wo: int
    top: int
    left: int


class Toeplitz(NamedTuple):
    """Constants of `toeplitz_fwd.toeplitz_fwd`; names as there."""

    BI: int
    G: int
    R: int
    BX: int
    KR: int
    BXI: int
    TABLE: bool
    num_warps: int
    num_stages: int


class Sliding(NamedTuple):
    """Constants of `sliding_fwd.sliding_fwd`; names as there."""

    R: int
    P: int
    Q: int
    num_warps: int


class Weight(NamedTuple):
    """Constants of `toeplitz_weight.toeplitz_weight`; ``whole``: one column tile holds the plane; names as there."""

    BI: int
    BQ: int
    G: int
    R: int
    BX: int
    BXI: int
    whole: bool
    splits: int
    num_warps: int
    num_stages: int


Tile = Toeplitz | Sliding | Weight
AnyTile = TypeVar("AnyTile", bound=Tile)

#: For tests: (pass, sizes, dtype, precision) -> a tile, or None for the model's choice. Set it before the first call of
#: a shape: choices are cached.
override: Callable[[str, Sizes, str, str], Toeplitz | Sliding | Weight | None] | None = None


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def power_of_2(size: int) -> int:
    """The smallest power of two >= `size`."""
    return 1 << max(0, size - 1).bit_length()


def _rate(precision: str, dtype: str) -> str:
    return precision if dtype == "float32" else "half"


def _issue(loads: float, warps: int) -> float:
    """Cycles in which an SM's four schedulers issue a step of `loads` elements or vectors."""
    return (STEP_INSTRUCTIONS + LOAD_INSTRUCTIONS * loads / (32 * warps)) * warps / 4


def _warps(sums: int, loads: int) -> int:
    """Warps whose registers hold this many sums and the addresses of this many loads."""
    return 8 if sums >= 64 * 256 or loads > 24 * 128 else 4


def _stages(sums: int, stage: int, epilogue: int, shared: int) -> int:
    """Buffers of `stage` bytes for the pipeline; 0 if the tile, or its sums on their way out, do not fit."""
    budget = SHARED_BYTES if sums <= 64 * 256 else max(SHARED_BYTES, shared - (32 << 10))
    stages = min(4, budget // stage)
    return stages if stages >= 2 and epilogue <= shared else 0


def unit(element: int, *sizes: int) -> int:
    """Elements of the widest load that plane widths allow: 16 bytes at most."""
    return math.gcd(16 // element, *sizes)


# ---- forward ----


def forward_steps(sizes: Sizes, t: Toeplitz) -> tuple[int, int, int]:
    """(programs of a channel, steps of all programs of a channel, steps of the longest)."""
    rows, cols = cdiv(sizes.ho, t.R * t.G), cdiv(sizes.wo, t.BX)
    images = cdiv(sizes.n, t.BI)
    row_steps = []
    for tile in range(rows):
        y0 = tile * t.R
        first = max(0, sizes.top - y0 - (t.G - 1) * t.R * rows)
        row_steps.append(max(0, cdiv(min(t.R + sizes.kh - 1, sizes.h + sizes.top - y0) - first, t.KR)))
    col_steps = []
    for tile in range(cols):
        x0 = tile * t.BX
        first = max(0, x0 - sizes.left) // 8 * 8
        end = min(sizes.w, min(x0 + t.BX, sizes.wo) + sizes.kw - 1 - sizes.left)
        col_steps.append(max(0, cdiv(end - first, t.BXI)))
    return rows * cols * images, sum(row_steps) * sum(col_steps) * images, max(row_steps) * max(col_steps)


def forward_step_cycles(sizes: Sizes, t: Toeplitz, element: int, rate: str) -> dict[str, float]:
    """What bounds a step: products, and bytes through L2 of the input and of the band of the filter."""
    m, n, k = t.BI * t.G, t.R * t.BX, t.KR * t.BXI
    # Narrow tiles do not fill the tensor pipe: fragments are loaded for few products.
    macs = max(m, 32) * max(n, 32) * k / (MACS_PER_CYCLE[rate] * (0.8 if m * n >= 128 * 128 else 0.5))
    left = m * t.KR * max(32, min(t.BXI, sizes.w) * element)  # at least one sector is read
    right = k * t.R * min(t.BX, sizes.kw + 8) * element
    loads = m * k / min(t.BXI, unit(element, sizes.w)) + k * n * (element / 16 if t.TABLE else 1)
    return {"products": macs, "l2": (left + right) / L2_BYTES_PER_CYCLE, "issue": _issue(loads, t.num_warps)}


def forward_cycles(sizes: Sizes, t: Toeplitz, element: int, rate: str) -> float:
    """Predicted cycles of the launch, the table's included."""
    programs, steps, longest = forward_steps(sizes, t)
    parts = forward_step_cycles(sizes, t, element, rate)
    step = max(parts.values()) + STEP_CYCLES
    total = sizes.c * (steps * step + programs * START_CYCLES / 2) / SMS
    tail = longest * step + START_CYCLES
    table = 0.0
    if t.TABLE:
        table = (
            LAUNCH_CYCLES + 2 * sizes.c * sizes.kh * 8 * table_row(sizes.kw) * element / SMS / MEMORY_BYTES_PER_CYCLE
        )
    moved = element * sizes.n * sizes.c * (sizes.h * sizes.w + sizes.ho * sizes.wo) / SMS / MEMORY_BYTES_PER_CYCLE
    return LAUNCH_CYCLES + table + max(total, moved) + min(tail, total)


def table_row(kw: int) -> int:
    """Elements of a row of the filter table."""
    return table_origin(kw) + 8


def table_origin(kw: int) -> int:
    """Where tap 0 of copy 0 lies in a row of the filter table: a multiple of eight."""
    return cdiv(kw - 1, 8) * 8


def _forward_tiles(sizes: Sizes, element: int, shared: int) -> Iterator[Toeplitz]:
    images, wide = power_of_2(sizes.n), max(8, power_of_2(sizes.wo))
    k_max = 128 // element
    for m in (32, 64, 128):
        bi = min(m, images)
        if m > 32 and m // bi > 4 * power_of_2(sizes.ho):
            continue
        for bx in (b for b in (8, 16, 32, 64) if b <= wide):
            for n in (32, 64, 128, 256):
                r = n // bx
                if r < 1 or r > max(4, power_of_2(sizes.ho)) or m * n > 128 * 256:
                    continue
                for bxi in (b for b in (8, 16, 32, 64) if b <= k_max and b <= max(16, power_of_2(sizes.w))):
                    for k in (16, 32, 64):
                        if k < bxi or k > k_max or k // bxi > power_of_2(sizes.h):
                            continue
                        stages = _stages(m * n, (m + n) * k * element, m * n * element, shared)
                        if not stages:
                            continue
                        loads = m * k // min(bxi, unit(element, sizes.w)) + k * n * element // 16
                        warps = _warps(m * n, loads)
                        tile = Toeplitz(bi, m // bi, r, bx, k // bxi, bxi, True, warps, stages)
                        yield tile
                        if sizes.w <= 8 and forward_steps(sizes, tile)[2] <= 2:
                            yield tile._replace(TABLE=False)


def _toeplitz_tiles(sizes: Sizes, dtype: str, precision: str, shared: int) -> list[tuple[Toeplitz, float]]:
    element, rate = 4 if dtype == "float32" else 2, _rate(precision, dtype)
    return [(tile, forward_cycles(sizes, tile, element, rate)) for tile in _forward_tiles(sizes, element, shared)]


@lru_cache(maxsize=4096)
def toeplitz(sizes: Sizes, dtype: str, precision: str, shared: int = SHARED_BYTES) -> Toeplitz:
    """The best tile of the tensor core form."""
    return min(_toeplitz_tiles(sizes, dtype, precision, shared), key=lambda pair: pair[1])[0]


def sliding(sizes: Sizes, dtype: str, channels_last: bool) -> Sliding:
    """Tile of the form without tensor cores: about 8 sums and 1 or 2 columns per thread."""
    rows = 8 if sizes.ho >= 6 else power_of_2(sizes.ho)
    if channels_last:
        lanes = min(64, max(8, power_of_2(sizes.c)))
        return Sliding(rows, max(1, min(512 // lanes, power_of_2(sizes.wo))), lanes, 4)
    columns = min(64, power_of_2(sizes.wo))
    return Sliding(rows, max(1, min(512 // columns, power_of_2(sizes.n))), columns, 4)


def sliding_cycles(sizes: Sizes, t: Sliding, element: int) -> float:
    """Predicted cycles of `sliding_fwd.sliding_fwd` in NCHW."""
    steps = 0
    rows, cols = cdiv(sizes.ho, t.R), cdiv(sizes.wo, t.Q)
    for tile in range(rows):
        y0 = tile * t.R
        steps += max(0, min(t.R + sizes.kh - 1, sizes.h + sizes.top - y0) - max(0, sizes.top - y0))
    lanes = t.P * t.Q
    fmas = steps * sizes.kw * t.R * lanes / FMAS_PER_CYCLE
    loads = steps * sizes.kw * (lanes / 32 + t.R * t.num_warps)  # one per warp and cycle
    blocks = cols * cdiv(sizes.n, t.P) * sizes.c
    total = blocks * (max(fmas, loads) + rows * START_CYCLES / 4) / SMS
    moved = element * sizes.n * sizes.c * (sizes.h * sizes.w + sizes.ho * sizes.wo) / SMS / MEMORY_BYTES_PER_CYCLE
    return LAUNCH_CYCLES + max(total, moved)


def copy_cycles(sizes: Sequence[int], element: int) -> float:
    """Predicted cycles of copying input and output into another memory format: four more trips through memory."""
    n, c, h, w, _, _, ho, wo = sizes[:8]
    moved = element * n * c * (h * w + ho * wo)
    return 2 * LAUNCH_CYCLES + 2 * moved / SMS / MEMORY_BYTES_PER_CYCLE


@lru_cache(maxsize=512)
def forward_tiles(
    sizes: Sizes, dtype: str, precision: str, channels_last: bool = False, shared: int = SHARED_BYTES
) -> tuple[tuple[Toeplitz | Sliding, float], ...]:
    """Kernels and tiles of fwd and bwd_input with their predicted cycles, the best first.

    Strict float32 has no tensor cores; small filters may not need them. The tensor core form takes copies of
    channels_last operands.
    """
    element = 4 if dtype == "float32" else 2
    slide = sliding(sizes, dtype, channels_last)
    slow = (slide, sliding_cycles(sizes, slide, element))
    if dtype == "float32" and precision == "ieee":
        return (slow,)
    copies = copy_cycles(sizes, element) if channels_last else 0.0
    tiles = [(tile, cycles + copies) for tile, cycles in _toeplitz_tiles(sizes, dtype, precision, shared)]
    return tuple(sorted([*tiles, slow], key=lambda pair: pair[1]))


@lru_cache(maxsize=4096)
def forward(
    sizes: Sizes, dtype: str, precision: str, channels_last: bool = False, shared: int = SHARED_BYTES, variant: int = -1
) -> Toeplitz | Sliding:
    """The tile of a variant; -1: the model's choice.

    Raises:
        ValueError: there is no such variant.
    """
    if override is not None and variant == -1 and (choice := override("fwd", sizes, dtype, precision)) is not None:
        assert isinstance(choice, (Toeplitz, Sliding))
        return choice
    return _numbered(forward_tiles(sizes, dtype, precision, channels_last, shared), variant)


def _numbered(tiles: Sequence[tuple[AnyTile, float]], variant: int) -> AnyTile:
    if not -1 <= variant < len(tiles):
        raise ValueError(f"variant must be -1 or a number below {len(tiles)}, the tiles for these sizes; got {variant}")
    return tiles[max(variant, 0)][0]


# ---- bwd_weight ----


def weight_offset(sizes: Sizes, t: Weight) -> int:
    """First input column less first output column of a column tile: a multiple of eight."""
    return 0 if t.whole else -sizes.left // 8 * 8


def weight_steps(sizes: Sizes, t: Weight) -> tuple[int, int, int]:
    """(blocks of filter rows, steps of all blocks of a channel, steps of the longest block)."""
    blocks = cdiv(sizes.kh, t.G * t.R)
    columns = 1 if t.whole else cdiv(sizes.wo, t.BX)
    steps = []
    for block in range(blocks):
        start = block * t.G * t.R - sizes.top
        first, end = max(0, -start - (t.R - 1)), min(sizes.ho + t.R * (t.G - 1), sizes.h - start)
        steps.append(max(0, cdiv(end - first, t.BQ)) * columns * cdiv(sizes.n, t.BI))
    return blocks, sum(steps), max(steps)


def weight_workspace(sizes: Sizes, t: Weight) -> int:
    """Floats of the partial products of one channel."""
    return t.splits * cdiv(sizes.kh, t.G * t.R) * t.G * t.BX * t.R * t.BXI


def weight_step_cycles(sizes: Sizes, t: Weight, element: int, rate: str) -> dict[str, float]:
    """What bounds a step."""
    m, n, k = t.G * t.BX, t.R * t.BXI, t.BI * t.BQ
    macs = max(m, 32) * max(n, 32) * k / (MACS_PER_CYCLE[rate] * (0.75 if m * n >= 128 * 128 else 0.5))
    bytes_ = k * element * (t.G * min(t.BX, sizes.wo) + t.R * min(t.BXI, sizes.w))
    loads = (m + n) * k / unit(element, sizes.w, sizes.wo)
    return {"products": macs, "l2": bytes_ / L2_BYTES_PER_CYCLE, "issue": _issue(loads, t.num_warps)}


def weight_cycles(sizes: Sizes, t: Weight, element: int, rate: str) -> float:
    """Predicted cycles of both launches."""
    blocks, steps, longest = weight_steps(sizes, t)
    step = max(weight_step_cycles(sizes, t, element, rate).values()) + STEP_CYCLES
    programs = sizes.c * blocks * t.splits
    work = sizes.c * steps * step + programs * START_CYCLES
    total = max(work / SMS, cdiv(longest, t.splits) * step + START_CYCLES)
    floats = sizes.c * weight_workspace(sizes, t)
    second = LAUNCH_CYCLES + (4 * floats * 1.6) / SMS / MEMORY_BYTES_PER_CYCLE + sizes.c * sizes.kh * 40 / SMS
    moved = element * sizes.n * sizes.c * (sizes.h * sizes.w + sizes.ho * sizes.wo) / SMS / MEMORY_BYTES_PER_CYCLE
    return LAUNCH_CYCLES + max(total, moved) + second


def _weight_tiles(sizes: Sizes, element: int, ieee: bool, shared: int) -> Iterator[Weight]:
    images = min(64, power_of_2(sizes.n))
    wide = max(sizes.w, sizes.wo)
    places: list[tuple[int, int, bool]] = []
    if wide <= 64:
        places.append((max(8, power_of_2(sizes.wo)), max(8, power_of_2(sizes.w)), True))
    slack = 7 if sizes.left % 8 else 0  # of rounding the offset down
    widths = [bx for bx in (8, 16, 32, 64) if bx <= power_of_2(sizes.wo) or bx == 8]
    places += [(bx, max(16, power_of_2(bx + sizes.kw - 1 + slack)), False) for bx in widths]
    largest = 64 * 64 if ieee else 128 * 256
    for bx, bxi, whole in places:
        for g in (1, 2, 4, 8):
            for r in (1, 2, 4, 8):
                m, n = g * bx, r * bxi
                if not 16 <= m <= 128 or not 16 <= n <= 256 or m * n > largest or g * r > 2 * power_of_2(sizes.kh):
                    continue
                for k in (16,) if ieee else (16, 32, 64):
                    bi = min(k, images)
                    stages = _stages(m * n, (m + n) * k * element, 4 * m * n, shared)
                    if k // bi > max(1, power_of_2(sizes.ho)) and k > 16:
                        continue
                    if stages:
                        warps = _warps(m * n, (m + n) * k // unit(element, sizes.w, sizes.wo))
                        yield Weight(bi, k // bi, g, r, bx, bxi, whole, 1, warps, stages)


@lru_cache(maxsize=512)
def weight_tiles(
    sizes: Sizes, dtype: str, precision: str, shared: int = SHARED_BYTES
) -> tuple[tuple[Weight, float], ...]:
    """Tiles of bwd_weight, and into how many ranges its sum is split, with their predicted cycles, the best first."""
    element = 4 if dtype == "float32" else 2
    rate = _rate(precision, dtype)
    tiles = []
    for tile in _weight_tiles(sizes, element, rate == "ieee", shared):
        longest = weight_steps(sizes, tile)[2]
        counts = [splits for splits in (1, 2, 4, 8, 16, 32) if splits == 1 or splits * 4 <= longest]
        tiles += [tile._replace(splits=splits) for splits in counts]
    return tuple(sorted(((t, weight_cycles(sizes, t, element, rate)) for t in tiles), key=lambda pair: pair[1]))


@lru_cache(maxsize=4096)
def weight(sizes: Sizes, dtype: str, precision: str, shared: int = SHARED_BYTES, variant: int = -1) -> Weight:
    """The tile of a variant of bwd_weight; -1: the model's choice. See `forward`."""
    if (
        override is not None
        and variant == -1
        and (choice := override("bwd_weight", sizes, dtype, precision)) is not None
    ):
        assert isinstance(choice, Weight)
        return choice
    return _numbered(weight_tiles(sizes, dtype, precision, shared), variant)


def kernel_of(tile: Tile) -> str:
    """The kernel that a tile is of."""
    return {Toeplitz: "toeplitz_fwd", Sliding: "sliding_fwd", Weight: "toeplitz_weight"}[type(tile)]


def name_of(tile: Tile) -> str:
    """The kernel and every constant of a tile: what files of measured choices hold."""
    return f"{kernel_of(tile)}({','.join(str(int(value)) for value in tile)})"


def describe(t: Tile) -> str:
    """The kernel and the tile in words."""
    if isinstance(t, Weight):
        return f"toeplitz_weight {t.G * t.BX}x{t.R * t.BXI}x{t.BI * t.BQ}, {t.splits} splits, {t.num_warps} warps"
    if isinstance(t, Sliding):
        return f"sliding_fwd {t.R} rows of {t.P}x{t.Q}, {t.num_warps} warps"
    return f"toeplitz_fwd {t.BI * t.G}x{t.R * t.BX}x{t.KR * t.BXI}, {t.num_warps} warps"
