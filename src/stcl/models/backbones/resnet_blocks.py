"""Residual blocks of :mod:`~stcl.models.backbones.resnet` (He et al. 2015, arXiv 1512.03385), named as torchvision."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from stcl.models.convolutions import DilatedConv2d


class Convolutions(NamedTuple):
    """What all blocks of a network have in common.

    Attributes:
        norm: ``norm(channels)``.
        stride_first: bottlenecks have the stride in the first 1x1 convolution, not in the 3x3.
    """

    norm: Callable[[int], nn.Module]
    stride_first: bool


class BasicBlock(nn.Module):
    """Two 3x3 and a shortcut: ``(B, C, h, w) -> (B, width, h / stride, w / stride)``.

    Args:
        parts: of the network.
        channels: C.
        width: of the output.
        stride: of the first 3x3.
        before: dilation before this block's stride, or what it would be: that of the first 3x3.
        dilation: that of the second.
    """

    expansion = 1

    def __init__(self, parts: Convolutions, channels: int, width: int, stride: int, before: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width, stride, before)
        self.bn1 = parts.norm(width)
        self.conv2 = _conv3x3(width, width, 1, dilation)
        self.bn2 = parts.norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(parts, channels, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Residual function plus shortcut, then ReLU."""
        shortcut = features if self.downsample is None else self.downsample(features)
        hidden = self.relu(self.bn1(self.conv1(features)))
        output: Tensor = self.bn2(self.conv2(hidden))
        output += shortcut
        activated: Tensor = self.relu(output)
        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, and a shortcut: ``(B, C, h, w) -> (B, 4 width, h / stride, w / stride)``.

    The arguments are those of :class:`BasicBlock`; the 3x3 is behind the stride where that is in the first 1x1.
    """

    expansion = 4

    def __init__(self, parts: Convolutions, channels: int, width: int, stride: int, before: int, dilation: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        first, middle = (stride, 1) if parts.stride_first else (1, stride)
        self.conv1 = nn.Conv2d(channels, width, 1, stride=first, bias=False)
        self.bn1 = parts.norm(width)
        self.conv2 = _conv3x3(width, width, middle, dilation if parts.stride_first else before)
        self.bn2 = parts.norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = parts.norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(parts, channels, outputs, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Residual function plus shortcut, then ReLU."""
        shortcut = features if self.downsample is None else self.downsample(features)
        hidden = self.relu(self.bn1(self.conv1(features)))
        hidden = self.relu(self.bn2(self.conv2(hidden)))
        output: Tensor = self.bn3(self.conv3(hidden))
        output += shortcut
        activated: Tensor = self.relu(output)
        return activated


def _conv3x3(channels: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return DilatedConv2d(channels, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def _shortcut(parts: Convolutions, channels: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A projection where stride or channels change, or the stage begins; else None."""
    if stride == 1 and channels == outputs:
        return None
    return nn.Sequential(nn.Conv2d(channels, outputs, 1, stride=stride, bias=False), parts.norm(outputs))
