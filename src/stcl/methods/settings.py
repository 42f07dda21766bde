"""Settings of what every method shares, and of the parts that a method is put together from.

The defaults are those that have helped on the development pairs (docs/results.md), not the published ones.
"""

from dataclasses import dataclass, field
from typing import Literal

from stcl.errors import SettingError, check_number
from stcl.ops.augment import StrongAugmentation
from stcl.ops.fourier import check_beta


@dataclass(frozen=True)
class Optimization:
    """Optimiser and schedule.

    Args:
        optimizer: ``sgd`` or ``adamw``.
        learning_rate: of the backbone and the fusion layer.
        head_factor: the heads learn this many times faster.
        momentum: of SGD.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        decayed: what it holds for: ``all`` parameters, ``all_but_norms``, or ``weights`` (neither norms nor biases).
        schedule_steps: length of the polynomial decay; None takes the number of training steps. Not the stopping point:
            the published recipe decays over 250,000 steps and stops at 40,000.
        power: exponent of the polynomial decay.
        warmup_steps: steps over which the rate rises linearly from 0.
    """

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    head_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decayed: Literal["all", "all_but_norms", "weights"] = "all"
    schedule_steps: int | None = None
    power: float = 0.9
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "power", "warmup_steps"):
            check_number(f"optimization.{name}", getattr(self, name), 0)
        check_number("optimization.head_factor", self.head_factor, 0, open_ends="least")
        check_number("optimization.momentum", self.momentum, 0, 1, "most")
        check_number("optimization.schedule_steps", self.schedule_steps, 1)

    def factor(self, step: int, steps: int) -> float:
        """Multiple of the learning rate at ``step`` of a run of ``steps``."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        length = self.schedule_steps or steps
        return rise * max(0.0, 1 - step / max(length, 1)) ** self.power


@dataclass(frozen=True)
class Preparation:
    """What happens to a batch on the device before a method sees it.

    Args:
        match_histogram: source clips take the colour histogram of their target frame.
        fourier_beta: source clips take, after that, the amplitudes of their target frame's lowest frequencies: those up
            to this share of the shorter side (published: 0.01 to 0.09). 0 switches it off.
        augment_source: source clips are strongly augmented, too.
        flip: probability of a horizontal flip, drawn per clip, for frames, labels and flow together.
        rescale: range of one random scale per batch for the source; larger clips are cropped, smaller ones stay so.
        crop: ``[width, height]`` in pixels of a window that is cut out of source and target clips after that, at the
            same relative place in both, drawn per batch; None trains on whole frames. Memory goes with its area.
        strong: the strong augmentation.
    """

    match_histogram: bool = False
    fourier_beta: float = 0.0
    augment_source: bool = False
    flip: float = 0.5
    rescale: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    strong: StrongAugmentation = field(default_factory=StrongAugmentation)

    def __post_init__(self) -> None:
        check_beta(self.fourier_beta)
        if self.crop is not None and (min(self.crop) < 32 or any(side % 8 for side in self.crop)):
            raise SettingError(f"crop is [width, height], at least 32 and divisible by 8, not {list(self.crop)}.")
        low, high = self.rescale
        if not 0 < low <= high:
            raise SettingError(f"rescale is a range above 0, the smaller number first, not {[low, high]}.")
        check_number("preparation.flip", self.flip, 0, 1)


@dataclass(frozen=True)
class Teacher:
    """Who labels the target.

    Args:
        kind: ``ema`` a moving average of the student; ``frozen`` the student as it stood after the warm-up; ``self``
            the student itself.
        statistics: batch-norm statistics of the teacher: of the present target ``batch``, or ``running``.
        frozen_steps: with ``frozen``: after this many steps the student labels the target itself (published: 8,000).
        interval: h, the frame t-h that is segmented to label frame t; 0 labels it by itself, for video whose frames lie
            so far apart that flow does not connect them.
        flip: average its view with that of the mirrored frames; one more pass.
        flow_error: pixels are ignored where warping the frame t-h along the flow misses frame t by more than this, as
            the mean absolute difference of colours 0..1; None trusts all flow that stays inside the frame.
        flow_consistency: pixels are ignored where the flow to the frame t-h and back does not end where it began, see
            :func:`stcl.ops.warp.consistent`: mostly those that are hidden in it. One more flow a clip.
    """

    kind: Literal["ema", "frozen", "self"] = "ema"
    statistics: Literal["batch", "running"] = "batch"
    frozen_steps: int | None = None
    interval: int = 1
    flip: bool = False
    flow_error: float | None = None
    flow_consistency: bool = False

    def __post_init__(self) -> None:
        check_number("teacher.interval", self.interval, 0)
        check_number("teacher.frozen_steps", self.frozen_steps, 0)
        check_number("teacher.flow_error", self.flow_error, 0, 1)

    def check_untrained_start(self, warmup: int, weights: str | None) -> None:
        """Refuse a start whose heads ``weights`` leave random, if it is the frozen teacher itself."""
        if self.kind == "frozen" and warmup == 0 and self.frozen_steps != 0:
            raise SettingError(
                f"network.weights is {weights or 'null'}, but the network that training starts from is the teacher "
                "(method.teacher.kind frozen, method.warmup 0), and its heads would be random. Name the file of a "
                "network that was trained on these classes, e.g. --network.weights tps_syn2city_pretrained.pth "
                "(docs/checkpoints.md), or let it learn from the source first, e.g. --method.warmup 4000."
            )


@dataclass(frozen=True)
class Masking:
    """Masked image consistency (MIC; Hoyer et al. 2023, arXiv 2212.01322) of the student's target frames.

    Args:
        share: of the squares that are hidden from the student, 0..1; 0 switches it off (published: 0.7).
        patch_px: side of a square in pixels (published: 64, for frames 1024 wide).
    """

    share: float = 0.0
    patch_px: int = 64

    def __post_init__(self) -> None:
        check_number("masking.share", self.share, 0, 1)
        check_number("masking.patch_px", self.patch_px, 1)


@dataclass(frozen=True)
class SequenceFusion:
    """Fusion at the image-sequence level (section 3.4).

    Args:
        source_patches: paste patches of another source clip.
        target_patches: paste confident patches of another target clip.
        random_classes: how many random classes a patch sequence takes.
        long_tail_patches: patches from the bank of rare-class frames.
        close_ups: enlarged patches from the bank; beyond the paper.
        close_up_zoom: range of their enlargement.
        rare_classes: names of the rare classes; None computes them from source pixel frequencies.
        confidence: target patches take pixels with a probability above this.
        bank_slots: frames kept for each rare class.
        into_source, into_target: paste them into the source clip (``F_s``), into the target clip (``F_t``).
        during_warmup: train on ``F_s``, with patches of the source, from the first step on.
    """

    source_patches: bool = True
    target_patches: bool = False
    random_classes: int = 2
    long_tail_patches: int = 2
    close_ups: int = 1
    close_up_zoom: tuple[float, float] = (1.0, 4.0)
    rare_classes: list[str] | None = None
    confidence: float = 0.9
    bank_slots: int = 4
    into_source: bool = False
    into_target: bool = True
    during_warmup: bool = False

    def __post_init__(self) -> None:
        for name, least in (("random_classes", 0), ("long_tail_patches", 0), ("close_ups", 0), ("bank_slots", 1)):
            check_number(f"sequence_fusion.{name}", getattr(self, name), least)
        check_number("sequence_fusion.confidence", self.confidence, 0, 1, "most")
        low, high = self.close_up_zoom
        if not 0 < low <= high:
            raise SettingError(f"close_up_zoom is a range above 0, the smaller number first, not {[low, high]}.")

    @property
    def pastes(self) -> bool:
        """Whether there are any patches."""
        return self.source_patches or self.target_patches or self.long_tail_patches + self.close_ups > 0


@dataclass(frozen=True)
class FeatureFusion:
    """Fusion at the feature level (section 3.5): ``0.3 g(F_s) + 0.7 g(F_t)`` inside the patches.

    Args:
        stage: backbone stage whose output is fused; None switches it off.
        source_share: weight of ``g(F_s)``.
        start: share of the schedule after which it begins.
    """

    stage: str | None = None
    source_share: float = 0.3
    start: float = 0.2

    def __post_init__(self) -> None:
        check_number("feature_fusion.source_share", self.source_share, 0, 1)
        check_number("feature_fusion.start", self.start, 0, 1)


def check_fusion(sequence: SequenceFusion, feature: FeatureFusion) -> None:
    """Features are fused where both domains hold the same patches; elsewhere there is nothing to fuse."""
    if feature.stage is not None and not (sequence.pastes and sequence.into_source and sequence.into_target):
        raise SettingError(
            f"method.feature_fusion.stage {feature.stage} does nothing unless the same patches go into both domains: "
            "set method.sequence_fusion.into_source and into_target to true and keep a kind of patches, or set "
            "method.feature_fusion.stage to null."
        )


@dataclass(frozen=True)
class Alignment:
    """Category-aware alignment (section 3.6).

    Args:
        form: ``mmd`` as published, ``contrastive`` against running source centroids, None switches it off.
        weight: of the loss.
        pairs: 1 aligns the pair (t, t-1); 2 also (t, t-h-1), aggregated along time.
        adaptive: weight the pairs by ``softmax(-mean entropy)``, in nats, instead of equally.
        minimum_pixels: a class with fewer pixels has no centroid.
        temperature: of the contrastive form.
    """

    form: Literal["mmd", "contrastive"] | None = None
    weight: float = 0.01
    pairs: Literal[1, 2] = 1
    adaptive: bool = False
    minimum_pixels: int = 5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_number("alignment.weight", self.weight, 0)
        check_number("alignment.minimum_pixels", self.minimum_pixels, 1)
        check_number("alignment.temperature", self.temperature, 0, open_ends="least")
