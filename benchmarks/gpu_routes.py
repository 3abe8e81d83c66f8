"""Every way to run a pass that the GPU table compares, and the proof of which kernels each of them ran.

Routes, for inputs that stand ready in the layout named:

* ours auto, ours VARIANT: the raw ops on NCHW; ours nhwc: the same op on channels_last
* ours triton: the Triton kernels' own op on NCHW
* torch nchw: `F.conv2d` as users call it; PyTorch's own depthwise kernels in almost all cases
* torch nhwc: the same on channels_last input and weight, which PyTorch hands to cuDNN
* cudnn nchw: cuDNN where PyTorch would not take it, through `cudnn_convolution` and the transposed convolution, which
  the dispatcher never calls depthwise

Each also runs forward and backward as one, through autograd (`TRAINING`), but for variants and "cudnn nchw". What else
there is to compare with: gpu_rivals.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._autograd import DeviceType

from benchmarks.gpu_plan import PlanError, PlannerUnavailableError, supported
from benchmarks.shapes import NUMBERS, TRAINING, Layer
from replknet_ext import depthwise_conv2d
from replknet_ext.backends.triton import device as triton
from replknet_ext.operator import ops

#: Of kernel names. What is neither ours nor PyTorch's own is cuDNN's: its kernels have no common name.
OURS = r"\b(rt|rtw|fma|fft)_\w*kernel|replknet_ext|\b(toeplitz_(fwd|weight)|sliding_fwd|filter_table|add_diagonals)\b"
NATIVE = r"conv_depthwise2d"
TORCH_HELPER = r"at::native|at::cuda|^Mem(set|cpy)"

DEVICE = "cuda"  # a test runs everything but the kernels on "cpu"


@dataclass(frozen=True)
class Route:
    """One way to run a pass. `run(i)` takes input set `i`; `wants` is whose kernels it must run.

    A route that is no convolution says what is right by `exact(channels)`: in float64, and as `shown` gives its output.
    """

    name: str
    wants: str  # "ours", "cudnn", "torch": whatever PyTorch chooses, or "other": all but ours
    run: Callable[[int], Any] = lambda i: None
    variant: int = -1
    missing: str = ""  # why it can't run here
    shown: Callable[[Any], Any] = lambda output: output  # as the reference has it, outside of the time
    exact: Callable[[Sequence[int]], Tensor] | None = None


class Tensors:
    """Input sets of one layer on the GPU; a pass rotates through them so that none is in the L2 cache.

    `x[i]` is the input and `x[i + 1]` its output gradient: "same" convolutions have both of one shape.
    """

    def __init__(self, layer: Layer, numbers: str, sets: int, seed: int = 0) -> None:
        what = NUMBERS[numbers]
        dtype: torch.dtype = getattr(torch, what.dtype)
        generator = torch.Generator(device=DEVICE).manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=DEVICE, dtype=torch.float32).to(dtype)

        self.layer, self.sets = layer, sets
        self.precision = what.precision
        self.x = [draw(layer.n, layer.c, layer.h, layer.w) for _ in range(max(2, sets))]
        self.weight = draw(layer.c, 1, layer.kh, layer.kw) / max(layer.kh, layer.kw)
        self._nhwc: list[Tensor] = []

    @property
    def nhwc(self) -> list[Tensor]:
        """The input sets in channels_last, made when first asked for."""
        if not self._nhwc:
            self._nhwc = [x.contiguous(memory_format=torch.channels_last) for x in self.x]
        return self._nhwc

    def pair(self, i: int, nhwc: bool = False) -> tuple[Tensor, Tensor]:
        """Input and output gradient of set `i`."""
        x = self.nhwc if nhwc else self.x
        return x[i % len(x)], x[(i + 1) % len(x)]


def training(
    t: Tensors, convolve: Callable[[Tensor, Tensor], Tensor], nhwc: bool = False, weight: Tensor | None = None
) -> Callable[[int], tuple[Tensor, ...]]:
    """Forward and backward of `convolve` through autograd: the gradients of input and filter."""
    leaves = [x.detach().requires_grad_() for x in (t.nhwc if nhwc else t.x)]
    filters = (t.weight if weight is None else weight).detach()
    # .contiguous() would see no difference, as a filter has one plane; .to() sets the strides, as it does in a module.
    filters = filters.to(memory_format=torch.channels_last) if nhwc else filters
    filters.requires_grad_()

    def run(i: int) -> tuple[Tensor, ...]:
        x, grad = leaves[i % len(leaves)], t.pair(i, nhwc)[1]
        with torch.enable_grad():
            return torch.autograd.grad(convolve(x, filters), (x, filters), grad)

    return run


def _ours(t: Tensors, pass_: str, variant: int, nhwc: bool = False, backend: str = "auto") -> Callable[[int], Any]:
    if pass_ == TRAINING:
        layer, precision = t.layer, t.precision
        return training(t, lambda x, w: depthwise_conv2d(x, w, padding=layer.padding, precision=precision), nhwc)
    top, left = t.layer.padding
    pads = (top, top, left, left)
    raw, how = ops.RAW, (pads, t.precision, "auto", backend, variant)
    if pass_ == "fwd":
        return lambda i: raw.fwd(t.pair(i, nhwc)[0], t.weight, None, pads, "none", *how[1:])
    if pass_ == "bwd_input":
        return lambda i: raw.bwd_input(t.pair(i, nhwc)[1], t.weight, *how)
    return lambda i: raw.bwd_weight(t.pair(i, nhwc)[1], t.pair(i, nhwc)[0], *how)


def torch_pass(layer: Layer, pass_: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A pass by PyTorch as a function of input, filter and output gradient."""
    pads, channels = list(layer.padding), layer.c
    if pass_ == "fwd":
        return lambda x, weight, grad: F.conv2d(x, weight, None, 1, layer.padding, 1, channels)
    index = 0 if pass_ == "bwd_input" else 1
    mask = [index == 0, index == 1, False]

    def backward(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], pads, [1, 1], False, [0, 0], channels, mask
        )[index]
        return result

    return backward


