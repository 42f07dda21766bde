"""Training: settings in, run folder out; whatever ends it early, ``resume`` goes on from the last checkpoint.

What lies in a run folder is said by :class:`stcl.training.run_folder.RunFolder`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from stcl.errors import SettingError, TrainingError, TrainingStopped
from stcl.files.disks import FULL
from stcl.files.folders import remove_abandoned
from stcl.files.writing import write_atomic
from stcl.methods import AdaptationMethod
from stcl.methods.settings import EvaluationStatistics
from stcl.models import VideoSegmenter, recalibrate
from stcl.models.sync_norm import synchronise_norms
from stcl.terminal import plain_console
from stcl.training.checkpoint import FREE_KEYS, CompleteState, Resume, changed_keys, find_checkpoint
from stcl.training.config import load_settings
from stcl.training.domains import DomainData
from stcl.training.networks import build_method, prepare_networks, save_trained, untrained
from stcl.training.provenance import describe_change, describe_run
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings
from stcl.training.signals import StopRequest
from stcl.training.steps import StepBoundary
from stcl.training.trainer import fit, is_first_process, make_trainer
from stcl.types import FramePair


def train(settings: Settings, out: Path, quiet: bool = False) -> Path:
    """Train one network.

    Args:
        settings: see :func:`stcl.training.config.load_settings`.
        out: run folder; must not hold a run.
        quiet: no progress bar.

    Returns:
        ``out``.

    Raises:
        SettingError: the folder holds a run already, or a setting cannot work.
        TrainingError: training cannot go on; the message says why and what is left.
        TrainingStopped: a signal stopped it; :func:`resume` goes on.
    """
    folder = RunFolder(out)
    if is_first_process():
        folder.refuse_taken()
    return _run(settings, folder, None, quiet)


def resume(run: Path, overrides: list[str] | None = None, quiet: bool = False) -> Path:
    """Go on with an unfinished run from its newest whole checkpoint; a finished one is left as it is.

    On a CPU, and on a GPU with ``training.deterministic``, the result is that of an uninterrupted run to the bit.

    Args:
        run: folder of the run.
        overrides: ``--training.devices 2`` and the like; only keys that do not change what is computed.
        quiet: no progress bar.

    Returns:
        ``run``.

    Raises:
        SettingError: no run is there, another process trains into it, or an override would change the result.
        CheckpointError: no checkpoint is whole, or ``config.yaml`` was changed.
        DataError: the data are not those that the run began with.
    """
    folder = RunFolder(run)
    before = folder.settings()
    settings = load_settings(folder.config, overrides)
    changed = changed_keys(before.as_dict(), settings.as_dict()) - FREE_KEYS
    if changed:
        raise SettingError(
            f"A run goes on with the settings that it began with; {', '.join(sorted(changed))} would change its "
            f"result. These may change: {', '.join(sorted(FREE_KEYS))}. Start a new run for anything else."
        )
    if folder.weights.is_file():
        return run
    with _alone(folder):
        if folder.weights.is_file():  # another process has finished it since
            return run
        return _run(settings, folder, find_checkpoint(folder, settings), quiet)


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """The first process of a run holds its folder, looks at what is in it only then, and clears up after a kill."""
    if not is_first_process():
        yield
        return
    with folder.lock():
        for place in (folder.path, folder.checkpoint.parent, folder.snapshots):
            remove_abandoned(place)
        yield


def _run(settings: Settings, folder: RunFolder, start: Resume | None, quiet: bool) -> Path:
    """Train from the start (``start`` None) or from a checkpoint."""
    first, stop = is_first_process(), StopRequest()
    method = build_method(settings)
    data = DomainData(settings, method.source_spec, method.target_spec, quiet)
    step, seconds = (start.step, folder.seconds() or 0.0) if start else (0, 0.0)
    boundary = StepBoundary(folder, settings.training, stop, step, seconds)
    trainer = make_trainer(settings, folder, boundary, [CompleteState(settings)], step, quiet)
    if settings.training.sync_batchnorm and trainer.world_size > 1:
        synchronise_norms(method, trainer.strategy.root_device.type)
    prepare_networks(method, settings.training)
    with _alone(folder) if start is None else nullcontext(), stop.restored():
        if first:
            _write_record(settings, folder, start, data, trainer)  # only now: bad settings leave no folder behind
        try:
            boundary.write_status(trainer, "running")
            _fit(trainer, method, data, start, settings, folder)
            if first:
                network = _evaluated(settings, method, data, trainer.strategy.root_device)
                boundary.write_status(trainer, "finished")
                _publish(network, settings, folder)
        except TrainingStopped as stopped:
            boundary.write_status(trainer, "stopped", message=str(stopped))
            if first:  # the others end well: a status of theirs would make the launcher kill this one
                raise
        except BaseException as error:
            with suppress(OSError):  # of a full disk, say, which must not hide the error
                boundary.write_status(trainer, "failed", message=str(error) or type(error).__name__)
            raise
    return folder.path


def _write_record(
    settings: Settings, folder: RunFolder, start: Resume | None, data: DomainData, trainer: Trainer
) -> None:
    """Claim the folder of a new run; check and note that another part of a run begins."""
    clips = {"source": data.source} if data.target is None else {"source": data.source, "target": data.target}
    record = describe_run(clips) | {"prepared": data.prepared}
    for domain, note in data.prepared.items():
        plain_console(stderr=True).print(f"stcl: {domain}: {note}", soft_wrap=True)
    if start is None:
        folder.claim(settings, record)
        return
    known = folder.read_record() or record  # killed when it had just begun
    folder.compare_data(known.get("data", {}), record["data"])
    notes = [*start.notes]
    if start.processes not in (0, trainer.world_size):
        notes.append(
            f"This run was on {start.processes} devices and goes on with {trainer.world_size}: the same batches, but "
            "other random draws and patches, so the result will not be that of an uninterrupted run to the bit."
        )
    before = [known, *known.get("resumed", [])][-1].get("environment", {})
    notes += describe_change(before, record["environment"])
    for note in notes:
        plain_console(stderr=True).print(f"stcl: {note}")
    part = {key: record[key] for key in ("command", "started", "code", "environment", "prepared")}
    known.setdefault("resumed", []).append({"step": start.step, **part})
    write_atomic(folder.record, json.dumps(known, indent=1).encode())


def _fit(
    trainer: Trainer,
    method: AdaptationMethod,
    data: DomainData,
    start: Resume | None,
    settings: Settings,
    folder: RunFolder,
) -> None:
    """:func:`~stcl.training.trainer.fit`; of a full disk it is said what is safe."""
    try:
        fit(trainer, method, data, None if start is None else start.path, settings)
    except OSError as error:
        if error.errno not in FULL:
            raise
        kept = (
            f"The last good checkpoint stays: {folder.checkpoint}" if folder.checkpoint.exists() else "Nothing is lost"
        )
        raise TrainingError(
            f"The disk of {error.filename or folder.path} is full ({error.strerror}). {kept}. Make room and go on "
            f"with: stcl train --resume {folder.path}."
        ) from error


def _evaluated(settings: Settings, method: AdaptationMethod, data: DomainData, device: Any) -> VideoSegmenter:
    """The evaluated network by itself, with the batch-norm statistics that the settings ask for."""
    network = untrained(settings)
    network.load_state_dict(method.evaluated.state_dict())
    if settings.training.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibrate(network.to(device), method.evaluation_statistics, data)
    if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
        raise TrainingError(
            "Training diverged: the weights would not be finite numbers. Lower method.optimization.learning_rate, or "
            "set training.gradient_clip."
        )
    return network


def _publish(network: VideoSegmenter, settings: Settings, folder: RunFolder) -> None:
    """Write the weights, last of all: they mark the run as finished."""
    # the run's own configuration, whatever machine it went on with
    save_trained(network, folder.settings().dump(), settings.space, folder.weights)


def calibrate(network: VideoSegmenter, domain: EvaluationStatistics, data: DomainData) -> None:
    """Recompute a network's batch-norm statistics on a domain's frames; ``running`` leaves them as they are."""
    if domain != "running":
        device = next(network.parameters()).device
        loader = data.calibration_loader(domain)
        recalibrate(network, (FramePair(clip.to(device).to_float().frame(0)) for clip in loader))
