"""Read a run folder: `results.json` (validated, recomputed from its confusion matrix) and `metrics.csv`.

Nothing here trusts a stored score: IoU comes from the raw confusion matrix, and a file whose stored numbers differ
from it is refused.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stcl.errors import DataError, unknown_name
from stcl.files.plain import read_json, read_text
from stcl.labels import PALETTE, LabelSpace

SCHEMA = 1
"""Version of `results.json` that this module reads."""

LARGEST_METRICS = 2**28
"""Bytes of `metrics.csv`: about a million rows."""

ROUNDING_POINTS = 0.051
"""Stored scores may be rounded to one decimal; a larger difference (in points) is a contradiction."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps ``(N,)`` and values ``(N,)`` of one column of `metrics.csv`."""

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Protocol:
    """What is measured and how; results compare only if all of it is equal.

    Attributes:
        name: name of the protocol, usually that of its label space.
        version: version of the protocol.
        classes: class names in train-id order.
        reported: train ids that enter the mean.
        averaging: how frames are averaged, in words.
        resolution: at which size predictions are scored, in words.
        ignored: classes whose pixels do not count, whether the label or the prediction says so.
        merges: ``class of the data set -> class that it counts as``.
        means: further means, ``title -> train ids``.
    """

    name: str
    version: int | str
    classes: tuple[str, ...]
    reported: tuple[int, ...]
    averaging: str
    resolution: str
    ignored: tuple[str, ...] = ()
    merges: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and version with what is particular about the classes, for headings."""
        notes = [f"{name} as {into}" for name, into in self.merges.items()]
        if self.ignored:
            notes.append(f"without {', '.join(self.ignored)}")
        return f"{self.name} v{self.version}" + (f" ({'; '.join(notes)})" if notes else "")

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours ``(256, 3)`` uint8 RGB, indexed by train id; ignore is black."""
        return LabelSpace(self.name, self.classes).palette


