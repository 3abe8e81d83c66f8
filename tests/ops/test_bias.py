"""The raw op that gives the gradients of weight and bias together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from replknet_ext.operator import ops

raw = torch.ops.replknet_ext


def test_weight_and_bias_gradient_in_one_op() -> None:
    """Values, gradients of its gradients and vmap, against the op without bias and a sum."""
    g = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    rest = ((1, 1, 2, 2), "ieee", "auto", "auto", -1)
    fused = raw.dwconv2d_backward_weight_bias.default
    grad_weight, grad_bias = fused(g, x, *rest)
    assert torch.equal(grad_weight, raw.dwconv2d_backward_weight(g, x, *rest))
    assert torch.equal(grad_bias, g.sum((0, 2, 3)))
    assert torch.autograd.gradcheck(lambda g, x: fused(g, x, *rest), (g, x))
    many = torch.stack([g.detach(), 2 * g.detach()])
    weights, biases = torch.vmap(lambda g: fused(g, x, *rest))(many)
    torch.testing.assert_close(weights, torch.stack([grad_weight, 2 * grad_weight]))
    torch.testing.assert_close(biases, torch.stack([grad_bias, 2 * grad_bias]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_weight_and_bias_gradients_share_a_kernel_on_cuda(device: str) -> None:
    called = []

    def recorded(name: str) -> Callable[..., object]:
        def run(*args: object) -> object:
            called.append(name)
            return getattr(ops.RAW, name)(*args)

        return run

    passes = ops.Passes(*map(recorded, ops.Passes._fields))
    options = ops.Options((1, 1, 1, 1), "none", "ieee", "auto", "auto", -1)
    with FakeTensorMode():
        x, w, b = (torch.empty(size, device=device) for size in ((2, 3, 8, 8), (3, 1, 3, 3), (3,)))
        grads = ops.fwd_vjp(passes, torch.empty_like(x), (x, w, b, None), options, (True, True, True))
        assert [g.shape for g in grads if g is not None] == [x.shape, w.shape, b.shape]
        ops.fwd_vjp(passes, torch.empty_like(x), (x, w, b, None), options, (False, True, False))
    assert called == ["bwd_input", "bwd_weight_bias" if device == "cuda" else "bwd_weight", "bwd_weight"]
