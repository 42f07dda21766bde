"""Clips at training size, decoded once: what they need, where that is kept, and how it is read.

A folder of prepared data holds the frames of one data set at one size, the labels of one label space where labels may
be opened, and the flow of one provider. Whatever else would give other bits is another folder.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stcl.data.clips import ClipDataset
from stcl.data.segments import VERSION, Kind, Segment, is_segment
from stcl.files.paths import real_path
from stcl.labels import IGNORE
from stcl.types import FrameRef


@dataclass(frozen=True)
class Record:
    """One thing that clips need: a frame, its label, or the flow from it to another frame.

    Args:
        kind: which of these.
        frame: the frame.
        other: where flow points.
        sources: the files that it is made of.
    """

    kind: Kind
    frame: FrameRef
    other: FrameRef | None
    sources: tuple[Path, ...]

    @property
    def key(self) -> tuple[Kind, str]:
        """Unique in a data set."""
        return _key(self.kind, self.frame, self.other)

    @cached_property
    def stamp(self) -> str:
        """Size and time of change of the files that it is made of."""
        return " ".join(map(_stamp, self.sources))


def list_records(clips: ClipDataset) -> list[Record]:
    """Everything that the clips are made of, each thing once, in the order of the frames."""
    source_of_flow = getattr(clips.flow, "source_path", None)  # where a provider reads flow, it may change, too
    found: dict[tuple[Kind, str], Record] = {}

    def need(kind: Kind, frame: FrameRef, other: FrameRef | None, *sources: Path) -> None:
        found.setdefault(_key(kind, frame, other), Record(kind, frame, other, sources))

    for item in range(len(clips)):
        refs = clips.refs(item)
        for offset, ref in refs.items():
            need("frames", ref, None, ref.image)
            if offset in clips.spec.labels and ref.label is not None:
                need("labels", ref, None, ref.image, ref.label)
        for a, b in ((refs[a], refs[b]) for a, b in clips.spec.flows if refs[a] is not refs[b]):
            files = () if source_of_flow is None else (source_of_flow(a, b),)
            need("flow", a, b, a.image, b.image, *files)
    return sorted(found.values(), key=lambda record: (record.frame.sequence, record.frame.number))


def describe_contents(clips: ClipDataset) -> dict[str, Any]:
    """All that decides the prepared bits besides the files' content; plain data."""
    dataset, ids = clips.dataset, None
    if clips.spec.labels:
        table = clips.space.lookup_table(dataset.raw_names).tobytes()
        ids = hashlib.blake2b(table + dataset.values_identity.encode(), digest_size=8).hexdigest()
    return {
        "version": VERSION,
        "opencv": cv2.__version__,
        "data": dataset.name,
        "root": str(real_path(dataset.root)),
        "split": dataset.split,
        "size": clips.size,
        "labels": ids and f"{clips.space.name} {ids}",
        "flow": f"{clips.flow.signature} {flow_dtype(clips)}" if clips.spec.flows else None,  # type: ignore[union-attr]
    }


def flow_dtype(clips: ClipDataset) -> np.dtype[Any]:
    """The smallest type of numbers that loses nothing of the clips' flow."""
    return np.dtype(getattr(clips.flow, "dtype", np.float32))


def prepared_folder(clips: ClipDataset, place: Path) -> Path:
    """Where prepared data of these clips lie below the folder of all prepared data."""
    digest = hashlib.blake2b(json.dumps(describe_contents(clips), sort_keys=True).encode(), digest_size=6).hexdigest()
    return place / f"{clips.dataset.name}-{clips.dataset.split}-{digest}"


class PreparedFrames:
    """A :class:`~stcl.data.clips.FrameStore` of prepared data.

    Args:
        folder: see :func:`prepared_folder`.
        segments: None opens all that lie there.
    """

    def __init__(self, folder: Path, segments: Iterable[Segment] | None = None) -> None:
        self.folder = folder
        self._places: dict[tuple[Kind, str], tuple[Segment, int]] = {}
        for segment in map(Segment, segment_folders(folder)) if segments is None else segments:
            for kind, names in segment.names.items():
                self._places |= {(kind, name): (segment, position) for position, name in enumerate(names)}

    def find_fault(self, records: list[Record]) -> str:
        """One sentence about what keeps these records from being read from here; empty if nothing does."""
        missing = sum(record.key not in self._places for record in records)
        changed = [record for record in records if record.key in self._places and not self.is_current(record)]
        if changed:
            return (
                f"{len(changed)} of {len(records)} frames, labels and flows were made of files that changed since, the "
                f"first of {changed[0].frame.image}. Prepare again: stcl data prepare CONFIG."
            )
        if missing:
            return (
                f"{missing} of {len(records)} frames, labels and flows are missing. Prepare the rest: stcl data "
                "prepare CONFIG."
            )
        return ""

    def is_current(self, record: Record) -> bool:
        """Whether the record is here, made of its files as they are now."""
        if record.key not in self._places:
            return False
        segment, position = self._places[record.key]
        return bool(segment.stamps[record.kind][position] == record.stamp)

    def segment_of(self, record: Record) -> Segment | None:
        """The segment that holds a record, if one does."""
        return self._places[record.key][0] if record.key in self._places else None

    def frame(self, ref: FrameRef) -> NDArray[np.uint8]:
        """RGB ``(3, H, W)`` uint8."""
        return self._read("frames", ref)

    def label(self, ref: FrameRef) -> NDArray[np.uint8]:
        """Train ids ``(H, W)`` uint8; 255 everywhere where ``ref`` has no label."""
        if ref.label is None:
            segment, _ = self._places["frames", ref.name]
            return np.full(segment.shape("frames")[1:], IGNORE, np.uint8)
        return self._read("labels", ref)

    def flow(self, a: FrameRef, b: FrameRef) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels."""
        return self._read("flow", a, b).astype(np.float32, copy=False)

    def _read(self, kind: Kind, frame: FrameRef, other: FrameRef | None = None) -> NDArray[Any]:
        segment, position = self._places[_key(kind, frame, other)]
        return segment.read(kind, position)


def use_prepared(clips: ClipDataset, place: Path) -> str:
    """Let clips read prepared data where all that they need is there.

    Returns:
        One sentence about what is used, or why not; empty where nothing was prepared.

    Raises:
        DataError: prepared data are damaged.
    """
    folder = prepared_folder(clips, place)
    if not folder.is_dir():
        return ""
    store = PreparedFrames(folder)
    fault = store.find_fault(list_records(clips))
    if fault:
        return f"prepared data in {folder} are not used: {fault}"
    clips.prepared = store
    return f"prepared data in {folder} are used."


def segment_folders(folder: Path) -> list[Path]:
    """Whole segments below a folder of prepared data."""
    return sorted(filter(is_segment, folder.iterdir()))


def _key(kind: Kind, frame: FrameRef, other: FrameRef | None) -> tuple[Kind, str]:
    return kind, frame.name if other is None else f"{frame.name}_to_{other.name}"


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # whoever decodes it will say so
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"
