"""What enters a training step: real steps are watched, and the inputs of the last one are kept as pictures.

Nothing here sees a label of the target, whose loader has none. :mod:`stcl.commands.inspect.page` makes a page of it.
"""

import json
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stcl.commands.inspect.page import PAGE, RECORD, SCHEMA
from stcl.data.io import write_image
from stcl.errors import SettingError
from stcl.files.folders import OwnFiles
from stcl.files.writing import write_atomic
from stcl.labels import IGNORE
from stcl.methods import DomainBatch
from stcl.methods.base import View
from stcl.methods.settings import SelfTrainingSettings
from stcl.training.checkpoint import Resume, find_checkpoint, read_checkpoint
from stcl.training.devices import explained_failures, make_fabric
from stcl.training.domains import DomainData
from stcl.training.loop import take_step
from stcl.training.networks import build_method, prepare_networks
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings
from stcl.training.state import Training
from stcl.types import VideoClip

PATCHES = "patches"
VERB = "stcl inspect"


def inspect(subject: Settings | Path, out: Path, steps: int = 8) -> Path:
    """Take training steps, write ``out/inspect.json`` and ``out/pictures/``, and throw the network away.

    The steps are those of ``stcl train`` with the same batches and draws, but that a supervised warm-up which is not
    over yet is left out, so that the target takes part.

    Args:
        subject: settings, whose run is watched from its first step, or a run folder: from its last checkpoint.
        out: a new or empty folder, or one of an earlier inspection, which is replaced.
        steps: how many; the last one is shown, when memories and teacher hold something.

    Returns:
        ``out``.

    Raises:
        SettingError: no step to take, ``out`` holds something else, or a setting cannot work.
        CheckpointError: no checkpoint of the run can be read.
    """
    if steps < 1:
        raise SettingError(f"--steps counts the training steps until the one that is shown: at least 1, not {steps}.")
    with OwnFiles(out, RECORD, VERB).alone():
        return _inspect(subject, out, steps)


def _inspect(subject: Settings | Path, out: Path, steps: int) -> Path:
    """The same in a folder that is this process's alone."""
    start = Resume()
    if isinstance(subject, Path):
        folder, subject = RunFolder(subject), RunFolder(subject).settings()
        start = find_checkpoint(folder, subject)
    settings = _watched(subject, start.step, steps)
    method = build_method(settings)
    data = DomainData(settings, method.source_spec, method.target_spec)
    prepare_networks(method, settings.training)
    training = Training(make_fabric(settings.training), method, settings, start.step)
    counts: dict[str, Tensor] = {}
    with explained_failures(settings), closing(data.batches(start.step)) as batches:
        training.start(read_checkpoint(start.path) if start.path else None)
        for batch in islice(batches, steps):
            method.views = {}
            take_step(training, batch)
            training.reports.read()
            for name, count in count_pixels(method.views, len(settings.space)).items():
                counts[name] = counts.get(name, 0) + count
    record = _describe(settings, counts, training.reports.skipped, start.step, steps)
    record["warmup"] = {"configured": _warmup(subject), "used": _warmup(settings)}
    record["logged"] = {name: float(value) for name, value in method.logged.items()}
    record["views"], pictures = {}, dict[str, NDArray[np.uint8]]()
    for name, view in (method.views or {}).items():
        record["views"][name], drawn = draw_view(name, view, batch)
        pictures |= drawn
    record["files"] = [*pictures, PAGE]
    OwnFiles(out, RECORD, VERB).begin(record["files"])
    for path, pixels in pictures.items():
        write_image(out / path, pixels)
    write_atomic(out / RECORD, json.dumps(record, indent=1).encode())
    return out


def count_pixels(views: dict[str, View], classes: int) -> dict[str, Tensor]:
    """Pixels of each class in the labels at t: ``(C + 1,)`` int64 on the CPU by view, the ignored ones last.

    Where views have outlines, ``patches`` are the pixels inside, in each of these views. What a mixed view has outside
    stands for the target where that is not shown by itself.
    """
    labelled = {
        name: (view.clip.label(0), view.outline) for name, view in views.items() if view.clip.labels is not None
    }
    counts = {name: _count(labels, classes) for name, (labels, _) in labelled.items()}
    inside = [_count(labels[outline], classes) for labels, outline in labelled.values() if outline is not None]
    if "mixed" in labelled and "target" not in labelled:
        labels, outline = labelled["mixed"]
        counts["target"] = _count(labels if outline is None else labels[~outline], classes)
    return {**counts, PATCHES: torch.stack(inside).sum(0)} if inside else counts


