"""Choose the sample frames that a page shows, and say why each of them is there."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stcl.errors import DataError
from stcl.files.plain import read_json
from stcl.labels import IGNORE
from stcl.pages.pictures import read_label
from stcl.pages.results import Protocol, iou_percent, mean_percent
from stcl.pages.tables import Comparison, delta_text


@dataclass(frozen=True)
class Sample:
    """One frame with its truth and its predictions.

    Attributes:
        name: file name without suffix.
        reason: why it was chosen, as a sentence.
        frame: RGB picture.
        truth: label map.
        predictions: ``(run position, label map)``.
        scores: mean IoU of this one frame by run position, percent.
    """

    name: str
    reason: str
    frame: Path
    truth: Path
    predictions: tuple[tuple[int, Path], ...]
    scores: dict[int, float]


def choose_samples(comparison: Comparison, reference: int, subject: int, count: int = 3) -> list[Sample]:
    """``count`` evenly spread frames, and those where ``subject`` gains and loses most against ``reference``.

    Args:
        comparison: the runs; those without saved samples are left out.
        reference: position of the run that gains are measured against.
        subject: position of the run of interest; equal to ``reference`` if there is none.
        count: how many evenly spread frames.
    """
    folders = {row: result.folder / "samples" for row, result in enumerate(comparison.results)}
    folders = {row: folder for row, folder in folders.items() if (folder / "prediction").is_dir()}
    names = _shared_names(folders)
    if not names:
        return []
    scores = {name: _frame_scores(folders, name, comparison.protocol) for name in names}
    spread = [names[int(position)] for position in np.linspace(0, len(names) - 1, min(count, len(names))).round()]
    reasons = {name: f"One of {len(spread)} frames spread evenly over the {len(names)} saved ones." for name in spread}
    if subject != reference and subject in folders and reference in folders:
        gains = {name: scores[name][subject] - scores[name][reference] for name in names}
        gains = {name: gain for name, gain in gains.items() if not math.isnan(gain)}
        versus = f"{comparison.labels[subject]} against {comparison.labels[reference]}"
        for name, reason in _extremes(gains, versus).items():
            reasons[name] = f"{reason} {reasons[name]}" if name in reasons else reason
    home = next(iter(folders.values()))
    return [
        Sample(
            name=name,
            reason=reason,
            frame=home / "frame" / f"{name}.png",
            truth=home / "truth" / f"{name}.png",
            predictions=tuple((row, folder / "prediction" / f"{name}.png") for row, folder in folders.items()),
            scores=scores[name],
        )
        for name, reason in reasons.items()
    ]


def frame_confusion(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixel counts ``(C, C + 1)`` of two label maps ``(H, W)``; the last column is "predicted as no class"."""
    counted = truth < classes  # ignored truth does not count
    columns = np.minimum(prediction[counted].astype(np.int64), classes)
    index = truth[counted].astype(np.int64) * (classes + 1) + columns
    return np.bincount(index, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def _extremes(gains: dict[str, float], versus: str) -> dict[str, str]:
    """The frames of largest gain and largest loss, and honest words where nothing was gained or lost."""
    if not gains:
        return {}
    top, bottom = max(gains, key=lambda name: gains[name]), min(gains, key=lambda name: gains[name])
    change = "{} points of this frame's mean IoU, {}"
    up, down = (change.format(delta_text(gains[name]), versus) for name in (top, bottom))
    better = f"Largest gain of the {len(gains)} saved frames: {up}."
    worse = f"Largest loss of the {len(gains)} saved frames: {down}."
    if gains[top] <= 0:
        better = f"No saved frame got better; this is the smallest loss: {up}."
    if gains[bottom] >= 0:
        worse = f"No saved frame got worse; this is the smallest gain: {down}."
    return {top: better} if top == bottom else {top: better, bottom: worse}


def _shared_names(folders: dict[int, Path]) -> list[str]:
    """Names that every run with samples has as a prediction, and the first of them as frame and truth."""
    if not folders:
        return []
    home = next(iter(folders.values()))
    parts = [(home, "frame"), (home, "truth"), *((folder, "prediction") for folder in folders.values())]
    return sorted(set.intersection(*(_names(folder, part) for folder, part in parts)))


def _names(folder: Path, part: str) -> set[str]:
    """Pictures of the evaluation; others beside them count only where no list tells which are its own."""
    there = {path.stem for path in (folder / part).glob("*.png")}
    try:
        listed = read_json(folder / "samples.json")["files"]
    except FileNotFoundError:
        return there
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{folder / 'samples.json'}' is damaged ({error}). Evaluate the run again.") from None
    return {name for name in there if f"{part}/{name}.png" in listed}


def _frame_scores(folders: dict[int, Path], name: str, protocol: Protocol) -> dict[int, float]:
    """Mean IoU in percent of one frame, by run position."""
    truth_path = next(iter(folders.values())) / "truth" / f"{name}.png"
    truth = read_label(truth_path)
    classes = len(protocol.classes)
    if np.any((truth >= classes) & (truth != IGNORE)):
        raise DataError(f"'{truth_path}' has train ids above {classes - 1} that are not {IGNORE} (ignore).")
    scores = {}
    for row, folder in folders.items():
        path = folder / "prediction" / f"{name}.png"
        prediction = read_label(path)
        if prediction.shape != truth.shape:
            raise DataError(f"'{path}' is {prediction.shape} pixels (rows, columns), its truth is {truth.shape}.")
        iou = iou_percent(frame_confusion(truth, prediction, classes))
        scores[row] = mean_percent(iou[list(protocol.reported)])
    return scores
