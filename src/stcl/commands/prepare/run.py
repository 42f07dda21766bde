"""Prepare: decode once what a configuration trains on, and keep it at training size for the loader."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from glob import escape
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from stcl.data import ClipDataset
from stcl.data.clips import DecodedFrames
from stcl.data.loading import start_worker
from stcl.data.prepared import (
    PreparedFrames,
    Record,
    describe_contents,
    flow_dtype,
    list_records,
    prepared_folder,
    segment_folders,
)
from stcl.data.segments import Entry, Kind, Segment, is_segment, remove_segment, write_segment
from stcl.errors import BusyError, DataError, SettingError, StclError
from stcl.files.disks import explain_full_memory
from stcl.files.folders import hold_lock
from stcl.files.names import file_name
from stcl.files.paths import from_home
from stcl.files.writing import write_atomic
from stcl.terminal import counted, plain_console
from stcl.training.domains import training_clips
from stcl.training.networks import clip_specs
from stcl.training.settings import Settings

SEGMENT_FRAMES = 32
"""Frames of a segment: what a kill costs at most for each worker."""


@dataclass
class Prepared:
    """What was done for one domain.

    Attributes:
        domain: ``source`` or ``target``.
        folder: where it lies.
        records: frames, labels and flows that its clips need.
        made: of these were made now.
        removed: segments that were damaged, or made of files that changed since.
        size_bytes: of all that its clips need.
        fault: what is still missing, in a sentence; empty where training can use it.
        seconds: it took.
    """

    domain: str
    folder: Path
    records: int
    made: int
    removed: int
    size_bytes: int
    fault: str
    seconds: float


def prepare(
    settings: Settings, shard: tuple[int, int] = (1, 1), workers: int | None = None, quiet: bool = False
) -> Iterator[Prepared]:
    """Prepare the clips of each domain of a training with these settings; target labels are not looked at.

    What is there and whole is kept. Several processes may work at once: one leaves out what another one is making.

    Args:
        settings: of the training.
        shard: part I of N of the segments, for N machines that share the folder.
        workers: processes; None: one a core; 0: this one.
        quiet: no progress bar.

    Raises:
        SettingError: no folder is set, there is not enough room, or it is no shard.
        DataError: a file cannot be read.
    """
    if settings.prepared is None:
        raise SettingError("The configuration says prepared: null. Give a folder, e.g. --prepared data/prepared.")
    if not 1 <= shard[0] <= shard[1]:
        raise SettingError(f"A shard is I/N with 1 <= I <= N; found {shard[0]}/{shard[1]}.")
    place = from_home(settings.prepared)
    specs = dict(zip(("source", "target"), clip_specs(settings), strict=True))
    for domain, spec in specs.items():
        if spec is not None:
            clips = training_clips(settings, getattr(settings, domain), spec)
            count = (os.cpu_count() or 1) if workers is None else workers
            yield prepare_clips(clips, place, domain, shard, count, quiet)


def prepare_clips(
    clips: ClipDataset,
    place: Path,
    domain: str = "target",
    shard: tuple[int, int] = (1, 1),
    workers: int = 0,
    quiet: bool = True,
) -> Prepared:
    """Prepare what some clips are made of, below the folder ``place``; see :func:`prepare`."""
    return _Preparation(domain, clips, place, shard, workers, quiet).run()


class _Preparation:
    """Of one domain.

    Args:
        domain: its name, for messages.
        clips: what is wanted.
        place: folder of all prepared data.
        shard, workers, quiet: see :func:`prepare`.
    """

    def __init__(
        self, domain: str, clips: ClipDataset, place: Path, shard: tuple[int, int], workers: int, quiet: bool
    ) -> None:
        self.domain, self.clips, self.folder = domain, clips, prepared_folder(clips, place)
        self.workers, self.quiet, self.removed = workers, quiet, 0
        self.records = list_records(clips)
        self.blocks = [*_blocks(self.records)][shard[0] - 1 :: shard[1]]
        frame = self.records[0].frame
        width, height = clips.size or clips.dataset.read_frame(frame).shape[1::-1]
        flow = flow_dtype(clips)
        self.dtypes: dict[Kind, np.dtype[Any]] = {"frames": np.dtype("u1"), "labels": np.dtype("u1"), "flow": flow}
        pixels = width * height
        self.bytes: dict[Kind, int] = {"frames": 3 * pixels, "labels": pixels, "flow": 2 * flow.itemsize * pixels}

    def run(self) -> Prepared:
        """Check what is there, make what is not."""
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "about.json", json.dumps(describe_contents(self.clips), indent=1).encode())
        held = PreparedFrames(self.folder, self._check())
        missing = [[record for record in block if not held.is_current(record)] for block in self.blocks]
        missing = [block for block in missing if block]
        self._check_room(missing)
        made = sum(self._spread(self._make, missing, f"preparing the {self.domain}"))
        fault = PreparedFrames(self.folder).find_fault(self.records)
        size = sum(self.bytes[record.kind] for record in self.records)
        seconds = time.monotonic() - started
        return Prepared(self.domain, self.folder, len(self.records), made, self.removed, size, fault, seconds)

    def _check(self) -> list[Segment]:
        """The segments that are whole and current; others that this shard's data lie in are removed."""
        opened = []
        for folder in segment_folders(self.folder):
            try:
                opened.append(Segment(folder))
            except DataError:  # nothing says whose it is
                self._remove(folder)
        held = PreparedFrames(self.folder, opened)
        mine = {held.segment_of(record) for block in self.blocks for record in block}
        stale = {held.segment_of(record) for record in self.records if not held.is_current(record)}
        checked = [segment for segment in opened if segment in mine - stale]
        whole = self._spread(Segment.is_whole, checked, f"checking what is prepared of the {self.domain}")
        bad = {segment for segment, good in zip(checked, whole, strict=True) if not good} | (mine & stale)
        for segment in bad:
            if segment is not None:
                self._remove(segment.folder)
        return [segment for segment in opened if segment not in bad]

    def _remove(self, folder: Path) -> None:
        """Remove a bad segment, unless another process is at it or has made it anew since it was looked at."""
        with suppress(BusyError), self._lock(folder.name):
            if is_segment(folder) and not self._is_good(folder):
                remove_segment(folder)
                self.removed += 1

    def _is_good(self, folder: Path) -> bool:
        """Whether a segment is whole, and made of files as they are now."""
        try:
            segment = Segment(folder)
        except DataError:
            return False
        held, keys = PreparedFrames(self.folder, [segment]), {record.key: record for record in self.records}
        records = [keys[kind, name] for kind, names in segment.names.items() for name in names if (kind, name) in keys]
        return all(map(held.is_current, records)) and segment.is_whole()

    def _lock(self, name: str) -> AbstractContextManager[None]:
        """Of one segment."""
        return hold_lock(self.folder / f".{name}.lock", f"Another process is making segment {name} of {self.folder}.")

    def _check_room(self, blocks: list[list[Record]]) -> None:
        """Say what it takes; refuse to begin what the disk cannot hold."""
        wanted = sum(self.bytes[record.kind] for block in blocks for record in block)
        free = shutil.disk_usage(self.folder).free
        if wanted > free:
            raise SettingError(
                f"Preparing the {self.domain} takes {shown_bytes(wanted)} in {self.folder}, but that disk has "
                f"{shown_bytes(free)} left. Make room, or choose a folder on another disk with --prepared DIR."
            )
        if wanted and not self.quiet:
            text = f"preparing the {self.domain} takes {shown_bytes(wanted)} of {shown_bytes(free)} that are free."
            plain_console(stderr=True).print(f"stcl: {text}", soft_wrap=True)

    def _make(self, records: list[Record]) -> int:
        """Write one segment; returns of how many records, 0 where another process makes it."""
        stamps = json.dumps([[*record.key, record.stamp] for record in records])
        digest = blake2b(stamps.encode(), digest_size=4).hexdigest()
        name = f"{file_name(records[0].frame.name)}-{digest}"
        try:
            with self._lock(name):
                if is_segment(self.folder / name):
                    return 0
                remove_segment(self.folder / name)  # somebody has deleted its index
                for rest in self.folder.glob(f".{escape(name)}.*.tmp"):  # of a process that was killed
                    shutil.rmtree(rest)
                self._write(self.folder / name, records)
        except BusyError:
            return 0
        except OSError as error:
            raise DataError(
                f"Cannot write prepared data to {self.folder} ({error.strerror or error}). What is finished is kept: "
                "mend that (is the disk full?) and start again."
            ) from None
        return len(records)

    def _write(self, path: Path, records: list[Record]) -> None:
        store = DecodedFrames(self.clips)

        def array(record: Record) -> NDArray[Any]:
            if record.other is not None:
                return store.flow(record.frame, record.other)
            return store.frame(record.frame) if record.kind == "frames" else store.label(record.frame)

        def entries(kind: Kind) -> Iterator[Entry]:
            for record in records:
                if record.kind == kind:
                    yield Entry(record.key[1], record.stamp, array(record))

        kinds = {record.kind for record in records}
        write_segment(path, {kind: (dtype, entries(kind)) for kind, dtype in self.dtypes.items() if kind in kinds})

    def _spread(self, work: Callable[[Any], Any], items: Sequence[Any], text: str) -> Iterator[Any]:
        """What ``work`` gives for each item, in order: worker processes, and a progress bar."""
        loader: DataLoader[Any] = DataLoader(
            _Work(work, items),
            batch_size=None,
            num_workers=min(self.workers, len(items)),
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
        )
        with explain_full_memory():
            for result in counted(loader, text, len(items), self.quiet or not items):
                if isinstance(result, StclError):
                    raise result
                yield result


class _Work(Dataset[Any]):
    """Work as a data set, for torch's worker processes; hands an error over as a value, without their traceback."""

    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.work, self.items = work, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Any:
        try:
            return self.work(self.items[item])
        except StclError as error:
            return error


def shown_bytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _blocks(records: list[Record]) -> Iterator[list[Record]]:
    """Cut sorted records into those of so many frames."""
    frames = groupby(records, key=lambda record: record.frame.name)
    while block := [record for _, group in islice(frames, SEGMENT_FRAMES) for record in group]:
        yield block


def _as_it_is(result: Any) -> Any:
    return result
