"""Spatio-Temporal Consistency Learning (arXiv 2311.13254): bidirectional fusion and category-aware alignment.

Notation: ``x_t`` frame, ``f[a->b]`` flow, ``z`` fused scores, superscripts s and t for source and target, h the
interval of the cross-frame pseudo labels, ``F_s`` and ``F_t`` the fused domains (source and target clips with the same
patches).

    L = L_src + L_fuse,s + lambda_T (L_trg + L_fuse,t) + 0.01 L_align
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stcl.errors import SettingError, unknown_name
from stcl.methods.memory import PrototypeBank
from stcl.methods.patches import ClipMemory, PatchMemory
from stcl.methods.self_training import SelfTraining, choose_labels
from stcl.methods.settings import Alignment, FeatureFusion, Masking, SequenceFusion, check_fusion
from stcl.models import Tap
from stcl.models.segmenter import segment_together
from stcl.ops.align import aggregate, class_centroids, contrastive, mmd, temporal_weights
from stcl.ops.losses import segmentation_loss
from stcl.ops.mixing import PAIR, FusedClip, PatchSequence, choose_classes, classes_present, cut, fuse
from stcl.ops.pseudo_labels import Choice, ignore_unsure
from stcl.types import ClipSpec, FramePair, SegOutput, VideoClip


class STCL(SelfTraining):
    """The method; each part has its switch, and those that have not earned their place are off.

    For further arguments see :class:`SelfTraining`.

    Args:
        consistency: train on the strongly augmented target clip with the cross-frame pseudo labels.
        masking: squares that are hidden from the student; beyond the paper.
        labels: how pixels are labelled, see :class:`SelfTraining`; the paper's are the likeliest.
        sequence_fusion, feature_fusion, alignment: the parts.
    """

    pastes = True

    def __init__(
        self,
        *args: Any,
        consistency: bool = True,
        masking: Masking = Masking(share=0.5),
        labels: Choice = "expected_iou",
        sequence_fusion: SequenceFusion = SequenceFusion(),
        feature_fusion: FeatureFusion = FeatureFusion(),
        alignment: Alignment = Alignment(),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, masking=masking, labels=labels, **kwargs)
        check_fusion(sequence_fusion, feature_fusion)
        self.consistency = consistency
        self.fusion, self.feature_fusion, self.alignment = sequence_fusion, feature_fusion, alignment
        backbone = self.network.backbone
        if feature_fusion.stage is not None and feature_fusion.stage not in backbone.stages:
            raise SettingError(unknown_name("method.feature_fusion.stage", feature_fusion.stage, backbone.stages))
        if feature_fusion.stage is not None and self.shared_statistics:
            raise SettingError(
                "method.feature_fusion needs the source's features before the target's: set "
                "method.shared_statistics to false, or method.feature_fusion.stage to null."
            )
        names, classes = sequence_fusion.rare_classes, len(self.space)
        rare = None if names is None else [self.space.index(name) for name in names]
        self.bank = PatchMemory(classes, sequence_fusion.bank_slots, rare)
        self.other_source, self.other_target = ClipMemory(), ClipMemory()
        self.prototypes = PrototypeBank(classes, backbone.channels[self._aligned_stage])

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """Feature-level fusion also needs the same patches in both domains."""
        super().check(settings)
        check_fusion(settings["sequence_fusion"], settings["feature_fusion"])

    @property
    def target_spec(self) -> ClipSpec:
        """The alignment along time also looks at (t, t-h-1)."""
        return self._along_time(super().target_spec)

    @property
    def student_spec(self) -> ClipSpec:
        """So does the student then."""
        return self._along_time(super().student_spec)

    def _along_time(self, spec: ClipSpec) -> ClipSpec:
        earlier = -self.teacher.interval - 1
        if self.alignment.form is None or self.alignment.pairs == 1 or (0, earlier) in spec.flows:
            return spec
        frames = spec.frames if earlier in spec.frames else (*spec.frames, earlier)
        return replace(spec, frames=frames, flows=(*spec.flows, (0, earlier)))

    def losses(self, source: VideoClip, target: VideoClip | None, generator: torch.Generator) -> dict[str, Tensor]:
        """The long-tail bank fills from the first step on."""
        window = source if target is None else self.window(source, target)
        self.bank.add(window)
        if self.fusion.during_warmup and (target is None or self.step < self.warmup):
            return self.fuse_source(source, window.restrict(PAIR), generator)
        return super().losses(source, target, generator)

    def fuse_source(self, source: VideoClip, window: VideoClip, generator: torch.Generator) -> dict[str, Tensor]:
        """A step without the target: the source, and ``F_s`` with patches of the source."""
        self.show("source", source)
        fused = fuse(window, self.draw_patches(window, None, generator))
        output, out_fs = segment_together(self.network, _pairs(source.pair(), fused))
        terms = {"source": self.source_loss(output, source)}
        return terms | {"fused_source": self._fused_loss("fused_source", out_fs, fused, None)}

    def adapt(self, source: VideoClip, target: VideoClip, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the algorithm."""
        # Cross-frame pseudo labels yhat with confidence q
        earlier = self.teacher_view(target, -self.teacher.interval)
        pseudo = self.label_target(target, earlier)
        weight = self.weigh(pseudo)
        view = self.student_view(self.with_labels(target, {0: pseudo.labels}), generator)
        # Both fused domains: the same patch sequences in two contexts
        window, confident = self.window(source, target).restrict(PAIR), None
        if self.fusion.target_patches:  # whose mask at t-1 needs labels of t-1
            before_view = earlier if self.teacher.interval == 1 else self.teacher_view(target, -1)
            before = choose_labels(before_view, self.expected)
            sure = {at: ignore_unsure(labels, self.fusion.confidence) for at, labels in ((0, pseudo), (-1, before))}
            confident = self.with_labels(view, sure).restrict(PAIR)
        patches = self.draw_patches(window, confident, generator)
        fused_s = fuse(window, patches) if patches and self.fusion.into_source else None
        fused_t = fuse(view.restrict(PAIR), patches) if patches and self.fusion.into_target else None
        # One pass per domain; without patches F_s and F_t would be the clips themselves
        view = self.mask(view, generator)
        pairs = self._target_pairs(view)
        tap = partial(self._feature_tap, fused_t.mask) if fused_s is not None and fused_t is not None else None
        (out_s, *out_fs), out_t = self.segment(_pairs(source.pair(), fused_s), _pairs(*pairs, fused_t), tap)
        terms = {"source": self.source_loss(out_s, source)}
        if fused_s is not None:
            terms["fused_source"] = self._fused_loss("fused_source", out_fs[0], fused_s, None)
        if fused_t is not None:
            terms["fused_target"] = self.lambda_t * self._fused_loss("fused_target", out_t[-1], fused_t, weight)
        if self.consistency:
            self.show("target", view, weight=weight)
            terms["target"] = self.lambda_t * segmentation_loss(out_t[0], pseudo.labels, weight, self.aux_weight)
        if self.alignment.form is not None:
            terms["align"] = self.alignment.weight * self.align(out_s, source.label(0), out_t[: len(pairs)])
        return terms

    def draw_patches(
        self, source: VideoClip, confident: VideoClip | None, generator: torch.Generator
    ) -> list[PatchSequence]:
        """Patch sequences of another source clip, another target clip and the long-tail bank (section 3.4).

        Args:
            source: labelled clips.
            confident: target clips with the labels that are sure enough; None for patches of the source alone.
            generator: of the draws.
        """
        setting, classes = self.fusion, len(self.space)
        patches: list[PatchSequence] = []
        chosen_s = None
        if setting.source_patches:
            other = self.other_source.exchange(source)
            present = classes_present(other.label(0), classes)
            chosen_s = choose_classes(present, setting.random_classes, generator, always=self.bank.rare)
            patches.append(cut(other, chosen_s))
        if confident is not None:
            other = self.other_target.exchange(confident)
            present = classes_present(other.label(0), classes)
            patches.append(cut(other, choose_classes(present, setting.random_classes, generator, exclude=chosen_s)))
        patches += self.bank.close_ups(source, setting.close_ups, setting.close_up_zoom, generator)
        return patches + self.bank.draw(source, setting.long_tail_patches, generator)

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

    def _target_pairs(self, target: VideoClip) -> list[FramePair]:
        """Pairs of the target alone that the terms need: (t, t-1), for the alignment along time (t, t-h-1), too."""
        pair = target.pair()
        if self.alignment.form is not None and self.alignment.pairs == 2:  # one current frame, which is encoded once
            return [pair, target.pair(0, -self.teacher.interval - 1)._replace(current=pair.current)]
        return [pair] if self.consistency or self.alignment.form is not None else []

    def _feature_tap(self, mask: Tensor, out_fs: SegOutput) -> Tap | None:
        """Replaces ``g(F_t)`` by ``0.3 g(F_s) + 0.7 g(F_t)`` inside the patches; the last rows of the pass are F_t."""
        setting = self.feature_fusion
        if setting.stage is None or self.step < setting.start * self.steps:
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

    def _fused_loss(self, name: str, output: SegOutput, fused: FusedClip, weight: Tensor | None) -> Tensor:
        weight = fused.weigh(weight)
        self.show(name, fused.clip, fused.mask, weight)
        return segmentation_loss(output, fused.clip.label(0), weight, self.aux_weight)


def _pairs(*parts: FramePair | FusedClip | None) -> list[FramePair]:
    return [part if isinstance(part, FramePair) else part.pair() for part in parts if part is not None]
