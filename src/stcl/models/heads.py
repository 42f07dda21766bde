"""Heads: feature maps of one stage, or of all, to class scores.

Sources: DeepLab v2's sum of dilated convolutions, as the published TPS ("layer6", auxiliary "layer5") and STCL
("layer7") networks use it (method section 2); SegFormer's all-MLP decoder (Xie et al. 2021, arXiv 2105.15203); the
context-aware decoder of DAFormer (Hoyer et al. 2022, arXiv 2111.14887), which the published ViT uses. Names of modules
are those of the published checkpoints. A new head is a subclass of :class:`Head` and one line in :data:`HEADS`.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stcl.errors import SettingError
from stcl.models.convolutions import DilatedConv2d


@dataclass(frozen=True)
class HeadSettings:
    """Size of a head; the defaults are the published ones for a ResNet at stride 8.

    Args:
        dilations: one 3x3 convolution each, in cells of the feature map.
        width: hidden channels of every head but TPS.
        dropout: probability with which a head with hidden channels drops one of them.
        initial_std: standard deviation of the initial weights of the TPS and the STCL head; None scales it to the
            fan-in (training from scratch). The other heads start as they were published.
        upsample: the MLP head refines its scores on a grid that is so many times finer.
    """

    dilations: tuple[int, ...] = (6, 12, 18, 24)
    width: int = 256
    dropout: float = 0.1
    initial_std: float | None = 0.01
    upsample: int = 1

    def __post_init__(self) -> None:
        if not self.dilations or min(self.dilations) < 1:
            raise SettingError(f"A head's dilations are whole numbers from 1 on, not {list(self.dilations)}.")
        if self.width < 1 or self.upsample < 1:
            raise SettingError(f"A head's width and upsample are at least 1, not {self.width} and {self.upsample}.")
        if not 0 <= self.dropout < 1:
            raise SettingError(f"A head's dropout is a probability below 1, not {self.dropout}.")


class Head(nn.Module):
    """``head(*maps)`` gives class scores ``(B, C, h, w)`` on the grid of the first map, or on a finer one.

    A head is built as ``kind(channels, classes, settings)``; ``channels`` are those of the last stage, or for a head
    that reads all stages a tuple with the number of each.

    Attributes:
        reads: which stages' maps ``(B, channels, h', w')`` it is called with: the last one, or every one in order.
        settings: names of the :class:`HeadSettings` that it looks at.
    """

    reads: ClassVar[Literal["last", "all"]] = "last"
    settings: ClassVar[tuple[str, ...]] = ()


class DilatedSum(Head):
    """The sum of 3x3 convolutions of several dilations, ``(B, channels, h, w) -> (B, outputs, h, w)``."""

    def __init__(self, channels: int, outputs: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            DilatedConv2d(channels, outputs, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )

    def forward(self, features: Tensor) -> Tensor:
        """The sum, on the same grid."""
        total: Tensor = self.conv2d_list[0](features)
        for convolution in self.conv2d_list[1:]:
            total += convolution(features)  # in place: nobody needs the parts again
        return total

    def draw_weights(self, std: float | None) -> None:
        """Weights from N(0, std^2), or scaled to the fan-in where ``std`` is None; biases zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                if std is None:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
                else:
                    nn.init.normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class TpsHead(DilatedSum):
    """TPS head and auxiliary head: the dilated convolutions give the class scores themselves."""

    settings = ("dilations", "initial_std")

    def __init__(self, channels: int, classes: int, settings: HeadSettings) -> None:
        super().__init__(channels, classes, settings.dilations)
        self.draw_weights(settings.initial_std)


class StclHead(DilatedSum):
    """STCL head: dilated convolutions to ``settings.width`` channels, channel dropout, 1x1 convolution to scores."""

    settings = ("dilations", "width", "dropout", "initial_std")

    def __init__(self, channels: int, classes: int, settings: HeadSettings) -> None:
        super().__init__(channels, settings.width, settings.dilations)
        self.head = nn.Sequential(nn.Dropout2d(settings.dropout), nn.Conv2d(settings.width, classes, 1, bias=False))
        self.draw_weights(settings.initial_std)

    def forward(self, features: Tensor) -> Tensor:
        """Class scores, on the same grid."""
        scores: Tensor = self.head(super().forward(features))  # (B, width, h, w) -> (B, C, h, w)
        return scores


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, ReLU: ``(B, channels, h, w) -> (B, outputs, h, w)``."""

    def __init__(self, channels: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> None:
        padding = dilation * (kernel // 2)
        conv = DilatedConv2d(channels, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), relu=nn.ReLU(inplace=True)))


class SeparableAspp(nn.Module):
    """Atrous spatial pyramid: one 1x1 and a separable 3x3 for each dilation side by side, fused by a 3x3."""

    def __init__(self, channels: int, outputs: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        branches: list[nn.Module] = [ConvNorm(channels, outputs)]
        for dilation in dilations:
            depthwise = ConvNorm(channels, channels, 3, dilation, groups=channels)
            pointwise = ConvNorm(channels, outputs)
            branches.append(
                nn.Sequential(OrderedDict[str, nn.Module](depthwise_conv=depthwise, pointwise_conv=pointwise))
            )
        self.aspp_modules = nn.ModuleList(branches)
        self.bottleneck = ConvNorm(outputs * len(branches), outputs, 3)

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
    """A head that reads every stage: maps at one width and on the first one's grid, channel dropout and scores."""

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

    def draw_weights(self) -> None:
        """As published: convolutions scaled to the fan-out (He et al. 2015), scores from N(0, 0.01^2) and bias zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)


class MlpHead(PyramidHead):
    """SegFormer's decoder: linear maps, fused by a 1x1 convolution, coarsest level first in its input.

    With ``settings.upsample`` above 1 the fused map is up-sampled so many times and refined by a 3x3 convolution, for
    backbones whose finest map is coarse.
    """

    settings = ("width", "dropout", "upsample")

    def __init__(self, channels: tuple[int, ...], classes: int, settings: HeadSettings) -> None:
        super().__init__(channels, classes, settings)
        self.fuse = ConvNorm(settings.width * len(channels), settings.width)
        self.upsample = settings.upsample
        self.refine = ConvNorm(settings.width, settings.width, 3) if settings.upsample > 1 else None
        self.draw_weights()

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
        self.draw_weights()

    def forward(self, *levels: Tensor) -> Tensor:
        """Class scores on the first level's grid."""
        return self.score(self.fuse_layer(torch.cat(self.embed(levels), dim=1)))


HEADS: dict[str, type[Head]] = {"stcl": StclHead, "tps": TpsHead, "mlp": MlpHead, "daformer": DaformerHead}
"""Every head by name. The auxiliary head is always the TPS form."""
