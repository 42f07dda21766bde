"""Which frames of a data set become clips, and the clip itself."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from stcl.data.base import VideoDataset, split_runs
from stcl.data.io import resize_image, resize_label
from stcl.errors import DataError, SettingError
from stcl.labels import IGNORE, LabelSpace
from stcl.types import ClipSpec, FlowProvider, FrameRef, VideoClip


def select_frames(dataset: VideoDataset, index: list[FrameRef], frames: str, with_labels: bool) -> set[str]:
    """Names of the frames that may be the frame t of a clip.

    Args:
        dataset: knows which frames its benchmark labels.
        index: sorted frames of the data set.
        frames: ``all``, ``labelled`` (by the label files where labels may be opened, else by the layout), or
            ``every:N`` (the first, N-th, 2 N-th ... frame of each sequence).
        with_labels: whether ``index`` was built from the label files too.
    """
    kind, _, number = frames.partition(":")
    if frames == "all":
        return {ref.name for ref in index}
    if frames == "labelled":
        labelled = [ref for ref in index if ref.label] if with_labels else dataset.benchmark_frames(index)
        return {ref.name for ref in labelled}
    if kind == "every" and number.isdecimal() and int(number) > 0:
        position: dict[str, int] = {}
        chosen = set()
        for ref in index:
            position[ref.sequence] = position.get(ref.sequence, -1) + 1
            if position[ref.sequence] % int(number) == 0:
                chosen.add(ref.name)
        return chosen
    raise SettingError(f"Unknown choice of frames '{frames}'. Known: all, labelled, every:N (such as every:10).")


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
        every_frame: a frame at the start of its run is its own predecessor, with zero flow, so that evaluation leaves
            no labelled frame out.
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
    ) -> None:
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise SettingError(f"Size is (width, height) in pixels, found {size}.")
        if spec.flows and flow is None:
            raise SettingError(f"The clip spec asks for flow {spec.flows}, but no flow provider was given.")
        self.dataset, self.spec, self.space = dataset, spec, space
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.flow = flow
        self.native_labels, self.every_frame = native_labels, every_frame
        index = dataset.index(with_labels=bool(spec.labels))
        self.runs = split_runs(index, dataset.step)
        self.anchors = self._anchors(select_frames(dataset, index, frames, bool(spec.labels)))
        if not self.anchors:
            longest = max(len(run) for run in self.runs)
            raise DataError(
                f"{dataset}: no clip fits. Frames '{frames}' with offsets {spec.frames} need "
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
        run, position = self.anchors[item]
        return {offset: self.runs[run][max(0, position + offset)] for offset in self.spec.frames}

    def label(self, item: int) -> NDArray[np.uint8]:
        """Train ids ``(H, W)`` of a clip's frame t alone, at the clips' size."""
        return self._resized(self.dataset.read_label(self.refs(item)[0], self.space))

    def __getitem__(self, item: int) -> VideoClip:
        refs = self.refs(item)
        native = {offset: self.dataset.read_frame(ref) for offset, ref in refs.items()}
        self._check_sizes(refs, native)
        images = {k: image if self.size is None else resize_image(image, self.size) for k, image in native.items()}
        flows = {}
        for a, b in self.spec.flows:
            assert self.flow is not None  # checked when the data set was made
            same = refs[a] is refs[b]
            still = np.zeros((2, *images[a].shape[:2]), np.float32)
            flows[a, b] = torch.from_numpy(still if same else self.flow(refs[a], refs[b], images[a], images[b]))
        return VideoClip(
            frames=_stack([images[offset].transpose(2, 0, 1) for offset in self.spec.frames]),  # (T, 3, H, W)
            labels=self._labels(refs, native) if self.spec.labels else None,
            flows=flows,
            offsets=self.spec.frames,
            names=[refs[0].name if 0 in refs else refs[self.spec.frames[0]].name],
        )

    def _anchors(self, chosen: set[str]) -> list[tuple[int, int]]:
        """``(run, position)`` of every frame that can be t."""
        first, last = 0 if self.every_frame else min(self.spec.frames), max(self.spec.frames)
        return [
            (number, position)
            for number, run in enumerate(self.runs)
            for position in range(max(0, -first), min(len(run), len(run) - last))
            if run[position].name in chosen and (0 not in self.spec.labels or run[position].label is not None)
        ]

    def _labels(self, refs: dict[int, FrameRef], native: dict[int, NDArray[np.uint8]]) -> Tensor:
        """Train ids ``(T, H, W)`` uint8; 255 where a frame has no label or none was asked for."""
        maps: list[NDArray[np.uint8]] = []
        for offset, ref in refs.items():
            size = native[offset].shape[:2]
            if offset in self.spec.labels and ref.label is not None:
                label = self.dataset.read_label(ref, self.space)
                if label.shape != size:
                    raise DataError(
                        f"Label file {ref.label} is {_size(label)}, but its frame {ref.image} is "
                        f"{_size(native[offset])}. They must have one size: are they from the same download?"
                    )
            else:
                label = np.full(size, IGNORE, np.uint8)
            maps.append(self._resized(label))
        return _stack(maps)

    def _resized(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return label if self.size is None or self.native_labels else resize_label(label, self.size)

    def _check_sizes(self, refs: dict[int, FrameRef], images: dict[int, NDArray[np.uint8]]) -> None:
        """Frames of one clip have one size on disk."""
        first = self.spec.frames[0]
        for offset, image in images.items():
            if image.shape != images[first].shape:
                raise DataError(
                    f"Frame {refs[offset].image} is {_size(image)}, but its neighbour {refs[first].image} is "
                    f"{_size(images[first])}. Frames of one sequence must have one size."
                )


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _stack(arrays: list[NDArray[np.uint8]]) -> Tensor:
    """One tensor ``(T, ...)``; NumPy's copy has no threads that would wait for each other on a busy machine."""
    return torch.from_numpy(np.stack(arrays))
