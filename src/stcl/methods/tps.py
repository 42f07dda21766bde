"""Domain adaptive video segmentation via temporal pseudo supervision (TPS; Xing et al. 2022, arXiv 2207.02372).

    L = L_src + lambda_T L_trg

The teacher segments an earlier pair of target frames, its view is carried along the flow to the present frame, and the
student must agree on a strongly augmented view of that. These are STCL's losses of sections 3.1 to 3.3.
"""

import torch
from torch import Tensor

from stcl.methods.self_training import SelfTraining, with_labels
from stcl.ops.losses import segmentation_loss
from stcl.types import VideoClip


class TPS(SelfTraining):
    """Temporal pseudo supervision."""

    def adapt(self, source: VideoClip, target: VideoClip, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the algorithm."""
        pseudo = self.label_target(target, self.teacher_view(target, -self.settings.teacher.interval))
        weight = self.weigh(pseudo)
        view = self.student_view(with_labels(target, {0: pseudo.labels}), generator)
        view = self.mask(view, generator)
        self.show("target", view, weight=weight)
        (out_s,), (out_t,) = self.segment([source.pair()], [view.pair()])
        return {
            "source": self.source_loss(out_s, source),
            "target": self.settings.lambda_t * segmentation_loss(out_t, pseudo.labels, weight, self.aux_weight),
        }
