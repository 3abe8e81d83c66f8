"""torch's expanded weights: a gradient for each image in ``grad_sample``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

from replknet_ext import DepthwiseConv2dLarge, replace_depthwise


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"activation": "relu"}, {"activation": "gelu", "padding": 3}, {"padding": 2, "stride": 2}],
)
def test_gradients_of_each_image(options, reduction):
    layer = DepthwiseConv2dLarge(6, 5, **options).double()
    x = torch.randn(3, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    loss = call_for_per_sample_grads(layer, loss_reduction=reduction)(x).square()
    (loss.sum() if reduction == "sum" else loss.sum() / len(x)).backward()
    for name, parameter in layer.named_parameters():
        for image in range(len(x)):
            (wanted,) = torch.autograd.grad(layer(x[image : image + 1]).square().sum(), layer.get_parameter(name))
            torch.testing.assert_close(parameter.grad_sample[image], wanted)
    (wanted,) = torch.autograd.grad(layer(x).square().sum() / (1 if reduction == "sum" else len(x)), x)
    torch.testing.assert_close(x.grad, wanted)


def test_swapped_model():
    """As the model that it was, with a bias of its own and a layer behind it."""
    model = nn.Sequential(nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    found = []
    for _ in range(2):
        call_for_per_sample_grads(model, loss_reduction="sum")(x).square().sum().backward()
        found.append([p.grad_sample for p in model.parameters()])
        for parameter in model.parameters():
            parameter.grad_sample = None
        replace_depthwise(model)
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_unbatched_input_is_refused():
    layer = DepthwiseConv2dLarge(4, 5)
    with pytest.raises(ValueError, match=r"input must be \(N, C, H, W\) for per-sample gradients"):
        call_for_per_sample_grads(layer, batch_size=4)(torch.randn(4, 8, 8))
