"""Which batch statistics a network normalises with, and when its running statistics move.

Batch-norm statistics matter as much as a loss in domain adaptation (method section 7), so
every pass that is not the training pass of the student goes through one of the functions here. Recomputing the
statistics on target frames: Li et al. 2017 (AdaBN), arXiv 1603.04779; as plain averages: Wu and Johnson 2021,
arXiv 2105.07576 (precise BN).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stcl.errors import SettingError, unknown_name
from stcl.types import FramePair

Statistics = Literal["batch", "running"]
"""``batch``: of the frames at hand; ``running``: those stored in the network."""


def check_statistics(statistics: str) -> None:
    """Refuse an unknown kind of statistics."""
    if statistics not in get_args(Statistics):
        raise SettingError(unknown_name("normalisation statistics", statistics, get_args(Statistics)))


def norm_layers(module: nn.Module) -> list[_BatchNorm]:
    """Every batch-norm layer of ``module``."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


class FixedBatchNorm(nn.Module):
    """Batch norm whose statistics are constants in every mode; names in a checkpoint are those of ``BatchNorm2d``.

    Nothing here moves or replaces them: it is none of the :func:`norm_layers`.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)``."""
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(features, mean, variance, self.weight, self.bias, eps=self.eps)


@contextmanager
def hold_statistics(module: nn.Module) -> Iterator[None]:
    """Run ``module`` as it is (training or not), but without moving its running statistics.

    A layer that normalises with the batch still does; PyTorch neither reads nor writes the running statistics of a
    layer in training mode that does not track them.
    """
    tracking = [(layer, layer.track_running_stats) for layer in norm_layers(module) if layer.training]
    try:
        for layer, _ in tracking:
            layer.track_running_stats = False
        yield
    finally:
        for layer, tracked in tracking:
            layer.track_running_stats = tracked


@contextmanager
def inference_statistics(module: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Run ``module`` without dropout and without moving its running statistics; restores every mode afterwards.

    Args:
        module: any network.
        statistics: ``batch`` normalises with the frames at hand, ``running`` with the stored statistics.
    """
    check_statistics(statistics)
    changed: list[nn.Module] = []
    try:
        for part in module.modules():
            if part.training != (statistics == "batch" and isinstance(part, _BatchNorm)):
                part.training = not part.training
                changed.append(part)
        with hold_statistics(module):
            yield
    finally:
        for part in changed:
            part.training = not part.training


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
    layers = norm_layers(network)
    if not layers:
        return 0
    modes = [(part, part.training) for part in network.modules()]
    momenta = [layer.momentum for layer in layers]
    frames = 0
    try:
        network.eval()
        for pair in pairs:
            if frames == 0:  # only now: without a frame the old statistics stay
                for layer in layers:
                    layer.reset_running_stats()
                    layer.momentum = None  # PyTorch's name for the cumulative average
                    layer.training = True
            network(FramePair(pair.current))
            frames += pair.current.shape[0]
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for part, training in modes:
            part.training = training
    if frames == 0:
        raise SettingError("Normalisation statistics cannot be recomputed: there was no frame. Give at least one.")
    return frames
