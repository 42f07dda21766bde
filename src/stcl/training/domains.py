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
    of_each: dict[str, dict[str, Any]] = {
        "dis": {"preset": settings.quality},
        "raft": {"model": settings.model},
        "files": {"folder": _flow_folder(settings, dataset), "uncropped": _uncropped(dataset)},
    }
    options = of_each.get(settings.name, {})
    if settings.cache is None or settings.name not in ESTIMATED:
        return get_flow(settings.name, **options)
    place = hashlib.blake2b(os.fsencode(real_path(dataset.root)), digest_size=4).hexdigest()
    folder = from_home(settings.cache) / f"{dataset.name}-{place}" / dataset.split
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"flow.cache: cannot make folder {folder} ({error.strerror}). Choose another.") from None
    return get_flow(settings.name, cache=folder, **options)


def _flow_folder(settings: FlowSettings, dataset: VideoDataset) -> Path | None:
    """Where the flow files of a data set lie: in a folder of its name, if there is one."""
    if settings.folder is None:
        return None
    own = from_home(settings.folder) / dataset.name
    return own if own.is_dir() else own.parent


def _uncropped(dataset: VideoDataset) -> tuple[int, int] | None:
    """The published size of frames that the data set crops; None where it takes them whole."""
    return None if type(dataset).crop is VideoDataset.crop else dataset.native_size


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
        prepared: domain -> one sentence about its prepared data: used, or why not. Those of which there are none are
            not in it.
    """

    def __init__(
        self, settings: Settings, source_spec: ClipSpec, target_spec: ClipSpec | None, quiet: bool = True
    ) -> None:
        self.settings = settings
        self.source = training_clips(settings, settings.source, source_spec)
        self.target = None
        if target_spec is not None:
            self.target = training_clips(settings, settings.target, target_spec.without_labels())
        self.prepared: dict[str, str] = {}
        for name, clips in (("source", self.source), ("target", self.target)):
            if clips is not None and settings.prepared is not None:
                note = use_prepared(clips, from_home(settings.prepared))
                self.prepared |= {name: note} if note else {}
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
                seed=self.settings.seed * 2 + position,
                start_step=step,
                workers=training.workers,
                pin_memory=pin_memory,
                rank=rank,
                world=world,
                rare=self.rare if name == "source" else None,
            )
            for position, (name, clips) in enumerate((("source", self.source), ("target", self.target)))
            if clips is not None
        }
        for clips in zip(*loaders.values(), strict=False):
            yield cast(DomainBatch, dict(zip(loaders, clips, strict=True)))

    def calibration_loader(self, domain: str) -> Any:
        """Unlabelled frames of ``source`` or ``target``, in order, for batch-norm statistics."""
        settings = self.settings.source if domain == "source" else self.settings.target
        clips = training_clips(self.settings, settings, ClipSpec(frames=(0,)))
        clips.thin(self.settings.training.calibration_clips)
        return make_eval_loader(clips, batch_size=self.settings.training.batch_size)
