"""replknet_ext/operator/repeats.py: a call like an earlier one is the same call, with the same errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

import replknet_ext
from replknet_ext import depthwise_conv2d, functional, settings
from replknet_ext.operator import repeats

PADDING = (2, 3)


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 3, 9, 8), torch.randn(3, 1, 5, 7), torch.randn(3)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, operands: tuple[Tensor, Tensor, Tensor]) -> Iterator[None]:
    """The operands were convolved before, in a process where no setting was changed."""
    monkeypatch.setattr(settings, "touched", False)
    monkeypatch.setattr(repeats, "_known", {})
    depthwise_conv2d(*operands, padding=PADDING)
    assert len(repeats._known) == 1
    yield


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls that took the long way."""
    calls: list[Any] = []
    prepare = functional.prepare

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return prepare(*args, **kwargs)

    monkeypatch.setattr(functional, "prepare", count)
    return calls


def _conv2d(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(input, weight, bias, padding=PADDING, groups=input.shape[-3])


def _close(result: Tensor, operands: tuple[Tensor, Tensor, Tensor], **tolerances: float) -> None:
    reference = _conv2d(*(operand.double() for operand in operands))
    torch.testing.assert_close(result.double(), reference, **(tolerances or {"rtol": 1e-5, "atol": 1e-5}))


@pytest.mark.usefixtures("known")
def test_the_second_call_is_short_and_right(operands: tuple[Tensor, Tensor, Tensor], long_ways: list[Any]) -> None:
    for quiet in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with quiet():
            _close(depthwise_conv2d(*operands, padding=PADDING), operands)
    assert long_ways == []


@pytest.mark.usefixtures("known")
def test_other_calls_take_the_long_way(operands: tuple[Tensor, Tensor, Tensor], long_ways: list[Any]) -> None:
    input, weight, bias = operands
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((input[:1], weight, bias), {}),
        ((input, weight[..., 1:-1, :], bias), {}),
        ((input, weight, None), {}),
        ((input.double(), weight.double(), bias.double()), {}),
        ((input, weight, bias), {"activation": "relu"}),
        ((input, weight, bias), {"algorithm": "direct"}),
        ((input, weight, bias), {"stride": 2}),
        ((input, weight, bias), {"backend": "torch"}),
    ]
    for count, (tensors, options) in enumerate(others, 1):
        depthwise_conv2d(*tensors, padding=PADDING, **options)
        assert len(long_ways) == count, options


@pytest.mark.usefixtures("known")
def test_settings_autocast_and_derivatives_are_seen(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    input, weight, bias = operands
    with torch.autocast("cpu", torch.bfloat16):
        out = depthwise_conv2d(*operands, padding=PADDING)
    assert out.dtype == torch.bfloat16
    _close(out, operands, rtol=5e-2, atol=5e-2)
    leaf = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(depthwise_conv2d(input, leaf, bias, padding=PADDING).sum(), leaf)
    (expected,) = torch.autograd.grad(_conv2d(input, leaf, bias).sum(), leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-4)
    with forward_ad.dual_level():
        out = depthwise_conv2d(forward_ad.make_dual(input, input), weight, bias, padding=PADDING)
        tangent = forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, _conv2d(input, weight, None), rtol=1e-5, atol=1e-5)
    mapped = torch.func.vmap(lambda x: depthwise_conv2d(x, weight, bias, padding=PADDING))(input[None])
    _close(mapped[0], operands)
    traced = torch.jit.trace(lambda x: depthwise_conv2d(x, weight, bias, padding=PADDING), (input,))
    assert "replknet_ext::dwconv2d" in str(traced.graph)


@pytest.mark.parametrize("change", ["set_algorithm", "algorithm"])
@pytest.mark.usefixtures("known")
def test_a_changed_setting_is_looked_up(
    change: str, operands: tuple[Tensor, Tensor, Tensor], long_ways: list[Any]
) -> None:
    if change == "algorithm":
        with replknet_ext.algorithm("direct"):
            depthwise_conv2d(*operands, padding=PADDING)
    else:
        replknet_ext.set_algorithm("direct")
        try:
            depthwise_conv2d(*operands, padding=PADDING)
        finally:
            replknet_ext.set_algorithm("auto")
    assert settings.touched and len(long_ways) == 1


@pytest.mark.parametrize(
    ("options", "error", "argument"),
    [
        ({"stride": 1.0}, TypeError, "stride"),
        ({"dilation": True}, TypeError, "dilation"),
        ({"padding": (2.0, 3.0)}, TypeError, "padding"),
        ({"activation": ["none"]}, TypeError, "activation"),
        ({"bias": torch.zeros(4)}, ValueError, "bias"),
        ({"weight": torch.zeros(3, 1, 5, 7).double()}, TypeError, "weight"),
    ],
)
@pytest.mark.usefixtures("known")
def test_errors_are_those_of_a_first_call(
    options: dict[str, Any], error: type[Exception], argument: str, operands: tuple[Tensor, Tensor, Tensor]
) -> None:
    call = dict(zip(("input", "weight", "bias"), operands, strict=True)) | {"padding": PADDING} | options
    for _ in range(2):
        with pytest.raises(error, match=argument):
            depthwise_conv2d(**call)


@pytest.mark.usefixtures("known")
def test_a_new_backend_is_asked(
    monkeypatch: pytest.MonkeyPatch, operands: tuple[Tensor, Tensor, Tensor], long_ways: list[Any]
) -> None:
    monkeypatch.setitem(functional.BACKENDS, "another", functional.BACKENDS["torch"])
    depthwise_conv2d(*operands, padding=PADDING)
    assert len(long_ways) == 1


@pytest.mark.usefixtures("known")
def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch, operands: tuple[Tensor, Tensor, Tensor]) -> None:
    monkeypatch.setattr(repeats, "_MOST", 4)
    for size in range(3, 20):
        depthwise_conv2d(operands[0][:, :, :size], *operands[1:], padding=PADDING)
        assert 1 <= len(repeats._known) <= 4
