"""The published CNN backbone: a dilated ResNet as DeepLab v2 and the video adaptation papers use it.

Facts (method section 2): 7x7 stem, max-pool with ``ceil_mode``, bottlenecks with the stride in the FIRST 1x1
convolution, stages 3 and 4 without stride but with dilation 2 and 4 (output stride 8), input BGR 0-255 minus the
mean. State-dict names ``conv1, bn1, layer1..4`` are those of the published checkpoints, and of torchvision and timm.

Where a stage gives up its stride, every convolution behind that place is dilated instead, so that the network computes
what the one with strides does, at more places (Chen et al. 2016, arXiv 1606.00915).
"""

from typing import Literal

from torch import Tensor, nn

from stcl.errors import SettingError
from stcl.models.backbones.base import Backbone, Tap, freeze_affine, untapped
from stcl.models.backbones.inputs import BGR_MEAN, Input
from stcl.models.backbones.resnet_blocks import BasicBlock, Bottleneck, Convolutions
from stcl.models.statistics import FixedBatchNorm

__all__ = ["BGR_MEAN", "BLOCKS", "ResNet"]

BLOCKS: dict[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks per stage by depth; 18 has basic blocks, the others bottlenecks."""

STRIDES: dict[int, tuple[int, int, int]] = {4: (1, 1, 1), 8: (2, 1, 1), 16: (2, 2, 1), 32: (2, 2, 2)}
"""Strides of ``layer2`` to ``layer4`` by output stride."""


class ResNet(Backbone):
    """Dilated ResNet of ``depth`` 18, 50 or 101; its heads keep the published size.

    Args:
        depth: a key of :data:`BLOCKS`.
        output_stride: stride of the last stage: 8 as published, or 4, 16, 32.
        freeze_norm_affine: keep batch-norm scale and shift fixed, as published; the statistics follow the data.
        freeze_norm_statistics: normalise with the statistics of the starting weights for ever, in every mode.
        input: ``published`` or ``imagenet``, see :data:`stcl.models.backbones.inputs.INPUTS`.
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
        super().__init__()
        if depth not in BLOCKS:
            raise SettingError(f"There is no ResNet-{depth} here; depth is one of {sorted(BLOCKS)}.")
        if output_stride not in STRIDES:
            raise SettingError(f"A ResNet's output stride is one of {sorted(STRIDES)}, not {output_stride}.")
        if stride_in not in ("first", "middle"):
            raise SettingError(f"stride_in is 'first' or 'middle', not '{stride_in}'.")
        self.stride_in = None if depth == 18 else stride_in
        block = BasicBlock if depth == 18 else Bottleneck
        norm = FixedBatchNorm if freeze_norm_statistics else nn.BatchNorm2d
        parts = Convolutions(norm, stride_in == "first")
        self.input = Input(input)
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
            first = block(parts, channels, width, stride, before, dilation)
            channels, total = block.expansion * width, total * stride
            rest = [block(parts, channels, width, 1, dilation, dilation) for _ in range(count - 1)]
            setattr(self, stage, nn.Sequential(first, *rest))
            self.channels[stage], self.strides[stage] = channels, total
        _initialise(self)
        if freeze_norm_affine:
            freeze_affine(self)

    def normalise(self, image: Tensor) -> Tensor:
        """RGB 0..1 to the chosen input."""
        normalised: Tensor = self.input(image)
        return normalised

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


def _initialise(network: nn.Module) -> None:
    """Convolutions scaled to the fan-out (He et al. 2015); a checkpoint normally replaces them."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
