"""BatchNorms that share their statistics over all processes, on GPUs and on CPUs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["CpuSyncBatchNorm", "sync_batchnorm"]


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """As `torch.nn.SyncBatchNorm`, which refuses CPU tensors; for tests of what runs on many GPUs, and CPU clusters."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not (dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        if self.momentum is None:
            raise ValueError("CpuSyncBatchNorm needs a momentum; a cumulative average is not implemented")
        shape = (1, -1, 1, 1)
        values = x.float()
        size = torch.tensor([values.numel() / values.shape[1]], dtype=torch.float32)
        sums = all_reduce(torch.cat([values.sum((0, 2, 3)), size]))
        count = float(sums[-1].detach())
        mean = sums[:-1] / count
        # Of the centred values: the difference of two large sums would lose digits.
        centred = values - mean.view(shape)
        var = all_reduce(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum)
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
        normal = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        result: Tensor = normal.to(x.dtype)
        return result


def sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with its `nn.BatchNorm2d` replaced, parameters and statistics shared with the old ones.

    Args:
        device: where it will run: torch's own for GPUs, `CpuSyncBatchNorm` for the CPU.
    """
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                module._modules[name] = _converted(child)
    return model


def _converted(norm: _BatchNorm) -> CpuSyncBatchNorm:
    made = CpuSyncBatchNorm.__new__(CpuSyncBatchNorm)
    made.__dict__.update(norm.__dict__)  # the same parameters, buffers and hooks
    return made
