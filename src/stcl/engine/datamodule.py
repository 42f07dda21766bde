"""From settings to loaders: which data sets, which clips, which flow."""

import hashlib
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader

from stcl.data import ClipDataset, VideoDataset, class_pixels, get_dataset, make_eval_loader, make_loader
from stcl.engine.settings import DomainSettings, FlowSettings, Settings
from stcl.errors import SettingError
from stcl.flow import get_flow
from stcl.types import ClipSpec, FlowProvider


def make_flow(settings: FlowSettings, dataset: VideoDataset) -> FlowProvider:
    """The flow provider of a data set; each root and split has its own cache folder, as frames may share names."""
    options: dict[str, Any] = {"dis": {"preset": settings.quality}, "exact": {}}[settings.name]
    if settings.cache is None or settings.name == "exact":
        return get_flow(settings.name, **options)
    place = hashlib.blake2b(str(dataset.root.resolve()).encode(), digest_size=4).hexdigest()
    folder = Path(settings.cache).expanduser() / f"{dataset.name}-{place}" / dataset.split
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"flow.cache: cannot make folder {folder} ({error.strerror}). Choose another.") from None
    return get_flow(settings.name, cache=folder, **options)


def open_dataset(domain: DomainSettings, split: str | None = None, root: str | None = None) -> VideoDataset:
    """The data set of a domain, or another split or root of it."""
    return get_dataset(domain.name)(Path(root or domain.root), split or domain.split)


def training_clips(settings: Settings, domain: DomainSettings, spec: ClipSpec) -> ClipDataset:
    """Clips of one domain for training; a spec without labels never looks at the label tree."""
    dataset = open_dataset(domain)
    flow = make_flow(settings.flow, dataset) if spec.flows else None
    return ClipDataset(dataset, spec, settings.space, domain.size, domain.frames, flow)


def evaluation_clips(settings: Settings, split: str | None = None, root: str | None = None) -> ClipDataset:
    """Labelled target clips (t, t-1) for evaluation; labels keep the files' size."""
    target, evaluation = settings.target, settings.evaluation
    dataset = open_dataset(target, split or evaluation.split, root or evaluation.root)
    spec = ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0,))
    flow = make_flow(settings.flow, dataset)
    return ClipDataset(
        dataset, spec, settings.space, target.size, "labelled", flow, native_labels=True, every_frame=True
    )


class DomainData(LightningDataModule):
    """Training batches ``{"source": VideoClip, "target": VideoClip}``, endless and resumable at any step.

    Args:
        settings: of the run.
        source_spec, target_spec: clips that the method wants; the target's has no labels.
        quiet: no progress bar while the source's classes are counted for rare-class sampling.
    """

    def __init__(
        self, settings: Settings, source_spec: ClipSpec, target_spec: ClipSpec | None, quiet: bool = True
    ) -> None:
        super().__init__()
        self.settings = settings
        self.source = training_clips(settings, settings.source, source_spec)
        self.target = None
        if target_spec is not None:
            self.target = training_clips(settings, settings.target, target_spec.without_labels())
        temperature = settings.training.rare_class_sampling
        self.rare = None if temperature is None else (class_pixels(self.source, quiet), temperature)

    def train_dataloader(self) -> CombinedLoader:
        """This process's share of one batch of each domain per step, from the trainer's current step on."""
        training, placed = self.settings.training, dict[str, Any]()
        if self.trainer is not None:
            placed = {
                "start_step": self.trainer.global_step,
                "rank": self.trainer.global_rank,
                "world": self.trainer.world_size,
                "pin_memory": self.trainer.strategy.root_device.type == "cuda",
            }
        loaders = {
            name: make_loader(
                clips,
                batch_size=training.batch_size,
                seed=self.settings.seed * 2 + position,
                workers=training.workers,
                rare=self.rare if name == "source" else None,
                **placed,
            )
            for position, (name, clips) in enumerate((("source", self.source), ("target", self.target)))
            if clips is not None
        }
        return CombinedLoader(loaders, "min_size")

    def calibration_loader(self, domain: str) -> Any:
        """Unlabelled frames of ``source`` or ``target``, in order, for batch-norm statistics."""
        settings = self.settings.source if domain == "source" else self.settings.target
        clips = training_clips(self.settings, settings, ClipSpec(frames=(0,)))
        clips.thin(self.settings.training.calibration_clips)
        return make_eval_loader(clips, batch_size=self.settings.training.batch_size)
