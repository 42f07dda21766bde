"""The published CNN backbone: a dilated ResNet as DeepLab v2 and the video adaptation papers use it.

Facts (method section 2): 7x7 stem, max-pool with ``ceil_mode``, bottlenecks with the stride in the FIRST 1x1
convolution, stages 3 and 4 without stride but with dilation 2 and 4 (output stride 8), input BGR 0-255 minus the
mean. State-dict names ``conv1, bn1, layer1..4`` are those of the published checkpoints, and of torchvision and timm.

Where a stage gives up its stride, every convolution behind that place is dilated instead, so that the network computes
what the one with strides does, at more places (Chen et al. 2016, arXiv 1606.00915).
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from stcl.errors import SettingError
from stcl.models.backbones.base import Backbone, Tap, untapped
from stcl.models.convolutions import DilatedConv2d
from stcl.models.norms import FixedBatchNorm, freeze_affine

BLOCKS: dict[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks per stage by depth; 18 has basic blocks, the others bottlenecks."""

STRIDES: dict[int, tuple[int, int, int]] = {4: (1, 1, 1), 8: (2, 1, 1), 16: (2, 2, 1), 32: (2, 2, 2)}
"""Strides of ``layer2`` to ``layer4`` by output stride."""


class ResidualBlock(nn.Module):
    """Convolutions and a shortcut (He et al. 2015): ``(B, C, h, w) -> (B, C', h / stride, w / stride)``.

    A basic block has two 3x3 and C' = width; a bottleneck has 1x1, 3x3, 1x1 and C' = 4 width.

    Args:
        norm: ``norm(channels)``.
        stride_in: convolution of a bottleneck that has the stride, ``first`` or ``middle``; None makes a basic block.
        channels: C.
        width: channels of the inner convolutions.
        stride: of the block.
        dilations: of a 3x3 before the block's stride (or what it would be), and behind it.
    """

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    bn1: nn.Module
    bn2: nn.Module
    bn3: nn.Module

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        stride_in: str | None,
        channels: int,
        width: int,
        stride: int,
        dilations: tuple[int, int],
    ) -> None:
        super().__init__()
        before, behind = dilations
        if stride_in is None:
            outputs = width
            layers = [_conv3x3(channels, width, stride, before), _conv3x3(width, width, 1, behind)]
        else:
            outputs = 4 * width
            first, middle = (stride, 1) if stride_in == "first" else (1, stride)
            layers = [
                nn.Conv2d(channels, width, 1, stride=first, bias=False),
                _conv3x3(width, width, middle, behind if stride_in == "first" else before),
                nn.Conv2d(width, outputs, 1, bias=False),
            ]
        self.depth = len(layers)
        for number, layer in enumerate(layers, 1):
            setattr(self, f"conv{number}", layer)
            setattr(self, f"bn{number}", norm(layer.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(channels, outputs, 1, stride=stride, bias=False), norm(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Residual function plus shortcut, then ReLU."""
        shortcut = features if self.downsample is None else self.downsample(features)
        hidden = self.relu(self.bn1(self.conv1(features)))
        output: Tensor = self.bn2(self.conv2(hidden))
        if self.depth == 3:
            output = self.bn3(self.conv3(self.relu(output)))
        output += shortcut
        activated: Tensor = self.relu(output)
        return activated


def _conv3x3(channels: int, outputs: int, stride: int, dilation: int) -> nn.Conv2d:
    return DilatedConv2d(channels, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


class ResNet(Backbone):
    """Dilated ResNet of ``depth`` 18, 50 or 101; its heads keep the published size.

    Args:
        depth: a key of :data:`BLOCKS`.
        output_stride: stride of the last stage: 8 as published, or 4, 16, 32.
        freeze_norm_affine: keep batch-norm scale and shift fixed, as published; the statistics follow the data.
        freeze_norm_statistics: normalise with the statistics of the starting weights for ever, in every mode.
        input: ``published`` or ``imagenet``, see :data:`stcl.models.backbones.base.INPUTS`.
        stride_in: the convolution of a bottleneck that has the stride: ``first`` as published, or ``middle`` as in
            torchvision's and timm's weights. A basic block has it in the first one.
    """

    stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        depth: int = 101,
        output_stride: int = 8,
        freeze_norm_affine: bool = True,
        freeze_norm_statistics: bool = False,
        input: str = "published",
        stride_in: Literal["first", "middle"] = "first",
    ) -> None:
        super().__init__(input)
        if depth not in BLOCKS:
            raise SettingError(f"There is no ResNet-{depth} here; depth is one of {sorted(BLOCKS)}.")
        if output_stride not in STRIDES:
            raise SettingError(f"A ResNet's output stride is one of {sorted(STRIDES)}, not {output_stride}.")
        if stride_in not in ("first", "middle"):
            raise SettingError(f"stride_in is 'first' or 'middle', not '{stride_in}'.")
        self.stride_in = None if depth == 18 else stride_in
        norm = FixedBatchNorm if freeze_norm_statistics else nn.BatchNorm2d
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.channels, self.strides = {}, {}
        channels, total, dilation = 64, 4, 1
        for stage, width, count, stride in zip(
            self.stages, (64, 128, 256, 512), BLOCKS[depth], (1, *STRIDES[output_stride]), strict=True
        ):
            wanted = 1 if stage == "layer1" else 2  # what the stage gives up in stride, it makes up for in dilation
            before, dilation = dilation, dilation * wanted // stride
            outputs, total = width if depth == 18 else 4 * width, total * stride
            blocks = [ResidualBlock(norm, self.stride_in, channels, width, stride, (before, dilation))]
            for _ in range(count - 1):
                blocks.append(ResidualBlock(norm, self.stride_in, outputs, width, 1, (dilation, dilation)))
            setattr(self, stage, nn.Sequential(*blocks))
            self.channels[stage] = channels = outputs
            self.strides[stage] = total
        for layer in self.modules():  # scaled to the fan-out (He et al. 2015); a checkpoint normally replaces them
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if freeze_norm_affine:
            freeze_affine(self)

    def forward(self, image: Tensor, tap: Tap | None = None) -> dict[str, Tensor]:
        """See :class:`Backbone`; stem, max-pool, then the four stages."""
        tap = tap or untapped
        features = self.compute(self._stem, self.normalise(image))  # (B, 64, H/4, W/4)
        outputs: dict[str, Tensor] = {}
        for stage in self.stages:
            features = outputs[stage] = tap(stage, self.chain(getattr(self, stage), features))
        return outputs

    def _stem(self, image: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(image)))  # (B, 64, H/2, W/2)
        return self.maxpool(hidden)
