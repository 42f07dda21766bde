"""Norm layers: which statistics they normalise with, when running statistics move, and what does not decay.

Batch-norm statistics matter as much as a loss in domain adaptation (method section 7), so every pass that is not the
training pass of the student goes through one of the functions here. Recomputing the statistics on target frames:
Li et al. 2017 (AdaBN), arXiv 1603.04779; as plain averages: Wu and Johnson 2021, arXiv 2105.07576 (precise BN).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stcl.errors import SettingError, unknown_name
from stcl.ops.processes import rank, sum_over_processes, world_size
from stcl.types import FramePair

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

PassStatistics = Literal["batch", "running"]
"""``batch``: of the frames at hand; ``running``: those stored in the network."""

Decayed = Literal["all", "all_but_norms", "weights"]
"""``all``: every parameter, as the published CNN; ``all_but_norms``: not the scales and shifts of norms, as SegFormer
and the published ViT; ``weights``: neither those nor biases nor other vectors, as usual with AdamW."""


class FixedBatchNorm(nn.Module):
    """Batch norm whose statistics are constants in every mode; names in a checkpoint are those of ``BatchNorm2d``.

    Nothing here moves or replaces them: it is none of the :func:`norm_layers`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, H, W)``."""
        return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


NORMS = BatchNorm | FixedBatchNorm | nn.GroupNorm | nn.LayerNorm


def norm_layers(module: nn.Module) -> list[BatchNorm]:
    """Every batch-norm layer of ``module`` whose statistics move."""
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm)]


def freeze_affine(module: nn.Module) -> None:
    """Stop the gradient of every norm's scale and shift in ``module``; statistics still follow the data."""
    for layer in module.modules():
        if isinstance(layer, NORMS):
            layer.requires_grad_(False)


def undecayed(network: nn.Module, decayed: Decayed) -> set[int]:
    """``id`` of each parameter of ``network`` that weight decay does not hold for."""
    if decayed not in get_args(Decayed):
        raise SettingError(unknown_name("choice of what decays", decayed, get_args(Decayed)))
    if decayed == "all":
        return set()
    if decayed == "weights":
        return {id(parameter) for parameter in network.parameters() if parameter.ndim < 2}
    norms = (layer for layer in network.modules() if isinstance(layer, NORMS))
    return {id(parameter) for layer in norms for parameter in layer.parameters()}


def check_statistics(statistics: str) -> None:
    """Refuse an unknown kind of statistics."""
    if statistics not in get_args(PassStatistics):
        raise SettingError(unknown_name("normalisation statistics", statistics, get_args(PassStatistics)))


@contextmanager
def changed(changes: Iterable[tuple[nn.Module, dict[str, Any]]]) -> Iterator[None]:
    """Give attributes of modules other values for a while; ``changes`` are pairs of a module and its new values."""
    kept: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for module, values in changes:
            kept.append((module, {name: getattr(module, name) for name in values}))
            for name, value in values.items():
                setattr(module, name, value)
        yield
    finally:
        for module, values in kept:
            for name, value in values.items():
                setattr(module, name, value)


@contextmanager
def hold_statistics(module: nn.Module) -> Iterator[None]:
    """Run ``module`` as it is (training or not), but without moving its running statistics.

    A layer that normalises with the batch still does; PyTorch neither reads nor writes the running statistics of a
    layer in training mode that does not track them.
    """
    with changed((layer, {"track_running_stats": False}) for layer in norm_layers(module) if layer.training):
        yield


@contextmanager
def inference_statistics(module: nn.Module, statistics: PassStatistics) -> Iterator[None]:
    """Run ``module`` without dropout and without moving its running statistics; restores every mode afterwards.

    Args:
        module: any network.
        statistics: ``batch`` normalises with the frames at hand, ``running`` with the stored statistics.
    """
    check_statistics(statistics)
    modes = ((part, statistics == "batch" and isinstance(part, BatchNorm)) for part in module.modules())
    with changed((part, {"training": mode}) for part, mode in modes if part.training != mode), hold_statistics(module):
        yield


@torch.no_grad()
def recalibrate(network: nn.Module, pairs: Iterable[FramePair]) -> int:
    """Replace the running statistics of ``network`` by plain averages over unlabelled frames.

    The mean over batches of each batch's mean and variance, every batch with the same weight, without dropout. Only
    the current frames take part: their statistics are what a stream of such frames has.

    Args:
        network: a segmenter; changed in place.
        pairs: batches, on the network's device; all of them are used.

    Returns:
        The number of frames seen; 0 for a network without batch norm, which has no statistics and is not run.
    """
    layers, frames = norm_layers(network), 0
    if not layers:
        return 0
    modes = ((part, {"training": isinstance(part, BatchNorm)}) for part in network.modules())
    momenta = ((layer, {"momentum": None}) for layer in layers)  # PyTorch's name for the cumulative average
    with changed(modes), changed(momenta):
        for pair in pairs:
            if frames == 0:  # only now: without a frame the old statistics stay
                for layer in layers:
                    layer.reset_running_stats()
            network(FramePair(pair.current))
            frames += pair.current.shape[0]
    if frames == 0:
        raise SettingError("Normalisation statistics cannot be recomputed: there was no frame. Give at least one.")
    return frames


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes' clips; what ``torch.nn.SyncBatchNorm``, which refuses a CPU, does on a GPU.

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
    kind: type[BatchNorm] = nn.SyncBatchNorm if device_type == "cuda" else SyncedBatchNorm
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BatchNorm):
                twin = kind(layer.num_features)
                twin.__dict__.update(layer.__dict__)  # the very same parameters, buffers and modes
                setattr(parent, name, twin)
