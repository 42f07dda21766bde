"""Analysis: how good a run's pseudo labels are, over time, by class, by confidence and by place.

Training may keep snapshots of teacher and student; :mod:`stcl.commands.analyse.labelling` compares them with the truth.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stcl.commands.analyse.labelling import GROUPS, Counts, Frames, Run, load_frames, measure
from stcl.data.io import write_image
from stcl.errors import SettingError
from stcl.files.folders import OwnFiles
from stcl.files.plain import json_number
from stcl.files.writing import write_atomic
from stcl.labels import IGNORE, LabelSpace
from stcl.models import VideoSegmenter
from stcl.ops.colors import colourise
from stcl.ops.metrics import iou_from_confusion, mean_iou
from stcl.ops.quality import accuracy, coverage, domain_distance, precision, recall
from stcl.terminal import progress_bar
from stcl.training.evaluate import predicted_ids
from stcl.training.networks import load_trained

ANALYSIS, PAGE = "analysis.json", "analysis.html"
VERB = "stcl analyse"
SCHEMA = 1
WORST = 8
"""How many frames a sheet of the worst ones shows."""


def analyse(
    runs: Sequence[Path],
    out: Path,
    split: str | None = None,
    frames: int = 100,
    quiet: bool = False,
    changes: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Compare the pseudo labels of runs with the labels of their target, and write ``analysis.json``.

    Args:
        runs: folders of finished or unfinished runs on one target data set.
        out: folder for ``analysis.json`` and the sheets of worst frames.
        split: of the target; None takes the one that the runs adapt to.
        frames: labelled frames at most, evenly spread.
        quiet: no progress bar.
        changes: what else is known of the runs' mistakes; goes into the file as it is.

    Returns:
        The contents of ``analysis.json``; shares in percent.
    """
    opened = [Run.open(path) for path in runs]
    _check_alike(opened)
    if frames < 1:
        raise SettingError(f"An analysis needs at least 1 frame, found {frames}.")
    own = OwnFiles(out, ANALYSIS, VERB)
    with own.alone(others=True):
        return _analyse(opened, own, split, frames, quiet, changes)


