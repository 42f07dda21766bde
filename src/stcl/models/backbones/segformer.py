"""SegFormer's mix transformers MiT-B0 to B5 (Xie et al. 2021, arXiv 2105.15203); B5 is the published ViT's backbone.

The layers are those of transformers' ``SegformerModel``, which stands in :attr:`MixTransformer.encoder`: names below it
are the library's. Facts (method section 2): four stages at strides 4, 8, 16 and 32; exact GELU; LayerNorm with eps
1e-6, but 1e-5 in the patch embeddings and in the attention's reduction. The library has 1e-5 everywhere; here it is as
published.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from stcl.errors import lookup
from stcl.models.backbones.base import Backbone, Tap, untapped
from stcl.models.backbones.inputs import Input
from stcl.models.backbones.tokens import add_branch, as_map, as_tokens, check_drop_path, draw_kept, transformers
from stcl.models.head import HeadSettings

NORM_EPS = 1e-6
"""Of every LayerNorm that belongs neither to a patch embedding nor to an attention's reduction."""


class Size(NamedTuple):
    """What the variants differ in: width of the first stage's map (times 1, 2, 5, 8) and layers of each stage."""

    width: int
    depths: tuple[int, int, int, int]


SIZES = {
    "b0": Size(32, (2, 2, 2, 2)),
    "b1": Size(64, (2, 2, 2, 2)),
    "b2": Size(64, (3, 4, 6, 3)),
    "b3": Size(64, (3, 4, 18, 3)),
    "b4": Size(64, (3, 8, 27, 3)),
    "b5": Size(64, (3, 6, 40, 3)),
}
"""Every MiT by its size."""


class MixTransformer(Backbone):
    """MiT with stages ``stage1`` (stride 4), ``stage2`` (8), ``stage3`` (16) and ``stage4`` (32).

    Args:
        size: a key of :data:`SIZES`.
        input: ``published`` (BGR 0..255 minus mean) or ``imagenet``, see :data:`~stcl.models.backbones.inputs.INPUTS`.
        drop_path: the last layer's probability of leaving out a residual branch; it rises linearly from 0.
    """

    stages = ("stage1", "stage2", "stage3", "stage4")
    strides = {"stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}
    head_settings = HeadSettings(dilations=(6, 12, 18))

    def __init__(self, size: str = "b5", input: str = "published", drop_path: float = 0.1) -> None:
        super().__init__()
        width, depths = lookup(SIZES, size, "size of MiT")
        check_drop_path(drop_path)
        widths = tuple(width * factor for factor in (1, 2, 5, 8))
        library = transformers()
        config = library.SegformerConfig(hidden_sizes=widths, depths=depths, drop_path_rate=0.0)
        self.channels = dict(zip(self.stages, widths, strict=True))
        self.input = Input(input)
        self.encoder = library.SegformerModel(config)
        self.rates = [drop_path * number / (sum(depths) - 1) for number in range(sum(depths))]
        for stage in self.encoder.stages:
            stage.layer_norm.eps = NORM_EPS
            for layer in stage.blocks:
                layer.layernorm_before.eps = layer.layernorm_after.eps = NORM_EPS
        _initialise(self.encoder)

    def normalise(self, image: Tensor) -> Tensor:
        """RGB 0..1 to the chosen input."""
        normalised: Tensor = self.input(image)
        return normalised

    def forward(self, image: Tensor, tap: Tap | None = None) -> dict[str, Tensor]:
        """See :class:`Backbone`; each stage begins with a strided convolution and ends with a norm."""
        tap, rates = tap or untapped, iter(self.rates)
        features, outputs = self.normalise(image), {}
        for name, stage in zip(self.stages, self.encoder.stages, strict=True):
            features = self.compute(self._embed, stage, features)  # (B, C, h, w)
            for layer in stage.blocks:
                kept = draw_kept(features, next(rates), self.training)
                features = self.compute(self._layer, layer, features, kept)
            features = outputs[name] = tap(name, self.compute(self._norm, stage, features))
        return outputs

    def _embed(self, stage: Any, features: Tensor) -> Tensor:
        tokens, height, width = stage.patch_embeddings(features)
        return as_map(tokens, height, width)

    def _layer(self, layer: Any, features: Tensor, kept: Tensor | None) -> Tensor:
        """Efficient self-attention and mix-FFN, each a residual branch."""
        grid = features.shape[-2:]
        tokens = as_tokens(features)  # (B, h w, C)
        tokens = add_branch(tokens, layer.attention(layer.layernorm_before(tokens), *grid)[0], kept, 0)
        tokens = add_branch(tokens, layer.mlp(layer.layernorm_after(tokens), *grid), kept, 1)
        return as_map(tokens, *grid)

    def _norm(self, stage: Any, features: Tensor) -> Tensor:
        return as_map(stage.layer_norm(as_tokens(features)), *features.shape[-2:])


def _initialise(encoder: nn.Module) -> None:
    """As published: linear maps truncated normal with 0.02, convolutions scaled to the fan-out of a channel group."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups
            nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
