"""Spatio-Temporal Consistency Learning (arXiv 2311.13254): bidirectional fusion and category-aware alignment.

Notation: ``x_t`` frame, ``f[a->b]`` flow, ``z`` fused scores, superscripts s and t for source and target, h the
interval of the cross-frame pseudo labels, ``F_s`` and ``F_t`` the fused domains (source and target clips with the same
patches).

    L = L_src + L_fuse,s + lambda_T (L_trg + L_fuse,t) + 0.01 L_align
"""

from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stcl.errors import SettingError, one_line, unknown_name
from stcl.fields import Group, Span, group
from stcl.labels import LabelSpace
from stcl.methods.memory import PrototypeBank
from stcl.methods.patches import ClipMemory, PatchMemory
from stcl.methods.self_training import SelfTraining, choose_labels, with_labels
from stcl.methods.settings import Masking, MethodSettings, SelfTrainingSettings
from stcl.models import Tap, VideoSegmenter
from stcl.models.segmenter import segment_together
from stcl.ops.align import Centroids, aggregate, class_centroids, contrastive, mmd, temporal_weights
from stcl.ops.losses import segmentation_loss
from stcl.ops.mixing import PAIR, FusedClip, PatchSequence, choose_classes, classes_present, cut, fuse
from stcl.ops.pseudo_labels import Choice, ignore_unsure
from stcl.types import ClipSpec, FramePair, SegOutput, VideoClip


@group
class SequenceFusion(Group):
    """Fusion at the image-sequence level (section 3.4); close-ups are beyond the paper."""

    source_patches: bool = True
    """Paste patches of another source clip."""
    target_patches: bool = False
    """Paste confident patches of another target clip."""
    random_classes: int = Field(default=2, ge=0)
    """How many random classes a patch sequence takes."""
    long_tail_patches: int = Field(default=2, ge=0)
    """Patches from the bank of rare-class frames."""
    close_ups: int = Field(default=1, ge=0)
    """Enlarged patches from the bank."""
    close_up_zoom: Span = (1.0, 4.0)
    """Range of their enlargement."""
    rare_classes: list[str] | None = None
    """Names of the rare classes; null: from the source's pixel frequencies."""
    confidence: float = Field(default=0.9, ge=0, lt=1)
    """Target patches take pixels whose label has a probability above this."""
    bank_slots: int = Field(default=4, ge=1)
    """Frames kept for each rare class."""
    into_source: bool = False
    """Paste patches into the source clip: `F_s`."""
    into_target: bool = True
    """Paste patches into the target clip: `F_t`."""
    during_warmup: bool = False
    """Train on `F_s`, with patches of the source, from the first step on."""


@group
class FeatureFusion(Group):
    """Fusion at the feature level (section 3.5): ``0.3 g(F_s) + 0.7 g(F_t)`` inside the patches."""

    stage: str | None = None
    """Backbone stage whose output is fused, which needs patches in both domains (`into_source`, `into_target`); null:
    off. `small`: `stage1`, `stage2`, `stage3`, `decode8`, `decode4`; ResNets: `layer1` to `layer4`; others:
    docs/networks.md."""
    source_share: float = Field(default=0.3, ge=0, le=1)
    """Weight of the source features."""
    start: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps after which it begins."""


@group
class Alignment(Group):
    """Category-aware alignment (section 3.6)."""

    form: Literal["mmd", "contrastive"] | None = None
    """Distance of the class centroids: `mmd` as published, `contrastive` against running source centroids; null:
    off."""
    weight: float = Field(default=0.01, ge=0)
    """Of the loss."""
    pairs: int = Field(default=1, ge=1, le=2)
    """1: the pair (t, t-1); 2: also (t, t-h-1), averaged along time."""
    adaptive: bool = False
    """Weight the pairs by `softmax(-mean entropy)`, in nats, instead of equally."""
    minimum_pixels: int = Field(default=5, ge=1)
    """A class with fewer pixels has no centroid."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the contrastive form."""


