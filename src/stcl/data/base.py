"""What a data set is: the frames on disk and how their files become images and train ids.

Three things stay apart: what exists on disk (:meth:`VideoDataset.index`), which frames are used, and the sample
(both in :mod:`stcl.data.clips`).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stcl.data.io import Label, read_image, read_label
from stcl.data.listing import Key, Listing
from stcl.errors import DataError, SettingError, unknown_name
from stcl.files.paths import from_home
from stcl.labels import RAW_IDS, LabelSpace
from stcl.types import FrameRef

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_CONVERTED = "_labelTrainIds"  # as mmsegmentation and what is built on it name their converted labels


class VideoDataset(ABC):
    """A video data set in its published folder layout.

    Args:
        root: folder of the data set, see :attr:`layout`.
        split: one of :attr:`splits`.
        classes: class map of one's own, where the data set takes one (:attr:`own_classes`).

    Class attributes (the facts that head a data set's file):
        name: key in ``DATASETS`` and ``RAW_IDS``.
        layout: the folder tree in one line, for messages.
        splits: names of the splits.
        native_size: ``(width, height)`` of the published frames in pixels.
        citation: where it comes from.
        step: largest jump of the frame number between neighbours of one sequence; a larger jump ends a clip. 0 says
            that the pictures are stills without an order: each is its own neighbour.
        sparse: True where only some frames have labels.
        label_channel: which channel of a label file holds the ids, None for files of one channel.
        own_classes: True where the user says what the ids are, in a class map.
        root_suffixes: endings of files that can be the root by themselves.
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    native_size: ClassVar[tuple[int, int]]
    citation: ClassVar[str]
    step: ClassVar[int] = 1
    sparse: ClassVar[bool] = False
    label_channel: ClassVar[int | None] = None
    own_classes: ClassVar[bool] = False
    root_suffixes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, root: str | Path, split: str = "train", classes: str | Path | None = None) -> None:
        self.root = from_home(root).absolute()
        self.split = split
        self._strays: list[Path] = []  # of the listing that is being made
        self.classes = None if classes is None else from_home(classes).absolute()
        if classes is not None and not self.own_classes:
            raise SettingError(f"Data set '{self.name}' has classes of its own and takes no class map: {classes}.")
        if split not in self.splits:
            raise SettingError(unknown_name(f"split of data set '{self.name}'", split, self.splits))
        if not (self.root.is_dir() or (self.root.suffix.lower() in self.root_suffixes and self.root.is_file())):
            state = "is not a folder" if self.root.exists() else "does not exist"
            raise DataError(f"Root {self.root} of data set '{self.name}' {state}. Expected there: {self.layout}")

    @property
    def stills(self) -> bool:
        """Whether the pictures have no order."""
        return self.step == 0

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

    @property
    def ids_place(self) -> str:
        """Where an id that is to be ignored belongs, for messages."""
        return f"stcl.labels.RAW_IDS['{self.name}'] as 'void'"

    @property
    def values_identity(self) -> str:
        """What decides which raw id a value of a label file is, where the user says so; plain text."""
        return ""

    def check_space(self, space: LabelSpace) -> None:  # noqa: B027  a published data set fits every label space
        """Refuse a label space that the classes of the data set were not meant for; raises SettingError."""

    def index(self, with_labels: bool) -> list[FrameRef]:
        """Frames of the split by sequence and number; without labels, the label folders are never looked at."""
        found = self.list_files(with_labels)
        if found.strays:
            raise DataError(f"{self}: file {found.strays[0]} does not follow the layout. Expected: {self.layout}")
        for key, path in found.twins:
            raise DataError(f"File {path}: a second file for sequence '{key[0]}', frame {key[1]}. Keep one of them.")
        if not found.frames:
            raise DataError(f"{self} holds no frame. Expected there: {self.layout}")
        if found.labels is not None:
            self._refuse_unmatched(found)
        return found.index()

    def list_files(self, with_labels: bool) -> Listing:
        """The files of the split with all mistakes among them; without labels, the label folders are never looked at.

        Raises:
            DataError: a folder of the layout is missing.
        """
        found = Listing()
        self._strays = found.strays
        for ref in self.find_frames():
            found.insert(found.frames, (ref.sequence, ref.number), ref, ref.image)
        if with_labels and found.frames:
            found.labels = {}
            for key, path in self.find_labels():
                found.insert(found.labels, key, path, path)
        return found

    def benchmark_frames(self, index: list[FrameRef]) -> list[FrameRef]:
        """The frames of the published lists, known without opening a label: all, unless a data set says otherwise.

        Where labels are ``sparse``, these are the labelled ones.
        """
        return index

    def clean_label(self, raw: Label) -> Label:
        """Raw ids ``(H, W)`` without what the benchmark removes, which becomes an ignored id: nothing."""
        return raw

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
        unknown = self.unknown_ids(raw)
        if unknown:
            found = ", ".join(f"{i} ({n} px)" for i, n in list(unknown.items())[:8])
            raise DataError(
                f"Label file {ref.label} holds ids that data set '{self.name}' does not have: {found}. Known ids: "
                f"{_ranges(self.raw_names)}. Is it a file of another data set, or of train ids? An id that is to be "
                f"ignored belongs into {self.ids_place}."
            )
        return self.crop(space.lookup_table(self.raw_names)[self.clean_label(raw)])

    def unknown_ids(self, raw: Label) -> dict[int, int]:
        """Pixels of each raw id that the data set does not have."""
        known = np.zeros(65536, bool)
        known[list(self.raw_names)] = True
        if known[raw].all():
            return {}
        ids, counts = np.unique(raw[~known[raw]], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

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

    @staticmethod
    def folders(parent: Path) -> list[Path]:
        """Folders in a folder, by name."""
        return sorted(path for path in parent.iterdir() if path.is_dir())

    def files(self, folder: Path, pattern: str, endings: tuple[str, ...]) -> list[tuple[re.Match[str], Path]]:
        """Files of a folder that end in ``endings``; one whose name (without ending) breaks the pattern is a stray.

        Label files that other people's code has written beside the published ones are passed over.
        """
        found = []
        for path in folder.iterdir():
            ending = next((e for e in endings if path.name.lower().endswith(e.lower())), None)
            if ending is None or path.name.startswith(".") or path.stem.endswith(_CONVERTED):
                continue
            match = re.fullmatch(pattern, path.name[: -len(ending)])
            if match is None:
                self._strays.append(path)
            else:
                found.append((match, path))
        return found

    def _refuse_unmatched(self, found: Listing) -> None:
        """Every label needs its frame and, unless ``sparse``, every frame its label."""
        frames, labels, orphans, bare = found.frames, found.labels or {}, found.orphans, found.bare
        if orphans:
            sequence, number = orphans[0]
            which = (
                f"of its name in sequence '{sequence}'" if number < 0 else f"(sequence '{sequence}', number {number})"
            )
            raise DataError(
                f"{self}: label file {labels[orphans[0]]} has no frame {which}; {len(orphans)} of {len(labels)} label "
                "files have none. Is the download complete?"
            )
        if not labels or (bare and not self.sparse):
            raise DataError(
                f"{self}: frame {frames[bare[0]].image} has no label file; {len(bare)} of {len(frames)} frames have "
                f"none. Expected: {self.layout}"
            )


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


def _ranges(ids: Iterable[int]) -> str:
    """``0, 1, 2, 5 -> "0-2, 5"``."""
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
