"""What a prediction leaves on disk: an overlay film, label maps, confidence maps, class shares.

It goes on after a kill. Everything is finished in parts of some hundred frames. A part counts once its table of rows
lies in ``.parts``, which is written last; what a killed process leaves beyond that is made anew.
"""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stcl.data.frames import FrameSource
from stcl.data.io import write_label, write_palette
from stcl.engine.checkpoint import changed_keys
from stcl.engine.predict import FrameResult
from stcl.errors import DataError, MissingExtraError, SettingError, lookup
from stcl.files import hold_lock, write_atomic
from stcl.films import VideoWriter, join_films
from stcl.labels import LabelSpace, raw_ids_of
from stcl.ops.colors import overlay
from stcl.plain_data import read_json

OUTPUTS = {
    "overlay": "overlay.mp4, the video with the classes' colours laid over it",
    "labels": "labels/, a PNG of class ids a frame",
    "confidence": "confidence/, a grey PNG a frame: 255 x the probability of the label",
    "shares": "shares.csv or .parquet, the share of each class in each frame",
}
"""What can be kept, and what it is."""

IDS = {"train": None, "cityscapes": "cityscapes_seq"}
"""Ids of label maps by name: the position in the label space, or a data set's own."""

TABLES = ("csv", "parquet")
RECORD = "prediction.json"
PARTS = ".parts"
LOCK = ".lock"
OVERLAY_ALPHA = 0.5
PRESET = "veryfast"
"""Of the overlay's encoder: it shares the processor with the network."""


@dataclass(frozen=True)
class Outputs:
    """What is kept of a prediction.

    Args:
        save: of :data:`OUTPUTS`.
        ids: of :data:`IDS`, for the label maps.
        shares: ``csv`` or ``parquet``.
        part_frames: how many frames at most a killed process loses.
    """

    save: tuple[str, ...] = ("overlay", "shares")
    ids: str = "train"
    shares: str = "csv"
    part_frames: int = 250

    def __post_init__(self) -> None:
        for name in self.save:
            lookup(OUTPUTS, name, "output of a prediction")
        lookup(IDS, self.ids, "kind of ids")
        lookup(dict.fromkeys(TABLES), self.shares, "format of class shares")
        if not self.save or self.part_frames < 1:
            raise SettingError("A prediction keeps at least one kind of output, in parts of at least one frame.")
        if "shares" in self.save and self.shares == "parquet":
            _pyarrow()


