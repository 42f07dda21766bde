"""The configuration of a run as objects: what there is to set, what it means, its range and what it is unless set.

:mod:`stcl.training.config` reads configurations from files, :mod:`stcl.training.checking` makes settings of them.
"""

from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, InstanceOf, field_validator
from pydantic.dataclasses import dataclass

from stcl.data import DATASETS
from stcl.errors import SettingError, lookup, one_line
from stcl.fields import STRICT, Group, as_yaml, group, one_of
from stcl.flow import FLOWS
from stcl.labels import SPACES, LabelSpace
from stcl.methods import AdaptationMethod
from stcl.methods.settings import FrameSize, MethodSettings
from stcl.models import BACKBONES, HEADS

MOST_DEVICES = 2**10
"""Of one machine; -1 takes all that it has."""


def _known_space(space: Any) -> Any:
    if isinstance(space, LabelSpace):
        return space
    if not isinstance(space, str):
        raise SettingError(f"{{key}} must be text, found {as_yaml(space)}.")
    return lookup(SPACES, one_line(space), "{key}")


@group
class DomainSettings(Group):
    """One side of the adaptation."""

    name: Annotated[str, one_of(DATASETS)]
    """Data set: `synthia_seq`, `viper`, `cityscapes_seq`, `bdd`, `camvid`, `gta5`, `synthia_rand`, `cityscapes`
    (docs/data.md), or `folder` (docs/data.md#own-data)."""
    root: str
    """Its folder; a relative one is relative to where `stcl` runs."""
    split: str = "train"
    """A split of the data set. Labels of the target's are not opened."""
    size: FrameSize | None = None
    """Training size `[width, height]` in pixels, at least 32 and divisible by 8; null: the files' size. The target's is
    also the size that evaluation shows to the network."""
    frames: str = "all"
    """`all`, `labelled`, `published`, `every:N` or `list:FILE` (docs/data.md#which-frames-are-used)."""
    classes: str | None = None
    """Class map of the data set `folder` (docs/data.md#pictures-with-masks); null: `classes.yaml` of the root."""


@group
class EvaluationSettings(Group):
    """Where the trained network is measured: labelled frames of the target data set."""

    split: str = "val"
    """A split of the target data set."""
    root: str | None = None
    """Null: the target's root."""
    batch_size: int = Field(default=4, ge=1)
    """Clips at once; changes speed only."""
    samples: int = Field(default=8, ge=0)
    """How many frames are kept as pictures for the report."""


@group
class FlowSettings(Group):
    """Optical flow."""

    name: Annotated[str, one_of(FLOWS)] = "dis"
    """`dis` or `raft` (estimated), `files` (computed by others), `exact` (of a rendered tree) or `zero` (no motion);
    see docs/flow.md."""
    cache: str | None = None
    """Folder that keeps estimated flow; null: computed anew each time. `stcl flow` fills it before a training."""
    quality: Literal["ultrafast", "fast", "medium"] = "fast"
    """Of `dis`: slower is better."""
    model: Literal["large", "small"] = "large"
    """Of `raft`."""
    folder: str | None = None
    """Of `files`: where the flow files lie; a folder of the data set's name in it (`synthia_seq`) is for that data
    set."""


@group
class NetworkSettings(Group):
    """The segmentation network."""

    backbone: Annotated[str, one_of(BACKBONES)] = "small"
    """`small`, `resnet18`, `resnet50`, `resnet101`, `mit_b0` to `mit_b5`, `dinov2_small`, `dinov2_base` or
    `dinov2_large`; see docs/networks.md."""
    head: Annotated[str, one_of(HEADS)] = "stcl"
    """Main head: `stcl` or `tps` on the last stage, `mlp` or `daformer` on all stages."""
    auxiliary: bool = True
    """An auxiliary head of the form `tps` on the stage before the last takes part in training."""
    fusion: Literal["accel", "none"] = "accel"
    """`accel`: scores are fused with the previous frame's; `none`: each frame is segmented by itself, in training,
    evaluation and video alike."""
    weights: str | None = None
    """File to start from: weights or checkpoint of a run, or a published checkpoint (docs/checkpoints.md);
    `builtin:small`, which comes with the package; or `pretrained:NAME`, published weights of the backbone
    (docs/networks.md#published-weights-by-name); null: random."""
    backbone_settings: dict[str, Any] | None = None
    """See the next table."""
    head_settings: dict[str, Any] | None = None
    """See the next table; a key that the network's heads do not read is refused."""