def _torch(t: Tensors, pass_: str, nhwc: bool) -> Callable[[int], Any]:
    if pass_ == TRAINING:
        return training(t, lambda x, w: F.conv2d(x, w, None, 1, t.layer.padding, 1, t.layer.c), nhwc)
    weight, run = t.weight.to(memory_format=torch.channels_last) if nhwc else t.weight, torch_pass(t.layer, pass_)

    def call(i: int) -> Tensor:
        x, grad = t.pair(i, nhwc)
        return run(x, weight, grad)

    return call


def _cudnn(t: Tensors, pass_: str, benchmark: bool) -> Callable[[int], Tensor]:
    pads, ones, channels = t.layer.padding, (1, 1), t.layer.c
    # allow_tf32 has to be on for 16-bit types: off, it forbids cuDNN's tensor core engines to them as well.
    tf32 = t.weight.dtype != torch.float32 or t.precision != "ieee"
    if pass_ == "fwd":
        run = torch.cudnn_convolution
        return lambda i: run(t.pair(i)[0], t.weight, pads, ones, ones, channels, benchmark, False, tf32)
    if pass_ == "bwd_input":
        transpose = torch.cudnn_convolution_transpose
        return lambda i: transpose(t.pair(i)[1], t.weight, pads, (0, 0), ones, ones, channels, benchmark, False, tf32)

    def bwd_weight(i: int) -> Tensor:
        # The transposed convolution of the gradient is bwd_input; its own weight gradient, with the input as cotangent,
        # is the bwd_weight of the forward convolution.
        x, grad = t.pair(i)
        result: Tensor = torch.ops.aten.convolution_backward(
            x, grad, t.weight, None, [1, 1], list(pads), [1, 1], True, [0, 0], channels, [False, True, False]
        )[1]
        return result

    return bwd_weight


