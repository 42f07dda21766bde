"""Training: settings in, run folder out.

A run folder holds ``config.yaml``, ``metrics.csv``, TensorBoard events, ``checkpoints/last.ckpt`` (from the first
``training.checkpoint_every`` steps on), ``status.json`` and ``model.safetensors`` (the evaluated weights), which is
written last: a folder without it is unfinished.
"""

import json
import logging
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from stcl.engine.datamodule import DomainData
from stcl.engine.settings import Settings
from stcl.errors import CheckpointError, SettingError, StclError
from stcl.files import write_atomic
from stcl.methods import AdaptationMethod
from stcl.models import VideoSegmenter, build_segmenter, load_weights, recalibrate, save_weights
from stcl.models.transfer import transfer_weights
from stcl.resources import list_weights, weights_path
from stcl.types import FramePair

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
STATUS = "status.json"


def build_network(settings: Settings) -> VideoSegmenter:
    """The network of the settings with its starting weights; the same seed gives the same random ones."""
    setting = settings.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = _untrained(settings)
    if setting.weights is not None:
        transfer_weights(network, resolve_weights(setting.weights), settings.space.names)
    return network


def resolve_weights(name: str) -> Path:
    """A path, or ``builtin:NAME`` for weights that ship with the package."""
    kind, _, rest = name.partition(":")
    if kind == "builtin":
        return weights_path(rest)
    path = Path(name).expanduser()
    if not path.is_file():
        builtin = ", ".join(f"builtin:{known}" for known in list_weights()) or "none in this install"
        raise CheckpointError(
            f"There is no weights file '{path}' (network.weights). Give the path of a .safetensors file, or one that "
            f"comes with the package ({builtin})."
        )
    return path


def build_method(settings: Settings) -> AdaptationMethod:
    """The method of the settings around its network."""
    return settings.method_class(
        network=build_network(settings), space=settings.space, seed=settings.seed, **settings.method
    )


def train(settings: Settings, out: Path, quiet: bool = False) -> Path:
    """Train one network.

    Args:
        settings: see :func:`stcl.engine.config.load_settings`.
        out: run folder; must not hold a run.
        quiet: no progress bar.

    Returns:
        ``out``.

    Raises:
        SettingError: the folder holds a run already, or a setting cannot work.
        KeyboardInterrupt: training was interrupted; the folder has no weights and counts as unfinished.
    """
    _refuse_taken(out)
    started = time.monotonic()
    method = build_method(settings)
    if settings.training.channels_last:
        method = method.to(memory_format=torch.channels_last)
    data = DomainData(settings, method.source_spec, method.target_spec)
    trainer = _trainer(settings, out, quiet)
    _claim(out, settings)  # only now: settings that cannot work leave no folder behind
    _fit(trainer, method, data)
    calibrate(method, data)
    if not all(bool(tensor.isfinite().all()) for tensor in method.evaluated.state_dict().values()):
        raise SettingError(
            f"Training diverged: weights of {out} would not be finite numbers. Lower "
            "method.optimization.learning_rate, or set training.gradient_clip."
        )
    seconds = time.monotonic() - started
    metadata = {"config": settings.dump(), "classes": json.dumps(settings.space.names), "selection": "last EMA weights"}
    status = {"finished": True, "steps": trainer.global_step, "seconds": round(seconds, 1)}
    write_atomic(out / STATUS, json.dumps(status, indent=2).encode())
    save_weights(method.evaluated, out / WEIGHTS, metadata)
    return out


def calibrate(method: AdaptationMethod, data: DomainData) -> None:
    """Recompute the evaluated network's batch-norm statistics on the domain that the settings name."""
    domain = method.evaluation_statistics
    if domain == "running":
        return
    device = method.device
    pairs = (FramePair(clip.to(device).to_float().frame(0)) for clip in data.calibration_loader(domain))
    recalibrate(method.evaluated, pairs)


def load_trained(settings: Settings, weights: Path) -> VideoSegmenter:
    """The trained network of a run, in evaluation mode."""
    if not weights.is_file():
        raise CheckpointError(
            f"{weights.parent} holds no {weights.name}: its training was interrupted or is still running. Wait for it, "
            "or remove that folder and train again."
        )
    network = _untrained(settings)
    load_weights(network, weights)
    return network.eval()


def _untrained(settings: Settings) -> VideoSegmenter:
    setting = settings.network
    try:
        return build_segmenter(
            len(settings.space),
            setting.backbone,
            setting.head,
            setting.auxiliary,
            setting.backbone_settings,
            setting.head_settings,
        )
    except StclError:
        raise
    except (TypeError, ValueError) as error:  # their values go to the network as they are
        raise SettingError(
            f"network.backbone_settings {setting.backbone_settings} and network.head_settings {setting.head_settings} "
            f"do not fit backbone '{setting.backbone}' and head '{setting.head}': {error}."
        ) from error


def _refuse_taken(out: Path) -> None:
    """Two runs never share a folder."""
    if (out / CONFIG).exists():
        state = "a finished run" if (out / WEIGHTS).is_file() else "an unfinished run"
        raise SettingError(f"{out} holds {state}. Choose another folder with --out, or remove that one first.")


def _claim(out: Path, settings: Settings) -> None:
    """Make the run folder."""
    _refuse_taken(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / CONFIG, settings.dump().encode())
    except OSError as error:
        raise SettingError(f"Cannot write run folder {out} ({error.strerror}). Choose another with --out.") from None


def _fit(trainer: Trainer, method: AdaptationMethod, data: DomainData) -> None:
    """Lightning's fit, whose ways of stopping early become exceptions that say why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(method, datamodule=data)
    except SystemExit:  # how Lightning answers Ctrl+C (status 1) and SIGTERM (status 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which it has switched off
        raise KeyboardInterrupt from None
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"The device's memory is too small ({str(error).splitlines()[0]}). Make training.batch_size or the sizes "
            "of source and target smaller, or set training.precision to bf16-mixed."
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise SettingError(
            f"A loader process died ({str(error).splitlines()[0].strip()}). If nobody ended it, memory was short: "
            "lower training.workers or training.batch_size."
        ) from error
    if trainer.interrupted:
        raise KeyboardInterrupt


def _trainer(settings: Settings, out: Path, quiet: bool) -> Trainer:
    training = settings.training
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    checkpoint = ModelCheckpoint(
        dirpath=out / "checkpoints",
        filename="last",
        every_n_train_steps=training.checkpoint_every,
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    bar: list[Any] = [] if quiet else [RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3f"))]
    chosen = f"training.accelerator {training.accelerator!r} with training.devices {training.devices!r}"
    try:
        trainer = Trainer(
            max_steps=training.steps,
            max_epochs=-1,
            accelerator=training.accelerator,
            devices=training.devices,
            precision=training.precision,
            gradient_clip_val=training.gradient_clip,
            log_every_n_steps=min(training.log_every, training.steps),
            logger=[
                CSVLogger(out, name="", version="", flush_logs_every_n_steps=training.log_every),
                TensorBoardLogger(out, name="", version="events"),
            ],
            callbacks=[checkpoint, *bar],
            enable_progress_bar=not quiet,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
        raise SettingError(
            f"{chosen} and training.precision {training.precision!r} cannot be used here: "
            f"{' '.join(str(error).split())} Accelerator auto and devices 1 take what this machine has."
        ) from error
    if trainer.world_size > 1:
        raise SettingError(f"{chosen} is {trainer.world_size} devices; a run uses one. Set training.devices to 1.")
    return trainer
