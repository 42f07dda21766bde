"""Spatio-Temporal Consistency Learning (arXiv 2311.13254): bidirectional fusion and category-aware alignment.

Notation: ``x_t`` frame, ``f[a->b]`` flow, ``z`` fused scores, superscripts s and t for source and target, h the
interval of the cross-frame pseudo labels, ``F_s`` and ``F_t`` the fused domains (source and target clips with the same
patches).

    L = L_src + L_fuse,s + lambda_T (L_trg + L_fuse,t) + 0.01 L_align
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stcl.errors import SettingError, unknown_name
from stcl.labels import IGNORE
from stcl.methods.base import AdaptationMethod
from stcl.methods.memory import ClipMemory, PatchMemory, PrototypeBank
from stcl.methods.settings import Alignment, FeatureFusion, SequenceFusion, Teacher
from stcl.models import EmaTeacher, Tap
from stcl.models.joint import segment_together
from stcl.ops.align import aggregate, class_centroids, contrastive, mmd, temporal_weights
from stcl.ops.losses import segmentation_loss
from stcl.ops.mixing import FusedClip, PatchSequence, choose_classes, classes_present, cut, fuse
from stcl.ops.pseudo_labels import (
    PseudoLabels,
    Weighting,
    class_probabilities,
    ignore_unsure,
    pixel_weights,
    pseudo_labels,
)
from stcl.types import ClipSpec, FramePair, SegOutput, VideoClip

PAIR = ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0, -1))
"""The part of a clip that is mixed: both frames, their labels, the flow between them."""


class STCL(AdaptationMethod):
    """The whole method; each part has its switch.

    Args:
        lambda_t: weight of the target terms.
        consistency: train on the strongly augmented target clip with the cross-frame pseudo labels.
        warmup: supervised steps before the target takes part.
        weighting: of pseudo-labelled pixels: ``none``, ``threshold`` or ``share``.
        threshold: probability for ``weighting``.
        augment_target: strong augmentation of the student's target frames.
        teacher, sequence_fusion, feature_fusion, alignment: the parts.
    """

    def __init__(
        self,
        *args: Any,
        lambda_t: float = 1.0,
        consistency: bool = True,
        warmup: int = 0,
        weighting: Weighting = "share",
        threshold: float = 0.9,
        augment_target: bool = True,
        teacher: Teacher = Teacher(),
        sequence_fusion: SequenceFusion = SequenceFusion(),
        feature_fusion: FeatureFusion = FeatureFusion(),
        alignment: Alignment = Alignment(),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lambda_t, self.consistency, self.warmup = lambda_t, consistency, warmup
        self.weighting, self.threshold, self.augment_target = weighting, threshold, augment_target
        self.teacher, self.fusion, self.feature_fusion, self.alignment = (
            teacher,
            sequence_fusion,
            feature_fusion,
            alignment,
        )
        backbone = self.network.backbone
        if feature_fusion.stage is not None and feature_fusion.stage not in backbone.stages:
            raise SettingError(unknown_name("method.feature_fusion.stage", feature_fusion.stage, backbone.stages))
        if teacher.interval < 0:
            raise SettingError(f"method.teacher.interval is a number of frames of at least 0, not {teacher.interval}.")
        names, classes, frozen = sequence_fusion.rare_classes, len(self.space), teacher.kind == "frozen"
        rare = None if names is None else [self.space.index(name) for name in names]
        self.bank = PatchMemory(classes, sequence_fusion.bank_slots, rare)
        self.other_source, self.other_target = ClipMemory(), ClipMemory()
        self.prototypes = PrototypeBank(classes, backbone.channels[self._aligned_stage])
        self.average.statistics = teacher.statistics
        self.itself = EmaTeacher(self.network, kind="self", statistics=teacher.statistics)
        self.start = EmaTeacher(self.network, kind="frozen", statistics=teacher.statistics) if frozen else None

    @property
    def target_spec(self) -> ClipSpec:
        """Frames (t, t-1, t-h, t-h-1) and the flows between them; never labels."""
        h = self.teacher.interval
        flows = [(0, -1), *([(0, -h)] if h else []), (-h, -h - 1)]
        if self.alignment.form is not None and self.alignment.pairs == 2:
            flows.append((0, -h - 1))
        return ClipSpec(frames=tuple(dict.fromkeys((0, -1, -h, -h - 1))), flows=tuple(dict.fromkeys(flows)))

    def losses(self, source: VideoClip, target: VideoClip | None, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the algorithm."""
        window = source if target is None else self._crop(source, target.size)
        self.bank.add(window)
        if target is None or self.global_step < self.warmup:
            output = self.network(source.pair())
            return {"source": segmentation_loss(output, source.label(0), aux_weight=self.aux_weight)}
        # Cross-frame pseudo labels yhat with confidence q, for t and for t-1 (whose own mask a patch needs)
        pseudo, previous = self.label_target(target)
        labelled = self._labelled(target, pseudo, previous, generator)
        weight = pixel_weights(pseudo.confidence, self.weighting, self.threshold)
        # Both fused domains: the same patch sequences in two contexts
        patches = self.draw_patches(window, labelled, pseudo, previous, generator)
        fused_s, fused_t = fuse(window.restrict(PAIR), patches), fuse(labelled.restrict(PAIR), patches)
        # One pass per domain; without patches F_s and F_t would be the clips themselves
        out_s, *out_fs = segment_together(self.network, [source.pair(), *([_pair(fused_s)] if patches else [])])
        tap = self._feature_tap(out_fs[0], fused_t.mask) if patches else None
        views = self._target_views(labelled)
        out_t = segment_together(self.network, [*views, *([_pair(fused_t)] if patches else [])], tap)
        terms = {"source": segmentation_loss(out_s, source.label(0), aux_weight=self.aux_weight)}
        if patches:
            terms["fused_source"] = self._fused_loss(out_fs[0], fused_s, None)
            terms["fused_target"] = self.lambda_t * self._fused_loss(out_t[-1], fused_t, weight)
        if self.consistency:
            terms["target"] = self.lambda_t * segmentation_loss(out_t[0], pseudo.labels, weight, self.aux_weight)
        if self.alignment.form is not None:
            terms["align"] = self.alignment.weight * self.align(out_s, source.label(0), out_t[: len(views)])
        self.log("pseudo/confidence", pseudo.confidence.mean(), batch_size=len(pseudo.labels))
        return terms

    def label_target(self, target: VideoClip) -> tuple[PseudoLabels, PseudoLabels]:
        """Labels of t by warping the teacher's view of (t-h, t-h-1), and the teacher's labels of t-1 (section 3.2)."""
        h = self.teacher.interval
        view = class_probabilities(self._teach(target.pair(-h, -h - 1)), target.size)
        pseudo = pseudo_labels(view, target.flow(0, -h) if h else None)
        if h != 1:
            view = class_probabilities(self._teach(FramePair(target.frame(-1))), target.size)
        return pseudo, pseudo_labels(view)

    def draw_patches(
        self,
        source: VideoClip,
        target: VideoClip,
        pseudo: PseudoLabels,
        previous: PseudoLabels,
        generator: torch.Generator,
    ) -> list[PatchSequence]:
        """Patch sequences of another source clip, another target clip and the long-tail bank (section 3.4)."""
        setting, classes = self.fusion, len(self.space)
        patches: list[PatchSequence] = []
        chosen_s = None
        if setting.source_patches:
            other = self.other_source.exchange(source.restrict(PAIR))
            chosen_s = choose_classes(
                classes_present(other.label(0), classes), setting.random_classes, generator, always=self.bank.rare
            )
            patches.append(cut(other, chosen_s))
        if setting.target_patches:
            sure = [ignore_unsure(labels, setting.confidence) for labels in (pseudo, previous)]
            confident = replace(target.restrict(PAIR), labels=torch.stack(sure, dim=1))
            other = self.other_target.exchange(confident)
            chosen_t = choose_classes(
                classes_present(other.label(0), classes), setting.random_classes, generator, exclude=chosen_s
            )
            patches.append(cut(other, chosen_t))
        patches += self.bank.draw(target.restrict(PAIR), setting.long_tail_patches, generator)
        return patches

    def align(self, out_s: SegOutput, label_s: Tensor, out_t: list[SegOutput]) -> Tensor:
        """Distance between source and target class centroids, the target's aggregated along time (section 3.6)."""
        setting, classes, stage = self.alignment, len(self.space), self._aligned_stage
        target_centroids = aggregate(
            [
                class_centroids(out.features[stage], out.logits.argmax(1), classes, setting.minimum_pixels)
                for out in out_t
            ],
            temporal_weights([out.logits for out in out_t], setting.adaptive),
        )
        source_centroids = class_centroids(out_s.features[stage], label_s, classes, setting.minimum_pixels)
        if setting.form == "contrastive":
            return contrastive(target_centroids, self.prototypes.update(source_centroids), setting.temperature)
        return mmd(source_centroids, target_centroids)

    def moving_statistics(self) -> list[Tensor]:
        """The running source centroids move, too."""
        return [*super().moving_statistics(), *self.prototypes.buffers()]

    # ---- small pieces ----

    @property
    def _aligned_stage(self) -> str:
        return self.network.backbone.stages[-1]

    def _teach(self, pair: FramePair) -> Tensor:
        """Scores of the teacher in charge."""
        trained = self.global_step - self.warmup
        if self.teacher.kind == "ema":
            return self.average(pair).logits
        if self.start is not None and (self.teacher.frozen_steps is None or trained < self.teacher.frozen_steps):
            if trained == 0:
                self.start.reset(self.network)
            return self.start(pair).logits
        return self.itself(pair).logits

    def _labelled(
        self, target: VideoClip, pseudo: PseudoLabels, previous: PseudoLabels, generator: torch.Generator
    ) -> VideoClip:
        """The student's target clip: strongly augmented frames, pseudo labels at t and t-1."""
        labels = torch.full_like(target.frames[:, :, 0], IGNORE, dtype=torch.long)
        labels[:, target.offsets.index(0)], labels[:, target.offsets.index(-1)] = pseudo.labels, previous.labels
        clip = replace(target, labels=labels)
        return self.augment(clip, generator) if self.augment_target else clip

    def _target_views(self, target: VideoClip) -> list[FramePair]:
        """Pairs of the target alone that the terms need: (t, t-1), for the alignment along time (t, t-h-1), too."""
        pair = target.pair()
        if self.alignment.form is not None and self.alignment.pairs == 2:  # one current frame, which is encoded once
            return [pair, target.pair(0, -self.teacher.interval - 1)._replace(current=pair.current)]
        return [pair] if self.consistency or self.alignment.form is not None else []

    def _crop(self, source: VideoClip, size: tuple[int, int]) -> VideoClip:
        """A window of the target's size ``(height, width)``."""
        if source.size == size:
            return source
        if source.size[0] < size[0] or source.size[1] < size[1]:
            raise SettingError(
                f"Source clips of {source.size[1]}x{source.size[0]} px are smaller than the target's "
                f"{size[1]}x{size[0]} px, so patches cannot be pasted. Make source.size at least target.size, also "
                "after method.preparation.rescale."
            )
        return self.draw_window(source, size)

    def _feature_tap(self, out_fs: SegOutput, mask: Tensor) -> Tap | None:
        """Replaces ``g(F_t)`` by ``0.3 g(F_s) + 0.7 g(F_t)`` inside the patches; the last rows of the pass are F_t."""
        setting = self.feature_fusion
        if setting.stage is None or self.global_step < setting.start * self.trainer.max_steps:
            return None
        source_features = out_fs.features[setting.stage]

        def tap(stage: str, features: Tensor) -> Tensor:
            if stage != setting.stage:
                return features
            size = features.shape[-2:]
            inside = torch.nn.functional.interpolate(mask.unsqueeze(1).to(features.dtype), size, mode="nearest")
            target_features = features[-len(mask) :]
            share = setting.source_share * inside
            mixed = share * source_features + (1 - share) * target_features
            return torch.cat((features[: -len(mask)], mixed))

        return tap

    def _fused_loss(self, output: SegOutput, fused: FusedClip, weight: Tensor | None) -> Tensor:
        if weight is not None:  # pasted pixels are sure, the background is weighted
            weight = torch.where(fused.mask, torch.ones_like(weight), weight)
        return segmentation_loss(output, fused.clip.label(0), weight, self.aux_weight)


def _pair(fused: FusedClip) -> FramePair:
    return fused.clip.pair()._replace(still=fused.still)
