"""What enters a training step: real steps are watched, and the inputs of the last one are kept as pictures.

Nothing here sees a label of the target, whose loader has none. :mod:`stcl.commands.inspect.page` makes a page of it.
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from stcl.data.io import write_image
from stcl.errors import SettingError
from stcl.files.folders import OwnFiles
from stcl.files.writing import write_atomic
from stcl.labels import IGNORE
from stcl.methods import AdaptationMethod, DomainBatch
from stcl.methods.base import View
from stcl.methods.settings import SelfTrainingSettings
from stcl.training.checkpoint import CompleteState, Resume, find_checkpoint
from stcl.training.domains import DomainData
from stcl.training.networks import build_method, prepare_networks
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings
from stcl.training.signals import StopRequest
from stcl.training.steps import StepBoundary
from stcl.training.trainer import fit, make_trainer
from stcl.types import VideoClip

SCHEMA = 1
RECORD, PAGE, PICTURES, PATCHES = "inspect.json", "inspect.html", "pictures", "patches"
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
    with TemporaryDirectory(prefix="stcl-inspect-") as scratch:  # Lightning's loggers want a folder
        watch = Watch(settings, RunFolder(Path(scratch)), start.step, steps)
        trainer = make_trainer(settings, watch.folder, watch, [CompleteState(settings)], start.step, quiet=True)
        fit(trainer, method, data, start.path, settings)
    record = _describe(settings, watch, start.step)
    record["warmup"] = {"configured": _warmup(subject), "used": _warmup(settings)}
    record["logged"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    views = {name: draw_view(name, view, watch.batch) for name, view in (method.views or {}).items()}
    pictures = {path: pixels for clips in views.values() for clip in clips for path, pixels in clip.pictures.items()}
    OwnFiles(out, RECORD, VERB).begin([*pictures, PAGE])
    for path, pixels in pictures.items():
        write_image(out / path, pixels)
    record["views"] = {name: [clip.entry for clip in clips] for name, clips in views.items()}
    record["files"] = [*pictures, PAGE]
    write_atomic(out / RECORD, json.dumps(record, indent=1).encode())
    return out


class Watch(StepBoundary):
    """The boundary between steps that nobody goes on with: saves nothing, counts what enters, ends after the last."""

    def __init__(self, settings: Settings, folder: RunFolder, first: int, steps: int) -> None:
        super().__init__(folder, settings.training, StopRequest(), first)
        self.classes, self.last = len(settings.space), first + steps
        self.counts: dict[str, Tensor] = {}
        self.batch: DomainBatch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal need not wait: there is nothing to save."""

    def save(self, trainer: Trainer) -> None:
        """Nothing."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask the step to show what it feeds to the network."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        assert isinstance(pl_module, AdaptationMethod)
        pl_module.views, self.batch = {}, batch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; was that the last step?"""
        assert isinstance(pl_module, AdaptationMethod) and pl_module.views is not None
        for name, pixels in count_pixels(pl_module.views, self.classes).items():
            self.counts[name] = self.counts[name] + pixels if name in self.counts else pixels
        trainer.should_stop = trainer.global_step >= self.last


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


class Drawn(NamedTuple):
    """A clip of a view: what the record says of it, and its pictures by their paths below the inspection's folder."""

    entry: dict[str, Any]
    pictures: dict[str, NDArray[np.uint8]]


def draw_view(name: str, view: View, batch: DomainBatch) -> list[Drawn]:
    """The pictures of a view; the record has their paths, the clip's mean weight and its ignored pixels.

    ``loaded`` (as the loader gave it), ``frame`` (at t) and ``previous`` are RGB, ``label`` train ids, ``outline`` 255
    inside patches, ``weight`` 255 times the weight where each pixel has its own.
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
    pictures = {part: _bytes(values) for part, values in parts.items() if values is not None}
    clips = []
    for row, clip_name in enumerate(clip.names):
        paths = {part: f"{PICTURES}/{name}_{row}_{part}.png" for part in pictures}
        entry: dict[str, Any] = {"name": clip_name, **paths}
        if weight is not None:
            entry["mean_weight"] = float(weight[row].float().mean())
        if labels is not None:
            entry["pixels"], entry["ignored"] = labels[row].numel(), int((labels[row] == IGNORE).sum())
        clips.append(Drawn(entry, {path: pictures[part][row] for part, path in paths.items()}))
    return clips


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    """Pictures ``(B, H, W)`` or ``(B, H, W, 3)`` of ``(B, H, W)`` or ``(B, 3, H, W)``; 0..1 becomes 0..255."""
    if values.is_floating_point() or values.dtype == torch.bool:
        values = (values.float().clamp(0, 1) * 255).round()
    values = values.to(torch.uint8).cpu()
    return (values.movedim(1, -1) if values.ndim == 4 else values).numpy()


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


def _describe(settings: Settings, watch: Watch, first: int) -> dict[str, Any]:
    """What ``inspect.json`` says of all steps together; shares of classes and ignored pixels are in percent."""
    totals = {name: (pixels[:-1], int(pixels.sum())) for name, pixels in watch.counts.items()}
    return {
        "schema": SCHEMA,
        "title": settings.title,
        "method": settings.as_dict()["method"]["name"],
        "source": f"{settings.source.name}/{settings.source.split}",
        "target": f"{settings.target.name}/{settings.target.split}",
        "seed": settings.seed,
        "first_step": first,
        "steps": watch.last - first,
        "left_out": watch.skipped,
        "classes": list(settings.space.names),
        "shares": {n: (100 * c.double() / c.sum()).tolist() if c.any() else None for n, (c, _) in totals.items()},
        "ignored": {n: 100 * (1 - int(c.sum()) / pixels) for n, (c, pixels) in totals.items() if n != PATCHES},
        "config": settings.as_dict(),
    }