def _count(labels: Tensor, classes: int) -> Tensor:
    counts = torch.bincount(labels.flatten().long().cpu(), minlength=IGNORE + 1)
    return torch.cat((counts[:classes], counts[IGNORE:]))


def draw_view(name: str, view: View, batch: DomainBatch) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.uint8]]]:
    """What the record says of each clip of a view, and the pictures by their paths below the inspection's folder.

    A clip has the paths of its pictures, its mean weight and its ignored pixels. ``loaded`` (as the loader gave it),
    ``frame`` (at t) and ``previous`` are RGB, ``label`` train ids, ``outline`` 255 inside patches, ``weight`` 255 times
    the weight where each pixel has its own.
    """
    clip, weight, loaded = view.clip, view.weight, batch.get(name)
    labels = None if clip.labels is None else clip.label(0)
    parts = {
        "loaded": loaded.frame(0) if isinstance(loaded, VideoClip) else None,
        "frame": clip.frame(0),
        "previous": clip.frame(-1) if -1 in clip.offsets else None,
        "label": labels,
        "outline": view.outline,
        "weight": weight if weight is not None and weight[0].numel() > 1 else None,
    }
    clips: list[dict[str, Any]] = [{"name": clip_name} for clip_name in clip.names]
    pictures = {}
    for part, values in parts.items():
        if values is None:
            continue
        if values.is_floating_point() or values.dtype == torch.bool:
            values = (values.float().clamp(0, 1) * 255).round()
        pixels = values.to(torch.uint8).cpu()
        pixels = pixels.movedim(1, -1) if pixels.ndim == 4 else pixels  # (B, H, W, 3) or (B, H, W)
        for row, entry in enumerate(clips):
            entry[part] = f"pictures/{name}_{row}_{part}.png"
            pictures[entry[part]] = pixels[row].numpy()
    for row, entry in enumerate(clips):
        if weight is not None:
            entry["mean_weight"] = float(weight[row].float().mean())
        if labels is not None:
            entry["pixels"], entry["ignored"] = labels[row].numel(), int((labels[row] == IGNORE).sum())
    return clips, pictures


def _watched(settings: Settings, first: int, steps: int) -> Settings:
    """The settings with as much of the warm-up as is behind them, on one device, in one process."""
    method = settings.method
    if isinstance(method, SelfTrainingSettings):
        method = replace(method, warmup=min(method.warmup, first))
    length = max(settings.training.steps, first + steps)  # of a finished run, too
    training = replace(settings.training, steps=length, devices=1, nodes=1, workers=0, compile=False)
    return replace(settings, method=method, training=training)


def _warmup(settings: Settings) -> int:
    return settings.method.warmup if isinstance(settings.method, SelfTrainingSettings) else 0


def _describe(
    settings: Settings, counts: dict[str, Tensor], left_out: list[int], first: int, steps: int
) -> dict[str, Any]:
    """What ``inspect.json`` says of all steps together; shares of classes and ignored pixels are in percent."""
    totals = {name: (pixels[:-1], int(pixels.sum())) for name, pixels in counts.items()}
    return {
        "schema": SCHEMA,
        "title": settings.title,
        "method": settings.as_dict()["method"]["name"],
        "source": f"{settings.source.name}/{settings.source.split}",
        "target": f"{settings.target.name}/{settings.target.split}",
        "seed": settings.seed,
        "first_step": first,
        "steps": steps,
        "left_out": left_out,
        "classes": list(settings.space.names),
        "shares": {n: (100 * c.double() / c.sum()).tolist() if c.any() else None for n, (c, _) in totals.items()},
        "ignored": {n: 100 * (1 - int(c.sum()) / pixels) for n, (c, pixels) in totals.items() if n != PATCHES},
        "config": settings.as_dict(),
    }
