"""The published STCL training step, written down plainly: what ours is measured against, in time and in gradients.

The published repository (arXiv 2311.13254) has no training script, so this follows the paper the way published code of
this family takes its steps: float32, plain tensors, no compiler; every loss term has its own forward pass of its own
frame pair, the previous frame another one without gradient; the teacher sees one frame at a time; histogram matching,
flips, strong augmentation, arg-max and threshold of the pseudo labels, and mixing happen on the host in the main
process, clip by clip (host_clips.py), the teacher's probabilities being copied there. Terms that share no graph are
differentiated one after the other, so that a step fits into memory.

It takes the network object, the settings and the draws from a method of this project, and none of its mathematics, so
it is an independent check, too: fed with the same draws it must find the same losses and the same gradients. Where
published code is known to be wrong (frames augmented after their mean was subtracted, flow not negated by a flip,
logits taken for probabilities) this does what the paper says, as ours does.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from host_clips import (
    IGNORE,
    PAIR,
    Array,
    Clip,
    LongTail,
    Patch,
    as_floats,
    augment,
    choose,
    clips_of,
    crop,
    cut,
    flip,
    match_colours,
    paste,
    pseudo_label,
)
from torch import Tensor, nn

from stcl.errors import SettingError
from stcl.methods.base import DomainBatch
from stcl.methods.stcl import STCL
from stcl.models import Tap, VideoSegmenter, inference_statistics
from stcl.models.segmenter import FrameScores

KERNELS, FACTOR = 5, 2.0
"""Of the RBF-MMD."""


@dataclass
class Draws:
    """The random numbers of one step, drawn as a method draws them so that both decide alike."""

    generator: torch.Generator
    window: tuple[float, float]

    @classmethod
    def of(cls, method: STCL) -> "Draws":
        """Draws of the method's present step."""
        y, x = torch.rand(2, generator=torch.Generator().manual_seed(method.step_seed("window"))).tolist()
        return cls(method.step_generator(), (y, x))

    def __call__(self, *shape: int) -> Array:
        """Uniform numbers 0..1."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device).cpu().numpy()


class PublishedStep:
    """Student, teacher and optimiser, and the step that moves them.

    Args:
        method: an STCL; its networks are copied as they stand.
        steps: length of the run.
    """

    def __init__(self, method: STCL, steps: int) -> None:
        check_supported(method)
        self.method, self.steps, self.device = method, steps, method.device  # only settings are read of the method
        self.student, self.teacher = plain_copy(method.network), plain_copy(method.average.network)
        self.classes, self.fusion = len(method.space), method.settings.sequence_fusion
        names, bank = self.fusion.rare_classes, method.bank
        rare = None if names is None else [method.space.index(name) for name in names]
        self.bank = LongTail(self.classes, self.fusion.bank_slots, rare, bank.rare_share, bank.minimum_pixels)
        self.last: dict[str, list[Clip]] = {}
        setting = method.optimization
        groups = self.student.parameter_groups(setting.learning_rate, setting.head_factor, setting.weight_decay)
        self.rates = [group["lr"] for group in groups]
        sgd = setting.optimizer == "sgd"
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, momentum=setting.momentum) if sgd else torch.optim.AdamW(groups)
        )

    def train_step(self, batch: DomainBatch, draws: Draws, step: int) -> dict[str, Tensor]:
        """One whole step; its loss terms."""
        terms = self.gradients(batch, draws, step)
        self.optimise(step)
        return terms

    def gradients(self, batch: DomainBatch, draws: Draws, step: int) -> dict[str, Tensor]:
        """The algorithm: the loss terms of one step; their gradients are left in the student."""
        self.optimizer.zero_grad()
        source, target = self.prepare(batch, draws)
        # Cross-frame pseudo labels yhat with confidence q; then the student's view of the target
        target, confidence = self.label(target)
        align = self.method.settings.alignment
        looks = (*PAIR, -2) if align.form is not None and align.pairs == 2 else PAIR  # the rest is the teacher's
        target = [replace(clip, frames={t: clip.frames[t] for t in looks}) for clip in target]
        if self.method.settings.augment_target:
            target = self.augment(target, draws)
        # Patch sequences of another source clip, another target clip and the bank, in two domain contexts
        window = [crop(clip, target[0].size, draws.window) for clip in source]
        fused_s, fused_t = self.mix(window, target, confidence, draws)
        # L_fuse = CE(z(F_s), y) + lambda_T CE(z(F_t), y)
        z_fs = self.segment(fused_s)
        z_ft = self.segment(fused_t, tap=self.feature_tap(z_fs, fused_t, step))
        lambda_t = self.method.settings.lambda_t
        terms = {"fused_source": self.loss(z_fs, fused_s), "fused_target": lambda_t * self.loss(z_ft, fused_t)}
        self.backward(list(terms.values()))
        # L_src + lambda_T L_trg
        z_s, z_t = self.segment(source), self.segment(target)
        rest = {"source": self.loss(z_s, source), "target": lambda_t * self.loss(z_t, target)}
        # L_align: the target's centroids come from the pairs (t, t-1) and (t, t-2)
        if align.form is not None:
            views = [z_t, *([self.segment(target, before=-2)] if align.pairs == 2 else [])]
            rest["align"] = align.weight * self.align(z_s, source, views)
        self.backward(list(rest.values()))
        return {name: term.detach() for name, term in (terms | rest).items()}

    def optimise(self, step: int) -> None:
        """Polynomial schedule, optimiser, average of the weights."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.method.optimization.factor(step, self.steps)
        self.optimizer.step()
        momentum = self.method.average.momentum_at(step)
        with torch.no_grad():
            pairs = zip(self.teacher.state_dict().values(), self.student.state_dict().values(), strict=True)
            for tensor, other in pairs:
                if tensor.is_floating_point():
                    tensor.mul_(momentum).add_(other, alpha=1 - momentum)
                else:
                    tensor.copy_(other)

    # ---- on the host ----

    def prepare(self, batch: DomainBatch, draws: Draws) -> tuple[list[Clip], list[Clip]]:
        """The source in the target's colours; both flipped at random."""
        setting = self.method.preparation
        source, target = clips_of(batch["source"]), clips_of(batch["target"])
        if setting.match_histogram:
            source = [match_colours(clip, other.frames[0]) for clip, other in zip(source, target, strict=True)]
        else:
            source = [as_floats(clip) for clip in source]
        target = [as_floats(clip) for clip in target]
        for clips in (source, target):
            chances = draws(len(clips))
            clips[:] = [
                flip(clip) if chance < setting.flip else clip for clip, chance in zip(clips, chances, strict=True)
            ]
        if setting.augment_source:
            source = [
                augment(clip, setting.strong, draw) for clip, draw in zip(source, draws(len(source), 8), strict=True)
            ]
        return source, target

    def augment(self, clips: list[Clip], draws: Draws) -> list[Clip]:
        """The strongly augmented clips."""
        strong = self.method.preparation.strong
        return [augment(clip, strong, draw) for clip, draw in zip(clips, draws(len(clips), 8), strict=True)]

    def mix(
        self, source: list[Clip], target: list[Clip], confidence: list[dict[int, Array]], draws: Draws
    ) -> tuple[list[Clip], list[Clip]]:
        """The fused domains F_s and F_t: the same patch sequences in both."""
        self.bank.add(source)
        count, classes, rare = self.fusion.random_classes, self.classes, set(self.bank.rare)
        patches: list[list[Patch]] = [[] for _ in source]
        chosen_s: list[set[int]] = [set() for _ in source]
        if self.fusion.source_patches:
            luck = draws(len(source), classes)
            for i, other in enumerate(self.others("source", source)):
                present = present_classes(other)
                chosen_s[i] = present & rare | choose(present - rare, count, luck[i])
                patches[i].append(cut(other, chosen_s[i]))
        if self.fusion.target_patches:
            luck = draws(len(target), classes)
            sure = [keep_sure(clip, q, self.fusion.confidence) for clip, q in zip(target, confidence, strict=True)]
            for i, other in enumerate(self.others("target", sure)):
                patches[i].append(cut(other, choose(present_classes(other) - chosen_s[i], count, luck[i])))
        for _ in range(self.fusion.long_tail_patches):
            for i, (luck, place) in enumerate(zip(draws(len(target), classes), draws(len(target)), strict=True)):
                patch = self.bank.draw(target[i], luck, place)
                patches[i] += [] if patch is None else [patch]
        fused_s, fused_t = ([paste(clip, patches[i]) for i, clip in enumerate(clips)] for clips in (source, target))
        return fused_s, fused_t

    def others(self, domain: str, clips: list[Clip]) -> list[Clip]:
        """Another clip for each: its neighbour in the batch, or that of the last step where a batch has one clip."""
        if len(clips) > 1:
            return [clips[i - 1] for i in range(len(clips))]
        other = self.last.get(domain, clips)
        self.last[domain] = clips
        return other

    # ---- on the device ----

    def images(self, clips: Sequence[Clip], offset: int) -> Tensor:
        """Frames at ``offset``: ``(B, 3, H, W)``."""
        return self.upload([clip.frames[offset] for clip in clips])

    def upload(self, arrays: Sequence[Any]) -> Tensor:
        """Arrays as one batch on the device."""
        return torch.from_numpy(np.stack(arrays)).to(self.device)

    @torch.no_grad()
    def label(self, target: list[Clip]) -> tuple[list[Clip], list[dict[int, Array]]]:
        """Pseudo labels of t, from the pair (t-1, t-2) along f[t->t-1], and of t-1; with the confidence of each."""
        with inference_statistics(self.teacher, self.method.average.statistics):
            current = self.teacher.frame_scores(self.images(target, -1)).main
            previous = self.teacher.frame_scores(self.images(target, -2)).main
        scores = fuse_scores(self.teacher, current, previous, self.upload([clip.flows[-1, -2] for clip in target]))
        before = F.interpolate(scores, target[0].size, mode="bilinear", align_corners=True).softmax(1)
        now = sample(before, self.upload([clip.flows[PAIR] for clip in target]))
        threshold, weighting = self.method.settings.threshold, self.method.settings.weighting
        rows = zip(target, now.cpu().numpy(), before.cpu().numpy(), strict=True)
        labelled = [pseudo_label(*row, threshold, weighting) for row in rows]
        return [clip for clip, _ in labelled], [confidence for _, confidence in labelled]

    def segment(self, clips: list[Clip], before: int = -1, tap: Tap | None = None) -> FrameScores:
        """Fused scores z_t, the previous frame without gradient: two forward passes."""
        current = self.student.frame_scores(self.images(clips, 0), tap)
        with torch.no_grad():
            previous = self.student.frame_scores(self.images(clips, before))
        flow = self.upload([clip.flows[0, before] for clip in clips])
        still = None if clips[0].still is None else self.upload([clip.still for clip in clips])
        main = fuse_scores(self.student, current.main, previous.main, flow, still)
        if current.aux is None or previous.aux is None:
            return current._replace(main=main)
        return current._replace(main=main, aux=fuse_scores(self.student, current.aux, previous.aux, flow, still))

    def feature_tap(self, z_fs: FrameScores, fused_t: list[Clip], step: int) -> Tap | None:
        """Inside the patches ``0.3 g(F_s) + 0.7 g(F_t)``, from a share of the schedule on."""
        setting = self.method.settings.feature_fusion
        if setting.stage is None or step < setting.start * self.steps:
            return None
        mask = self.upload([clip.pasted for clip in fused_t]).float().unsqueeze(1)

        def tap(stage: str, features: Tensor) -> Tensor:
            if stage != setting.stage:
                return features
            inside = F.interpolate(mask, features.shape[-2:]) > 0.5
            mixed = setting.source_share * z_fs.features[stage] + (1 - setting.source_share) * features
            return torch.where(inside, mixed, features)

        return tap

    def loss(self, output: FrameScores, clips: list[Clip]) -> Tensor:
        """``CE + 0.1 CE_aux`` over the labelled pixels, weighted pixel by pixel where the clips have weights."""
        labels = self.upload([clip.labels[0] for clip in clips]).long()
        labelled = (labels != IGNORE).sum().clamp(min=1)
        weight = None if clips[0].weight is None else self.upload([clip.weight for clip in clips])

        def cross_entropy(scores: Tensor) -> Tensor:
            scores = F.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=True)
            if weight is None:
                return F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum") / labelled
            losses = F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="none")
            return (losses * weight).sum() / labelled

        loss = cross_entropy(output.main)
        return loss if output.aux is None else loss + self.method.aux_weight * cross_entropy(output.aux)

    def align(self, z_s: FrameScores, source: list[Clip], views: list[FrameScores]) -> Tensor:
        """RBF-MMD between the centroids of the classes that both domains hold."""
        stage, least = self.student.stage, self.method.settings.alignment.minimum_pixels
        labels = self.upload([clip.labels[0] for clip in source])
        of_source = centroids(z_s.features[stage], labels, self.classes, least)
        seen = [centroids(z.features[stage], z.main.argmax(1), self.classes, least) for z in views]
        both = [c for c in of_source if any(c in view for view in seen)]
        if not both:
            return z_s.main.new_zeros(())
        of_target = {c: torch.stack([view[c] for view in seen if c in view]).mean(0) for c in both}
        return mmd(torch.stack([of_source[c] for c in both]), torch.stack([of_target[c] for c in both]))

    def backward(self, terms: Sequence[Tensor]) -> None:
        """Gradients of the sum of some terms, added to what is there."""
        torch.stack(list(terms)).sum().backward()