@dataclass(frozen=True, eq=False)
class Result:
    """One evaluated run.

    Attributes:
        folder: the run folder.
        confusion: pixels ``(C, C)`` int64, rows truth, columns prediction.
        details: the rest of `results.json` as it stands there (data, seed, steps, config, code, environment, ...).
    """

    folder: Path
    name: str
    title: str
    method: str
    oracle: bool
    protocol: Protocol
    confusion: NDArray[np.int64]
    details: dict[str, Any]

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU ``(C,)`` in percent; NaN for a class that neither truth nor prediction has."""
        return iou_percent(self.confusion)

    @property
    def miou(self) -> float:
        """Mean IoU in percent over the reported classes that occur."""
        return self.mean(self.protocol.reported)

    def mean(self, ids: Iterable[int]) -> float:
        """Mean IoU in percent over the classes with these train ids that occur."""
        return mean_percent(self.iou[list(ids)])


def iou_percent(confusion: NDArray[np.integer]) -> NDArray[np.float64]:
    """Intersection over union ``(C,)`` in percent of a confusion matrix ``(C, C)``, NaN where the union is empty.

    A matrix may have further columns ``(C, C + n)`` for predictions outside the classes: they count as misses.
    """
    counts = confusion.astype(np.float64)
    classes = len(counts)
    correct = np.diagonal(counts)
    union = counts.sum(axis=1) + counts[:, :classes].sum(axis=0) - correct
    return np.where(union > 0, 100.0 * correct / np.maximum(union, 1.0), np.nan)


def mean_percent(scores: NDArray[np.float64]) -> float:
    """Mean of the scores that exist; NaN if there is none."""
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if present.size else math.nan


def read_result(run: Path) -> Result:
    """Read and check ``run/results.json``; ``run`` may also be the file itself."""
    path = run if run.is_file() else run / "results.json"
    if not path.exists():
        raise DataError(f"No results.json in '{run}'. Evaluate the run first, or name a folder that holds one.")
    try:
        document = read_json(path)
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror}. Evaluate the run again.") from None
    except ValueError as error:
        raise DataError(f"'{path}' is not valid JSON ({error}). Evaluate the run again.") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise DataError(f"'{path}' has schema {found!r}; this version of stcl reads schema {SCHEMA}.")
    protocol = _read_protocol(_take(document, "protocol", dict, path), path)
    result = Result(
        folder=path.parent,
        name=_take(document, "name", str, path),
        title=_take(document, "title", str, path),
        method=_take(document, "method", str, path),
        oracle=_take(document, "oracle", bool, path),
        protocol=protocol,
        confusion=_read_confusion(_take(document, "confusion", list, path), len(protocol.classes), path),
        details={key: document.get(key) for key in _DETAILS},
    )
    for key in ("data", "config", "code", "environment", "seconds"):
        _take(document, key, dict, path)
    _check_stored_scores(document, result, path)
    return result


# shown in the report, never computed with
_DETAILS = ("data", "selection", "statistics", "seed", "steps", "config", "code", "environment", "seconds", "date")


def read_metrics(folder: Path) -> dict[str, Curve]:
    """The columns of ``folder/metrics.csv`` without their blanks, by name; empty if the run has no such file."""
    path = folder / "metrics.csv"
    if not path.exists():
        return {}
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, LARGEST_METRICS), newline=""), restkey="", restval="")
        if "step" not in (reader.fieldnames or ()):
            raise DataError(f"'{path}' has no column 'step'; found {reader.fieldnames}.")
        for row in reader:
            for name, text in row.items():
                if not name or name == "step" or not text:
                    continue
                try:
                    points.setdefault(name, []).append((float(row["step"]), float(text)))
                except ValueError as error:
                    raise DataError(f"'{path}' line {reader.line_num}, column '{name}': {error}.") from error
    except OSError as error:
        raise DataError(f"Cannot read '{path}': {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' is no table of text ({error}). Train the run again.") from error
    curves = {}
    for name, values in points.items():
        table = np.array(sorted(values, key=lambda point: point[0]))  # (N, 2)
        table = table[np.isfinite(table).all(axis=1)]
        if len(table):
            curves[name] = (table[:, 0], table[:, 1])
    return curves


def _take(document: dict[str, Any], key: str, kind: type[Kind], path: Path) -> Kind:
    """``document[key]``, which must be a ``kind``."""
    if key not in document:
        raise DataError(f"'{path}' has no key '{key}'. Evaluate the run again with this version of stcl.")
    value = document[key]
    if not isinstance(value, kind):
        raise DataError(f"'{path}': '{key}' must be {kind.__name__}, found {type(value).__name__}.")
    return value


def _read_protocol(document: dict[str, Any], path: Path) -> Protocol:
    classes = tuple(_take(document, "classes", list, path))
    for name in classes:
        if not isinstance(name, str) or name not in PALETTE:
            raise DataError(f"'{path}': {unknown_name('class', name, PALETTE)}")
    if len(set(classes)) < len(classes):
        raise DataError(f"'{path}': 'classes' must be different names, found {', '.join(classes)}.")
    further = document.get("means") or {}  # older results have neither these nor merges and ignored classes
    if not isinstance(further, dict) or not all(isinstance(ids, list) for ids in further.values()):
        raise DataError(f"'{path}': 'means' of the protocol must be lists of train ids by title, found {further}.")
    groups = {title: tuple(ids) for title, ids in further.items()}
    groups["reported"] = tuple(_take(document, "reported", list, path))
    for title, ids in groups.items():
        wrong = [index for index in ids if type(index) is not int or not 0 <= index < len(classes)]
        if wrong or not ids or len(set(ids)) != len(ids):
            raise DataError(f"'{path}': '{title}' must be different train ids 0..{len(classes) - 1}, found {ids}.")
    return Protocol(
        name=_take(document, "name", str, path),
        version=document.get("version", "unknown"),
        classes=classes,
        reported=groups.pop("reported"),
        averaging=str(document.get("averaging", "")),
        resolution=str(document.get("resolution", "")),
        ignored=tuple(document.get("ignored") or ()),
        merges=dict(document.get("merges") or {}),
        means=groups,
    )


def _read_confusion(rows: list[Any], classes: int, path: Path) -> NDArray[np.int64]:
    expected = f"'{path}': 'confusion' must be {classes} x {classes} pixel counts (rows truth, columns prediction)"
    try:
        confusion = np.array(rows)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{expected}; its rows differ in length.") from error
    if confusion.shape != (classes, classes):
        raise DataError(f"{expected}, found shape {confusion.shape}.")
    if not np.issubdtype(confusion.dtype, np.integer) or confusion.min() < 0:
        raise DataError(f"{expected}, found negative or fractional counts.")
    if not confusion.any():
        raise DataError(f"{expected}; all counts are zero. Was any labelled frame evaluated?")
    return confusion.astype(np.int64)


def _check_stored_scores(document: dict[str, Any], result: Result, path: Path) -> None:
    """The stored `miou` and `iou` must be what the confusion matrix gives."""
    pairs: list[tuple[str, Any, float]] = [("miou", document.get("miou"), result.miou)]
    stored_iou = _take(document, "iou", dict, path)
    for index in result.protocol.reported:
        name = result.protocol.classes[index]
        pairs.append((f"iou of '{name}'", stored_iou.get(name), float(result.iou[index])))
    for what, stored, computed in pairs:
        absent = stored is None and math.isnan(computed)
        number = isinstance(stored, (int, float)) and not isinstance(stored, bool)
        if absent or (number and computed - ROUNDING_POINTS <= stored <= computed + ROUNDING_POINTS):
            continue
        raise DataError(
            f"results.json does not agree with itself: '{path}' stores {what} {stored}, its confusion matrix gives "
            f"{computed:.2f} (percent, absent classes left out). Evaluate the run again."
        )
