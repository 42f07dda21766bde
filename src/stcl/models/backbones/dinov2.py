"""DINOv2's vision transformers S, B and L at patches of 14 pixels (Oquab et al. 2023, arXiv 2304.07193).

The layers are those of transformers' ``Dinov2Model``, which stands in :attr:`Dinov2.encoder`: names below it are the
library's. The stages are four of its layers, a quarter of the depth apart, each behind the network's last norm, as in
the original's own dense evaluations.

A frame whose height or width is no multiple of 14 is resized (bilinearly) to the next larger one, which changes either
by less than 14 pixels: 1024x512 becomes 1036x518, 74x37 cells. Resized, not padded: the cells then divide the frame
evenly, and scores that are up-sampled to the frame lie where they belong.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stcl.errors import lookup
from stcl.models.backbones.base import Backbone, Tap, as_map, as_tokens, transformers, untapped
from stcl.models.heads import HeadSettings

PATCH_PX = 14
"""Side of a patch."""

PRETRAINING_PX = 518
"""Side of the images that the position embeddings of the published weights belong to; they are resized to others."""


class Variant(NamedTuple):
    """What the variants differ in."""

    width: int
    depth: int
    heads: int


VARIANTS = {"small": Variant(384, 12, 6), "base": Variant(768, 12, 12), "large": Variant(1024, 24, 16)}
"""Every DINOv2 network by its variant."""


class Dinov2(Backbone):
    """DINOv2 with four stages at stride 14, named by their layers: ``layer3`` to ``layer12``, or to ``layer24``.

    Args:
        variant: a key of :data:`VARIANTS`.
        frozen: learn the heads only; the backbone stays what the starting weights are, and keeps nothing for the
            backward pass.
        input: ``imagenet``, which the published weights expect, or ``published``.
    """

    head_settings = HeadSettings(dilations=(1, 3, 6), upsample=2)

    def __init__(self, variant: str = "base", frozen: bool = False, input: str = "imagenet") -> None:
        super().__init__(input)
        width, depth, heads = lookup(VARIANTS, variant, "variant of DINOv2")
        library = transformers()
        config = library.Dinov2Config(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            patch_size=PATCH_PX,
            image_size=PRETRAINING_PX,
            use_mask_token=False,  # serves the pretraining alone
        )
        self.stages = tuple(f"layer{depth * quarter // 4}" for quarter in (1, 2, 3, 4))
        self.channels = dict.fromkeys(self.stages, width)
        self.strides = dict.fromkeys(self.stages, PATCH_PX)
        self.encoder = library.Dinov2Model(config)
        if frozen:
            self.encoder.requires_grad_(False)

    def forward(self, image: Tensor, tap: Tap | None = None) -> dict[str, Tensor]:
        """See :class:`Backbone`; what a tap does to a stage's map it does to the tokens that go on, too."""
        tap, outputs = tap or untapped, {}
        rows, columns = (-(-side // PATCH_PX) for side in image.shape[-2:])
        tokens = self.compute(self.encoder.embeddings, fit_patches(self.normalise(image)))  # (B, 1 + h w, C)
        for number, layer in enumerate(self.encoder.encoder.layer, start=1):
            tokens = self.compute(layer, tokens)
            name = f"layer{number}"
            if name in self.channels:
                seen = as_map(self.compute(self._norm, tokens), rows, columns)  # (B, C, h, w)
                outputs[name] = tap(name, seen)
                if outputs[name] is not seen:
                    tokens = self._follow(tokens, as_tokens(outputs[name] - seen))
        return outputs

    def _norm(self, tokens: Tensor) -> Tensor:
        """The patches' tokens behind the last norm, without the class token."""
        normed: Tensor = self.encoder.layernorm(tokens[:, 1:])
        return normed

    def _follow(self, tokens: Tensor, change: Tensor) -> Tensor:
        """Tokens moved as far as a tap has moved their normed map: the norm's inverse, with the tokens' own spread."""
        norm: Any = self.encoder.layernorm
        patches = tokens[:, 1:]
        spread = (patches.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()  # (B, h w, 1)
        inverse = norm.weight / (norm.weight.square() + norm.eps)  # of a gain that may be 0
        return torch.cat((tokens[:, :1], patches + (spread * inverse * change).to(patches.dtype)), dim=1)


def fit_patches(image: Tensor) -> Tensor:
    """``(B, C, H, W)``, resized so that its sides are the next multiples of :data:`PATCH_PX`."""
    size = [-(-side // PATCH_PX) * PATCH_PX for side in image.shape[-2:]]
    if size == list(image.shape[-2:]):
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=False)
