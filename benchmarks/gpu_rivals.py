"""Routes of the GPU table beside ours, PyTorch's own kernels and cuDNN: `gpu_table --rivals KIND ...`.

* inductor: `torch.compile` of `F.conv2d` and of its backward
* fft: "torch.fft", which is rfft2, product and irfft2 in float32, and "nvidia fft", `fused_fft_conv2d` of NVIDIA's
  package subquadratic_ops_torch, where it can be imported. Both turn the filter by 180 degrees, as a convolution in the
  strict sense does, so it is given to them turned; turning it is not timed. bwd_weight alone is not measured.
* windows: another operator. WBMM (arXiv 2607.02097) gives a depthwise convolution up for a matrix product inside
  windows of 7x7 or 14x14 pixels, a matrix per channel. "bmm 7x7" is that product alone, one `torch.bmm`; "bmm 7x7 NCHW"
  also cuts the windows out of the map and puts them back.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_routes import Route, Tensors, torch_pass, training
from benchmarks.shapes import TRAINING, Layer

INDUCTOR = "inductor"  # the backend of torch.compile; a test has no time for this one
NVIDIA = "subquadratic_ops_torch"
TILES = (8, 16, 32, 64, 128)  # lengths of the transform that NVIDIA's kernel is built for; a map may have half of it
WINDOWS = (7, 14)


# ---- inductor ----


def inductor(t: Tensors, pass_: str) -> list[Route]:
    """PyTorch's convolution as its compiler arranges it."""
    torch.compiler.reset()  # else another size is taken for a dynamic one
    if pass_ == TRAINING:
        convolve = partial(F.conv2d, padding=t.layer.padding, groups=t.layer.c)
        return [Route("inductor", "torch", training(t, torch.compile(convolve, backend=INDUCTOR, fullgraph=True)))]
    compiled = torch.compile(torch_pass(t.layer, pass_), backend=INDUCTOR, fullgraph=True)

    def run(i: int) -> Tensor:
        x, grad = t.pair(i)
        result: Tensor = compiled(x, t.weight, grad)
        return result

    return [Route("inductor", "torch", run)]


# ---- FFT ----


