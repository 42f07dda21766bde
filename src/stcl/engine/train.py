"""Training: settings in, run folder out.

A run folder holds ``config.yaml``, ``metrics.csv``, TensorBoard events, ``checkpoints/last.ckpt``, ``model.safetensors``
(the evaluated weights) and ``status.json``. ``model.safetensors`` is written last: a folder without it is unfinished.
"""

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from stcl.engine.datamodule import DomainData
from stcl.engine.settings import Settings
from stcl.errors import CheckpointError, SettingError
from stcl.files import write_atomic
from stcl.methods import AdaptationMethod
from stcl.models import VideoSegmenter, build_segmenter, load_weights, recalibrate, save_weights
from stcl.models.transfer import transfer_weights
from stcl.resources import weights_path
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
    return weights_path(rest) if kind == "builtin" else Path(name)


def build_method(settings: Settings) -> AdaptationMethod:
    """The method of the settings around its network."""
    return settings.method_class(
        network=build_network(settings), space=settings.space, seed=settings.seed, **settings.method
    )


def train(settings: Settings, out: Path, quiet: bool = False) -> Path:
    """Train one network.

    Args:
        settings: see :func:`stcl.engine.settings.load_settings`.
        out: run folder; must not hold a run.
        quiet: no progress bar.

    Returns:
        ``out``.

    Raises:
        SettingError: the folder holds a run already.
    """
    _claim(out, settings)
    started = time.monotonic()
    method = build_method(settings)
    if settings.training.channels_last:
        method = method.to(memory_format=torch.channels_last)
    data = DomainData(settings, method.source_spec, method.target_spec)
    trainer = _trainer(settings, out, quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(method, datamodule=data)
    if trainer.interrupted:
        raise KeyboardInterrupt
    calibrate(method, data)
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
    pairs = (
        FramePair(clip.frame(0).to(device).float() / 255) for clip in data.calibration_loader(domain)
    )
    recalibrate(method.evaluated, pairs)


def load_trained(settings: Settings, weights: Path) -> VideoSegmenter:
    """The trained network of a run, in evaluation mode."""
    if not weights.is_file():
        raise CheckpointError(f"There are no weights {weights}. An interrupted training leaves none; train to the end first.")
    network = _untrained(settings)
    load_weights(network, weights)
    return network.eval()


def _untrained(settings: Settings) -> VideoSegmenter:
    setting = settings.network
    return build_segmenter(
        len(settings.space),
        setting.backbone,
        setting.head,
        setting.auxiliary,
        setting.backbone_settings,
        setting.head_settings,
    )


def _claim(out: Path, settings: Settings) -> None:
    """Make the run folder; two runs never share one."""
    if (out / CONFIG).exists():
        state = "a finished run" if (out / WEIGHTS).is_file() else "an unfinished run"
        raise SettingError(f"{out} holds {state}. Choose another folder with --out, or remove that one first.")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / CONFIG, settings.dump().encode())


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
    return Trainer(
        max_steps=training.steps,
        max_epochs=-1,
        accelerator=training.accelerator,
        devices=training.devices,
        precision=training.precision,  # type: ignore[arg-type]
        gradient_clip_val=training.gradient_clip,
        log_every_n_steps=min(training.log_every, training.steps),
        logger=[
            CSVLogger(out, name="", version="", flush_logs_every_n_steps=training.log_every),
            TensorBoardLogger(out, name="", version="tensorboard"),
        ],
        callbacks=[checkpoint, *bar],
        enable_progress_bar=not quiet,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
