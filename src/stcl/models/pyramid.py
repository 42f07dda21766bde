"""Heads that read every stage: each map is brought to one width and to the first map's grid, and all are fused.

Sources: SegFormer's all-MLP decoder (Xie et al. 2021, arXiv 2105.15203) and the context-aware decoder of DAFormer
(Hoyer et al. 2022, arXiv 2111.14887), which the published ViT uses (method section 2). The names of the DAFormer head
(``embed_layers``, ``fuse_layer.aspp_modules``, ``fuse_layer.bottleneck``, ``conv_seg``) are the published checkpoints'.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stcl.models.convolutions import DilatedConv2d
from stcl.models.head import Head, HeadSettings


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, ReLU: ``(B, channels, h, w) -> (B, outputs, h, w)``."""

    def __init__(self, channels: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = DilatedConv2d(
            channels, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """On the same grid."""
        return F.relu(self.bn(self.conv(features)), inplace=True)


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 one across channels, both as :class:`ConvModule`."""

    def __init__(self, channels: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(channels, channels, 3, dilation, groups=channels)
        self.pointwise_conv = ConvModule(channels, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, channels, h, w) -> (B, outputs, h, w)``."""
        mixed: Tensor = self.pointwise_conv(self.depthwise_conv(features))
        return mixed


class SeparableAspp(nn.Module):
    """Atrous spatial pyramid: one 1x1 and a separable 3x3 for each dilation side by side, fused by a 3x3."""

    def __init__(self, channels: int, outputs: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        branches = [SeparableConv(channels, outputs, dilation) for dilation in dilations]
        self.aspp_modules = nn.ModuleList([ConvModule(channels, outputs), *branches])
        self.bottleneck = ConvModule(outputs * len(self.aspp_modules), outputs, 3)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, channels, h, w) -> (B, outputs, h, w)``."""
        fused: Tensor = self.bottleneck(torch.cat([branch(features) for branch in self.aspp_modules], dim=1))
        return fused


class ChannelMap(nn.Module):
    """A linear map of the channels at each place: ``(B, channels, h, w) -> (B, outputs, h, w)``."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """As a 1x1 convolution, which leaves the memory format alone."""
        return F.conv2d(features, self.proj.weight[..., None, None], self.proj.bias)


class PyramidHead(Head):
    """What the two heads share: the maps at one width and on the grid of the first one, channel dropout and scores."""

    reads = "all"

    def __init__(self, channels: tuple[int, ...], classes: int, settings: HeadSettings) -> None:
        super().__init__()
        self.embed_layers = nn.ModuleDict(
            {str(level): ChannelMap(count, settings.width) for level, count in enumerate(channels)}
        )
        self.dropout = nn.Dropout2d(settings.dropout)
        self.conv_seg = nn.Conv2d(settings.width, classes, 1)

    def embed(self, levels: tuple[Tensor, ...]) -> list[Tensor]:
        """Each level as ``(B, width, h, w)`` with the first one's ``(h, w)``."""
        maps = [embed(level) for embed, level in zip(self.embed_layers.values(), levels, strict=True)]
        grid = maps[0].shape[-2:]
        return [
            each if each.shape[-2:] == grid else F.interpolate(each, grid, mode="bilinear", align_corners=False)
            for each in maps
        ]

    def score(self, fused: Tensor) -> Tensor:
        """``(B, width, h, w)`` to class scores ``(B, C, h, w)``."""
        scores: Tensor = self.conv_seg(self.dropout(fused))
        return scores


class MlpHead(PyramidHead):
    """SegFormer's decoder: linear maps, fused by a 1x1 convolution, coarsest level first in its input.

    With ``settings.upsample`` above 1 the fused map is up-sampled so many times and refined by a 3x3 convolution, for
    backbones whose finest map is coarse.
    """

    settings = ("width", "dropout", "upsample")

    def __init__(self, channels: tuple[int, ...], classes: int, settings: HeadSettings) -> None:
        super().__init__(channels, classes, settings)
        self.fuse = ConvModule(settings.width * len(channels), settings.width)
        self.upsample = settings.upsample
        self.refine = ConvModule(settings.width, settings.width, 3) if settings.upsample > 1 else None
        initialise(self)

    def forward(self, *levels: Tensor) -> Tensor:
        """Class scores on the first level's grid, or on the finer one."""
        fused = self.fuse(torch.cat(self.embed(levels)[::-1], dim=1))  # (B, width, h, w)
        if self.refine is not None:
            grid = [self.upsample * cells for cells in fused.shape[-2:]]
            fused = self.refine(F.interpolate(fused, grid, mode="bilinear", align_corners=False))
        return self.score(fused)


class DaformerHead(PyramidHead):
    """DAFormer's decoder: linear maps, fused by an ASPP with separable convolutions, first level first in its input."""

    settings = ("dilations", "width", "dropout")

    def __init__(self, channels: tuple[int, ...], classes: int, settings: HeadSettings) -> None:
        super().__init__(channels, classes, settings)
        self.fuse_layer = SeparableAspp(settings.width * len(channels), settings.width, settings.dilations)
        initialise(self)

    def forward(self, *levels: Tensor) -> Tensor:
        """Class scores on the first level's grid."""
        return self.score(self.fuse_layer(torch.cat(self.embed(levels), dim=1)))


def initialise(head: PyramidHead) -> None:
    """As published: convolutions scaled to the fan-out (He et al. 2015), scores from N(0, 0.01^2) and bias zero."""
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(head.conv_seg.weight, std=0.01)
    assert head.conv_seg.bias is not None
    nn.init.zeros_(head.conv_seg.bias)
