"""The contract of a backbone: named stages, their channels and strides, and a tap on every stage.

A new backbone is one file with a subclass of :class:`Backbone` and one line in ``stcl.models.BACKBONES``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stcl.models.heads import HeadSettings

Tap = Callable[[str, Tensor], Tensor]
"""``tap(stage name, features) -> features``: sees each stage's output; what it returns goes on through the network."""


class Backbone(nn.Module, ABC):
    """Image ``(B, 3, H, W)`` to feature maps by stage name.

    Attributes:
        stages: names in the order in which they are computed; the last feeds the main head, the one before it the
            auxiliary head.
        channels: ``stage -> channels``.
        strides: ``stage -> stride``: a stage's map has about ``H / stride`` rows (rounded as its convolutions do).
        head_settings: how wide and how far-reaching the heads on this backbone are unless told otherwise.
    """

    stages: tuple[str, ...]
    channels: dict[str, int]
    strides: dict[str, int]
    head_settings: HeadSettings = HeadSettings()

    @abstractmethod
    def normalise(self, image: Tensor) -> Tensor:
        """Float RGB 0..1 to the range and channel order that this backbone was trained on."""

    @abstractmethod
    def forward(self, image: Tensor, tap: Tap | None = None) -> dict[str, Tensor]:
        """Feature maps of float RGB 0..1 ``image (B, 3, H, W)`` by stage name, in order."""


def untapped(_stage: str, features: Tensor) -> Tensor:
    """The tap that changes nothing."""
    return features


def freeze_affine(module: nn.Module) -> None:
    """Stop the gradient of every batch-norm scale and shift in ``module``; the statistics still follow the data."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.requires_grad_(False)


def channel_constants(values: tuple[float, float, float]) -> Tensor:
    """Per-channel constants ``(3, 1, 1)``, to be kept as a buffer that no checkpoint holds."""
    return torch.tensor(values).view(3, 1, 1)