@dataclass
class Recording:
    """The folder of one video's prediction.

    Args:
        folder: made if it is not there; one with other content is refused.
        source: the video.
        space: the classes.
        outputs: what is kept.
        request: what the result depends on, as plain data: a folder goes on only where all of it is the same.
        force: remove an earlier result first; a folder with other content is refused all the same.
    """

    folder: Path
    source: FrameSource
    space: LabelSpace
    outputs: Outputs
    request: dict[str, Any]
    force: bool = False
    finished: bool = False
    first: int = 0
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _film: VideoWriter | None = None

    def __post_init__(self) -> None:
        self._parts = self.folder / PARTS
        self.request = json.loads(json.dumps(self.request))  # as it will be read again
        record = self._record()
        if self.force or record is None:
            return
        if record["state"] != "finished" and not self._finished_parts():
            self.force = True  # what a killed process left before its first part was finished
            return
        changed = sorted(changed_keys(record["request"], self.request))
        if changed:
            raise SettingError(
                f"{self.folder} holds the prediction of another call (different: {', '.join(changed)}). Choose another "
                "folder with --out, or replace it with --force."
            )
        self.finished = record["state"] == "finished"
        if self.source.live:
            state = "a" if self.finished else f"an unfinished (its parts are in {self._parts})"
            raise SettingError(
                f"{self.folder} holds {state} recording of this live source, which cannot go on. Choose another folder "
                "with --out, or replace it with --force."
            )
        self.first = 0 if self.finished else sum(len(part["rows"]) for part in self._finished_parts())

    @contextmanager
    def writing(self) -> Iterator["Recording"]:
        """Held while frames are added; what is not in a finished part when it ends is given up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = f"Another process is predicting into {self.folder} right now. Wait for it, or stop it first."
        with hold_lock(self.folder / LOCK, busy):
            if self.force:
                self._clear()
            self._parts.mkdir(exist_ok=True)
            self._write_record("running")
            try:
                yield self
            except BaseException as error:
                self._close_film(error)
                raise

    def add(self, result: FrameResult) -> None:
        """Keep what is wanted of the next frame."""
        if "labels" in self.outputs.save:
            label, palette = self._in_ids(result.labels)
            write_palette(self.folder / "labels" / f"{result.name}.png", label, palette)
        if "confidence" in self.outputs.save and result.confidence is not None:
            grey = np.rint(result.confidence * 255).astype(np.uint8)
            write_label(self.folder / "confidence" / f"{result.name}.png", grey)
        if "overlay" in self.outputs.save:
            if self._film is None:
                path = self._part_path(result.index).with_suffix(".mp4")
                self._film = VideoWriter(
                    path, self.source.fps, time_base_s=self.source.time_base_s, joinable=True, preset=PRESET
                ).__enter__()
                self._start_ticks = result.ticks
            picture = overlay(result.frame, result.labels, self.space.palette, OVERLAY_ALPHA)
            self._film.write(picture, result.ticks - self._start_ticks)
        shares = [round(float(share), 6) for share in result.shares]
        row = {"frame": result.index, "name": result.name, "ticks": result.ticks, "restarted": result.restarted}
        self._rows.append({**row, "shares": shares})
        if len(self._rows) == self.outputs.part_frames:
            self._finish_part()

    def finish(self, problem: str = "", seconds: float = 0.0) -> int:
        """Put the parts together; returns the number of frames.

        Args:
            problem: what ended the video early, to be kept in the record.
            seconds: how long this call took.
        """
        if self._rows:
            self._finish_part()
        parts = self._finished_parts()
        rows = [row for part in parts for row in part["rows"]]
        if not rows:
            raise DataError(problem or f"'{self.source.name}' gave no frame.")
        if "overlay" in self.outputs.save:
            films = [(self._parts / part["film"], part["rows"][0]["ticks"] * self.source.time_base_s) for part in parts]
            join_films(self.folder / "overlay.mp4", films)
        if "shares" in self.outputs.save:
            self._write_shares(rows)
        self._write_record(
            "finished",
            frames=len(rows),
            duration_s=round(float(rows[-1]["ticks"] * self.source.time_base_s + 1 / self.source.fps), 3),
            restarts=[row["frame"] for row in rows if row["restarted"]],
            problem=problem,
            seconds=round(seconds, 1),
        )
        shutil.rmtree(self._parts)
        return len(rows)

    def _finish_part(self) -> None:
        """The film first, then the rows, which make the part count."""
        path = self._part_path(self._rows[0]["frame"])
        self._close_film()
        part = {"film": path.with_suffix(".mp4").name, "rows": self._rows}
        write_atomic(path, json.dumps(part).encode(), durable=True)
        self._rows = []

    def _close_film(self, error: BaseException | None = None) -> None:
        if self._film is not None:
            film, self._film = self._film, None
            film.__exit__(type(error) if error else None, error, None)

    def _part_path(self, first: int) -> Path:
        return self._parts / f"{first:08d}.json"

    def _finished_parts(self) -> list[dict[str, Any]]:
        try:
            return [read_json(path) for path in sorted(self._parts.glob("*.json"))]
        except ValueError as error:
            raise DataError(f"The parts in {self._parts} are damaged ({error}). Begin anew with --force.") from None

    def _in_ids(self, labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The label map in the ids that are wanted, and the palette that belongs to them."""
        dataset = IDS[self.outputs.ids]
        if dataset is None:
            return labels, self.space.palette
        table, palette = raw_ids_of(dataset, self.space).astype(np.uint8), np.zeros((256, 3), np.uint8)
        palette[table[: len(self.space)]] = self.space.palette[: len(self.space)]
        return table[labels], palette

    def _write_shares(self, rows: list[dict[str, Any]]) -> None:
        columns: dict[str, list[Any]] = {
            "frame": [row["frame"] for row in rows],
            "name": [row["name"] for row in rows],
            "time_s": [round(float(row["ticks"] * self.source.time_base_s), 6) for row in rows],
            "restarted": [int(row["restarted"]) for row in rows],
            **{name: [row["shares"][place] for row in rows] for place, name in enumerate(self.space.names)},
        }
        if self.outputs.shares == "parquet":
            arrow, content = _pyarrow(), io.BytesIO()
            arrow.parquet.write_table(arrow.table(columns), content)
            write_atomic(self.folder / "shares.parquet", content.getvalue())
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[*columns], *zip(*columns.values(), strict=True)])
        write_atomic(self.folder / "shares.csv", text.getvalue().encode())

    def _record(self) -> dict[str, Any] | None:
        """What an earlier call says of itself; None in a new or empty folder."""
        path = self.folder / RECORD
        if path.is_file():
            try:
                record = read_json(path)
                if not isinstance(record, dict) or not {"state", "request"} <= record.keys():
                    raise ValueError("it does not say what was asked for")
            except ValueError as error:
                if self.force:
                    return None
                raise DataError(f"{path} is damaged ({error}). Begin anew with --force.") from None
            return record
        if self.folder.is_dir() and any(path.name not in (LOCK, PARTS) for path in self.folder.iterdir()):
            raise SettingError(
                f"{self.folder} is not empty and holds no prediction: it stays as it is. Choose another folder with "
                "--out."
            )
        return None

    def _write_record(self, state: str, **more: Any) -> None:
        height, width = self.source.size
        about = {"fps": float(self.source.fps), "size": [width, height], "classes": list(self.space.names)}
        record = {"state": state, "request": self.request, **about, **more}
        write_atomic(self.folder / RECORD, json.dumps(record, indent=1).encode())

    def _clear(self) -> None:
        """Remove what an earlier call has written, and nothing else."""
        for name in (RECORD, "overlay.mp4", "shares.csv", "shares.parquet"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("labels", "confidence", PARTS):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("Writing class shares as Parquet", "pyarrow", "parquet") from None
    return pyarrow
