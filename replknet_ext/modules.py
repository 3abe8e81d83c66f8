"""`DepthwiseConv2dLarge`: the depthwise convolution as a module that is an `nn.Conv2d`.

Everything that looks at a layer from outside (state dicts, initialisers, optimizers, hooks, `isinstance` checks,
pickles) sees an `nn.Conv2d`; only the arithmetic goes another way, through `replknet_ext.functional`.
"""

import operator
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from . import settings
from .backends.cpu import left_to_torch
from .backends.torch import activate
from .functional import depthwise_conv2d
from .operator import checks
from .operator.problem import ACTIVATIONS, DTYPES

__all__ = ["DepthwiseConv2dLarge", "why_not_convertible"]


class DepthwiseConv2dLarge(nn.Conv2d):
    """Depthwise 2-D convolution: an `nn.Conv2d(channels, channels, ..., groups=channels)` on fast kernels.

    State dict, initialisation (the same random numbers for the same seed), printing, copying, pickling, `device` and
    `dtype` are those of `nn.Conv2d`. Stride 1 with dilation 1 runs on this package's kernels for every kernel size;
    other strides and dilations give the same result through torch, as do float32 channels_last tensors on the CPU where
    oneDNN was measured to be faster (bands of 1xK and Kx1 up to 11, up to 7x7 in inference; not with backend="cpu"),
    and `torch.jit.script`, which cannot compile the choice of a kernel; `torch.jit.trace`,
    `torch.export` and `torch.compile` keep the kernels.

    Args:
        channels: number of input and of output channels.
        kernel_size: K or (Kh, Kw), each at least 1, odd or even.
        padding: zeros on each side, an int or (vertical, horizontal); "same" keeps H and W (for an even K the extra
            row and column go below and to the right, as in `nn.Conv2d`); "valid" pads nothing.
        bias: adds a learnable bias of shape (channels,).
        stride, dilation, padding_mode: as in `nn.Conv2d`; "same" needs stride 1.
        activation: "none", "relu" or "gelu" (the erf form), applied to the output inside the kernel.
        algorithm: "auto", "direct" or None for the process-wide setting; see `replknet_ext.depthwise_conv2d`.
        precision: "ieee", "tf32", "bf16x3" or None for the process-wide setting; float32 on CUDA only.
        backend: "auto" or the name of one backend.
        device, dtype: where and as what the parameters are made.

    Shape:
        input (N, channels, H, W) or (channels, H, W); output (N, channels, Ho, Wo) or (channels, Ho, Wo) in the
        input's dtype and memory format. weight (channels, 1, Kh, Kw), bias (channels,).

    Raises:
        TypeError: a size is not an int.
        ValueError: a size or padding out of range, an unknown activation, padding name or padding mode.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int] | str

    __constants__ = [*nn.Conv2d.__constants__, "activation"]  # noqa: RUF012  # as torch has it; for TorchScript

    # Defaults on the class: a pickle or a swapped-in module that lacks them still has them.
    activation: str = "none"
    algorithm: str | None = None
    precision: str | None = None
    backend: str = "auto"

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        padding: int | tuple[int, int] | str = "same",
        bias: bool = True,
        *,
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        activation: str = "none",
        algorithm: str | None = None,
        precision: str | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(channels, bool) or not hasattr(channels, "__index__"):
            raise TypeError(f"channels must be an int; got {channels!r}")
        channels = operator.index(channels)
        if channels < 1:
            raise ValueError(f"channels must be >= 1; got {channels}")
        kernel_size = checks.pair("kernel_size", kernel_size, 1)
        geometry = checks.geometry(stride, padding, dilation, kernel_size)
        checks.name("activation", activation, ACTIVATIONS)
        checks.choices(algorithm, precision)
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride=geometry.stride,
            padding=padding if isinstance(padding, str) else geometry.padding[::2],
            dilation=geometry.dilation,
            groups=channels,
            bias=bias,
            padding_mode=padding_mode,  # type: ignore[arg-type]  # nn.Conv2d checks the name
            device=device,
            dtype=dtype,
        )
        self.activation = activation
        self.algorithm = algorithm
        self.precision = precision
        self.backend = backend

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._scripted_forward(input, weight, bias)
        else:  # noqa: RET505  # TorchScript compiles what is not in an else
            return self._eager_forward(input, weight, bias)

    def _scripted_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same by torch's convolution: TorchScript can compile no Python that chooses a kernel."""
        if self.padding_mode != "zeros":
            padded = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            out = F.conv2d(padded, weight, bias, self.stride, (0, 0), self.dilation, self.groups)
        else:
            out = F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        if self.activation == "relu":
            out = F.relu(out)
        if self.activation == "gelu":
            out = F.gelu(out)
        return out

    def _left_to_torch(self, input: Tensor, weight: Tensor) -> bool:
        """Whether nobody asked for a kernel, and torch's is the better one for this call; see `left_to_torch`."""
        # The cheapest questions first: this runs before each call, and small layers take 0.1 ms in all.
        if self.backend != "auto" or not left_to_torch(self.kernel_size, training=False):
            return False
        if type(input) is not Tensor or type(weight) not in (Tensor, nn.Parameter) or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return False  # subclasses have rules of their own, and a trace shows this package's operator
        training = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
        return (
            (not training or left_to_torch(self.kernel_size, training))
            and input.is_cpu
            and (self.algorithm or settings.get_algorithm()) == "auto"
            and input.dtype is torch.float32
            and not torch.is_autocast_enabled("cpu")
            and input.dim() == 4
            and input.stride(1) == 1 < input.stride(3)  # channels_last, or some channels of it
        )

    @torch.jit.unused
    def _eager_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._left_to_torch(input, weight):
            return activate(super()._conv_forward(input, weight, bias), self.activation)
        if isinstance(input, fx.Proxy) and (name := input.tracer.path_of_module(self)):
            if type(input.tracer).__name__ == "QuantizationTracer":
                warnings.warn(f"{name} stays in float: replknet_ext.restore(model) before quantising it", stacklevel=2)
            return input.tracer.create_proxy("call_module", name, (input,), {})  # type: ignore[return-value]
        padding: int | tuple[int, int] | str = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return depthwise_conv2d(
            input,
            weight,
            bias,
            self.stride,
            padding,
            self.dilation,
            activation=self.activation,
            algorithm=self.algorithm,
            precision=self.precision,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        text: str = super().extra_repr()
        for name in ("activation", "algorithm", "precision", "backend"):
            value = getattr(self, name)
            if value != getattr(DepthwiseConv2dLarge, name):
                text += f", {name}={value}"
        return text

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        *,
        activation: str = "none",
        algorithm: str | None = None,
        precision: str | None = None,
        backend: str = "auto",
    ) -> "DepthwiseConv2dLarge":
        """A new module over the parameters of `conv`: the same Parameter objects, so optimizers keep working.

        Training flag, `requires_grad` and hooks come along. The hook tables are shared: a handle returned earlier
        removes its hook from both modules, and hook-based weight norm, spectral norm and pruning go on working.

        Raises:
            TypeError: `conv` is not an `nn.Conv2d`.
            ValueError: `conv` cannot be taken over (not depthwise, a subclass, parametrized, ...); says why.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"conv must be an nn.Conv2d; got {type(conv).__name__}")
        reason = why_not_convertible(conv)
        if reason is not None:
            raise ValueError(f"conv cannot become a {cls.__name__}: {reason}")
        checks.name("activation", activation, ACTIVATIONS)
        checks.choices(algorithm, precision)
        module = cls.__new__(cls)
        module.__dict__.update(conv.__dict__)
        # Tables of its own for what a module owns: assigning a parameter here must not change `conv`.
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            module.__dict__[table] = conv.__dict__[table].copy()
        module.activation = activation
        module.algorithm = algorithm
        module.precision = precision
        module.backend = backend
        return module


def why_not_convertible(conv: nn.Module) -> str | None:
    """The reason why `conv` cannot be run as a `DepthwiseConv2dLarge` instead, or None when it can.

    Only exact `nn.Conv2d` instances are: a subclass may compute something else (timm's Conv2dSame pads by itself).
    """
    if not isinstance(conv, nn.Conv2d):
        return f"{type(conv).__name__} is not an nn.Conv2d"
    if isinstance(conv, LazyModuleMixin) and conv.has_uninitialized_params():
        return "not initialised yet: run the model once before the swap"
    channels = conv.in_channels
    if conv.groups != channels:
        return f"not depthwise (in_channels={channels}, out_channels={conv.out_channels}, groups={conv.groups})"
    if isinstance(conv, DepthwiseConv2dLarge):
        return "already a DepthwiseConv2dLarge"
    if conv.out_channels != channels:
        multiplier = conv.out_channels // channels
        return f"channel multiplier {multiplier}: the kernels make one output channel for each input channel"
    if parametrize.is_parametrized(conv):
        names = ", ".join(conv.parametrizations)  # type: ignore[arg-type]  # a ModuleDict
        return f"parametrized ({names}): remove the parametrization first, or parametrize after the swap"
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__module__}.{type(conv).__qualname__} is a subclass and may compute something else"
    if "forward" in conv.__dict__ or "_conv_forward" in conv.__dict__:
        return "its forward is overridden on the instance"
    if conv.weight.dtype not in DTYPES:
        return f"weight dtype {conv.weight.dtype} is not supported by the kernels"
    return None
