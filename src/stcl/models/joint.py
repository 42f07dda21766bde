"""Several frame pairs of one domain in one pass of a segmenter."""

from typing import Any

import torch
from torch import Tensor

from stcl.errors import SettingError
from stcl.models.backbones.base import Tap
from stcl.models.segmenter import VideoSegmenter
from stcl.types import FramePair, SegOutput


def segment_together(network: VideoSegmenter, pairs: list[FramePair], tap: Tap | None = None) -> list[SegOutput]:
    """Segment pairs of one domain in one forward pass where their sizes agree, else one after the other.

    One pass per domain also means one set of batch-norm statistics per domain. A tap needs the joint pass. Pairs that
    hold the very same tensor as their current frame share its encoding and its features.
    """
    if not pairs:
        return []
    sizes = {pair.current.shape[-2:] for pair in pairs}
    if len(sizes) > 1:
        if tap is not None:
            raise SettingError(f"Frames of different sizes {sorted(map(tuple, sizes))} cannot share one forward pass.")
        return [network(pair) for pair in pairs]
    frames: dict[int, Tensor] = {}  # the distinct current frames
    rows: dict[int, slice] = {}
    for pair in pairs:
        if id(pair.current) not in frames:
            start = sum(map(len, frames.values()))
            frames[id(pair.current)], rows[id(pair.current)] = pair.current, slice(start, start + len(pair.current))
    order = [rows[id(pair.current)] for pair in pairs]
    output = network(_join(list(frames.values()), pairs), tap, order if len(frames) < len(pairs) else None)
    return _split(output, order)


def _join(frames: list[Tensor], pairs: list[FramePair]) -> FramePair:
    still = None
    if any(pair.still is not None for pair in pairs):
        still = torch.cat(
            [
                torch.zeros_like(pair.current[:, 0], dtype=torch.bool) if pair.still is None else pair.still
                for pair in pairs
            ]
        )
    previous = [pair.previous for pair in pairs if pair.previous is not None]
    flow = [pair.flow for pair in pairs if pair.flow is not None]
    return FramePair(
        torch.cat(frames),
        torch.cat(previous) if previous else None,
        torch.cat(flow) if flow else None,
        still,
    )


def _split(output: SegOutput, rows: list[slice]) -> list[SegOutput]:
    lengths = [part.stop - part.start for part in rows]

    def parts(tensor: Tensor | None) -> list[Any]:
        return [None] * len(rows) if tensor is None else list(tensor.split(lengths))

    columns = zip(rows, parts(output.logits), parts(output.aux), parts(output.previous_logits), strict=True)
    return [
        SegOutput(logits, aux, {stage: tensor[part] for stage, tensor in output.features.items()}, previous)
        for part, logits, aux, previous in columns
    ]
