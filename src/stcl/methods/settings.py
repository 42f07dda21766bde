"""Settings of what methods share; those of a single method's parts stand in its file.

The defaults are those that have helped on the development pairs (docs/results.md), not the published ones.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stcl.errors import SettingError
from stcl.fields import Group, Span, group
from stcl.files.pictures import LARGEST_PX
from stcl.models.views import GRID_PX
from stcl.ops.augment import StrongAugmentation
from stcl.ops.pseudo_labels import Choice, Weighting

EvaluationStatistics = Literal["source", "target", "running"]
"""Batch-norm statistics of the evaluated network."""

SMALLEST_PX = 32


def check_frame_size(size: tuple[int, int] | None, name: str = "{key}") -> tuple[int, int] | None:
    """Refuse a ``(width, height)`` in pixels that the networks cannot take; ``name`` says where it was given."""
    if size is None:
        return None
    if min(size) < SMALLEST_PX or any(side % GRID_PX for side in size):
        raise SettingError(
            f"{name} is {list(size)}, but width and height must be at least {SMALLEST_PX} and divisible by {GRID_PX}. "
            f"The nearest such size is {list(nearest_frame_size(size))}."
        )
    if size[0] * size[1] > LARGEST_PX:
        raise SettingError(f"{name} is {list(size)}: {size[0] * size[1]} pixels, but at most {LARGEST_PX} are read.")
    return size


def nearest_frame_size(size: tuple[float, float]) -> tuple[int, int]:
    """The nearest width and height in pixels that the networks can take."""
    width, height = (max(SMALLEST_PX, round(side / GRID_PX) * GRID_PX) for side in size)
    return width, height


FrameSize = Annotated[tuple[int, int], AfterValidator(lambda size: check_frame_size(size))]
"""``(width, height)`` in pixels."""


@group
class Optimization(Group):
    """Optimiser and schedule."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """The optimiser."""
    learning_rate: float = Field(default=1e-3, ge=0)
    """Of the backbone and the fusion layer."""
    head_factor: float = Field(default=1.0, gt=0)
    """The heads learn this many times faster."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty (SGD) or decoupled decay (AdamW)."""
    decayed: Literal["all", "all_but_norms", "weights"] = "all"
    """What weight decay holds for: every parameter (published CNN), all but the scales and shifts of norms (published
    ViT), or neither norms nor biases."""
    schedule_steps: int | None = Field(default=None, ge=1)
    """Length of the polynomial decay; null: `training.steps`. It is not the stopping point: the published recipe decays
    over 250,000 steps and stops at 40,000."""
    power: float = Field(default=0.9, ge=0)
    """Exponent of the decay."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from 0."""

    def factor(self, step: int, steps: int) -> float:
        """Multiple of the learning rate at ``step`` of a run of ``steps``."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        length = self.schedule_steps or steps
        return rise * max(0.0, 1 - step / max(length, 1)) ** self.power


@group
class Preparation(Group):
    """What happens to a batch on the device before a method sees it."""

    match_histogram: bool = False
    """Source clips take the colour histogram of their target frame."""
    fourier_beta: float = Field(default=0.0, ge=0, lt=0.5)
    """Source clips take, after that, the amplitudes of their target frame's lowest frequencies, up to this share of the
    shorter side (published: 0.01 to 0.09); 0: off."""
    augment_source: bool = False
    """Source clips are strongly augmented, too."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip of a clip."""
    rescale: Span = (1.0, 1.0)
    """Range of one random scale per batch for the source; larger clips are cropped, smaller ones stay so."""
    crop: FrameSize | None = None
    """`[width, height]` in pixels, at least 32 and divisible by 8: a window cut out of source and target clips after
    that, at the same relative place in both, drawn anew for each batch; null: whole frames. Memory goes with its
    area."""
    strong: StrongAugmentation = StrongAugmentation()


