"""SegFormer's mix transformers MiT-B0 to B5 (Xie et al. 2021, arXiv 2105.15203); B5 is the published ViT's backbone.

The layers are those of transformers' ``SegformerModel``, which stands in :attr:`MixTransformer.encoder`: names below it
are the library's. Facts (method section 2): four stages at strides 4, 8, 16 and 32; exact GELU; LayerNorm with eps
1e-6, but 1e-5 in the patch embeddings and in the attention's reduction. The library has 1e-5 everywhere; here it is as
published.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stcl.errors import SettingError, lookup
from stcl.models.backbones.base import Backbone, Tap, as_map, as_tokens, transformers, untapped
from stcl.models.heads import HeadSettings

NORM_EPS = 1e-6
"""Of every LayerNorm that belongs neither to a patch embedding nor to an attention's reduction."""


class Variant(NamedTuple):
    """What the variants differ in: width of the first stage's map (times 1, 2, 5, 8) and layers of each stage."""

    width: int
    depths: tuple[int, int, int, int]


VARIANTS = {
    "b0": Variant(32, (2, 2, 2, 2)),
    "b1": Variant(64, (2, 2, 2, 2)),
    "b2": Variant(64, (3, 4, 6, 3)),
    "b3": Variant(64, (3, 4, 18, 3)),
    "b4": Variant(64, (3, 8, 27, 3)),
    "b5": Variant(64, (3, 6, 40, 3)),
}
"""Every MiT by its variant."""


class MixTransformer(Backbone):
    """MiT with stages ``stage1`` (stride 4), ``stage2`` (8), ``stage3`` (16) and ``stage4`` (32).

    Args:
        variant: a key of :data:`VARIANTS`.
        input: ``published`` (BGR 0..255 minus mean) or ``imagenet``, see :data:`~stcl.models.backbones.base.INPUTS`.
        drop_path: the last layer's probability of leaving out a residual branch; it rises linearly from 0.
    """

    stages = ("stage1", "stage2", "stage3", "stage4")
    strides = {"stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}
    head_settings = HeadSettings(dilations=(6, 12, 18))

    def __init__(self, variant: str = "b5", input: str = "published", drop_path: float = 0.1) -> None:
        super().__init__(input)
        width, depths = lookup(VARIANTS, variant, "variant of MiT")
        if not 0 <= drop_path < 1:
            raise SettingError(f"drop_path is a probability below 1, not {drop_path}.")
        widths = tuple(width * factor for factor in (1, 2, 5, 8))
        library = transformers()
        config = library.SegformerConfig(hidden_sizes=widths, depths=depths, drop_path_rate=0.0)
        self.channels = dict(zip(self.stages, widths, strict=True))
        self.encoder = library.SegformerModel(config)
        self.rates = [drop_path * number / (sum(depths) - 1) for number in range(sum(depths))]
        for stage in self.encoder.stages:
            stage.layer_norm.eps = NORM_EPS
            for layer in stage.blocks:
                layer.layernorm_before.eps = layer.layernorm_after.eps = NORM_EPS
        # as published: linear maps truncated normal, convolutions scaled to the fan-out of a channel group
        for layer in self.encoder.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.Conv2d):
                fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups
                nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

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
        return as_map(*stage.patch_embeddings(features))

    def _layer(self, layer: Any, features: Tensor, kept: Tensor | None) -> Tensor:
        """Efficient self-attention and mix-FFN, each a residual branch."""
        grid = features.shape[-2:]
        tokens = as_tokens(features)  # (B, h w, C)
        branch = layer.attention(layer.layernorm_before(tokens), *grid)[0]
        tokens = tokens + (branch if kept is None else branch * kept[0].to(branch.dtype))
        branch = layer.mlp(layer.layernorm_after(tokens), *grid)
        tokens = tokens + (branch if kept is None else branch * kept[1].to(branch.dtype))
        return as_map(tokens, *grid)

    def _norm(self, stage: Any, features: Tensor) -> Tensor:
        return as_map(stage.layer_norm(as_tokens(features)), *features.shape[-2:])


def draw_kept(like: Tensor, rate: float, training: bool) -> Tensor | None:
    """Factors of the two residual branches of a layer (stochastic depth; Huang et al. 2016, arXiv 1603.09382).

    Args:
        like: a tensor with the batch's length, device and type.
        rate: probability with which a branch of a sample is left out.
        training: draw at all.

    Returns:
        ``(2, B, 1, 1)``: 0 where a branch is left out, ``1 / (1 - rate)`` elsewhere; None where all are kept.
    """
    if rate == 0 or not training:
        return None
    kept = torch.rand(2, len(like), 1, 1, device=like.device) >= rate
    return kept.to(like.dtype) / (1 - rate)
