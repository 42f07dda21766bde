"""What the processes of one run tell each other: one process drives one device and sees its share of every batch.

Each function is the identity where there is one process. Sums stay on the device; only :func:`gather` waits for it.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def world_size() -> int:
    """Number of processes that share the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; process 0 writes files."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Element-wise sum over all processes, the same in each; it has a gradient.

    The gradient is that of the SUM of the processes' losses, as every process's loss depends on every process's
    ``tensor``. Averaging gradients over processes afterwards makes it the gradient of their mean.

    Args:
        tensor: of one shape and type in all processes.
    """
    return tensor if world_size() == 1 else _Sum.apply(tensor)  # type: ignore[no-any-return, no-untyped-call]


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Element-wise mean over all processes, without gradient; for counts and other constants."""
    tensor = tensor.detach()
    return tensor if world_size() == 1 else sum_over_processes(tensor) / world_size()


def gather(value: Value) -> list[Value]:
    """The value of every process, in their order. It is pickled, and the processes wait for each other."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])
