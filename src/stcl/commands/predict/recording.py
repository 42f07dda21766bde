"""What a prediction leaves on disk: an overlay film, label maps, confidence maps, class shares.

It goes on after a kill. Everything is finished in parts of some hundred frames. A part counts once its table of rows
lies in ``.parts``, which is written last; what a killed process leaves beyond that is made anew.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stcl.commands.predict.folder import LOCK, PredictionFolder
from stcl.commands.predict.frames import FrameResult
from stcl.data.frames import FrameSource
from stcl.data.io import write_label, write_palette
from stcl.errors import DataError, MissingExtraError, SettingError, lookup
from stcl.files.folders import hold_lock, remove_abandoned
from stcl.files.plain import csv_text
from stcl.files.writing import write_atomic
from stcl.labels import LabelSpace, raw_ids_of
from stcl.ops.colors import overlay
from stcl.pages.film import VideoWriter, join_films
from stcl.training.checkpoint import changed_keys

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
        self._place = PredictionFolder(self.folder)
        self.request = json.loads(json.dumps(self.request))  # as it will be read again
        self._look()

    def _look(self) -> None:
        """What is there: a finished result, one to go on with, or one to begin anew; anything else is refused."""
        record = self._place.read_record(self.force)
        self._anew, self.finished, self.first = True, False, 0
        if self.force or record is None:
            return
        self.finished = record["state"] == "finished"
        parts = [] if self.finished else self._place.read_parts()
        if not (self.finished or parts):  # what a killed process left before its first part was finished
            return
        changed = sorted(changed_keys(record["request"], self.request))
        if changed:
            raise SettingError(
                f"{self.folder} holds the prediction of another call (different: {', '.join(changed)}). Choose another "
                "folder with --out, or replace it with --force."
            )
        if self.source.live:
            state = "a" if self.finished else f"an unfinished (its parts are in {self._place.parts})"
            raise SettingError(
                f"{self.folder} holds {state} recording of this live source, which cannot go on. Choose another folder "
                "with --out, or replace it with --force."
            )
        self._anew, self.first = False, sum(len(part["rows"]) for part in parts)

    @contextmanager
    def writing(self) -> Iterator["Recording"]:
        """Held while frames are added; what is not in a finished part when it ends is given up.

        What is there is looked at once more: another call may have finished it meanwhile, or come further.
        """
        busy = f"Another process is predicting into {self.folder} right now. Wait for it, or stop it first."
        with hold_lock(self.folder / LOCK, busy):
            self._look()
            if not self.finished:
                self._begin()
            try:
                yield self
            except BaseException as error:
                self._close_film(error)
                raise

    def _begin(self) -> None:
        """Make room, and say what will be written."""
        files = {"overlay": "overlay.mp4", "shares": f"shares.{self.outputs.shares}"}
        names = [name for output, name in files.items() if output in self.outputs.save]
        self._place.claim(*names)  # before an earlier result is given up
        if self._anew:
            self._place.clear()
            self._place.claim(*names)
        self._write_record("running")
        self._place.parts.mkdir(exist_ok=True)
        for place in (self.folder, self.folder / "labels", self.folder / "confidence", self._place.parts):
            remove_abandoned(place)

    def add(self, result: FrameResult) -> None:
        """Keep what is wanted of the next frame."""
        if "labels" in self.outputs.save:
            label, palette = self._in_ids(result.labels)
            write_palette(self._place.claim_picture(f"labels/{result.name}.png"), label, palette)
        if "confidence" in self.outputs.save and result.confidence is not None:
            grey = np.rint(result.confidence * 255).astype(np.uint8)
            write_label(self._place.claim_picture(f"confidence/{result.name}.png"), grey)
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
        parts = self._place.read_parts()
        rows = [row for part in parts for row in part["rows"]]
        if not rows:
            raise DataError(problem or f"'{self.source.name}' gave no frame.")
        if "overlay" in self.outputs.save:
            base_s, place = self.source.time_base_s, self._place.parts
            films = [(place / part["film"], part["rows"][0]["ticks"] * base_s) for part in parts]
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
        self._place.remove_parts()
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
        return self._place.parts / f"{first:08d}.json"

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
        table = csv_text([columns, *zip(*columns.values(), strict=True)])
        write_atomic(self.folder / "shares.csv", table.encode())

    def _write_record(self, state: str, **more: Any) -> None:
        height, width = self.source.size
        about = {"fps": float(self.source.fps), "size": [width, height], "classes": list(self.space.names)}
        self._place.write_record({"state": state, "request": self.request, **about, **more})


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("Writing class shares as Parquet", "pyarrow", "parquet") from None
    return pyarrow
