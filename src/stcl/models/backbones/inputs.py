"""What range and order of channels a backbone was trained on."""

import torch
from torch import Tensor, nn

from stcl.errors import SettingError, unknown_name
from stcl.ops.masking import RGB_MEAN

BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)
"""Mean of the published input (method section 2), in BGR order and 0-255."""

RGB_STD = (0.229, 0.224, 0.225)
"""Usual standard deviation of natural images, RGB 0..1."""

INPUTS = ("published", "imagenet")
"""``published``: BGR 0..255 minus the mean, as the video adaptation papers have it; ``imagenet``: RGB with about zero
mean and unit variance, as weights of torchvision, timm and transformers expect it."""


class Input(nn.Module):
    """Float RGB 0..1 ``(B, 3, H, W)`` to one of :data:`INPUTS`; its constants are in no checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in INPUTS:
            raise SettingError(unknown_name("input", kind, INPUTS))
        self.kind = kind
        self.register_buffer("mean", channel_constants(BGR_MEAN if kind == "published" else RGB_MEAN), persistent=False)
        self.register_buffer("std", channel_constants(RGB_STD), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """In the chosen range."""
        if self.kind == "published":
            return image.flip(-3) * 255 - self.mean
        return (image - self.mean) / self.std


def channel_constants(values: tuple[float, float, float]) -> Tensor:
    """Per-channel constants ``(3, 1, 1)``, to be kept as a buffer that no checkpoint holds."""
    return torch.tensor(values).view(3, 1, 1)
