"""What a data set is: the frames on disk and how their files become images and train ids.

Three things stay apart: what exists on disk (:meth:`VideoDataset.index`), which frames are used, and the sample
(both in :mod:`stcl.data.clips`).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stcl.data.io import Label, read_image, read_label
from stcl.errors import DataError, SettingError, unknown_name
from stcl.labels import RAW_IDS, LabelSpace
from stcl.types import FrameRef

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

Key = tuple[str, int]
"""Sequence and frame number: what ties a label file to its frame."""


class VideoDataset(ABC):
    """A video data set in its published folder layout.

    Args:
        root: folder of the data set, see :attr:`layout`.
        split: one of :attr:`splits`.

    Class attributes (the facts that head a data set's file):
        name: key in ``DATASETS`` and ``RAW_IDS``.
        layout: the folder tree in one line, for messages.
        splits: names of the splits.
        native_size: ``(width, height)`` of the published frames in pixels.
        citation: where it comes from.
        step: largest jump of the frame number between neighbours of one sequence; a larger jump ends a clip.
        sparse: True where only some frames have labels.
        label_channel: which channel of a label file holds the ids, None for files of one channel.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    native_size: ClassVar[tuple[int, int]]
    citation: ClassVar[str]
    step: ClassVar[int] = 1
    sparse: ClassVar[bool] = False
    label_channel: ClassVar[int | None] = None

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root).expanduser().absolute()
        self.split = split
        if split not in self.splits:
            raise SettingError(unknown_name(f"split of data set '{self.name}'", split, self.splits))
        if not self.root.is_dir():
            state = "is not a folder" if self.root.exists() else "does not exist"
            raise DataError(f"Root {self.root} of data set '{self.name}' {state}. Expected there: {self.layout}")

    @abstractmethod
    def find_frames(self) -> Iterable[FrameRef]:
        """Every frame of the split, in any order, looking at image folders only."""

    @abstractmethod
    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Every label file of the split, in any order."""

    @property
    def raw_names(self) -> Mapping[int, str]:
        """``raw id -> class name``; an id that is not in it is an error in a label file."""
        return RAW_IDS[self.name]

    def index(self, with_labels: bool) -> list[FrameRef]:
        """Frames of the split by sequence and number; without labels, the label folders are never looked at."""
        frames: dict[Key, FrameRef] = {}
        for ref in self.find_frames():
            _insert(frames, (ref.sequence, ref.number), ref, ref.image)
        if not frames:
            raise DataError(f"{self} holds no frame. Expected there: {self.layout}")
        if with_labels:
            self._attach_labels(frames)
        return [frames[key] for key in sorted(frames)]

    def benchmark_frames(self, index: list[FrameRef]) -> list[FrameRef]:
        """The frames that the benchmark has labels for, known without opening a label: all, unless ``sparse``."""
        return index

    def crop(self, pixels: NDArray) -> NDArray:  # type: ignore[type-arg]
        """The part ``(h, w, ...)`` of a native frame or label map that the benchmark uses: all of it."""
        return pixels

    def read_frame(self, ref: FrameRef) -> NDArray[np.uint8]:
        """A frame ``(H, W, 3)`` uint8 RGB."""
        return self.crop(read_image(ref.image))

    def read_raw_label(self, ref: FrameRef) -> Label:
        """The raw ids ``(H, W)`` of a frame as its label file holds them."""
        if ref.label is None:
            raise DataError(f"Frame {ref.image} of {self} has no label. Choose labelled frames, indexed with labels.")
        return read_label(ref.label, self.label_channel)

    def read_label(self, ref: FrameRef, space: LabelSpace) -> NDArray[np.uint8]:
        """Train ids ``(H, W)`` uint8 of a frame; classes that ``space`` lacks are 255."""
        raw = self.read_raw_label(ref)
        known = np.zeros(65536, bool)
        known[list(self.raw_names)] = True
        if not known[raw].all():
            ids, counts = np.unique(raw[~known[raw]], return_counts=True)
            found = ", ".join(f"{i} ({n} px)" for i, n in list(zip(ids, counts, strict=True))[:8])
            raise DataError(
                f"Label file {ref.label} holds ids that data set '{self.name}' does not have: {found}. Known ids: "
                f"{_ranges(self.raw_names)}. Is it a file of another data set, or of train ids? An id that is to be "
                f"ignored belongs into stcl.labels.RAW_IDS['{self.name}'] as 'void'."
            )
        return self.crop(space.lookup_table(self.raw_names)[raw])

    def __str__(self) -> str:
        return f"Data set '{self.name}', split '{self.split}', in {self.root}"

    def folder(self, *parts: str) -> Path:
        """A folder below the root that must exist; if not, the error lists what is there instead."""
        path = self.root
        for part in parts:
            if not (path / part).is_dir():
                there = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())[:12]) or "no folder"
                raise DataError(
                    f"{self}: folder {path / part} does not exist; in {path} there is: {there}. Expected: {self.layout}"
                )
            path = path / part
        return path

    def files(self, folder: Path, pattern: str, endings: tuple[str, ...]) -> list[tuple[re.Match[str], Path]]:
        """Files of a folder that end in ``endings``; one whose name (without ending) breaks the pattern is an error."""
        found = []
        for path in folder.iterdir():
            ending = next((e for e in endings if path.name.lower().endswith(e.lower())), None)
            if ending is None or path.name.startswith("."):
                continue
            match = re.fullmatch(pattern, path.name[: -len(ending)])
            if match is None:
                raise DataError(f"{self}: file {path} does not follow the layout. Expected: {self.layout}")
            found.append((match, path))
        return found

    def _attach_labels(self, frames: dict[Key, FrameRef]) -> None:
        labels: dict[Key, Path] = {}
        for key, path in self.find_labels():
            _insert(labels, key, path, path)
        orphans = sorted(labels.keys() - frames.keys())
        if orphans:
            raise DataError(
                f"{self}: label file {labels[orphans[0]]} has no frame (sequence '{orphans[0][0]}', number "
                f"{orphans[0][1]}); {len(orphans)} of {len(labels)} label files have none. Is the download complete?"
            )
        bare = sorted(frames.keys() - labels.keys())
        if not labels or (bare and not self.sparse):
            raise DataError(
                f"{self}: frame {frames[bare[0]].image} has no label file; {len(bare)} of {len(frames)} frames have "
                f"none. Expected: {self.layout}"
            )
        for key, path in labels.items():
            frames[key] = replace(frames[key], label=path)


def split_runs(index: Sequence[FrameRef], step: int) -> list[list[FrameRef]]:
    """Cut a sorted index where the sequence changes or the frame number jumps by more than ``step``."""
    runs: list[list[FrameRef]] = []
    for ref in index:
        last = runs[-1][-1] if runs else None
        if last is not None and last.sequence == ref.sequence and 0 < ref.number - last.number <= step:
            runs[-1].append(ref)
        else:
            runs.append([ref])
    return runs


def _insert(table: dict, key: Key, value: object, path: Path) -> None:  # type: ignore[type-arg]
    if key in table:
        raise DataError(f"File {path}: a second file for sequence '{key[0]}', frame {key[1]}. Keep one of them.")
    table[key] = value


def _ranges(ids: Iterable[int]) -> str:
    """``0, 1, 2, 5 -> "0-2, 5"``."""
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
