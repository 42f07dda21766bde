"""What self-training methods share: who labels the target, from when, and what an unsure label counts.

A method adds its :meth:`SelfTraining.adapt`: what is trained on the labelled source and the pseudo-labelled target.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.methods.base import AdaptationMethod, Range
from stcl.methods.memory import ConfidenceMemory, ExpectedIou
from stcl.methods.settings import Masking, Teacher
from stcl.models import EmaTeacher, Tap
from stcl.models.segmenter import segment_together
from stcl.ops.losses import segmentation_loss
from stcl.ops.masking import mask_patches
from stcl.ops.mixing import PAIR
from stcl.ops.pseudo_labels import (
    Choice,
    PseudoLabels,
    Weighting,
    class_probabilities,
    class_weights,
    pixel_weights,
    pseudo_labels,
    reliability_weights,
)
from stcl.ops.warp import consistent, flip_pair, inside, photometric_error, warp
from stcl.types import ClipSpec, FramePair, SegOutput, VideoClip


class SelfTraining(AdaptationMethod):
    """A supervised warm-up, then :meth:`adapt` with the labels of a teacher.

    Args:
        lambda_t: weight of the target terms.
        warmup: supervised steps before the target takes part.
        weighting: of pseudo-labelled pixels. ``none``: each counts 1. ``threshold``: those above it count, others not.
            ``share``: all of an image count the share of its pixels above the threshold. ``class_share``: all of a
            class count the share of its pixels above the threshold, lately. ``class_threshold``: as ``threshold``, but
            with a lower one for classes that are seldom sure. ``share`` looks at the probability of each pixel's
            likeliest class, the others at that of its label, which differ with ``expected_iou``.
        threshold: probability for ``weighting``, below 1; with ``class_threshold`` the highest of them.
        kept_share: with ``class_threshold``: of each class's pixels that stay above its threshold at least.
        augment_target: strong augmentation of the student's target frames.
        masking: squares that are hidden from the student.
        shared_statistics: normalise both domains together, in one pass, instead of each with its own batch statistics.
        labels: which class a pixel is labelled as: the ``likeliest``, or the one that promises the highest mean IoU
            (``expected_iou``), which does not lose rare classes.
        teacher: who labels the target.
    """

    ranges: ClassVar[dict[str, Range]] = AdaptationMethod.ranges | {
        "lambda_t": (0,),
        "warmup": (0,),
        "threshold": (0, 1, "most"),
        "kept_share": (0, 1),
    }

    def __init__(
        self,
        *args: Any,
        lambda_t: float = 1.0,
        warmup: int = 0,
        weighting: Weighting = "share",
        threshold: float = 0.968,
        kept_share: float = 0.5,
        augment_target: bool = True,
        masking: Masking = Masking(),
        shared_statistics: bool = False,
        labels: Choice = "likeliest",
        teacher: Teacher = Teacher(),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.check_ranges(lambda_t=lambda_t, warmup=warmup, threshold=threshold, kept_share=kept_share)
        self.lambda_t, self.warmup = lambda_t, warmup
        self.weighting, self.threshold, self.kept_share = weighting, threshold, kept_share
        self.augment_target, self.masking, self.teacher = augment_target, masking, teacher
        self.shared_statistics = shared_statistics
        self.seen = ConfidenceMemory(len(self.space)) if weighting.startswith("class") else None
        self.expected = ExpectedIou(len(self.space)) if labels == "expected_iou" else None
        self.average.statistics = teacher.statistics
        self.itself = EmaTeacher(self.network, kind="self", statistics=teacher.statistics)
        frozen = teacher.kind == "frozen"
        self.start = EmaTeacher(self.network, kind="frozen", statistics=teacher.statistics) if frozen else None

    @property
    def target_spec(self) -> ClipSpec:
        """Frames (t, t-1, t-h, t-h-1) and the flows between them; never labels."""
        h = self.teacher.interval
        carrying = [(0, -h)] if h else []
        back = [(-h, 0)] if h and self.teacher.flow_consistency else []
        flows = [(0, -1), *carrying, (-h, -h - 1), *back]
        return ClipSpec(frames=tuple(dict.fromkeys((0, -1, -h, -h - 1))), flows=tuple(dict.fromkeys(flows)))

    def losses(self, source: VideoClip, target: VideoClip | None, generator: torch.Generator) -> dict[str, Tensor]:
        """``L_src`` alone during the warm-up, then the method."""
        self.show("source", source)
        if target is None or self.step < self.warmup:
            return {"source": self.source_loss(self.network(source.pair()), source)}
        return self.adapt(source, target, generator)

    @abstractmethod
    def adapt(self, source: VideoClip, target: VideoClip, generator: torch.Generator) -> dict[str, Tensor]:
        """Weighted loss terms of a step in which the target takes part; arguments as of :meth:`losses`."""

    def segment(
        self, source: list[FramePair], target: list[FramePair], tap: Callable[[SegOutput], Tap | None] | None = None
    ) -> tuple[list[SegOutput], list[SegOutput]]:
        """The student's scores, in one pass for each domain: each is normalised with its own batch statistics.

        Args:
            source, target: pairs of frames.
            tap: makes a tap for the target's pass from the last of the source's outputs (feature-level fusion).
        """
        if self.shared_statistics:
            outputs = segment_together(self.network, [*source, *target])
            return outputs[: len(source)], outputs[len(source) :]
        out_s = segment_together(self.network, source)
        return out_s, segment_together(self.network, target, tap(out_s[-1]) if tap is not None else None)

    def source_loss(self, output: SegOutput, source: VideoClip) -> Tensor:
        """``L_src = CE(z^s_t, y^s_t) + 0.1 CE_aux`` (section 3.1)."""
        return segmentation_loss(output, source.label(0), aux_weight=self.aux_weight)

    def teacher_view(self, target: VideoClip, at: int) -> Tensor:
        """The teacher's probabilities ``(B, C, H, W)`` of the frame at offset ``at``, fused with the one before."""
        pair = target.pair(at, at - 1) if (at, at - 1) in target.flows else FramePair(target.frame(at))
        return view_of(self._teach, pair, target.size, self.teacher)

    def label_target(self, target: VideoClip, view: Tensor) -> PseudoLabels:
        """Labels of t by warping the ``view`` of t-h along f[t->t-h] (section 3.2)."""
        pseudo = carry_labels(view, target, self.teacher, self.expected)
        self.log("pseudo/confidence", pseudo.confidence.mean())
        return pseudo

    def weigh(self, pseudo: PseudoLabels) -> Tensor | None:
        """What each pseudo-labelled pixel counts; None where all count alike."""
        if self.seen is None:
            return pixel_weights(pseudo, self.weighting, self.threshold)
        self.seen.update(pseudo)
        if self.weighting == "class_share":
            return reliability_weights(pseudo, self.seen.shares(self.threshold))
        return class_weights(pseudo, self.seen.thresholds(self.kept_share, self.threshold))

    def mask(self, target: VideoClip, generator: torch.Generator) -> VideoClip:
        """Hide squares of the student's view, so that it must know from what lies around them."""
        if self.masking.share == 0:
            return target
        frames = mask_patches(target.frames, self.masking.share, self.masking.patch_px, generator)
        return replace(target, frames=frames)

    def with_labels(self, target: VideoClip, labels: dict[int, Tensor]) -> VideoClip:
        """The target clip with labels at some offsets and none at the others."""
        maps = torch.full_like(target.frames[:, :, 0], IGNORE, dtype=torch.long)
        for offset, label in labels.items():
            maps[:, target.offsets.index(offset)] = label
        return replace(target, labels=maps)

    @property
    def student_spec(self) -> ClipSpec:
        """The part of the target clip that the student segments; earlier frames are the teacher's."""
        return PAIR

    def student_view(self, target: VideoClip, generator: torch.Generator) -> VideoClip:
        """What the student sees of the target: strongly augmented frames (section 3.3)."""
        seen = target.restrict(self.student_spec)
        return self.augment(seen, generator) if self.augment_target else seen

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

    def moving_statistics(self) -> list[Tensor]:
        """What is remembered of the labels moves, too."""
        memories = [memory for memory in (self.seen, self.expected) if memory is not None]
        return [*super().moving_statistics(), *(buffer for memory in memories for buffer in memory.buffers())]

    def _teach(self, pair: FramePair) -> Tensor:
        """Scores of the teacher in charge."""
        trained = self.step - self.warmup
        if self.teacher.kind == "ema":
            return self.average(pair).logits
        if self.start is not None and (self.teacher.frozen_steps is None or trained < self.teacher.frozen_steps):
            if trained == 0:
                self.start.reset(self.network)
            return self.start(pair).logits
        return self.itself(pair).logits


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
    h, seen = teacher.interval, None
    if h:
        flow = target.flow(0, -h)
        seen = inside(flow)
        if teacher.flow_error is not None:
            seen &= photometric_error(target.frame(0), target.frame(-h), flow) <= teacher.flow_error
        if teacher.flow_consistency:
            seen &= consistent(flow, target.flow(-h, 0))
        view = warp(view, flow)
    return choose_labels(view, expected, seen)


def choose_labels(view: Tensor, expected: ExpectedIou | None, seen: Tensor | None = None) -> PseudoLabels:
    """Labels of the frame of a ``view``, where it is ``seen``: the likeliest, or those that ``expected`` chooses."""
    pseudo = pseudo_labels(view, seen)
    return pseudo if expected is None else expected.choose(view, pseudo)
