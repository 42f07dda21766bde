"""What self-training methods share: who labels the target, from when, and what an unsure label counts.

A method adds its :meth:`SelfTraining.adapt`: what is trained on the labelled source and the pseudo-labelled target.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from stcl.errors import SettingError
from stcl.labels import IGNORE, LabelSpace
from stcl.methods.base import AdaptationMethod
from stcl.methods.memory import ConfidenceMemory, ExpectedIou
from stcl.methods.settings import MethodSettings, SelfTrainingSettings, Teacher
from stcl.models import FrozenTeacher, SelfTeacher, Tap, TeacherNetwork, VideoSegmenter
from stcl.models.segmenter import segment_together
from stcl.ops.losses import segmentation_loss
from stcl.ops.masking import mask_patches
from stcl.ops.mixing import PAIR
from stcl.ops.pseudo_labels import (
    PseudoLabels,
    class_probabilities,
    class_weights,
    pixel_weights,
    pseudo_labels,
    reliability_weights,
)
from stcl.ops.warp import consistent, flip_pair, inside, photometric_error, warp
from stcl.types import ClipSpec, FramePair, SegOutput, VideoClip


class SelfTraining(AdaptationMethod):
    """A supervised warm-up, then :meth:`adapt` with the labels of a teacher."""

    Settings: ClassVar[type[MethodSettings]] = SelfTrainingSettings
    settings: SelfTrainingSettings

    def __init__(self, network: VideoSegmenter, space: LabelSpace, seed: int, settings: SelfTrainingSettings) -> None:
        super().__init__(network, space, seed, settings)
        self.seen = ConfidenceMemory(len(space)) if settings.weighting.startswith("class") else None
        self.expected = ExpectedIou(len(space)) if settings.labels == "expected_iou" else None
        teacher = settings.teacher
        self.average.statistics = teacher.statistics
        self.start: TeacherNetwork | None = None  # the teacher that is not the average; so it is called in checkpoints
        if teacher.kind == "frozen":
            self.start = FrozenTeacher(network, teacher.statistics, teacher.frozen_steps)
        elif teacher.kind == "self":
            self.start = SelfTeacher(network, teacher.statistics)

    @property
    def target_spec(self) -> ClipSpec:
        """Frames (t, t-1, t-h, t-h-1) and the flows between them; never labels."""
        h = self.settings.teacher.interval
        carrying = [(0, -h)] if h else []
        back = [(-h, 0)] if h and self.settings.teacher.flow_consistency else []
        flows = [(0, -1), *carrying, (-h, -h - 1), *back]
        return ClipSpec(frames=tuple(dict.fromkeys((0, -1, -h, -h - 1))), flows=tuple(dict.fromkeys(flows)))

    @property
    def student_spec(self) -> ClipSpec:
        """The part of the target clip that the student segments; earlier frames are the teacher's."""
        return PAIR

    def losses(self, source: VideoClip, target: VideoClip | None, generator: torch.Generator) -> dict[str, Tensor]:
        """``L_src`` alone during the warm-up, then the method."""
        self.show("source", source)
        if target is None or self.step < self.settings.warmup:
            return {"source": self.source_loss(self.network(source.pair()), source)}
        return self.adapt(source, target, generator)

    @abstractmethod
    def adapt(self, source: VideoClip, target: VideoClip, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted loss terms of a step in which the target takes part; arguments as of :meth:`losses`."""

    # ---- steps of the algorithms ----

    def teacher_view(self, target: VideoClip, at: int) -> Tensor:
        """The teacher's probabilities ``(B, C, H, W)`` of the frame at offset ``at``, fused with the one before."""
        pair = target.pair(at, at - 1) if (at, at - 1) in target.flows else FramePair(target.frame(at))
        teacher = self.average if self.start is None else self.start
        step = self.step - self.settings.warmup
        return view_of(lambda pair: teacher(pair, step).logits, pair, target.size, self.settings.teacher)

    def label_target(self, target: VideoClip, view: Tensor) -> PseudoLabels:
        """Labels of t by warping the ``view`` of t-h along f[t->t-h] (section 3.2)."""
        pseudo = carry_labels(view, target, self.settings.teacher, self.expected)
        self.log("pseudo/confidence", pseudo.confidence.mean())
        return pseudo

    def weigh(self, pseudo: PseudoLabels) -> Tensor | None:
        """What each pseudo-labelled pixel counts; None where all count alike."""
        setting = self.settings
        if self.seen is None:
            return pixel_weights(pseudo, setting.weighting, setting.threshold)
        self.seen.update(pseudo)
        if setting.weighting == "class_share":
            return reliability_weights(pseudo, self.seen.shares(setting.threshold))
        return class_weights(pseudo, self.seen.thresholds(setting.kept_share, setting.threshold))

    def student_view(self, target: VideoClip, generator: torch.Generator) -> VideoClip:
        """What the student sees of the target: strongly augmented frames (section 3.3)."""
        view = target.restrict(self.student_spec)
        return self.augment(view, generator) if self.settings.augment_target else view

    def mask(self, target: VideoClip, generator: torch.Generator) -> VideoClip:
        """Hide squares of the student's view, so that it must know from what lies around them."""
        masking = self.settings.masking
        if masking.share == 0:
            return target
        return replace(target, frames=mask_patches(target.frames, masking.share, masking.patch_px, generator))

    def window(self, source: VideoClip, target: VideoClip) -> VideoClip:
        """A window of the source clip with the target's size, so that patches can be pasted."""
        if source.size == target.size:
            return source
        if source.size[0] < target.size[0] or source.size[1] < target.size[1]:
            raise SettingError(
                f"Source clips of {source.size[1]}x{source.size[0]} px are smaller than the target's "
                f"{target.size[1]}x{target.size[0]} px, so patches cannot be pasted. Make source.size at least "
                "target.size, also after method.preparation.rescale."
            )
        return self.draw_window(source, target.size)

    def segment(
        self, source: list[FramePair], target: list[FramePair], tap: Callable[[SegOutput], Tap | None] | None = None
    ) -> tuple[list[SegOutput], list[SegOutput]]:
        """The student's scores, in one pass for each domain: each is normalised with its own batch statistics.

        Args:
            source, target: pairs of frames.
            tap: makes a tap for the target's pass from the last of the source's outputs (feature-level fusion).
        """
        if self.settings.shared_statistics:
            outputs = segment_together(self.network, [*source, *target])
            return outputs[: len(source)], outputs[len(source) :]
        out_s = segment_together(self.network, source)
        return out_s, segment_together(self.network, target, tap(out_s[-1]) if tap is not None else None)

    def source_loss(self, output: SegOutput, source: VideoClip) -> Tensor:
        """``L_src = CE(z^s_t, y^s_t) + 0.1 CE_aux`` (section 3.1)."""
        return segmentation_loss(output, source.label(0), aux_weight=self.aux_weight)

    def moving_statistics(self) -> list[Tensor]:
        """What is remembered of the labels moves, too."""
        memories = [memory for memory in (self.seen, self.expected) if memory is not None]
        return [*super().moving_statistics(), *(buffer for memory in memories for buffer in memory.buffers())]


def with_labels(clip: VideoClip, labels: dict[int, Tensor]) -> VideoClip:
    """The clip with labels at some offsets and none at the others."""
    maps = torch.full_like(clip.frames[:, :, 0], IGNORE, dtype=torch.long)
    for offset, label in labels.items():
        maps[:, clip.offsets.index(offset)] = label
    return replace(clip, labels=maps)


def view_of(scores: Callable[[FramePair], Tensor], pair: FramePair, size: tuple[int, int], teacher: Teacher) -> Tensor:
    """What a network whose ``scores`` are given sees: probabilities ``(B, C, H, W)`` on the grid ``size``."""
    view = class_probabilities(scores(pair), size)
    if teacher.flip:
        view = (view + class_probabilities(scores(flip_pair(pair)), size).flip(-1)) / 2
    return view


def carry_labels(view: Tensor, target: VideoClip, teacher: Teacher, expected: ExpectedIou | None) -> PseudoLabels:
    """Labels of t from the ``view`` of t-h, carried along f[t->t-h]: the likeliest, or those that ``expected`` chooses.

    A pixel has none where its flow leaves the frame, or where ``teacher.flow_error`` or ``teacher.flow_consistency``
    says that it misses frame t.
    """
    h = teacher.interval
    if h == 0:
        return choose_labels(view, expected)
    flow = target.flow(0, -h)
    explained = inside(flow)
    if teacher.flow_error is not None:
        explained &= photometric_error(target.frame(0), target.frame(-h), flow) <= teacher.flow_error
    if teacher.flow_consistency:
        explained &= consistent(flow, target.flow(-h, 0))
    return choose_labels(warp(view, flow), expected, explained)


def choose_labels(view: Tensor, expected: ExpectedIou | None, labelled: Tensor | None = None) -> PseudoLabels:
    """Labels of a ``view``'s frame, where it is ``labelled``: the likeliest, or those that ``expected`` chooses."""
    pseudo = pseudo_labels(view, labelled)
    return pseudo if expected is None else expected.choose(view, pseudo)
