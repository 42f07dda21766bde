"""Domain adaptation via cross-domain mixed sampling (DACS; Tranheden et al. 2021, arXiv 2007.08702), on frame pairs.

    L = L_src + lambda_T CE(z(mixed), y_mixed)

Half of the classes of a source clip are pasted onto a target clip (ClassMix, arXiv 2007.07936), into both frames with
each frame's own mask; the rest is labelled by the teacher. Published for images: ``teacher.interval`` 0 labels each
frame by itself, the share of sure pixels weighs the unpasted part, and the mixed clip is strongly augmented.
"""

import torch
from torch import Tensor

from stcl.methods.self_training import SelfTraining, with_labels
from stcl.ops.losses import segmentation_loss
from stcl.ops.mixing import PAIR, choose_classes, classes_present, cut, fuse
from stcl.types import VideoClip


class DACS(SelfTraining):
    """One-way ClassMix with pseudo labels."""

    pastes = True

    def adapt(self, source: VideoClip, target: VideoClip, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the algorithm."""
        pseudo = self.label_target(target, self.teacher_view(target, -self.settings.teacher.interval))
        patches = self.window(source, target).restrict(PAIR)
        present = classes_present(patches.label(0), len(self.space))
        half = choose_classes(present, (present.sum(1) + 1) // 2, generator)
        mixed = fuse(with_labels(target, {0: pseudo.labels}).restrict(PAIR), [cut(patches, half)])
        clip = self.mask(self.student_view(mixed.clip, generator), generator)
        weight = mixed.weigh(self.weigh(pseudo))
        self.show("mixed", clip, mixed.mask, weight)
        (out_s,), (out_m,) = self.segment([source.pair()], [clip.pair()])
        return {
            "source": self.source_loss(out_s, source),
            "mixed": self.settings.lambda_t * segmentation_loss(out_m, clip.label(0), weight, self.aux_weight),
        }
