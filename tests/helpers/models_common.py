"""What the tests of models share."""

from __future__ import annotations

import torch
from torch import nn

from replknet_ext.models import RepLKNetConfig

#: Two stages that differ in everything, small enough for the CPU.
SMALL = RepLKNetConfig(
    large_kernel_sizes=(13, 9), layers=(1, 2), channels=(8, 16), small_kernel=5, dw_ratio=1.5, stem_strides=(2, 1)
)


def randomize(model: nn.Module) -> nn.Module:
    """BatchNorm statistics and affine parameters as after training: nothing is 0 or 1 any more."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.3, 1.5, generator=generator)
                module.weight.normal_(1, 0.3, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return model


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest error over the reference's largest value."""
    assert out.shape == reference.shape
    return ((out.double() - reference.double()).abs().max() / reference.double().abs().max()).item()
