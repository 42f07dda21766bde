"""Segmentation networks: backbones, heads, temporal fusion, teacher and weights.

A backbone is one file and one line in :data:`BACKBONES`; the tests of its contract run over that dict.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

from stcl.errors import SettingError, lookup, unknown_name
from stcl.models.backbones.base import Backbone, Tap
from stcl.models.backbones.dinov2 import Dinov2
from stcl.models.backbones.resnet import ResNet
from stcl.models.backbones.segformer import MixTransformer
from stcl.models.backbones.small import SmallBackbone
from stcl.models.fusion import FUSIONS, ScoreFusion
from stcl.models.heads import HEADS, Head, HeadSettings, TpsHead
from stcl.models.norms import PassStatistics, hold_statistics, inference_statistics, recalibrate
from stcl.models.segmenter import VideoSegmenter, segment_together
from stcl.models.teacher import EmaTeacher, FrozenTeacher, SelfTeacher, TeacherNetwork
from stcl.models.weights.own import load_weights, save_weights

__all__ = [
    "BACKBONES",
    "FUSIONS",
    "HEADS",
    "Backbone",
    "EmaTeacher",
    "FrozenTeacher",
    "Head",
    "HeadSettings",
    "PassStatistics",
    "ScoreFusion",
    "SelfTeacher",
    "Tap",
    "TeacherNetwork",
    "VideoSegmenter",
    "build_segmenter",
    "hold_statistics",
    "inference_statistics",
    "load_weights",
    "recalibrate",
    "save_weights",
    "segment_together",
]

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "small": SmallBackbone,
    "resnet18": partial(ResNet, depth=18),
    "resnet50": partial(ResNet, depth=50),
    "resnet101": partial(ResNet, depth=101),
    **{f"mit_{variant}": partial(MixTransformer, variant=variant) for variant in ("b0", "b1", "b2", "b3", "b4", "b5")},
    **{f"dinov2_{variant}": partial(Dinov2, variant=variant) for variant in ("small", "base", "large")},
}
"""Every backbone by name; called with its settings."""


def build_segmenter(
    classes: int,
    backbone: str = "small",
    head: str = "stcl",
    auxiliary: bool = True,
    backbone_settings: Mapping[str, Any] | None = None,
    head_settings: Mapping[str, Any] | None = None,
    fusion: str = "accel",
) -> VideoSegmenter:
    """A segmenter with fresh weights.

    Args:
        classes: number of classes C.
        backbone: a name of :data:`BACKBONES`.
        head: a name of :data:`HEADS`.
        auxiliary: add the auxiliary head on the stage before the last.
        backbone_settings: arguments of the backbone, e.g. ``{"width": 24}``.
        head_settings: fields of :class:`HeadSettings` that differ from the backbone's own.
        fusion: a name of :data:`FUSIONS`.
    """
    if classes < 1:
        raise SettingError(f"A segmenter needs at least one class, not {classes}.")
    build_backbone = lookup(BACKBONES, backbone, "backbone")
    build_head = lookup(HEADS, head, "head")
    fuse = lookup(FUSIONS, fusion, "temporal fusion")
    known = list(inspect.signature(build_backbone).parameters)
    hint = " A configuration takes out what its base has for another backbone with network.backbone_settings: null."
    _check_names(f"setting of backbone '{backbone}'", backbone_settings, known, hint)
    _check_names("head setting", head_settings, [field.name for field in fields(HeadSettings)])
    read = {*build_head.settings, *(TpsHead.settings if auxiliary else ())}
    unread = [name for name in head_settings or {} if name not in read]
    if unread:
        raise SettingError(
            f"network.head_settings: head '{head}'{' and the auxiliary head' if auxiliary else ''} would not read "
            f"{', '.join(unread)}, only {', '.join(sorted(read))}. Take it out; a configuration takes out what its "
            "base has for another head with network.head_settings: null."
        )
    body = build_backbone(**(backbone_settings or {}))
    settings = replace(body.head_settings, **(head_settings or {}))
    channels = tuple(body.channels[stage] for stage in body.stages)
    # the auxiliary head first: the order decides what each draws from the seed
    aux_head = TpsHead(channels[-2], classes, settings) if auxiliary else None
    head_input = channels if build_head.reads == "all" else channels[-1]
    return VideoSegmenter(body, build_head(head_input, classes, settings), aux_head, fuse(classes))


def _check_names(kind: str, settings: Mapping[str, Any] | None, known: list[str], hint: str = "") -> None:
    for name in settings or {}:
        if name not in known:
            raise SettingError(unknown_name(kind, name, known) + hint)
