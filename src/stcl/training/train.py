"""Training: settings in, run folder out; whatever ends it early, ``resume`` goes on from the last checkpoint.

What lies in a run folder is said by :class:`stcl.training.run_folder.RunFolder`.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.tensorboard import TensorBoardLogger

from stcl.errors import SettingError, TrainingError, TrainingStopped
from stcl.files.folders import remove_abandoned
from stcl.files.writing import write_atomic
from stcl.methods import AdaptationMethod
from stcl.models import VideoSegmenter, recalibrate
from stcl.models.norms import synchronise_norms
from stcl.terminal import plain_console
from stcl.training.checkpoint import FREE_KEYS, Resume, changed_keys, find_checkpoint, read_checkpoint
from stcl.training.config import load_settings
from stcl.training.devices import explained_failures, is_first_process, make_fabric
from stcl.training.domains import DomainData
from stcl.training.logs import MetricsFile
from stcl.training.loop import train_steps
from stcl.training.networks import build_method, prepare_networks, save_trained, untrained
from stcl.training.provenance import describe_change, describe_run
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings
from stcl.training.signals import StopRequest
from stcl.training.state import Training
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
    with folder.lock() if is_first_process() else nullcontext():
        if is_first_process():
            for path in (folder.path, folder.checkpoint.parent, folder.snapshots):
                remove_abandoned(path)
        yield


def _run(settings: Settings, folder: RunFolder, start: Resume | None, quiet: bool) -> Path:
    """Train from the start (``start`` None) or from a checkpoint."""
    step, seconds = (start.step, folder.seconds() or 0.0) if start else (0, 0.0)
    method = build_method(settings)
    data = DomainData(settings, method.source_spec, method.target_spec, quiet)
    events = TensorBoardLogger(folder.path, name="", version=folder.events.name, purge_step=step)
    fabric = make_fabric(settings.training, [MetricsFile(folder.metrics, step), events])
    if settings.training.sync_batchnorm and fabric.world_size > 1:
        synchronise_norms(method, fabric.device.type)
    prepare_networks(method, settings.training)
    training = Training(fabric, method, settings, step, seconds)
    with _alone(folder) if start is None else nullcontext(), ExitStack() as ends:
        if fabric.is_global_zero:
            _write_record(settings, folder, start, data, fabric.world_size)  # only now: bad settings leave no folder
        for logger in fabric.loggers:
            ends.callback(logger.finalize, "")
        try:
            training.write_status(folder, "running")
            with explained_failures(settings, folder):
                training.start(read_checkpoint(start.path) if start and start.path else None)
                pinned = fabric.device.type == "cuda"
                with closing(data.batches(step, fabric.global_rank, fabric.world_size, pinned)) as batches:
                    train_steps(training, batches, folder, StopRequest(), quiet)
            if fabric.is_global_zero:
                network = _evaluated(settings, method, data, fabric.device)
                training.write_status(folder, "finished")
                # last of all, since they mark the run as finished; with its own settings, wherever it went on
                save_trained(network, folder.settings().dump(), settings.space, folder.weights)
        except TrainingStopped as stopped:
            training.write_status(folder, "stopped", message=str(stopped))
            if fabric.is_global_zero:  # the others end well: a status of theirs would make the launcher kill this one
                raise
        except BaseException as error:
            with suppress(OSError):  # of a full disk, say, which must not hide the error
                training.write_status(folder, "failed", message=str(error) or type(error).__name__)
            raise
    return folder.path


def _write_record(
    settings: Settings, folder: RunFolder, start: Resume | None, data: DomainData, processes: int
) -> None:
    """Claim the folder of a new run; check and note that another part of a run begins."""
    record: dict[str, Any] = describe_run(data.clips) | {"prepared": data.prepared}
    notes = [f"{domain}: {note}" for domain, note in data.prepared.items()]
    if start is not None:
        known = folder.read_record() or record  # killed when it had just begun
        folder.compare_data(known.get("data", {}), record["data"])
        notes += start.notes
        if start.processes not in (0, processes):
            notes.append(
                f"This run was on {start.processes} devices and goes on with {processes}: the same batches, but "
                "other random draws and patches, so the result will not be that of an uninterrupted run to the bit."
            )
        before = [known, *known.get("resumed", [])][-1].get("environment", {})
        notes += describe_change(before, record["environment"])
        part = {key: record[key] for key in ("command", "started", "code", "environment", "prepared")}
        known.setdefault("resumed", []).append({"step": start.step, **part})
        write_atomic(folder.record, json.dumps(known, indent=1).encode())
    else:
        folder.claim(settings, record)
    for note in notes:
        plain_console(stderr=True).print(f"stcl: {note}", soft_wrap=True)


def _evaluated(settings: Settings, method: AdaptationMethod, data: DomainData, device: torch.device) -> VideoSegmenter:
    """The evaluated network by itself, with the batch-norm statistics that the settings ask for."""
    network = untrained(settings)
    network.load_state_dict(method.evaluated.state_dict())
    if settings.training.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.to(device)
    if method.evaluation_statistics != "running":
        loader = data.calibration_loader(method.evaluation_statistics)
        recalibrate(network, (FramePair(clip.to(device).to_float().frame(0)) for clip in loader))
    if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
        raise TrainingError(
            "Training diverged: the weights would not be finite numbers. Lower method.optimization.learning_rate, or "
            "set training.gradient_clip."
        )
    return network
