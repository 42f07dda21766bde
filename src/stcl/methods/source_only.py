"""Source only: supervised training on labelled source video (method section 6).

Plain, it is the lower bound. With ``preparation.match_histogram`` and ``preparation.augment_source`` and target
batch-norm statistics it is the STRONG source-only, the yardstick that an adaptation method has to beat.
"""

import torch
from torch import Tensor

from stcl.methods.base import AdaptationMethod
from stcl.ops.losses import segmentation_loss
from stcl.types import VideoClip


class SourceOnly(AdaptationMethod):
    """``L_src = CE(z^s_t, y^s_t) + 0.1 CE_aux``."""

    def losses(self, source: VideoClip, target: VideoClip | None, generator: torch.Generator) -> dict[str, Tensor]:
        """The supervised loss alone; the target at most lends its colours."""
        self.show("source", source)
        output = self.network(source.pair())
        return {"source": segmentation_loss(output, source.label(0), aux_weight=self.aux_weight)}