def fft_convolution(x: Tensor, turned: Tensor) -> Tensor:
    """ "same" convolution by `torch.fft` in float32: operands and result have x's dtype."""
    (h, w), (kh, kw) = x.shape[2:], turned.shape[2:]
    size = (h + (kh + 1) // 2, w + (kw + 1) // 2)  # no end wraps around into the part that is kept
    product = torch.fft.rfft2(x.float(), s=size) * torch.fft.rfft2(turned.float().transpose(0, 1), s=size)
    whole: Tensor = torch.fft.irfft2(product, s=size)
    return whole[..., kh // 2 : kh // 2 + h, kw // 2 : kw // 2 + w].to(x.dtype)


def tile_of(layer: Layer) -> int | None:
    """Length of NVIDIA's transform for a layer, None if the layer is too large for it."""
    half = max(layer.h, layer.w, math.ceil(layer.kh / 2), math.ceil(layer.kw / 2))
    return next((tile for tile in TILES if tile >= 2 * half), None)


def nvidia_convolution(layer: Layer) -> Callable[[Tensor, Tensor], Tensor] | str:
    """NVIDIA's kernel as a "same" convolution, or why there is none.

    The kernel takes its result from tile / 2 on. Zeros before the filter move a "same" result there.
    """
    tile = tile_of(layer)
    if tile is None:
        return f"a map or filter too large for its transforms of at most {TILES[-1]}"
    try:
        fused = importlib.import_module(f"{NVIDIA}.fused_fft_conv2d").fused_fft_conv2d
    except ModuleNotFoundError as error:
        return "not installed" if error.name == NVIDIA else f"{error}"
    except Exception as error:  # a library that does not load
        return f"{type(error).__name__}: {error}"[:200]
    before = (tile // 2 - layer.kw // 2, 0, tile // 2 - layer.kh // 2, 0)

    def convolve(x: Tensor, turned: Tensor) -> Tensor:
        result: Tensor = fused(x, F.pad(turned.transpose(0, 1), before), fft_size=tile)
        return result

    return convolve


def turn(weight: Tensor) -> Tensor:
    """Filters turned by 180 degrees."""
    return weight.flip(2, 3)


def fft(t: Tensors, pass_: str) -> list[Route]:
    """FFT convolutions, bwd_input being one with the filter as it is."""
    if pass_ == "bwd_weight":
        return []
    routes = []
    for name, found in (("torch.fft", fft_convolution), ("nvidia fft", nvidia_convolution(t.layer))):
        if isinstance(found, str):
            routes.append(Route(name, "other", missing=found))
        elif pass_ == TRAINING:
            run = training(t, found, weight=turn(t.weight))
            routes.append(Route(name, "other", run, shown=lambda grads: (grads[0], turn(grads[1]))))
        else:
            weight, which = (turn(t.weight), 0) if pass_ == "fwd" else (t.weight, 1)
            routes.append(Route(name, "other", partial(_convolved, found, t, weight, which)))
    return routes


def _convolved(convolve: Callable[[Tensor, Tensor], Tensor], t: Tensors, weight: Tensor, which: int, i: int) -> Tensor:
    return convolve(t.pair(i)[which], weight)


# ---- windows ----


def cut(x: Tensor, side: int) -> Tensor:
    """(N, C, H, W) as (C, N * windows, side * side)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // side, side, w // side, side).permute(1, 0, 2, 4, 3, 5).reshape(c, -1, side * side)


def joined(windows: Tensor, layer: Layer, side: int) -> Tensor:
    """The inverse of `cut`."""
    apart = windows.reshape(layer.c, layer.n, layer.h // side, layer.w // side, side, side)
    return apart.permute(1, 0, 2, 4, 3, 5).reshape(layer.n, layer.c, layer.h, layer.w)


def product(pass_: str, x: Tensor, matrices: Tensor, grad: Tensor) -> Tensor:
    """The pass of ``x @ matrices``, channel by channel, on windows."""
    if pass_ == "fwd":
        return torch.bmm(x, matrices)
    return torch.bmm(grad, matrices.mT) if pass_ == "bwd_input" else torch.bmm(x.mT, grad)


def windows(t: Tensors, pass_: str) -> list[Route]:
    """The products of windows, without and with the cutting of the map."""
    layer, routes = t.layer, []
    for side in WINDOWS:
        if layer.h % side or layer.w % side or pass_ == TRAINING:
            continue
        matrices = torch.randn(
            layer.c, side**2, side**2, generator=torch.Generator(t.weight.device).manual_seed(1), device=t.weight.device
        )
        matrices = (matrices / side).to(t.weight.dtype)
        cuts = [cut(x, side) for x in t.x]

        def alone(i: int, matrices: Tensor = matrices, cuts: Sequence[Tensor] = cuts) -> Tensor:
            return product(pass_, cuts[i % len(cuts)], matrices, cuts[(i + 1) % len(cuts)])

        def whole(i: int, matrices: Tensor = matrices, side: int = side) -> Tensor:
            x, grad = t.pair(i)
            result = product(pass_, cut(x, side), matrices, cut(grad, side))
            return result if pass_ == "bwd_weight" else joined(result, layer, side)

        def exact(channels: Sequence[int], matrices: Tensor = matrices, cuts: Sequence[Tensor] = cuts) -> Tensor:
            picked = [v[list(channels)].cpu().double() for v in (cuts[0], matrices, cuts[1])]
            return product(pass_, *picked)

        back: Callable[[Any], Any] = partial(cut, side=side)
        back = (lambda result: result) if pass_ == "bwd_weight" else back
        name = f"bmm {side}x{side}"
        routes.append(Route(name, "other", alone, exact=exact))
        routes.append(Route(f"{name} NCHW", "other", whole, exact=exact, shown=back))
    return routes


KINDS: dict[str, Callable[[Tensors, str], list[Route]]] = {"inductor": inductor, "fft": fft, "windows": windows}


def routes(t: Tensors, pass_: str, kinds: Sequence[str]) -> list[Route]:
    """The rivals of the kinds named."""
    return [route for kind in kinds for route in KINDS[kind](t, pass_)]
