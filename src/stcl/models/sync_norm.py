"""Batch norm with the statistics of all processes' clips, as if one device had seen the whole batch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        output, mean, variance = _Normalise.apply(input.float(), self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)  # without a momentum the running statistics are plain averages
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance, rate)
        normalised: Tensor = output.to(input.dtype)
        return normalised


class _Normalise(torch.autograd.Function):
    """``weight (x - mean) / sqrt(variance + eps) + bias``; also gives the mean and the unbiased variance ``(C,)``."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        own = x.mean((0, 2, 3))  # (C) of this process
        spread = (x - own.view(-1, 1, 1)).square_().sum((0, 2, 3))
        shares = own.new_zeros(world_size(), 3, len(own))
        shares[rank()] = torch.stack((torch.full_like(own, x.numel() / len(own)), own, spread))
        pixels, means, spreads = sum_over_processes(shares).unbind(1)  # (processes, C)
        count = pixels.sum(0)
        mean = (pixels * means).sum(0) / count
        spread = (spreads + pixels * (means - mean).square()).sum(0)
        variance = spread / count
        context.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        unbiased = spread / (count - 1)
        context.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, unbiased

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (x, weight, mean, scale, count), gradient = context.saved_tensors, gradients[0]
        unit = (x - mean.view(-1, 1, 1)).mul_(scale.view(-1, 1, 1))
        own = torch.stack((gradient.sum((0, 2, 3)), (gradient * unit).sum((0, 2, 3))))  # (2, C)
        shift, slope = (sum_over_processes(own) / count).view(2, -1, 1, 1)
        change = gradient.addcmul(unit, slope, value=-1).sub_(shift).mul_((weight * scale).view(-1, 1, 1))
        return change, own[1], own[0], None


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
