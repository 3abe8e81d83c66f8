"""`depthwise_conv2d`, the one public function, and `explain`, which says what it would do."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import settings
from .backends import BACKENDS, Backend, names, select
from .operator import autograd, checks, per_sample, repeats, sharding
from .operator.call import Call, describe, prepare
from .operator.problem import Geometry
from .tuning import first_use

IntOrPair = int | tuple[int, int]


class _Plan(NamedTuple):
    backend: Backend
    asked: str  # the argument ``backend`` of the raw op
    geometry: Geometry


# Plans by everything that the checks and the choice of backend look at. A plan is a pure function of its key, so
# threads may race here: the worst case is the same plan made twice.
_plans: dict[tuple[Any, ...], _Plan] = {}
_MAX_PLANS = 4096


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    *,
    activation: str = "none",
    algorithm: str | None = None,
    precision: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise 2-D convolution: ``torch.nn.functional.conv2d(..., groups=C)``, fast for large kernels.

    Same cross-correlation, dtype, memory format and derivatives of every order and mode as conv2d. What our kernels
    do not cover (stride or dilation other than 1, channel multipliers, devices without kernels) goes to torch with
    the same result; `explain` tells. Under autocast the operands are cast as autocast casts those of conv2d.

    An output whose receptive field holds an Inf or NaN is non-finite, as in conv2d. Direct CPU kernels touch no other
    output. The CUDA tensor-core kernels (float16, bfloat16) also multiply neighbours by zero, so a NaN can reach up to
    2 rows and 14 columns further for the "same" padding of the papers' networks, and fill its plane where that is small
    (up to about 20x20); other images and channels are never touched.
    All dtypes but float64 may run by FFT where that is faster (on CUDA 16-bit types on large maps only), computed in
    float32: errors are then relative to the largest value of a plane, and an Inf or NaN makes its plane (of large maps
    at least what sees it) non-finite, never another image or channel; ``algorithm="direct"`` keeps both local. The
    CPU's FFT scales operands by powers of two where float32 would overflow on the way; the CUDA FFT does not, so planes
    or filters whose magnitudes sum up to more than 1e34, and filters below 1e-30, need ``algorithm="direct"`` there.
    On CPU the choice does not depend on threads or batch size.

    Rounding of the direct CPU kernels, in eps of the dtype times the sum of abs(x * w) behind a result: at most half an
    eps per term. Of random terms of one sign 4 were measured (output; 5.1 with ReLU), 4.5 (gradient of input) and, for
    the gradient of the filter, 10 in float32 and 19 in float64; equal terms err in one direction, 110 in sums of 961
    and 1,320 in sums of 12,544 over images and pixels. 16-bit types sum in float32.

    Args:
        input: (N, C, H, W) or unbatched (C, H, W); float32, float64, bfloat16 or float16. N may be 0.
        weight: (C * multiplier, 1, Kh, Kw), dtype and device of input.
        bias: (C * multiplier,) or None.
        stride: int or pair >= 1.
        padding: int or pair >= 0, ``"valid"``, or ``"same"``, which for an even kernel puts the odd pixel at the bottom
            and right, as torch does.
        dilation: int or pair >= 1.
        activation: ``"none"``, ``"relu"`` or ``"gelu"`` (erf form), applied after the bias in the same pass.
        algorithm: ``"auto"``, ``"direct"`` (each output sums only its own taps), ``"fft"`` (all dtypes but
            float64), or None for the setting in force (`replknet_ext.set_algorithm`, `replknet_ext.algorithm`).
        precision: of float32 on CUDA: ``"ieee"``, ``"tf32"``, ``"bf16x3"``, or None for the setting in force
            (`replknet_ext.set_float32_precision`, `replknet_ext.float32_precision`), which is ``"ieee"`` at first.
        backend: ``"auto"``, or the name of a backend (``"cpu"``, ``"torch"``, ...: `replknet_ext.backends.names`),
            which is then used or an error.

    Returns:
        (N, C * multiplier, Ho, Wo), or without N for an unbatched input.

    Raises:
        TypeError: an argument of the wrong type or dtype; dtypes that differ.
        ValueError: an argument out of range, shapes or devices that do not fit together, or a named backend that
            can't run the problem, with its reason.
    """
    if has_torch_function_variadic(input, weight, bias):
        per_sample.register(depthwise_conv2d)
        return handle_torch_function(
            depthwise_conv2d, (input, weight, bias), input, weight, bias, stride, padding, dilation,
            activation=activation, algorithm=algorithm, precision=precision, backend=backend,
        )  # fmt: skip
    eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]
    options = stride, padding, dilation, activation, algorithm, precision, len(BACKENDS)
    if eager and (out := repeats.run(input, weight, bias, options, backend)) is not None:
        return out
    call = prepare(
        input, weight, bias, stride, padding, dilation, activation=activation, algorithm=algorithm, precision=precision
    )
    sharding.register()
    plan = (_cached_plan if eager else _plan)(call, backend)
    if plan.backend.differentiable:
        out = plan.backend.run(call.input, call.weight, call.bias, plan.geometry, activation)
    else:
        if eager and settings.get_autotune():
            first_use.tune(call, backend)
        raw = plan.geometry.padding, activation, call.precision, call.algorithm, plan.asked
        out = autograd.dwconv2d(call.input, call.weight, call.bias, *raw)
        if eager and plan.backend.compiled and call.batched and _plain(stride, padding, dilation):
            repeats.remember(input, weight, bias, options, backend, (*raw, -1))
    return out if call.batched else out.squeeze(0)


def _plain(*values: Any) -> bool:
    """Whether a dict can tell ``values`` from their equals: True == 1 == 1.0, so only ints, pairs of ints, strings."""
    for value in values:
        kind = type(value)
        pair = kind is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int
        if not (kind is int or kind is str or pair):
            return False
    return True


def _cached_plan(call: Call, backend: Any) -> _Plan:
    """`_plan`, through the table."""
    input, weight, bias, options, _ = call
    if not _plain(*options[:3]):
        return _plan(call, backend)
    about_bias = None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout)
    try:
        key = (
            input.shape, input.dtype, input.device, input.layout,
            weight.shape, weight.dtype, weight.device, weight.layout, about_bias,
            options, backend, torch.get_num_threads(), len(BACKENDS),
        )  # fmt: skip
        plan = _plans.get(key)
    except TypeError:  # symbolic sizes have no hash, nor may a wrong argument have one
        return _plan(call, backend)
    if plan is None:
        plan = _plan(call, backend)
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        _plans[key] = plan
    return plan


def _plan(call: Call, backend: Any) -> _Plan:
    """Check every argument and choose the backend of the forward pass."""
    problem = describe(call.input, call.weight, call.bias, *call.options)
    checks.name("backend", backend, names())
    chosen = select(problem, backend)
    # The compiled kernels raise for an FFT that they cannot run and look no further: name the backend that can.
    asked = chosen.name if problem.algorithm == "fft" and not chosen.compiled else backend
    return _Plan(chosen, asked, problem.geometry)
