"""How a tensor core computes a depthwise convolution: the Toeplitz product of csrc/cuda, step by step on the CPU.

A filter that slides along a row is a banded Toeplitz matrix: its entry for output column i and input column j is
w[j - i + padding]. A tensor core multiplies small dense blocks, m16n8k16: D[16, 8] += A[16, 16] @ B[16, 8]. So the
matrix is cut into blocks. A block depends only on the distance between its output and its input, not on where they
are: a few blocks serve the whole plane.

    python -m examples.toeplitz_walkthrough
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def chunks(x: Tensor, first_row: int) -> Tensor:
    """Planes [n, h, w] as [rows, chunks of 8 columns, 8, n], zeros around them; row 0 is -first_row of the image."""
    n, h, w = x.shape
    x = F.pad(x, (0, -w % 8, first_row, (h + first_row) % 2))
    return x.reshape(n, x.shape[1], -1, 8).permute(1, 2, 3, 0)


def toeplitz_blocks(weight: Tensor) -> dict[tuple[int, int], Tensor]:
    """A of every (row pair offset k, chunk offset d) that holds a tap: m = 2 rows x 8 columns out, k = 2 x 8 in."""
    size, pad = weight.shape[0], weight.shape[0] // 2
    r, i, s, j = torch.meshgrid(*map(torch.arange, (2, 8, 2, 8)), indexing="ij")
    blocks = {}
    for k in range(-1, size // 2 + 2):
        for d in range(-size // 8 - 1, size // 8 + 2):
            ky, kx = 2 * k + s - r, 8 * d + j - i + pad
            taps = (ky >= 0) & (ky < size) & (kx >= 0) & (kx < size)
            if taps.any():
                block = torch.where(taps, weight[ky.clamp(0, size - 1), kx.clamp(0, size - 1)], 0)
                blocks[k, d] = block.reshape(16, 16)
    return blocks


def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
    """The output [n, h, w] of one channel, "same" padding, odd square filter; and how many MMAs that took."""
    (n, h, w), pad = x.shape, weight.shape[0] // 2
    b = chunks(x, pad % 2)  # input pairs start at row -1 if the padding is odd: then ky = 2 k + s - r for every pair
    blocks, pairs, count = toeplitz_blocks(weight), b.shape[0] // 2, 0
    out = torch.zeros((h + 1) // 2, b.shape[1], 16, n)  # the sums D, [2 rows x 8 columns, n images] per tile
    for p in range(out.shape[0]):
        for c in range(out.shape[1]):
            for (k, d), a in blocks.items():
                q = p + k - pad // 2  # the input pair that this block meets; outside the image there is no work
                if 0 <= q < pairs and 0 <= c + d < b.shape[1]:
                    out[p, c] += a @ b[2 * q : 2 * q + 2, c + d].reshape(16, n)
                    count += 1
    rows = out.reshape(*out.shape[:2], 2, 8, n).permute(4, 0, 2, 1, 3).reshape(n, 2 * out.shape[0], -1)
    return rows[:, :h, :w], count


def weight_gradient(x: Tensor, grad: Tensor, size: int) -> Tensor:
    """bwd_weight: A = 2 rows x 8 columns of grad, B = 8 columns of an input row, summed over images and positions."""
    a, b, pad = chunks(grad, 0), chunks(x, 0), size // 2
    dw = torch.zeros(size, size)
    r, i, j = torch.meshgrid(*map(torch.arange, (2, 8, 8)), indexing="ij")
    for dy in range(size + 1):  # input row - first output row + padding
        for d in range(-size // 8 - 1, size // 8 + 2):
            acc = torch.zeros(16, 8)  # stays in registers over the whole plane
            for p in range(a.shape[0] // 2):
                y = 2 * p + dy - pad
                for c in range(max(0, -d), min(a.shape[1], b.shape[1] - d) if 0 <= y < b.shape[0] else 0):
                    acc += a[2 * p : 2 * p + 2, c].reshape(16, -1) @ b[y, c + d].T
            ky, kx = dy - r, 8 * d + j - i + pad  # one tap per diagonal
            taps = (ky >= 0) & (ky < size) & (kx >= 0) & (kx < size)
            dw.index_put_((ky[taps], kx[taps]), acc.reshape(2, 8, 8)[taps], accumulate=True)
    return dw


def main(size: int = 28, kernel: int = 13) -> bool:
    """Prints each step; whether both passes equal the direct convolution in float64 exactly (small integers)."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randint(-2, 3, (16, size, size), generator=generator).float() for _ in range(2))
    weight = torch.randint(-2, 3, (kernel, kernel), generator=generator).float()
    blocks = toeplitz_blocks(weight)
    print(f"input   {tuple(x.shape)} (images, rows, columns) of one channel, filter {tuple(weight.shape)}")
    print(f"B       {tuple(chunks(x, 0).shape)} (rows, chunks, columns of a chunk, images): k = 2 rows x 8 columns")
    print(f"A       {len(blocks)} blocks of (16, 16); one quarter of the one at distance 0:")
    print("\n".join(" ".join(f"{v:3.0f}" for v in row) for row in blocks[kernel // 4, 0][:8, :8]))
    exact_weight = weight.double()[None, None].requires_grad_()
    expected = F.conv2d(x.double()[:, None], exact_weight, padding=kernel // 2)
    (expected_dw,) = torch.autograd.grad(expected, exact_weight, grad.double()[:, None])
    found, count = forward(x, weight)
    inside = F.conv1d(torch.ones(1, 1, size), torch.ones(1, 1, kernel), padding=kernel // 2).sum().item() ** 2
    useful = inside / (count * 256)
    print(
        f"forward {count} products of (16, 16) by (16, images); {useful:.0%} of their terms are taps inside the image"
    )
    right = torch.equal(found.double(), expected[:, 0].detach())
    print(f"        equal to the direct convolution in float64: {right}")
    dw = weight_gradient(x, grad, kernel)
    right_dw = torch.equal(dw.double(), expected_dw[0, 0])
    print(f"weight  gradient {tuple(dw.shape)}, each tap a diagonal of (16, 8) sums; equal: {right_dw}")
    return right and right_dw


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
