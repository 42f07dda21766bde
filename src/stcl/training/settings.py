"""The configuration of a run as objects: what there is to set, what it means and what it is unless set.

:mod:`stcl.training.config` reads configurations from files, :mod:`stcl.training.checking` makes settings of them.
"""

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from stcl.labels import LabelSpace
from stcl.methods import AdaptationMethod


@dataclass(frozen=True)
class DomainSettings:
    """One side of the adaptation.

    Args:
        name: data set, e.g. ``synthia_seq``.
        root: its folder; a relative one is relative to the working directory.
        split: e.g. ``train``.
        size: training size ``[width, height]`` in pixels; None keeps the files' size.
        frames: ``all``, ``labelled``, ``published``, ``every:N`` or ``list:FILE``.
        classes: class map of the data set ``folder``; None takes ``classes.yaml`` of the root.
    """

    name: str
    root: str
    split: str = "train"
    size: tuple[int, int] | None = None
    frames: str = "all"
    classes: str | None = None


@dataclass(frozen=True)
class EvaluationSettings:
    """Where the trained network is measured: labelled frames of the target data set.

    Args:
        split: of the target data set.
        root: None takes the target's root.
        batch_size: clips at once; changes speed only.
        samples: how many frames are kept as pictures for the report.
    """

    split: str = "val"
    root: str | None = None
    batch_size: int = 4
    samples: int = 8


@dataclass(frozen=True)
class FlowSettings:
    """Optical flow.

    Args:
        name: provider, e.g. ``dis``.
        cache: folder that keeps computed flow; None computes it anew each time.
        quality: of ``dis``: ``ultrafast``, ``fast`` or ``medium``.
        model: of ``raft``: ``large`` or ``small``.
        folder: of ``files``: where the flow files lie; a folder of the data set's name in it is for that data set.
    """

    name: str = "dis"
    cache: str | None = None
    quality: Literal["ultrafast", "fast", "medium"] = "fast"
    model: Literal["large", "small"] = "large"
    folder: str | None = None


@dataclass(frozen=True)
class NetworkSettings:
    """The segmentation network.

    Args:
        backbone: e.g. ``small`` or ``resnet101``.
        head: main head.
        auxiliary: add the auxiliary head one stage earlier.
        fusion: ``accel`` fuses a frame's scores with the previous frame's; ``none`` segments each frame by itself.
        weights: file to start from (of a run, or a published checkpoint, see docs/checkpoints.md), ``builtin:NAME`` for
            one that ships with the package, or ``pretrained:NAME`` for published weights of the backbone.
        backbone_settings, head_settings: further arguments of theirs.
    """

    backbone: str = "small"
    head: str = "stcl"
    auxiliary: bool = True
    fusion: Literal["accel", "none"] = "accel"
    weights: str | None = None
    backbone_settings: dict[str, Any] | None = None
    head_settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class TrainingSettings:
    """How long, on what and how fast to train.

    Args:
        steps: optimiser steps.
        batch_size: clips of each domain in a step, of all devices together: a run on two devices takes the same steps
            as a run on one.
        rare_class_sampling: temperature with which source clips of rare classes come more often; None: each clip as
            often.
        workers: loader processes of each device; 0 loads in the main process.
        accelerator, devices, nodes: as Lightning's Trainer names them.
        precision: of the arithmetic; the weights are kept in 32 bits.
        deterministic: take only operations that give the same bits each time; slower on a GPU, needless on a CPU.
        compile: fuse the network's operations with ``torch.compile``, for GPUs; the first steps take minutes.
        gradient_checkpointing: keep only the input of each block for the backward pass and compute the rest again: less
            memory, about a third more time.
        sync_batchnorm: normalise with the statistics of all devices' clips together.
        gradient_clip: largest gradient norm; None does not clip.
        skipped_steps: how many steps with a loss or gradient that is not finite are left out before training stops.
        log_every: steps between rows of ``metrics.csv``.
        checkpoint_every: steps between checkpoints.
        snapshot_every: steps between snapshots of teacher and student, which ``stcl analyse`` reads; None keeps none.
        calibration_clips: clips that batch-norm statistics are recomputed on after the last step.
        channels_last: memory format of the network.
    """

    steps: int = 1000
    batch_size: int = 4
    rare_class_sampling: float | None = None
    workers: int = 1
    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    deterministic: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    sync_batchnorm: bool = True
    gradient_clip: float | None = None
    skipped_steps: int = 10
    log_every: int = 10
    checkpoint_every: int = 500
    snapshot_every: int | None = None
    calibration_clips: int = 64
    channels_last: bool = True


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on; see the classes of the groups for their keys."""

    name: str
    title: str
    seed: int
    space: LabelSpace
    oracle: bool
    prepared: str | None
    source: DomainSettings
    target: DomainSettings
    evaluation: EvaluationSettings
    flow: FlowSettings
    network: NetworkSettings
    training: TrainingSettings
    method_class: type[AdaptationMethod]
    method: dict[str, Any]
    text: str

    def dump(self) -> str:
        """The resolved configuration as YAML."""
        return self.text

    def as_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain data."""
        loaded: dict[str, Any] = yaml.safe_load(self.text)
        return loaded
