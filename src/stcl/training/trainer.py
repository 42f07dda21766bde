"""Lightning's Trainer for a run: devices, precision, loggers, and the callbacks that keep the run safe."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from stcl.data.loading import process_share
from stcl.errors import SettingError, TrainingError, lacks_memory
from stcl.methods import AdaptationMethod
from stcl.training.checkpoint import CheckpointFile
from stcl.training.domains import DomainData
from stcl.training.logs import MetricsFile, StepProgress
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings, TrainingSettings
from stcl.training.steps import StepBoundary


def is_first_process() -> bool:
    """Whether this process writes the run folder: the only one, or the one of rank 0."""
    return not _get_rank()


def launched_devices(training: TrainingSettings) -> tuple[int | str, int]:
    """Devices of each machine, and machines: the settings', unless torchrun or SLURM has started the processes."""
    environment = os.environ
    if (training.devices, training.nodes) == (1, 1):
        if "LOCAL_WORLD_SIZE" in environment:  # torchrun
            here = int(environment["LOCAL_WORLD_SIZE"])
            return here, int(environment["WORLD_SIZE"]) // here
        if "SLURM_STEP_NUM_TASKS" in environment and SLURMEnvironment.detect():  # srun
            nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
            return int(environment["SLURM_STEP_NUM_TASKS"]) // nodes, nodes
    return training.devices, training.nodes


def quiet_lightning() -> None:
    """Lightning speaks only of what went wrong."""
    for part in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)


def make_trainer(
    settings: Settings, folder: RunFolder, boundary: StepBoundary, extra: list[Callback], start_step: int, quiet: bool
) -> Trainer:
    """The Trainer of a run; settings that this machine cannot follow get one sentence.

    Args:
        settings: of the run.
        folder: of the run.
        boundary: what happens between two steps.
        extra: further callbacks.
        start_step: the step at which this part of the run begins.
        quiet: no progress bar.
    """
    training = settings.training
    quiet_lightning()
    devices, nodes = launched_devices(training)
    callbacks = [boundary, *extra, *([] if quiet else [StepProgress(boundary)])]
    plugins: list[Any] = [CheckpointFile()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # the exit status asks for it, see StopRequest
    chosen = f"training.accelerator {training.accelerator!r} with training.devices {devices!r}"
    try:
        trainer = Trainer(
            max_steps=training.steps,
            max_epochs=-1,
            accelerator=training.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=_data_parallel() if (devices, nodes) not in ((1, 1), ("1", 1)) else "auto",
            precision=training.precision,
            deterministic=training.deterministic,
            benchmark=not training.deterministic,  # few sizes: cuDNN may look for the fastest algorithm once
            log_every_n_steps=min(training.log_every, training.steps),
            logger=[
                MetricsFile(folder.metrics, start_step),
                TensorBoardLogger(folder.path, name="", version="events", purge_step=start_step),
            ],
            callbacks=callbacks,
            plugins=plugins,
            enable_checkpointing=False,  # the boundary saves
            enable_progress_bar=not quiet,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError) as error:
        raise SettingError(
            f"{chosen} and training.precision {training.precision!r} cannot be used here: "
            f"{' '.join(str(error).split())} Accelerator auto and devices 1 take what this machine has."
        ) from error
    _check(trainer, training)
    # Lightning would ask all processes at every step whether one was told to stop, and wait; the boundary asks along
    # with the gradients.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _check(trainer: Trainer, training: TrainingSettings) -> None:
    """What Lightning would change or take without a word."""
    if trainer.precision != training.precision:  # Lightning would go on with another one
        raise SettingError(
            f"training.precision {training.precision!r} is not possible on {trainer.accelerator.name()}, only on a "
            f"GPU. Take {trainer.precision!r}, or 32-true."
        )
    process_share(training.batch_size, trainer.world_size)


def _data_parallel() -> DDPStrategy:
    """Buffers stay each process's own: patches differ, and statistics of batch norm are synchronised where wanted."""
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def fit(
    trainer: Trainer, method: AdaptationMethod, data: DomainData, checkpoint: Path | None, settings: Settings
) -> None:
    """Lightning's fit, whose ways of ending early become exceptions that say why.

    Args:
        trainer: see :func:`make_trainer`.
        method: what is trained.
        data: its clips.
        checkpoint: to go on from; None begins at step 0.
        settings: of the run, some of which need less memory than others.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(method, datamodule=data, ckpt_path=None if checkpoint is None else str(checkpoint))
    except SystemExit:  # how Lightning answers Ctrl+C and SIGTERM before training has begun
        raise KeyboardInterrupt from None
    except (RuntimeError, MemoryError) as error:
        sentence = str(error).splitlines()[0].strip() if str(error) else ""
        if lacks_memory(error):
            raise TrainingError(_memory_advice(sentence, settings)) from error
        if "DataLoader worker" in str(error):
            raise TrainingError(
                f"A loader process died ({sentence}). If nobody ended it, memory was short: lower training.workers or "
                "training.batch_size."
            ) from error
        raise


def _memory_advice(sentence: str, settings: Settings) -> str:
    """Which settings to lower, with their present values."""
    training, crop = settings.training, settings.method.preparation.crop
    ways = [
        f"training.gradient_checkpointing true (now {str(training.gradient_checkpointing).lower()})",
        f"training.precision bf16-mixed (now {training.precision})",
        f"a smaller training.batch_size (now {training.batch_size})",
        f"a smaller method.preparation.crop (now {'none' if crop is None else list(crop)})",
    ]
    return (
        f"The device's memory is too small ({sentence}). Start a new run with --preset 24gb, 16gb or 8gb, or with one "
        f"of these, the gentlest first: {'; '.join(ways)}."
    )
