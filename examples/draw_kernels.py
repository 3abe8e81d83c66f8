"""The drawings of docs/kernels.md, docs/images/toeplitz.svg and fft.svg: `python -m examples.draw_kernels [FOLDER]`.

The coloured cells are blocks of `toeplitz_walkthrough`, so the drawing shows what the kernels use.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from .toeplitz_walkthrough import toeplitz_blocks

KERNEL, WIDTH, CHUNK, IMAGES = 5, 24, 8, 8
#: One colour for each tap of the filter, one for each distance between output and input chunk.
TAPS = ["#c6dbef", "#9ecae1", "#6baed6", "#3182bd", "#08519c"]
DISTANCES = {-1: "#b35806", 0: "#1b7837", 1: "#762a83"}
INK, PALE = "#222222", "#f3f4f6"


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle", colour: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def box(x: float, y: float, w: float, h: float, fill: str = "none", line: str = INK, width: float = 1) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{line}" '
        f'stroke-width="{width:g}"/>'
    )


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{INK}" stroke-width="1.5" '
        f'marker-end="url(#head)"/>'
    )


def page(width: int, height: int, title: str, parts: list[str]) -> str:
    head = (
        f'<marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        f'<path d="M0,0 L6,3 L0,6 z" fill="{INK}"/></marker>'
    )
    body = "\n".join([f"<title>{title}</title>", f"<defs>{head}</defs>", box(0, 0, width, height, "#ffffff", "none")])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif">\n{body}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def row_blocks() -> dict[int, torch.Tensor]:
    """The (8, 8) block of each distance for one filter row; values: 1 + the tap's number, or 0."""
    taps = torch.zeros(KERNEL, KERNEL)
    taps[KERNEL // 2] = torch.arange(1, KERNEL + 1)
    blocks = toeplitz_blocks(taps)
    middle = [(k, d) for k, d in blocks if k == KERNEL // 2 // 2]  # rows 0 of a pair meet the middle filter row there
    return {d: blocks[k, d][:CHUNK, :CHUNK] for k, d in middle if blocks[k, d][:CHUNK, :CHUNK].any()}


def toeplitz() -> str:
    """A row of the output as a banded matrix times the row of the input, one column for each image."""
    cell, left, top = 12, 60, 70
    side = cell * CHUNK
    blocks = row_blocks()
    parts = [text(left + 1.5 * side, 26, "A: the filter, a banded matrix", 15)]
    parts.append(text(left + 1.5 * side, 50, "rows: output columns; columns: input columns"))
    for chunk in range(WIDTH // CHUNK):
        parts.append(text(left - 10, top + (chunk + 0.55) * side, f"{CHUNK * chunk}...{CHUNK * chunk + 7}", 11, "end"))
        for other in range(WIDTH // CHUNK):
            x, y, d = left + other * side, top + chunk * side, other - chunk
            if d not in blocks:
                parts += [box(x, y, side, side, PALE, "#cccccc"), text(x + side / 2, y + side / 2, "no work", 12)]
                continue
            for i in range(CHUNK):
                for j in range(CHUNK):
                    tap = int(blocks[d][i, j])
                    fill = TAPS[tap - 1] if tap else "#ffffff"
                    parts.append(box(x + j * cell, y + i * cell, cell, cell, fill, "#dddddd", 0.5))
    for chunk in range(WIDTH // CHUNK):  # outlines and names over all cells
        for other in range(WIDTH // CHUNK):
            x, y, d = left + other * side, top + chunk * side, other - chunk
            if d in blocks:
                parts.append(box(x + 1.5, y + 1.5, side - 3, side - 3, "none", DISTANCES[d], 3))
                label_x, label_y = (x + 24, y + side - 10) if d <= 0 else (x + side - 24, y + 20)
                parts.append(text(label_x, label_y, f"d={d}", 12, colour=DISTANCES[d]))
    operands = (("x", 1, "B: the input", "8 images"), ("=", 2, "D: the output", "the same 8"))
    for sign, place, name, below in operands:
        x = left + 3 * side + 50 + (place - 1) * (cell * IMAGES + 60)
        parts.append(text(x - 25, top + 1.5 * side + 6, sign, 22))
        parts += [text(x + cell * IMAGES / 2, 26, name, 15), text(x + cell * IMAGES / 2, 50, below)]
        for chunk in range(WIDTH // CHUNK):
            parts.append(box(x, top + chunk * side, cell * IMAGES, side, PALE, INK, 1))
    x = left
    parts.append(text(x, top + 3 * side + 34, "taps of one filter row:", 13, "start"))
    for number, colour in enumerate(TAPS):
        parts.append(box(x + 150 + 62 * number, top + 3 * side + 20, 18, 18, colour))
        parts.append(text(x + 174 + 62 * number, top + 3 * side + 34, f"w{number}", 13, "start"))
    parts.append(
        text(
            x, top + 3 * side + 64, "Blocks with the same d are equal: three of them serve the whole row.", 14, "start"
        )
    )
    return page(720, top + 3 * side + 85, "A filter row as a banded Toeplitz matrix cut into blocks", parts)


def fft() -> str:
    """One plane through the fused kernel, and the filter's spectrum that all images of a channel share."""
    side, top, gap = 110, 60, 62
    xs = [20 + number * (side + gap) for number in range(4)]
    half = side * 0.56
    parts = [box(xs[0], top, side, side, PALE), box(xs[0] + 16, top + 16, 68, 68, TAPS[1])]
    parts += [text(xs[0] + side / 2, 26, "one plane", 15), text(xs[0] + side / 2, 47, "zeros up to L x L")]
    parts += [text(xs[0] + 50, top + 55, "H x W")]
    parts += [box(xs[1] + 24, top, half, side, TAPS[2]), text(xs[1] + 24 + half / 2, 26, "its spectrum", 15)]
    parts += [text(xs[1] + 24 + half / 2, 47, "half: the plane is real")]
    parts += [box(xs[2] + 24, top, half, side, TAPS[3]), text(xs[2] + 24 + half / 2, 26, "product", 15)]
    parts += [box(xs[3], top, side, side, PALE), box(xs[3] + 16, top + 16, 68, 68, TAPS[1])]
    parts += [text(xs[3] + side / 2, 26, "the output", 15), text(xs[3] + side / 2, 47, "the rim is not kept")]
    parts += [text(xs[3] + 50, top + 55, "Ho x Wo")]
    middle = top + side / 2
    ends = [(xs[0] + side, xs[1] + 24), (xs[1] + 24 + half, xs[2] + 24), (xs[2] + 24 + half, xs[3])]
    for (start, end), words in zip(ends, ("FFT", "x", "inverse"), strict=True):
        parts.append(arrow(start + 6, middle, end - 6, middle))
        parts.append(text((start + end) / 2, middle - 10, words))
    low = top + side + 60
    parts += [box(xs[0] + 30, low + 25, 40, 40, TAPS[4]), text(xs[0] + 50, low + 85, "filter, K x K")]
    parts += [box(xs[1] + 24, low, half, side, TAPS[2]), text(xs[1] + 24 + half / 2, low + side + 20, "its spectrum")]
    parts += [arrow(xs[0] + 80, low + 45, xs[1] + 18, low + 45), text((xs[0] + 70 + xs[1] + 24) / 2, low + 35, "FFT")]
    parts.append(arrow(xs[1] + 24 + half + 6, low + 40, (ends[1][0] + ends[1][1]) / 2, middle + 12))
    parts.append(text(xs[2] - 4, low + 62, "computed once per channel:", 14, "start"))
    parts.append(text(xs[2] - 4, low + 82, "every image of the batch uses it", 14, "start"))
    return page(xs[3] + side + 20, low + side + 40, "A plane through the FFT kernel", parts)


def main(folder: Path) -> None:
    for name, drawing in (("toeplitz", toeplitz()), ("fft", fft())):
        (folder / f"{name}.svg").write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
