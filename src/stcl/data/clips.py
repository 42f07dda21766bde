"""Clips of a data set: which frames belong to each, and the sample itself."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stcl.data.base import VideoDataset, split_runs
from stcl.data.io import resize_image, resize_label
from stcl.data.selection import select_frames
from stcl.errors import DataError, SettingError, shortened
from stcl.labels import IGNORE, LabelSpace
from stcl.types import ClipSpec, FlowProvider, FrameRef, VideoClip


class FrameStore(Protocol):
    """Where clips get their pixels: at the clips' size, frame by frame."""

    def frame(self, ref: FrameRef) -> NDArray[np.uint8]:
        """RGB ``(3, H, W)`` uint8."""
        ...

    def label(self, ref: FrameRef) -> NDArray[np.uint8]:
        """Train ids ``(H, W)`` uint8; 255 everywhere where ``ref`` has no label."""
        ...

    def flow(self, a: FrameRef, b: FrameRef) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels."""
        ...


class ClipDataset(Dataset[VideoClip]):
    """Clips of a video data set as uint8 CPU tensors: frames ``(T, 3, H, W)``, labels ``(T, H, W)`` or None.

    An offset of the spec counts existing frames within a contiguous run (see :attr:`VideoDataset.step`); a frame whose
    clip would leave its run cannot be the frame t. With ``spec.labels`` empty no label folder is ever touched. Where
    offset 0 wants a label, only labelled frames can be t; another offset's frame without label gives a map of 255.

    Args:
        dataset: where the frames are.
        spec: offsets of frames, flows and labels.
        space: train ids of the labels.
        size: ``(width, height)`` of frames, flows and labels, or None for the size on disk.
        frames: which frames can be t, see :func:`select_frames`.
        flow: provider of ``spec.flows``; it sees the images at ``size``.
        native_labels: labels keep their size on disk, for evaluation.
        every_frame: near the ends of a run the frame at the end stands in for those beyond it, with zero flow to
            itself, so that evaluation leaves no labelled frame out. Always so for stills, whose runs are single frames.
        index: the frames to take, sorted; None takes all that the data set has.

    Attributes:
        prepared: holds what the clips are made of, so that no file needs to be decoded; None decodes them.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        spec: ClipSpec,
        space: LabelSpace,
        size: tuple[int, int] | None = None,
        frames: str = "all",
        flow: FlowProvider | None = None,
        native_labels: bool = False,
        every_frame: bool = False,
        index: list[FrameRef] | None = None,
    ) -> None:
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise SettingError(f"Size is (width, height) in pixels, found {size}.")
        if spec.flows and flow is None:
            raise SettingError(f"The clip spec asks for flow {spec.flows}, but no flow provider was given.")
        self.dataset, self.spec, self.space = dataset, spec, space
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.flow = flow
        self.native_labels, self.every_frame = native_labels, every_frame or dataset.stills
        if spec.labels:
            dataset.check_space(space)
        self.prepared: FrameStore | None = None
        index = dataset.index(with_labels=bool(spec.labels)) if index is None else index
        self.runs = split_runs(index, dataset.step)
        self.anchors = self._anchors(select_frames(dataset, index, frames, bool(spec.labels)))
        if not self.anchors:
            longest = max(len(run) for run in self.runs)
            raise DataError(
                f"{dataset}: no clip fits. Frames '{shortened(frames)}' with offsets {spec.frames} need "
                f"{max(spec.frames) - min(spec.frames) + 1} neighbouring frames; there are {len(index)} frames in "
                f"{len(self.runs)} contiguous runs, the longest of {longest}. Choose other frames or a shorter clip."
            )

    def __len__(self) -> int:
        return len(self.anchors)

    def thin(self, count: int) -> None:
        """Keep at most ``count`` clips, evenly spread."""
        if len(self.anchors) > count:
            chosen = np.linspace(0, len(self.anchors) - 1, count).round().astype(int)
            self.anchors = [self.anchors[position] for position in chosen]

    def refs(self, item: int) -> dict[int, FrameRef]:
        """The frames of a clip by offset."""
        number, position = self.anchors[item]
        run = self.runs[number]
        return {offset: run[min(max(0, position + offset), len(run) - 1)] for offset in self.spec.frames}

    def label(self, item: int) -> NDArray[np.uint8]:
        """Train ids ``(H, W)`` of a clip's frame t alone, at the clips' size."""
        ref = self.refs(item)[0]
        if self.prepared is not None:
            return self.prepared.label(ref)
        return self.resized(self.dataset.read_label(ref, self.space))

    def refuse_unlabelled(self) -> None:
        """Refuse labels that all are ignored, of which nothing could be learned; reads up to the first that is not."""
        if not any((self.label(item) != IGNORE).any() for item in range(len(self))):
            raise DataError(
                f"{self.dataset}: all labels of the {len(self)} frames are ignored: no pixel has a class of label "
                f"space '{self.space.name}'. Are they the right label files, and is it the right space?"
            )

    def resized(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A label map at the size that the clips' labels have."""
        return label if self.size is None or self.native_labels else resize_label(label, self.size)

    def __getitem__(self, item: int) -> VideoClip:
        refs = self.refs(item)
        store = self.prepared or DecodedFrames(self)
        rising = dict.fromkeys(refs[offset] for offset in sorted(refs))  # as a video is decoded
        images = {ref: store.frame(ref) for ref in rising}
        frames = _stack([images[ref] for ref in refs.values()])  # (T, 3, H, W)
        flows = {}
        for a, b in self.spec.flows:
            still = np.zeros((2, *frames.shape[-2:]), np.float32)
            flows[a, b] = torch.from_numpy(still if refs[a] is refs[b] else store.flow(refs[a], refs[b]))
        wanted = [ref if offset in self.spec.labels else replace(ref, label=None) for offset, ref in refs.items()]
        return VideoClip(
            frames=frames,
            labels=_stack([store.label(ref) for ref in wanted]) if self.spec.labels else None,
            flows=flows,
            offsets=self.spec.frames,
            names=[refs[0].name if 0 in refs else refs[self.spec.frames[0]].name],
        )

    def _anchors(self, chosen: set[str]) -> list[tuple[int, int]]:
        """``(run, position)`` of every frame that can be t."""
        first, last = (0, 0) if self.every_frame else (min(self.spec.frames), max(self.spec.frames))
        return [
            (number, position)
            for number, run in enumerate(self.runs)
            for position in range(max(0, -first), min(len(run), len(run) - last))
            if run[position].name in chosen and (0 not in self.spec.labels or run[position].label is not None)
        ]


class DecodedFrames:
    """The store of a few frames that reads files: each once, however often it is asked for.

    Args:
        clips: whose data set, size, label space and flow these are.
    """

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips
        self._images: dict[str, NDArray[np.uint8]] = {}  # (H, W, 3) at the clips' size
        self._sizes: dict[str, tuple[FrameRef, tuple[int, ...]]] = {}  # height and width on disk

    def frame(self, ref: FrameRef) -> NDArray[np.uint8]:
        """See :class:`FrameStore`."""
        return self._image(ref).transpose(2, 0, 1)

    def label(self, ref: FrameRef) -> NDArray[np.uint8]:
        """See :class:`FrameStore`."""
        self._image(ref)
        height, width = self._sizes[ref.name][1]
        if ref.label is None:
            return self.clips.resized(np.full((height, width), IGNORE, np.uint8))
        label = self.clips.dataset.read_label(ref, self.clips.space)
        if label.shape != (height, width):
            raise DataError(
                f"Label file {ref.label} is {_size(label.shape)}, but its frame {ref.image} is {width}x{height}. They "
                "must have one size: are they from the same download?"
            )
        return self.clips.resized(label)

    def flow(self, a: FrameRef, b: FrameRef) -> NDArray[np.float32]:
        """See :class:`FrameStore`."""
        assert self.clips.flow is not None  # checked when the data set was made
        return self.clips.flow(a, b, self._image(a), self._image(b))

    def _image(self, ref: FrameRef) -> NDArray[np.uint8]:
        if ref.name not in self._images:
            native = self.clips.dataset.read_frame(ref)
            self._check_size(ref, native.shape[:2])
            size = self.clips.size
            self._images[ref.name] = native if size is None else resize_image(native, size)
        return self._images[ref.name]

    def _check_size(self, ref: FrameRef, size: tuple[int, ...]) -> None:
        """Frames of one sequence have one size on disk."""
        self._sizes[ref.name] = ref, size
        first, expected = next(entry for entry in self._sizes.values() if entry[0].sequence == ref.sequence)
        if size != expected:
            raise DataError(
                f"Frame {ref.image} is {_size(size)}, but its neighbour {first.image} is {_size(expected)}. Frames of "
                "one sequence must have one size."
            )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _stack(arrays: list[NDArray[np.uint8]]) -> Tensor:
    """One tensor ``(T, ...)``; NumPy's copy has no threads that would wait for each other on a busy machine."""
    return torch.from_numpy(np.stack(arrays))