def our_routes(t: Tensors, pass_: str, *, every_variant: bool, nhwc: bool) -> list[Route]:
    """Ours by the automatic choice and by name."""
    routes = [Route("ours auto", "ours", _ours(t, pass_, -1))]
    if triton.WHY_NOT is None and pass_ != TRAINING:
        routes.append(Route("ours triton", "ours", _ours(t, pass_, -1, backend="triton")))
    if every_variant and pass_ != TRAINING:
        try:
            dtype = str(t.weight.dtype).removeprefix("torch.")
            plans = supported(t.layer, pass_, dtype, precision=t.precision)
        except (PlanError, PlannerUnavailableError):
            plans = {}
        routes += [Route(f"ours {p.name}", "ours", _ours(t, pass_, v, backend="cuda"), v) for v, p in plans.items()]
    if nhwc:
        routes.append(Route("ours nhwc", "ours", _ours(t, pass_, -1, nhwc=True)))
    return routes


def their_routes(t: Tensors, pass_: str, *, benchmark: bool, native: bool = True) -> list[Route]:
    """PyTorch on both layouts and cuDNN on NCHW; `benchmark` makes cuDNN try all of its plans."""
    routes = [Route("torch nchw", "torch", _torch(t, pass_, nhwc=False))] if native else []
    routes.append(Route("torch nhwc", "cudnn", _torch(t, pass_, nhwc=True)))
    if pass_ != TRAINING:
        routes.append(Route("cudnn nchw", "cudnn", _cudnn(t, pass_, benchmark)))
    return routes


def names(layer: Layer, pass_: str, numbers: str) -> list[str]:
    """Names of all routes without making a tensor, for the dry run."""
    what = NUMBERS[numbers]
    ours = [f"ours {p.name}" for p in supported(layer, pass_, what.dtype, precision=what.precision).values()]
    first = ["ours auto", "ours nhwc", *(["ours triton"] if triton.WHY_NOT is None else [])]
    return [*first, *ours, "torch nchw", "torch nhwc", "cudnn nchw"]


def reference(t: Tensors, pass_: str, channels: Sequence[int], images: Sequence[int]) -> Tensor:
    """float64 result of input set 0 on the CPU, for some channels and, but for bwd_weight, some images."""
    x, grad = (v[:, list(channels)].cpu().double() for v in t.pair(0))
    weight = t.weight[list(channels)].cpu().double()
    pads, groups = t.layer.padding, len(channels)
    if pass_ == "fwd":
        return F.conv2d(x[list(images)], weight, padding=pads, groups=groups)
    if pass_ == "bwd_input":
        return F.conv_transpose2d(grad[list(images)], weight, padding=pads, groups=groups)
    weight.requires_grad_()
    with torch.enable_grad():
        (result,) = torch.autograd.grad(F.conv2d(x, weight, padding=pads, groups=groups), weight, grad)
    return result


def device_times(run: Callable[[], object]) -> dict[str, float]:
    """Microseconds of each kernel that a call runs, from torch's profiler, in order; names are shortened."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profile.events():
        if event.device_type == DeviceType.CUDA:
            name = re.sub(r"^void ", "", event.name)[:160]
            times[name] = times.get(name, 0.0) + event.time_range.elapsed_us()
    return times


def kernels_of(run: Callable[[], object]) -> list[str]:
    """Names of the kernels that a call runs."""
    return list(device_times(run))


def is_ours(kernel: str) -> bool:
    """Whether a kernel of this name is one of this package's."""
    return re.search(OURS, kernel) is not None


def whose(kernels: Sequence[str]) -> str:
    """ "ours", "native", "cudnn", or "unknown" if the profiler saw nothing."""
    for label, pattern in (("ours", OURS), ("native", NATIVE)):
        if any(re.search(pattern, name) for name in kernels):
            return label
    return "cudnn" if any(not re.search(TORCH_HELPER, name) for name in kernels) else "unknown"
