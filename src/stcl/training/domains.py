"""From settings to loaders: which data sets, which clips, which flow."""

import hashlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from stcl.data import ClipDataset, VideoDataset, class_pixels, get_dataset, make_eval_loader, make_loader
from stcl.data.prepared import use_prepared
from stcl.errors import SettingError
from stcl.files.paths import from_home, real_path
from stcl.flow import ESTIMATED, get_flow
from stcl.methods import DomainBatch
from stcl.training.settings import DomainSettings, FlowSettings, Settings
from stcl.types import ClipSpec, FlowProvider, FrameRef


def make_flow(settings: FlowSettings, dataset: VideoDataset) -> FlowProvider:
    """The flow provider of a data set; each root and split has its own cache folder, as frames may share names."""
    options: dict[str, Any] = {}
    if settings.name == "dis":
        options["preset"] = settings.quality
    elif settings.name == "raft":
        options["model"] = settings.model
    elif settings.name == "files":
        options["folder"] = None if settings.folder is None else from_home(settings.folder)
        if settings.folder is not None and (options["folder"] / dataset.name).is_dir():
            options["folder"] /= dataset.name
        whole = type(dataset).crop is VideoDataset.crop
        options["uncropped"] = None if whole else dataset.native_size  # the published size of frames that are cropped
    if settings.cache is not None and settings.name in ESTIMATED:
        root = hashlib.blake2b(os.fsencode(real_path(dataset.root)), digest_size=4).hexdigest()
        folder = from_home(settings.cache) / f"{dataset.name}-{root}" / dataset.split
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(f"flow.cache: cannot make folder {folder} ({error.strerror}). Choose another.") from None
        options["cache"] = folder
    return get_flow(settings.name, **options)


def open_dataset(domain: DomainSettings, split: str | None = None, root: str | None = None) -> VideoDataset:
    """The data set of a domain, or another split or root of it."""
    return get_dataset(domain.name)(Path(root or domain.root), split or domain.split, domain.classes)


def training_clips(
    settings: Settings, domain: DomainSettings, spec: ClipSpec, index: list[FrameRef] | None = None
) -> ClipDataset:
    """Clips of one domain for training, of all frames or an ``index``; a spec without labels never looks for any."""
    dataset = open_dataset(domain)
    flow = make_flow(settings.flow, dataset) if spec.flows else None
    return ClipDataset(dataset, spec, settings.space, domain.size, domain.frames, flow, index=index)


def evaluation_clips(
    settings: Settings, split: str | None = None, root: str | None = None, index: list[FrameRef] | None = None
) -> ClipDataset:
    """Labelled target clips (t, t-1) for evaluation, of all frames or those of an ``index``; labels keep their size."""
    target, evaluation = settings.target, settings.evaluation
    dataset = open_dataset(target, split or evaluation.split, root or evaluation.root)
    spec = ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0,))
    flow = make_flow(settings.flow, dataset)
    return ClipDataset(
        dataset, spec, settings.space, target.size, "labelled", flow, native_labels=True, every_frame=True, index=index
    )


class DomainData:
    """Training batches ``{"source": VideoClip, "target": VideoClip}``, endless and resumable at any step.

    Args:
        settings: of the run.
        source_spec, target_spec: clips that the method wants; the target's has no labels.
        quiet: no progress bar while the source's classes are counted for rare-class sampling.

    Attributes:
        clips: of each domain that the method wants.
        prepared: domain -> one sentence about its prepared data, where there are any: used, or why not.
    """

    def __init__(
        self, settings: Settings, source_spec: ClipSpec, target_spec: ClipSpec | None, quiet: bool = True
    ) -> None:
        self.settings = settings
        self.source = training_clips(settings, settings.source, source_spec)
        self.target = None
        if target_spec is not None:
            self.target = training_clips(settings, settings.target, target_spec.without_labels())
        self.clips = {"source": self.source} | ({} if self.target is None else {"target": self.target})
        self.prepared: dict[str, str] = {}
        if settings.prepared is not None:
            notes = {name: use_prepared(clips, from_home(settings.prepared)) for name, clips in self.clips.items()}
            self.prepared = {name: note for name, note in notes.items() if note}
        if source_spec.labels:
            self.source.refuse_unlabelled()
        temperature = settings.training.rare_class_sampling
        self.rare = None if temperature is None else (class_pixels(self.source, quiet), temperature)

    def batches(
        self, step: int = 0, rank: int = 0, world: int = 1, pin_memory: bool = False
    ) -> Generator[DomainBatch, None, None]:
        """Process ``rank`` of ``world``'s share of one batch of each domain per step, from ``step`` on, on the host."""
        training = self.settings.training
        loaders = {
            name: make_loader(
                clips,
                batch_size=training.batch_size,
                seed=self.settings.seed * 2 + (name == "target"),
                start_step=step,
                workers=training.workers,
                pin_memory=pin_memory,
                rank=rank,
                world=world,
                rare=self.rare if name == "source" else None,
            )
            for name, clips in self.clips.items()
        }
        for batch in zip(*loaders.values(), strict=False):
            yield cast(DomainBatch, dict(zip(loaders, batch, strict=True)))

    def calibration_loader(self, domain: str) -> Any:
        """Unlabelled frames of ``source`` or ``target``, in order, for batch-norm statistics."""
        settings = self.settings.source if domain == "source" else self.settings.target
        clips = training_clips(self.settings, settings, ClipSpec(frames=(0,)))
        clips.thin(self.settings.training.calibration_clips)
        return make_eval_loader(clips, batch_size=self.settings.training.batch_size)
