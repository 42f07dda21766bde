"""Batch norm with the statistics of all processes' clips, as if one device had seen the whole batch."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stcl.ops.processes import rank, sum_over_processes, world_size


class SyncedBatchNorm(nn.BatchNorm2d):
    """What ``torch.nn.SyncBatchNorm``, which refuses tensors on a CPU, does on a GPU.

    One sum over the processes forward and one backward. The processes' shares of a batch may differ in size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, H, W)``; the same as ``BatchNorm2d`` outside training or in a single process."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        variance, mean = torch.var_mean(input.float(), (0, 2, 3), correction=0)  # (C) of this process
        shares = mean.new_zeros(world_size(), 3, len(mean))
        shares[rank()] = torch.stack((torch.full_like(mean, input.numel() / len(mean)), mean, variance))
        pixels, means, variances = sum_over_processes(shares).unbind(1)  # (processes, C)
        count = pixels.sum(0)
        mean = (pixels * means).sum(0) / count
        variance = (pixels * (variances + (means - mean).square())).sum(0) / count
        if self.track_running_stats:
            self._follow(mean, variance * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (input * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; without a momentum they are plain averages."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


def synchronise_norms(module: nn.Module, device_type: str) -> None:
    """Make every batch norm inside ``module`` take the statistics of all processes; names, values and modes stay.

    Every process must then pass through the same layers in the same order. Call it before optimiser and compiler.

    Args:
        module: e.g. a method with its student and its teacher; changed in place.
        device_type: ``cuda`` takes torch's own layer, whose kernels are faster but which waits for the device.
    """
    kind: type[_BatchNorm] = nn.SyncBatchNorm if device_type == "cuda" else SyncedBatchNorm
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, _BatchNorm):
                twin = kind(layer.num_features)
                twin.__dict__.update(layer.__dict__)  # the very same parameters, buffers and modes
                setattr(parent, name, twin)