@group
class MethodSettings(Group):
    """Settings of every method."""

    optimization: Optimization = Optimization()
    preparation: Preparation = Preparation()
    ema_momentum: float = Field(default=0.99, ge=0, lt=1)
    """Of the average of the weights that is evaluated, and that teaches if `teacher.kind` is `ema`."""
    aux_weight: float = Field(default=0.1, ge=0)
    """Weight of the auxiliary head's losses; to have none, `network.auxiliary: false`."""
    evaluation_statistics: EvaluationStatistics = "source"
    """Batch-norm statistics of the evaluated network: recomputed on unlabelled training frames of a domain after the
    last step, or as they ran along."""

    def untrained_start(self, weights: str | None) -> str:
        """What is wrong with a start whose heads ``weights`` leave random; mostly nothing."""
        return ""


@group
class Teacher(Group):
    """Who labels the target."""

    kind: Literal["ema", "frozen", "self"] = "ema"
    """Who labels the target: the moving average, the student as it stood after the warm-up, the student."""
    statistics: Literal["batch", "running"] = "batch"
    """Batch-norm statistics of the teacher: of the target frames at hand, or stored ones."""
    frozen_steps: int | None = Field(default=None, ge=0)
    """With `frozen`: after so many steps the student labels the target itself (published: 8,000); null: never."""
    interval: int = Field(default=1, ge=0)
    """h: frame t-h is segmented to label frame t; 0: frame t labels itself, for video whose frames lie so far apart
    that flow does not connect them."""
    flip: bool = False
    """Average the teacher's view with that of the mirrored frames; one more pass."""
    flow_error: float | None = Field(default=None, ge=0, le=1)
    """Pixels that the flow misses by more than this (mean difference of colours 0..1) are not labelled; null trusts all
    flow inside the frame."""
    flow_consistency: bool = False
    """Pixels whose flow to the frame t-h and back does not end where it began are not labelled, mostly those that are
    hidden in it; one more flow for each clip."""


@group
class Masking(Group):
    """Masked image consistency (MIC; Hoyer et al. 2023, arXiv 2212.01322) of the student's target frames."""

    share: float = Field(default=0.0, ge=0, le=1)
    """Share of squares that are hidden from the student's target frames (published: 0.7); 0: off."""
    patch_px: int = Field(default=64, ge=1)
    """Side of such a square in pixels (published: 64, for frames 1024 wide)."""


@group
class SelfTrainingSettings(MethodSettings):
    """Settings of every method in which a teacher labels the target."""

    lambda_t: float = Field(default=1.0, ge=0)
    """Weight of the target terms."""
    warmup: int = Field(default=0, ge=0)
    """Supervised steps before the target takes part."""
    weighting: Weighting = "share"
    """Of pseudo-labelled pixels. `none`: each counts 1; `threshold`: those above the threshold; `share`: all of an
    image count the share above it; `class_threshold`: those above their class's own threshold; `class_share`: all of a
    class count its share above the threshold, lately."""
    threshold: float = Field(default=0.968, ge=0, lt=1)
    """Probability for `weighting`, of the label, with `share` of the likeliest class; with `class_threshold` the
    highest threshold."""
    kept_share: float = Field(default=0.5, ge=0, le=1)
    """With `class_threshold`: share of each class's pixels that lie above its threshold at least."""
    augment_target: bool = True
    """Strong augmentation of the student's target frames."""
    masking: Masking = Masking()
    shared_statistics: bool = False
    """Normalise both domains together, in one pass, instead of each with its own batch statistics."""
    labels: Choice = "likeliest"
    """Which class a pixel is labelled as: the likeliest, or the one that promises the highest mean IoU, which keeps
    rare classes."""
    teacher: Teacher = Teacher()

    def untrained_start(self, weights: str | None) -> str:
        """A start with random heads may be the frozen teacher itself."""
        if self.teacher.kind != "frozen" or self.warmup > 0 or self.teacher.frozen_steps == 0:
            return ""
        return (
            f"network.weights is {weights or 'null'}, but the network that training starts from is the teacher "
            "(method.teacher.kind frozen, method.warmup 0), and its heads would be random. Name the file of a network "
            "that was trained on these classes, e.g. --network.weights tps_syn2city_pretrained.pth "
            "(docs/checkpoints.md), or let it learn from the source first, e.g. --method.warmup 4000."
        )