@group
class StclSettings(SelfTrainingSettings):
    """Each part has its switch, and those that have not earned their place are off."""

    consistency: bool = True
    """Train on the augmented target with the cross-frame pseudo labels."""
    masking: Masking = Masking(share=0.5)
    labels: Choice = "expected_iou"
    sequence_fusion: SequenceFusion = SequenceFusion()
    feature_fusion: FeatureFusion = FeatureFusion()
    alignment: Alignment = Alignment()

    @model_validator(mode="after")
    def _check_feature_fusion(self) -> "StclSettings":
        """Features are fused where both domains hold the same patches, and the source's are known first."""
        stage, fusion = self.feature_fusion.stage, self.sequence_fusion
        patches = fusion.source_patches or fusion.target_patches or fusion.long_tail_patches + fusion.close_ups > 0
        if stage is not None and not (patches and fusion.into_source and fusion.into_target):
            raise SettingError(
                f"method.feature_fusion.stage {one_line(stage)} does nothing unless the same patches go into both "
                "domains: set method.sequence_fusion.into_source and into_target to true and keep a kind of patches, "
                "or set method.feature_fusion.stage to null."
            )
        if stage is not None and self.shared_statistics:
            raise SettingError(
                "method.feature_fusion needs the source's features before the target's: set "
                "method.shared_statistics to false, or method.feature_fusion.stage to null."
            )
        return self


