"""Every head by name, and those that read one stage: its feature map to class scores on the same grid.

Sources: DeepLab v2's sum of dilated convolutions, as the published TPS ("layer6", auxiliary "layer5") and STCL
("layer7") networks use it (method section 2). The names ``conv2d_list.{0..3}`` and ``head.1`` are the
published checkpoints'.
"""

from torch import Tensor, nn

from stcl.models.convolutions import DilatedConv2d
from stcl.models.head import Head, HeadBuilder, HeadSettings
from stcl.models.pyramid import DaformerHead, MlpHead


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


class TpsHead(DilatedSum):
    """TPS head and auxiliary head: the dilated convolutions give the class scores themselves."""

    settings = ("dilations", "initial_std")

    def __init__(self, channels: int, classes: int, settings: HeadSettings) -> None:
        super().__init__(channels, classes, settings.dilations)
        initialise_head(self, settings.initial_std)


class StclHead(DilatedSum):
    """STCL head: dilated convolutions to ``settings.width`` channels, channel dropout, 1x1 convolution to scores."""

    settings = ("dilations", "width", "dropout", "initial_std")

    def __init__(self, channels: int, classes: int, settings: HeadSettings) -> None:
        super().__init__(channels, settings.width, settings.dilations)
        self.head = nn.Sequential(nn.Dropout2d(settings.dropout), nn.Conv2d(settings.width, classes, 1, bias=False))
        initialise_head(self, settings.initial_std)

    def forward(self, features: Tensor) -> Tensor:
        """Class scores, on the same grid."""
        hidden = super().forward(features)  # (B, width, h, w)
        scores: Tensor = self.head(hidden)  # (B, C, h, w)
        return scores


def initialise_head(head: nn.Module, std: float | None) -> None:
    """Weights from N(0, std^2), or scaled to the fan-in where ``std`` is None; biases zero."""
    for layer in head.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if std is None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        else:
            nn.init.normal_(layer.weight, std=std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


HEADS: dict[str, HeadBuilder] = {"stcl": StclHead, "tps": TpsHead, "mlp": MlpHead, "daformer": DaformerHead}
"""Every head by name. The auxiliary head is always the TPS form."""