def check_supported(method: STCL) -> None:
    """Refuse what is not written down here."""
    settings, preparation = method.settings, method.preparation
    teacher, alignment, fusion = settings.teacher, settings.alignment, settings.sequence_fusion
    needs = {
        "method.teacher {kind: ema, interval: 1}": (teacher.kind, teacher.interval) == ("ema", 1),
        "method.teacher {flip: false, flow_error: null}": not teacher.flip and teacher.flow_error is None,
        "method.consistency true": settings.consistency,
        "no method.masking": settings.masking.share == 0,
        "method.weighting none, threshold or share": method.seen is None,
        "method.labels likeliest": method.expected is None,
        "method.shared_statistics false": not settings.shared_statistics,
        "method.sequence_fusion {into_source: true, into_target: true}": fusion.into_source and fusion.into_target,
        "patches (method.sequence_fusion)": fusion.source_patches or fusion.target_patches or fusion.long_tail_patches,
        "no method.sequence_fusion.close_ups": fusion.close_ups == 0,
        "method.alignment {form: mmd, adaptive: false}": alignment.form in (None, "mmd") and not alignment.adaptive,
        "method.preparation.rescale [1, 1]": tuple(preparation.rescale) == (1.0, 1.0),
        "no method.preparation.crop": getattr(preparation, "crop", None) is None,
    }
    for need, met in needs.items():
        if not met:
            raise SettingError(f"The yardstick needs {need}.")


