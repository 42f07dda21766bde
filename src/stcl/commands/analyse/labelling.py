"""The networks of a run label target frames again, and are compared with the truth.

Here alone labels of the frames that a run adapts to are opened; nothing of it goes back into a training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stcl.data import ClipDataset, make_eval_loader
from stcl.errors import CheckpointError, DataError
from stcl.fields import changed
from stcl.methods.memory import ExpectedIou
from stcl.methods.self_training import carry_labels, view_of
from stcl.methods.settings import SelfTrainingSettings, Teacher
from stcl.models import VideoSegmenter, load_weights
from stcl.models.norms import PassStatistics, inference_statistics
from stcl.ops.losses import upsample
from stcl.ops.pseudo_labels import Choice, PseudoLabels
from stcl.ops.quality import (
    BOUNDARY_GROUPS,
    CONFIDENCE_GROUPS,
    FLOW_GROUPS,
    FeatureSums,
    boundary_group,
    confidence_group,
    feature_sums,
    flow_group,
    label_counts,
)
from stcl.ops.warp import photometric_error
from stcl.training.domains import training_clips
from stcl.training.evaluate import device_of
from stcl.training.networks import untrained
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings
from stcl.types import ClipSpec, FramePair, VideoClip

GROUPS = {"confidence": CONFIDENCE_GROUPS, "boundary": BOUNDARY_GROUPS, "flow": FLOW_GROUPS}
"""How pixels are grouped; the axes of the counts, after that of unsure and sure, before truth and label."""


@dataclass(frozen=True)
class Run:
    """A run folder and how its method labels the target.

    Attributes:
        folder, settings: of the run.
        teacher: how the target is labelled; each frame by itself where the method has no teacher.
        choice: which class a pixel is labelled as.
        threshold: probability above which a label is sure.
        snapshots: by step.
    """

    folder: RunFolder
    settings: Settings
    teacher: Teacher
    choice: Choice
    threshold: float
    snapshots: dict[int, Path]

    @classmethod
    def open(cls, path: Path) -> "Run":
        """A finished or unfinished run."""
        folder = RunFolder(path)
        settings, snapshots = folder.settings(), folder.list_snapshots()
        if not snapshots and not folder.weights.is_file():
            raise CheckpointError(
                f"{path} has neither snapshots nor {folder.weights.name}: nothing to analyse. Finish the run with "
                f"stcl train --resume {path}, or train with --training.snapshot_every N."
            )
        method = settings.method
        if isinstance(method, SelfTrainingSettings):
            return cls(folder, settings, method.teacher, method.labels, method.threshold, snapshots)
        return cls(folder, settings, Teacher(interval=0), "likeliest", 0.9, snapshots)

    def networks(self, step: int) -> dict[str, VideoSegmenter]:
        """Teacher and student of a snapshot, by role."""
        pair = {"teacher": untrained(self.settings), "student": untrained(self.settings)}
        load_weights(nn.ModuleDict(pair), self.snapshots[step])
        return {role: network.eval() for role, network in pair.items()}


class Frames(NamedTuple):
    """What the networks of a run look at: labelled target batches, and source batches of frames t."""

    target: list[VideoClip]
    source: list[VideoClip]


@dataclass
class Counts:
    """What one network did on all frames.

    Attributes:
        labels: pixels of its pseudo labels, ``(2, *GROUPS, C, C + 1)``, first axis unsure and sure.
        frames: confusion matrix of its prediction of each frame, ``(C, C)``.
        source, target: sums of its features.
    """

    labels: Tensor
    frames: list[Tensor]
    source: FeatureSums
    target: FeatureSums


def load_frames(settings: Settings, intervals: set[int], split: str | None, count: int, back: bool = False) -> Frames:
    """Labelled target clips that serve all intervals, and as many source frames, both in batches as in training.

    With ``back`` they also have the flow from the earlier frames to t, for ``teacher.flow_consistency``.
    """
    offsets = dict.fromkeys((0, -1, *(offset for h in sorted(intervals) for offset in (-h, -h - 1))))
    earlier = sorted(intervals - {0})
    flows = dict.fromkeys(((0, -1), *(flow for h in earlier for flow in ((0, -h), (-h, -h - 1)))))
    flows |= dict.fromkeys((-h, 0) for h in earlier if back)
    domain = changed(settings.target, split=split or settings.target.split, frames="labelled")
    try:
        target = training_clips(settings, domain, ClipSpec(tuple(offsets), tuple(flows), labels=(0,)))
    except DataError as error:
        raise DataError(
            f"{str(error).rstrip('.')}. Analysis needs labelled frames of the target: choose a split with --split."
        ) from None
    source = training_clips(settings, settings.source, ClipSpec(frames=(0,), labels=(0,)))

    def batches(clips: ClipDataset) -> list[VideoClip]:
        clips.thin(count)
        return list(make_eval_loader(clips, settings.training.batch_size))

    return Frames(batches(target), batches(source))


@torch.no_grad()
def measure(
    network: VideoSegmenter, statistics: PassStatistics, run: Run, frames: Frames, advance: Callable[[], object]
) -> Counts:
    """Label all frames with one network as the run's method does, and count."""
    classes, device = len(run.settings.space), device_of(run.settings)
    labels, confusion, target = list[Tensor](), list[Tensor](), list[FeatureSums]()
    expected = ExpectedIou(classes).to(device) if run.choice == "expected_iou" else None
    with inference_statistics(network.to(device), statistics):
        for clip in (clip.to(device).to_float() for clip in frames.target):
            truth, rows = clip.label(0), torch.arange(len(clip.names), device=device).view(-1, 1, 1)
            output = network(clip.pair())
            prediction = upsample(output.logits.float(), clip.size).max(1).indices
            confusion += label_counts(prediction, truth, classes, (rows, len(rows)))[..., :-1].cpu()
            target.append(feature_sums(output.features[network.stage], truth, classes))
            pseudo, flow = label_target(network, clip, run.teacher, expected)
            groups = (
                ((pseudo.confidence > run.threshold).long(), 2),
                (confidence_group(pseudo.confidence), len(CONFIDENCE_GROUPS)),
                (boundary_group(truth), len(BOUNDARY_GROUPS)),
                (flow, len(FLOW_GROUPS)),
            )
            labels.append(label_counts(pseudo.labels, truth, classes, *groups))
            advance()
        source = [
            feature_sums(network(FramePair(clip.frame(0))).features[network.stage], clip.label(0), classes)
            for clip in (clip.to(device).to_float() for clip in frames.source)
        ]
    return Counts(torch.stack(labels).sum(0).cpu(), confusion, reduce(add, source), reduce(add, target))


def label_target(
    network: VideoSegmenter, clip: VideoClip, teacher: Teacher, expected: ExpectedIou | None
) -> tuple[PseudoLabels, Tensor]:
    """Labels of frame t as self-training makes them, and what the flow says of each pixel, see :func:`flow_group`."""
    h = teacher.interval
    view = view_of(lambda pair: network(pair).logits, clip.pair(-h, -h - 1), clip.size, teacher)
    pseudo = carry_labels(view, clip, teacher, expected)
    if h == 0:
        return pseudo, torch.zeros_like(pseudo.labels)
    flow = clip.flow(0, -h)
    return pseudo, flow_group(photometric_error(clip.frame(0), clip.frame(-h), flow), flow)
