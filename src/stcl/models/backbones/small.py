"""A small backbone to be trained from scratch on two CPU cores: residual encoder to stride 16, light decoder to 4.

The deep part works at strides 8 and 16, where a 3x3 convolution sees far and costs little; the top-down path (as in
Lin et al. 2017, arXiv 1612.03144) brings what it knows back to stride 4, where poles and signs still exist. Plain 3x3
convolutions (He et al. 2016) are faster on a CPU than depthwise ones of the same capacity; channels_last saves the
layout changes between them.
"""

from collections.abc import Callable
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stcl.errors import SettingError, lookup
from stcl.models.backbones.base import Backbone, Tap, untapped
from stcl.models.convolutions import DilatedConv2d, StridedPointwise
from stcl.models.heads import HeadSettings
from stcl.models.norms import freeze_affine

GROUP_CHANNELS = 8
"""Channels that group norm (Wu and He 2018, arXiv 1803.08494) takes together, where their number divides by it."""

Norm = Callable[[int], nn.Module]
"""``norm(channels)``: a layer whose scale and shift are called ``weight`` and ``bias``."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Each frame is normalised by itself, in training and in evaluation alike: no running statistics."""
    return nn.GroupNorm(channels // gcd(channels, GROUP_CHANNELS), channels)


NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": group_norm}
"""Every normalisation by name."""


class ConvNormRelu(nn.Sequential):
    """3x3 convolution without bias, norm, ReLU: ``(B, C, h, w) -> (B, C', h / stride, w / stride)``."""

    def __init__(self, channels: int, outputs: int, norm: Norm, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(
            DilatedConv2d(channels, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False),
            norm(outputs),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is projected where stride or channels change."""

    def __init__(self, channels: int, outputs: int, norm: Norm, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = ConvNormRelu(channels, outputs, norm, stride, dilation)
        self.second = DilatedConv2d(outputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != outputs:
            self.shortcut = nn.Sequential(StridedPointwise(channels, outputs, stride), norm(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Residual function plus shortcut, then ReLU."""
        hidden = self.norm(self.second(self.first(features)))
        hidden += self.shortcut(features)
        return F.relu(hidden, inplace=True)


class TopDown(nn.Module):
    """Coarse features, up-sampled, plus fine ones; then a 3x3 convolution."""

    def __init__(self, coarse: int, fine: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.from_coarse = nn.Conv2d(coarse, outputs, 1, bias=False)
        self.from_fine = nn.Conv2d(fine, outputs, 1, bias=False)
        self.norm = norm(outputs)
        self.smooth = ConvNormRelu(outputs, outputs, norm)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """``(B, coarse, h, w)`` and ``(B, fine, h', w')`` to ``(B, outputs, h', w')``."""
        lifted = self.from_coarse(coarse)  # (B, outputs, h, w)
        lifted = F.interpolate(lifted, fine.shape[-2:], mode="bilinear", align_corners=True)  # fine's grid
        lifted += self.from_fine(fine)
        merged = F.relu(self.norm(lifted), inplace=True)
        smoothed: Tensor = self.smooth(merged)
        return smoothed


class SmallBackbone(Backbone):
    """Stages ``stage1`` (stride 4), ``stage2`` (8), ``stage3`` (16), ``decode8`` and, at output stride 4, ``decode4``.

    Args:
        width: channels of the stem; the stages have 2, 4, 8, 4 and 2 times as many.
        output_stride: stride of the last stage, 4 or 8.
        freeze_norm_affine: keep the norms' scale and shift fixed (for a fine-tuning like the published one).
        norm: a name of :data:`NORMS`. A network with ``group`` can start from the weights of one with ``batch``.
    """

    head_settings = HeadSettings(dilations=(1, 6), width=64, initial_std=None)

    def __init__(
        self, width: int = 32, output_stride: int = 4, freeze_norm_affine: bool = False, norm: str = "batch"
    ) -> None:
        super().__init__()
        layer = lookup(NORMS, norm, "normalisation")
        if output_stride not in (4, 8):
            raise SettingError(f"The small backbone has output stride 4 or 8, not {output_stride}.")
        if width < 1:
            raise SettingError(f"The small backbone's width is its stem's number of channels, not {width}.")
        self.channels = {"stage1": 2 * width, "stage2": 4 * width, "stage3": 8 * width, "decode8": 4 * width}
        self.strides = {"stage1": 4, "stage2": 8, "stage3": 16, "decode8": 8}
        self.stem = ConvNormRelu(3, width, layer, stride=2)
        self.stage1 = ResidualBlock(width, 2 * width, layer, stride=2)
        self.stage2 = nn.Sequential(
            ResidualBlock(2 * width, 4 * width, layer, stride=2), ResidualBlock(4 * width, 4 * width, layer)
        )
        self.stage3 = nn.Sequential(
            ResidualBlock(4 * width, 8 * width, layer, stride=2), ResidualBlock(8 * width, 8 * width, layer, dilation=2)
        )
        self.decode8 = TopDown(8 * width, 4 * width, 4 * width, layer)
        if output_stride == 4:
            self.channels["decode4"] = 2 * width
            self.strides["decode4"] = 4
            self.decode4 = TopDown(4 * width, 2 * width, 2 * width, layer)
        self.stages = tuple(self.channels)
        if freeze_norm_affine:
            freeze_affine(self)

    def forward(self, image: Tensor, tap: Tap | None = None) -> dict[str, Tensor]:
        """See :class:`Backbone`; the decoder eats what the tap made of the encoder's stages."""
        tap = tap or untapped
        image = self.normalise(image).contiguous(memory_format=torch.channels_last)
        stage1 = tap("stage1", self.compute(self.stage1, self.compute(self.stem, image)))  # (B, 2w, H/4, W/4)
        stage2 = tap("stage2", self.chain(self.stage2, stage1))  # (B, 4w, H/8, W/8)
        stage3 = tap("stage3", self.chain(self.stage3, stage2))  # (B, 8w, H/16, W/16)
        decode8 = tap("decode8", self.compute(self.decode8, stage3, stage2))  # (B, 4w, H/8, W/8)
        features = {"stage1": stage1, "stage2": stage2, "stage3": stage3, "decode8": decode8}
        if "decode4" in self.channels:
            features["decode4"] = tap("decode4", self.compute(self.decode4, decode8, stage1))  # (B, 2w, H/4, W/4)
        return features