def plain_copy(network: VideoSegmenter) -> VideoSegmenter:
    """A copy that runs in PyTorch's ordinary memory format, also where a backbone asks for another one."""
    copy = deepcopy(network)
    copy.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    first = next(layer for layer in copy.modules() if isinstance(layer, nn.Conv2d))  # later layers keep its format
    first.register_forward_pre_hook(lambda _, images: (images[0].contiguous(),))
    return copy


def present_classes(clip: Clip) -> set[int]:
    """Classes of frame t."""
    return set(np.unique(clip.labels[0]).tolist()) - {IGNORE}


def keep_sure(clip: Clip, confidence: dict[int, Array], threshold: float) -> Clip:
    """The clip with its unsure labels ignored."""
    labels = {t: np.where(confidence[t] > threshold, label, IGNORE) for t, label in clip.labels.items()}
    return replace(clip, labels=labels)


def sample(image: Tensor, flow: Tensor) -> Tensor:
    """``image (B, C, h, w)`` at the places that ``flow (B, 2, h, w)`` px points to, clamped to the border."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    grid = torch.stack((2 * (x + flow[:, 0]) / (width - 1) - 1, 2 * (y + flow[:, 1]) / (height - 1) - 1), dim=-1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def fuse_scores(
    network: VideoSegmenter, current: Tensor, previous: Tensor, flow: Tensor, still: Tensor | None = None
) -> Tensor:
    """``W [ phi(x_t) ; warp(phi(x_{t-1}), f[t->t-1]) ]``; where a patch stands still the current score is both."""
    height, width = current.shape[-2:]
    small = F.interpolate(flow, (height, width), mode="bilinear", align_corners=True)
    small = torch.stack((small[:, 0] * width / flow.shape[-1], small[:, 1] * height / flow.shape[-2]), dim=1)
    warped = sample(previous, small)
    if still is not None:
        share = F.interpolate(still.float().unsqueeze(1), (height, width), mode="bilinear", align_corners=True)
        warped = torch.where(share >= 0.5, current.detach(), warped)
    return network.fusion(current, warped)


def centroids(features: Tensor, labels: Tensor, classes: int, least: int) -> dict[int, Tensor]:
    """Mean feature of each class with at least so many pixels on the features' grid."""
    small = F.interpolate(labels.unsqueeze(1).float(), features.shape[-2:])[:, 0]  # (B, h, w), nearest
    pixels = features.permute(0, 2, 3, 1)  # (B, h, w, D)
    inside = {c: small == c for c in range(classes)}
    return {c: pixels[mask].mean(0) for c, mask in inside.items() if mask.sum() >= least}


def mmd(source: Tensor, target: Tensor) -> Tensor:
    """Maximum mean discrepancy of two sets ``(n, D)``: five RBF kernels about the mean squared distance."""
    n = len(source)
    total = torch.cat((source, target))
    distance = ((total.unsqueeze(0) - total.unsqueeze(1)) ** 2).sum(2)  # (2n, 2n)
    bandwidth = distance.detach().sum() / (4 * n * n - 2 * n) / FACTOR ** (KERNELS // 2)
    kernel = torch.stack([torch.exp(-distance / (bandwidth * FACTOR**i)) for i in range(KERNELS)]).sum(0)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()
