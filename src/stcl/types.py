"""The core types: shapes, ranges and units are written here once.

Axes: B batch, T frames of a clip, C classes or channels, H rows, W columns. Flow is in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stcl.errors import SettingError
from stcl.files.names import file_name

FlowKey = tuple[int, int]
"""``(a, b)``: offsets of the frame whose pixels index the flow and of the frame that it points into."""


@dataclass(frozen=True)
class ClipSpec:
    """What a method needs of a clip, as offsets from the frame t (never a file name).

    Args:
        frames: offsets of the frames, e.g. ``(0, -1, -2)``.
        flows: pairs of offsets, e.g. ``((0, -1), (-1, -2))``.
        labels: offsets whose label maps are wanted; empty where no label may be opened.
    """

    frames: tuple[int, ...] = (0,)
    flows: tuple[FlowKey, ...] = ()
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        known = set(self.frames)
        if len(known) != len(self.frames):
            raise SettingError(f"Clip spec names a frame twice: {self.frames}.")
        missing = {offset for pair in self.flows for offset in pair} | set(self.labels)
        if missing - known:
            raise SettingError(
                f"Clip spec wants flow or labels at offsets {sorted(missing - known)} without the frame."
            )

    def without_labels(self) -> "ClipSpec":
        """The same clip for a domain whose labels are out of bounds."""
        return replace(self, labels=())


@dataclass
class VideoClip:
    """One clip (no batch axis) or a batch of clips.

    Attributes:
        frames: ``(B, T, 3, H, W)`` RGB; uint8 0..255 until it is on the device, then float32 0..1.
        labels: ``(B, T, H, W)`` uint8 or int64 train ids, 255 = ignore; frames without labels are all 255. Or None.
        flows: ``(a, b) -> (B, 2, H, W)`` float32 pixels, see :class:`FlowProvider`.
        offsets: the offset of each of the T frames.
        names: one name a clip, for messages and pictures.
    """

    frames: Tensor
    labels: Tensor | None
    flows: dict[FlowKey, Tensor]
    offsets: tuple[int, ...]
    names: list[str] = field(default_factory=list)

    def frame(self, offset: int) -> Tensor:
        """Frame at ``offset``: ``(B, 3, H, W)``."""
        return self.frames[..., self._position(offset), :, :, :]

    def label(self, offset: int) -> Tensor:
        """Label map at ``offset``: ``(B, H, W)``."""
        if self.labels is None:
            raise SettingError("This clip was loaded without labels.")
        return self.labels[..., self._position(offset), :, :]

    def flow(self, current: int, other: int) -> Tensor:
        """Flow from ``current`` to ``other``: ``(B, 2, H, W)`` pixels."""
        if (current, other) not in self.flows:
            raise SettingError(f"Flow {current} -> {other} was not asked for by the clip spec.")
        return self.flows[current, other]

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        return self.frames.shape[-2], self.frames.shape[-1]

    def map(self, change: Callable[[Tensor], Tensor]) -> "VideoClip":
        """A clip with ``change`` applied to each tensor (device moves, indexing along the batch)."""
        return replace(
            self,
            frames=change(self.frames),
            labels=None if self.labels is None else change(self.labels),
            flows={key: change(flow) for key, flow in self.flows.items()},
        )

    def to(self, device: torch.device | str) -> "VideoClip":
        """The clip on ``device``; the host does not wait for a copy from page-locked memory to a GPU."""
        onwards = torch.device(device).type == "cuda"  # on the way back it must wait, or it would read too early
        return self.map(lambda tensor: tensor.to(device, non_blocking=onwards))

    def to_float(self) -> "VideoClip":
        """The clip with frames of float32 0..1 instead of bytes."""
        return replace(self, frames=self.frames.float() / 255)

    def pin_memory(self) -> "VideoClip":
        """The clip in page-locked memory, as the loader asks for it before a copy to a GPU."""
        return self.map(Tensor.pin_memory)

    def select(self, index: Tensor) -> "VideoClip":
        """The clips of a batch at ``index (B',)``, in that order."""
        names = [self.names[i] for i in index.tolist()] if self.names else []
        return replace(self.map(lambda tensor: tensor[index]), names=names)

    def restrict(self, spec: ClipSpec) -> "VideoClip":
        """The part of the clip that ``spec`` names: fewer frames, labels and flows; views where it can be."""
        order = [self._position(offset) for offset in spec.frames]
        return replace(
            self,
            frames=_take(self.frames, order, -4),
            labels=None if self.labels is None else _take(self.labels, order, -3),
            flows={key: self.flow(*key) for key in spec.flows},
            offsets=spec.frames,
        )

    def pair(self, current: int = 0, previous: int = -1) -> "FramePair":
        """What a segmenter eats: two frames and the flow between them."""
        return FramePair(self.frame(current), self.frame(previous), self.flow(current, previous))

    def _position(self, offset: int) -> int:
        if offset not in self.offsets:
            raise SettingError(f"Frame offset {offset} was not asked for by the clip spec; it has {self.offsets}.")
        return self.offsets.index(offset)


def _take(tensor: Tensor, order: list[int], axis: int) -> Tensor:
    """``tensor`` at the places ``order`` along ``axis``; no index goes to the device, for which the host would wait."""
    if order == list(range(order[0], order[0] + len(order))):
        return tensor.narrow(axis, order[0], len(order))
    return torch.stack([tensor.select(axis, place) for place in order], axis)


def stack_clips(clips: list[VideoClip]) -> VideoClip:
    """Collate single clips of one size into a batch."""
    first = clips[0]
    return VideoClip(
        frames=torch.stack([clip.frames for clip in clips]),
        labels=None
        if first.labels is None
        else torch.stack([clip.labels for clip in clips if clip.labels is not None]),
        flows={key: torch.stack([clip.flows[key] for clip in clips]) for key in first.flows},
        offsets=first.offsets,
        names=[name for clip in clips for name in clip.names],
    )


class FramePair(NamedTuple):
    """Input of a segmenter; a still image has neither ``previous`` nor ``flow``.

    Attributes:
        current: ``(B, 3, H, W)`` float RGB 0..1.
        previous: the frame before, same shape, or None.
        flow: current -> previous, ``(B, 2, H, W)`` pixels, or None.
        still: True on pixels that do not move (a pasted still image), ``(B, H, W)`` bool, or None; there the previous
            frame's warped score is replaced by the current one.
    """

    current: Tensor
    previous: Tensor | None = None
    flow: Tensor | None = None
    still: Tensor | None = None


class SegOutput(NamedTuple):
    """Output of a segmenter on its own grid ``(h, w)`` (a fraction of the input size).

    Attributes:
        logits: fused scores of the main head ``(B, C, h, w)``.
        aux: fused scores of the auxiliary head ``(B, C, h, w)`` or None.
        features: feature maps of the current frame by stage name, last one first used for alignment.
        previous_logits: unfused scores of the previous frame, warped to the current one, or None.
    """

    logits: Tensor
    aux: Tensor | None
    features: dict[str, Tensor]
    previous_logits: Tensor | None = None


@dataclass(frozen=True)
class FrameRef:
    """Where one frame of a data set lies.

    Attributes:
        sequence: name of the sequence that it belongs to; clips never cross sequences.
        number: frame number in the sequence.
        image: image file, or the video file that the frame lies in.
        label: label file, or None where the frame has none.
        frame: index in the video file from 0; None where ``image`` is a picture.
    """

    sequence: str
    number: int
    image: Path
    label: Path | None = None
    frame: int | None = None

    @property
    def name(self) -> str:
        """Unique name in its data set, fit for messages and file names: the file's, led by the sequence's."""
        if self.frame is not None:
            return file_name(f"{self.sequence}_{self.frame:06d}")
        stem = self.image.stem  # SYNTHIA-Seq numbers the frames of every sequence from 000000
        return file_name(stem if stem.startswith(f"{self.sequence}_") else f"{self.sequence}_{stem}")


class FlowProvider(Protocol):
    """Optical flow with one convention for the whole project.

    ``flow[:, y, x] = (u, v)`` in pixels and ``frame_a[y, x] ~ frame_b[y + v, x + u]``, so that
    ``warp(frame_b, flow)`` is aligned to ``frame_a``.
    """

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow ``(2, H, W)`` float32 in pixels of the given images ``(H, W, 3)`` uint8 RGB."""
        ...
