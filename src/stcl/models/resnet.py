"""The published CNN backbone: a dilated ResNet as DeepLab v2 and the video adaptation papers use it.

Facts (method section 2): 7x7 stem, max-pool with ``ceil_mode``, bottlenecks with the stride in the FIRST 1x1
convolution, stages 3 and 4 without stride but with dilation 2 and 4 (output stride 8), input BGR 0-255 minus the
mean. State-dict names ``conv1, bn1, layer1..4`` are those of the published checkpoints.
"""

from torch import Tensor, nn

from stcl.errors import SettingError
from stcl.models.backbone import Backbone, Tap, channel_constants, freeze_affine, untapped

BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)
"""Mean of the published input, in BGR order and 0-255."""

BLOCKS: dict[int, tuple[int, int, int, int]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Bottlenecks per stage by depth."""

EXPANSION = 4
"""Output channels of a bottleneck per inner channel."""


class Bottleneck(nn.Module):
    """1x1 (with the stride), 3x3 (with the dilation), 1x1, and a shortcut: ``(B, C, h, w) -> (B, 4 width, h', w')``."""

    def __init__(self, channels: int, width: int, stride: int = 1, dilation: int = 1, project: bool = False) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if project:
            shortcut = nn.Conv2d(channels, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Residual function plus shortcut, then ReLU."""
        shortcut = features if self.downsample is None else self.downsample(features)
        hidden = self.relu(self.bn1(self.conv1(features)))
        hidden = self.relu(self.bn2(self.conv2(hidden)))
        output: Tensor = self.bn3(self.conv3(hidden))
        output += shortcut
        activated: Tensor = self.relu(output)
        return activated


class ResNet(Backbone):
    """Dilated ResNet of ``depth`` 50 or 101, output stride 8; its heads keep the published size.

    Args:
        depth: a key of :data:`BLOCKS`.
        freeze_norm_affine: keep batch-norm scale and shift fixed, as published; the statistics follow the data.
    """

    stages = ("layer1", "layer2", "layer3", "layer4")
    channels = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}
    strides = {"layer1": 4, "layer2": 8, "layer3": 8, "layer4": 8}
    mean: Tensor

    def __init__(self, depth: int = 101, freeze_norm_affine: bool = True) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise SettingError(f"There is no ResNet-{depth} here; depth is one of {sorted(BLOCKS)}.")
        counts = BLOCKS[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(64, 64, counts[0])
        self.layer2 = _stage(256, 128, counts[1], stride=2)
        self.layer3 = _stage(512, 256, counts[2], dilation=2)
        self.layer4 = _stage(1024, 512, counts[3], dilation=4)
        self.register_buffer("mean", channel_constants(BGR_MEAN), persistent=False)
        _initialise(self)
        if freeze_norm_affine:
            freeze_affine(self)

    def normalise(self, image: Tensor) -> Tensor:
        """RGB 0..1 to BGR 0..255 minus the published mean, without division by a standard deviation."""
        return image.flip(-3) * 255 - self.mean

    def forward(self, image: Tensor, tap: Tap | None = None) -> dict[str, Tensor]:
        """See :class:`Backbone`; stem, max-pool, then the four stages."""
        tap = tap or untapped
        features = self.compute(self._stem, self.normalise(image))  # (B, 64, H/4, W/4)
        outputs: dict[str, Tensor] = {}
        for stage in self.stages:
            features = tap(stage, self.chain(getattr(self, stage), features))
            outputs[stage] = features
        return outputs

    def _stem(self, image: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(image)))  # (B, 64, H/2, W/2)
        return self.maxpool(hidden)


def _stage(channels: int, width: int, count: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """``count`` bottlenecks; the first one changes stride and channels."""
    first = Bottleneck(channels, width, stride, dilation, project=True)
    rest = [Bottleneck(EXPANSION * width, width, dilation=dilation) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)


def _initialise(network: nn.Module) -> None:
    """Convolutions scaled to the fan-out (He et al. 2015); a checkpoint normally replaces them."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