@group
class TrainingSettings(Group):
    """How long, on what and how fast to train; limits that seem large lie where a machine would hang without a word."""

    steps: int = Field(default=1000, ge=1, le=2**40)
    """Optimiser steps."""
    batch_size: int = Field(default=4, ge=1, le=2**16)
    """Clips of each domain in a step, of all devices together: two devices take the same steps as one."""
    rare_class_sampling: float | None = Field(default=None, gt=0)
    """Temperature with which source clips that show rare classes come more often
    ([DAFormer](https://arxiv.org/abs/2111.14887), published 0.01): the smaller, the more the rarest prevail; null: each
    clip as often."""
    workers: int = Field(default=1, ge=0, le=2**10)
    """Loader processes of each device for each domain; 0 loads in the main process."""
    accelerator: str = "auto"
    """As Lightning has it: `cpu`, `cuda`, ..."""
    devices: int | str = 1
    """Devices of each machine, as Lightning has it; see docs/scale.md."""
    nodes: int = Field(default=1, ge=1, le=2**16)
    """Machines."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Of the arithmetic; the weights are kept in 32 bits."""
    deterministic: bool = False
    """Take only operations that give the same bits each time; slower on a GPU, needless on a CPU."""
    compile: bool = False
    """Fuse the network's operations with `torch.compile`, for GPUs (on a CPU steps get slower); the first steps take
    minutes; where it does not work, training says so and goes on without."""
    gradient_checkpointing: bool = False
    """Keep only the input of each block for the backward pass: less memory, about a third more time."""
    sync_batchnorm: bool = True
    """Normalise with the statistics of all devices' clips together."""
    gradient_clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; null does not clip."""
    skipped_steps: int = Field(default=10, ge=0)
    """How many steps with a loss or gradient that is not finite are left out before training stops."""
    log_every: int = Field(default=10, ge=1)
    """Steps between rows of `metrics.csv`."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    snapshot_every: int | None = Field(default=None, ge=1)
    """Steps between snapshots of teacher and student for `stcl analyse`; null keeps none. Changes no result, and may
    change when a run goes on."""
    calibration_clips: int = Field(default=64, ge=1)
    """Clips that batch-norm statistics are recomputed on after the last step."""
    channels_last: bool = True
    """Memory format of the network."""

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, devices: int | str) -> int | str:
        try:
            count = int(devices)
        except ValueError:  # a list of devices, or auto
            return devices
        if count < -1 or count > MOST_DEVICES:
            limit = "at least -1" if count < 0 else f"at most {MOST_DEVICES}"
            raise SettingError(f"{{key}} must be {limit}, found {count}.")
        return devices


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(Group):
    """Everything a run depends on."""

    name: str
    """Name of the run in tables."""
    title: str | None = None
    """What pictures and tables call it; null: the name."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Determines every random draw: starting weights, order of the clips, augmentation."""
    space: Annotated[InstanceOf[LabelSpace], BeforeValidator(_known_space)]
    """Label space, and with it the protocol (docs/protocol.md): `synthia_seq-cityscapes_seq`, `viper-cityscapes_seq`,
    `viper-cityscapes_seq-uvda`, `viper-bdd`, `cityscapes`, `gta5-cityscapes`, `synthia_rand-cityscapes`,
    `twinstreets-camvid`."""
    oracle: bool = False
    """Says that training reads target labels on purpose: an upper bound."""
    prepared: str | None = "data/prepared"
    """Folder where `stcl data prepare` keeps frames, source labels and flow at training size, and where training looks
    for them (docs/data.md#prepared-data); null: they are never used. Changes no result."""
    source: DomainSettings
    """The labelled domain."""
    target: DomainSettings
    """The domain that is adapted to."""
    evaluation: EvaluationSettings = EvaluationSettings()
    flow: FlowSettings = FlowSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    method: MethodSettings
    """The method and its settings."""
    method_class: type[AdaptationMethod] = Field(exclude=True)
    text: str = Field(default="", exclude=True)
    """The resolved configuration as YAML."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)

    def dump(self) -> str:
        """The resolved configuration as YAML."""
        return self.text

    def as_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain data."""
        loaded: dict[str, Any] = yaml.safe_load(self.text)
        return loaded