def _analyse(
    opened: list[Run],
    own: OwnFiles,
    split: str | None,
    frames: int,
    quiet: bool,
    changes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The same in a folder that is this process's alone."""
    files = [PAGE, *(f"worst_{number}.png" for number in range(len(opened)))]
    own.check(files)
    space, intervals = opened[0].settings.space, {run.teacher.interval for run in opened}
    back = any(run.teacher.flow_consistency for run in opened)
    loaded: dict[str, Frames] = {}
    documents = []
    with progress_bar(quiet) as progress:
        for number, run in enumerate(opened):
            key = repr((run.settings.source, run.settings.target, run.settings.flow))
            if key not in loaded:
                loaded[key] = load_frames(run.settings, intervals, split, frames, back)
            steps = (2 * len(run.snapshots) + 2) * len(loaded[key].target)
            task = progress.add_task(run.folder.path.name, total=steps)
            if number == 0:
                own.begin(files)
            sheet = own.folder / f"worst_{number}.png"
            documents.append(analyse_run(run, loaded[key], sheet, partial(progress.advance, task)))
            progress.update(task, completed=steps)
    target = opened[0].settings.target
    document = {
        "schema": SCHEMA,
        "classes": list(space.names),
        "reported": list(space.reported),
        "space": space.name,
        "target": target.name,
        "split": split or target.split,
        "frames": sum(len(clip.names) for clip in next(iter(loaded.values())).target),
        "runs": documents,
        "changes": list(changes),
        "files": files,
    }
    write_atomic(own.folder / ANALYSIS, json.dumps(document).encode())
    return document


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for what, one, two in (
            ("target data set", first.settings.target.name, run.settings.target.name),
            ("label space", first.settings.space.name, run.settings.space.name),
        ):
            if one != two:
                raise SettingError(
                    f"{first.folder.path} and {run.folder.path} cannot be analysed together: their {what} is '{one}' "
                    f"and '{two}'. Analyse them one by one."
                )


def analyse_run(run: Run, frames: Frames, sheet: Path, advance: Callable[[], object]) -> dict[str, Any]:
    """All that one run's networks do, and the picture ``sheet`` of the frames on which the last one is worst."""
    space, last = run.settings.space, run.settings.training.steps
    points: dict[int, dict[str, Any]] = {}
    for step in run.snapshots:
        networks = run.networks(step)
        measured = {
            role: measure(network, run.teacher.statistics, run, frames, advance) for role, network in networks.items()
        }
        points[step] = {role: describe(counts, run) for role, counts in measured.items()}
    final = load_trained(run.settings, run.folder.weights) if run.folder.weights.is_file() else networks["teacher"]
    shown = measure(final, "running", run, frames, advance)
    if run.folder.weights.is_file():
        point = points.setdefault(last, {})
        point["evaluated"] = describe(shown, run)
        if "teacher" not in point:
            point["teacher"] = describe(measure(final, run.teacher.statistics, run, frames, advance), run)
    missing = "" if run.snapshots else "No snapshots: train with --training.snapshot_every N to see labels over time."
    return {
        "folder": str(run.folder.path),
        "name": run.settings.name,
        "title": run.settings.title,
        "method": run.settings.as_dict()["method"]["name"],
        "oracle": run.settings.oracle,
        "labeller": "student" if run.teacher.kind == "self" else "teacher",
        "statistics": run.teacher.statistics,
        "interval": run.teacher.interval,
        "threshold": run.threshold,
        "note": missing,
        "points": [{"step": step, **point} for step, point in sorted(points.items())],
        "worst": draw_worst(final, frames, shown.frames, space, sheet),
    }


def describe(counts: Counts, run: Run) -> dict[str, Any]:
    """Counts as shares in percent, by class name."""
    space, every = run.settings.space, counts.labels.sum((1, 2, 3))  # (2, C, C + 1)
    total, sure = every.sum(0), every[1]
    shares = {
        "coverage": coverage(total, sure),
        "precision": precision(total),
        "sure_precision": precision(sure),
        "recall": recall(total),
        "iou": iou_from_confusion(torch.stack(counts.frames).sum(0)),
    }
    distance = domain_distance(counts.source, counts.target).cpu()
    reported = list(space.reported)
    return {
        "mean": {name: _percent(share[reported].nanmean()) for name, share in shares.items()}
        | {"accuracy": _percent(accuracy(total)), "distance": json_number(float(distance[reported].nanmean()))},
        **{name: dict(zip(space.names, map(_percent, share), strict=True)) for name, share in shares.items()},
        "distance": dict(zip(space.names, map(json_number, distance.tolist()), strict=True)),
        "groups": {
            name: describe_groups(counts.labels, axis, space, names)
            for axis, (name, names) in enumerate(GROUPS.items(), start=1)
            if name != "flow" or run.teacher.interval  # a frame that is labelled by itself needs no flow
        },
    }


def describe_groups(labels: Tensor, axis: int, space: LabelSpace, names: Sequence[str]) -> list[dict[str, Any]]:
    """Each group's share of the pixels, those without a label too, and how many of its labels are right.

    By class: the share of the pixels labelled c that lie in the group, and how many of these are c.
    """
    table = labels.sum([other for other in range(4) if other != axis])  # (G, C, C + 1)
    labelled = table[..., :-1].sum(1).double()  # (G, C)
    pixels, right, own = table.sum((1, 2)).double(), accuracy(table), precision(table)
    return [
        {
            "group": name,
            "share": _percent(pixels[row] / pixels.sum()),
            "precision": _percent(right[row]),
            "classes": {
                known: {"share": _percent(labelled[row, c] / labelled[:, c].sum()), "precision": _percent(own[row, c])}
                for c, known in enumerate(space.names)
            },
        }
        for row, name in enumerate(names)
    ]


def draw_worst(
    network: VideoSegmenter, frames: Frames, confusion: list[Tensor], space: LabelSpace, sheet: Path
) -> list[dict[str, Any]]:
    """The frames of lowest mean IoU, a row each in the picture ``sheet``: frame, truth, prediction, errors."""
    scores = np.array([mean_iou(counts, space.reported) for counts in confusion])
    places = [(clip, row) for clip in frames.target for row in range(len(clip.names))]
    worst = [int(place) for place in np.argsort(scores)[:WORST] if not math.isnan(scores[place])]
    device, rows = next(network.parameters()).device, []
    for clip, row in (places[place] for place in worst):
        single = clip.select(torch.tensor([row]))
        truth = single.label(0)[0].numpy()
        with torch.no_grad():
            predicted = predicted_ids(network, single.to(device))[0].cpu().numpy()
        wrong = np.where((truth != IGNORE) & (truth != predicted), np.uint8(230), np.uint8(25))
        wrong[truth == IGNORE] = 90
        pictures = (
            single.frame(0)[0].permute(1, 2, 0).numpy(),
            colourise(truth, space.palette),
            colourise(predicted, space.palette),
            np.repeat(wrong[..., None], 3, axis=2),
        )
        rows.append(np.concatenate([np.pad(picture, ((2, 2), (2, 2), (0, 0))) for picture in pictures], axis=1))
    write_image(sheet, np.concatenate(rows))
    return [{"frame": places[place][0].names[places[place][1]], "miou": _percent(scores[place])} for place in worst]


def _percent(share: Any) -> float | None:
    return json_number(100 * share)