class STCL(SelfTraining):
    """The method."""

    Settings: ClassVar[type[MethodSettings]] = StclSettings
    pastes = True
    settings: StclSettings

    def __init__(self, network: VideoSegmenter, space: LabelSpace, seed: int, settings: StclSettings) -> None:
        super().__init__(network, space, seed, settings)
        fusion, stage, stages = settings.sequence_fusion, settings.feature_fusion.stage, network.backbone.stages
        if stage is not None and stage not in stages:
            raise SettingError(unknown_name("method.feature_fusion.stage", stage, stages))
        rare = None if fusion.rare_classes is None else [space.index(name) for name in fusion.rare_classes]
        self.bank = PatchMemory(len(space), fusion.bank_slots, rare)
        self.other_source, self.other_target = ClipMemory(), ClipMemory()
        self.aligned_stage = stages[-1]
        self.prototypes = PrototypeBank(len(space), network.backbone.channels[self.aligned_stage])

    @property
    def target_spec(self) -> ClipSpec:
        """The alignment along time also looks at (t, t-h-1)."""
        return self._along_time(super().target_spec)

    @property
    def student_spec(self) -> ClipSpec:
        """So does the student then."""
        return self._along_time(super().student_spec)

    def _along_time(self, spec: ClipSpec) -> ClipSpec:
        earlier = -self.settings.teacher.interval - 1
        if self.settings.alignment.form is None or self.settings.alignment.pairs == 1 or (0, earlier) in spec.flows:
            return spec
        frames = spec.frames if earlier in spec.frames else (*spec.frames, earlier)
        return replace(spec, frames=frames, flows=(*spec.flows, (0, earlier)))

    def losses(self, source: VideoClip, target: VideoClip | None, generator: torch.Generator) -> dict[str, Tensor]:
        """The long-tail bank fills from the first step on."""
        window = source if target is None else self.window(source, target)
        self.bank.add(window)
        warming_up = target is None or self.step < self.settings.warmup
        if not (self.settings.sequence_fusion.during_warmup and warming_up):
            return super().losses(source, target, generator)
        # without the target: the source, and F_s with patches of the source
        self.show("source", source)
        window = window.restrict(PAIR)
        fused = fuse(window, self.draw_patches(window, None, generator))
        output, out_fs = segment_together(self.network, [source.pair(), fused.pair()])
        terms = {"source": self.source_loss(output, source)}
        return terms | {"fused_source": self.fused_loss("fused_source", out_fs, fused, None)}

    def adapt(self, source: VideoClip, target: VideoClip, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the algorithm."""
        setting, fusion, h = self.settings, self.settings.sequence_fusion, self.settings.teacher.interval
        # Cross-frame pseudo labels yhat with confidence q
        earlier = self.teacher_view(target, -h)
        pseudo = self.label_target(target, earlier)
        weight = self.weigh(pseudo)
        view = self.student_view(with_labels(target, {0: pseudo.labels}), generator)
        # Both fused domains: the same patch sequences in two contexts
        window, confident = self.window(source, target).restrict(PAIR), None
        if fusion.target_patches:  # whose mask at t-1 needs labels of t-1
            before = choose_labels(earlier if h == 1 else self.teacher_view(target, -1), self.expected)
            sure = {at: ignore_unsure(labels, fusion.confidence) for at, labels in ((0, pseudo), (-1, before))}
            confident = with_labels(view, sure).restrict(PAIR)
        patches = self.draw_patches(window, confident, generator)
        fused_s = fuse(window, patches) if patches and fusion.into_source else None
        fused_t = fuse(view.restrict(PAIR), patches) if patches and fusion.into_target else None
        # One pass per domain; without patches F_s and F_t would be the clips themselves
        view = self.mask(view, generator)
        pairs = self.target_pairs(view)
        tap = partial(self.feature_tap, fused_t.mask) if fused_s is not None and fused_t is not None else None
        pairs_s, pairs_t = ([fused.pair()] if fused is not None else [] for fused in (fused_s, fused_t))
        (out_s, *out_fs), out_t = self.segment([source.pair(), *pairs_s], [*pairs, *pairs_t], tap)
        terms = {"source": self.source_loss(out_s, source)}
        if fused_s is not None:
            terms["fused_source"] = self.fused_loss("fused_source", out_fs[0], fused_s, None)
        if fused_t is not None:
            terms["fused_target"] = setting.lambda_t * self.fused_loss("fused_target", out_t[-1], fused_t, weight)
        if setting.consistency:
            self.show("target", view, weight=weight)
            terms["target"] = setting.lambda_t * segmentation_loss(out_t[0], pseudo.labels, weight, self.aux_weight)
        if setting.alignment.form is not None:
            terms["align"] = setting.alignment.weight * self.align(out_s, source.label(0), out_t[: len(pairs)])
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
        setting, classes = self.settings.sequence_fusion, len(self.space)
        patches: list[PatchSequence] = []
        chosen_s = None
        if setting.source_patches:
            clip = self.other_source.exchange(source)
            present = classes_present(clip.label(0), classes)
            chosen_s = choose_classes(present, setting.random_classes, generator, always=self.bank.rare)
            patches.append(cut(clip, chosen_s))
        if confident is not None:
            clip = self.other_target.exchange(confident)
            present = classes_present(clip.label(0), classes)
            patches.append(cut(clip, choose_classes(present, setting.random_classes, generator, exclude=chosen_s)))
        patches += self.bank.close_ups(source, setting.close_ups, setting.close_up_zoom, generator)
        return patches + self.bank.draw(source, setting.long_tail_patches, generator)

    def fused_loss(self, name: str, output: SegOutput, fused: FusedClip, weight: Tensor | None) -> Tensor:
        """``CE(z(F), y_fused)``; pasted pixels are sure, whatever ``weight`` the others have."""
        weight = fused.weigh(weight)
        self.show(name, fused.clip, fused.mask, weight)
        return segmentation_loss(output, fused.clip.label(0), weight, self.aux_weight)

    def target_pairs(self, target: VideoClip) -> list[FramePair]:
        """Pairs of the target alone that the terms need: (t, t-1), for the alignment along time (t, t-h-1), too."""
        pair, alignment = target.pair(), self.settings.alignment
        if alignment.form is None:
            return [pair] if self.settings.consistency else []
        if alignment.pairs == 1:
            return [pair]
        earlier = target.pair(0, -self.settings.teacher.interval - 1)
        return [pair, earlier._replace(current=pair.current)]  # one current frame, which is encoded once

    def feature_tap(self, mask: Tensor, out_fs: SegOutput) -> Tap | None:
        """Replaces ``g(F_t)`` by ``0.3 g(F_s) + 0.7 g(F_t)`` inside the patches; the last rows of the pass are F_t."""
        setting = self.settings.feature_fusion
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

    def align(self, out_s: SegOutput, label_s: Tensor, out_t: list[SegOutput]) -> Tensor:
        """Distance between source and target class centroids, the target's aggregated along time (section 3.6)."""
        setting, stage = self.settings.alignment, self.aligned_stage

        def centroids(output: SegOutput, labels: Tensor) -> Centroids:
            return class_centroids(output.features[stage], labels, len(self.space), setting.minimum_pixels)

        target_centroids = aggregate(
            [centroids(output, output.logits.argmax(1)) for output in out_t],
            temporal_weights([output.logits for output in out_t], setting.adaptive),
        )
        source_centroids = centroids(out_s, label_s)
        if setting.form == "contrastive":
            return contrastive(target_centroids, self.prototypes.update(source_centroids), setting.temperature)
        return mmd(source_centroids, target_centroids)

    def moving_statistics(self) -> list[Tensor]:
        """The running source centroids move, too."""
        return [*super().moving_statistics(), *self.prototypes.buffers()]
