"""Devices, precision and processes of a run, by Lightning Fabric; and what it means when they fail."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only

from stcl.data.loading import process_share
from stcl.errors import SettingError, TrainingError, lacks_memory
from stcl.files.disks import FULL
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings, TrainingSettings


def is_first_process() -> bool:
    """Whether this process writes the run folder: the only one, or the one of rank 0."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def launched_devices(devices: int | str, nodes: int = 1) -> tuple[int | str, int]:
    """Devices of each machine, and machines: the settings', unless torchrun or SLURM has started the processes."""
    environment = os.environ
    if (devices, nodes) == (1, 1):
        if "LOCAL_WORLD_SIZE" in environment:  # torchrun
            here = int(environment["LOCAL_WORLD_SIZE"])
            return here, int(environment["WORLD_SIZE"]) // here
        if "SLURM_STEP_NUM_TASKS" in environment and SLURMEnvironment.detect():  # srun
            nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
            return int(environment["SLURM_STEP_NUM_TASKS"]) // nodes, nodes
    return devices, nodes


def quiet_lightning() -> None:
    """Lightning speaks only of what went wrong."""
    for part in ("fabric", "pytorch"):  # both log, whichever is used
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)


def make_fabric(training: TrainingSettings, loggers: list[Logger] | None = None) -> Fabric:
    """Devices and precision of a run, whose processes are not launched yet.

    Raises:
        SettingError: this machine cannot follow the settings.
    """
    quiet_lightning()
    devices, nodes = launched_devices(training.devices, training.nodes)
    single = (devices, nodes) in ((1, 1), ("1", 1))
    # buffers stay each process's own: patches differ, and statistics of batch norm are synchronised where wanted
    strategy = "auto" if single else DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fabric = Fabric(
                accelerator=training.accelerator,
                devices=devices,
                num_nodes=nodes,
                strategy=strategy,
                precision=training.precision,
                loggers=loggers,
            )
    except (MisconfigurationException, ImportError, ValueError, TypeError, RuntimeError) as error:
        raise SettingError(
            f"training.accelerator {training.accelerator!r} with training.devices {devices!r} and training.precision "
            f"{training.precision!r} cannot be used here: {' '.join(str(error).split())} Accelerator auto and devices "
            "1 take what this machine has."
        ) from error
    precision = fabric.strategy.precision.precision
    if precision != training.precision:  # Fabric would go on with another one
        raise SettingError(
            f"training.precision {training.precision!r} is not possible on {fabric.device.type}, only on a GPU. Take "
            f"{precision!r}, or 32-true."
        )
    process_share(training.batch_size, fabric.world_size)
    torch.use_deterministic_algorithms(training.deterministic)
    torch.backends.cudnn.benchmark = not training.deterministic  # few sizes: look for the fastest algorithm once
    if training.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return fabric


@contextmanager
def explained_failures(settings: Settings, folder: RunFolder | None = None) -> Iterator[None]:
    """Say what helps: full memory, loader processes that died and, for a run in ``folder``, full disks."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, MemoryError) as error:
        sentence = str(error).splitlines()[0].strip() if str(error) else ""
        if lacks_memory(error):
            training, crop = settings.training, settings.method.preparation.crop
            raise TrainingError(
                f"The device's memory is too small ({sentence}). Start a new run with --preset 24gb, 16gb or 8gb, or "
                "with one of these, the gentlest first: training.gradient_checkpointing true (now "
                f"{str(training.gradient_checkpointing).lower()}); training.precision bf16-mixed (now "
                f"{training.precision}); a smaller training.batch_size (now {training.batch_size}); a smaller "
                f"method.preparation.crop (now {'none' if crop is None else list(crop)})."
            ) from error
        if "DataLoader worker" in str(error):
            raise TrainingError(
                f"A loader process died ({sentence}). If nobody ended it, memory was short: lower training.workers or "
                "training.batch_size."
            ) from error
        raise
    except OSError as error:
        if folder is None or error.errno not in FULL:
            raise
        last = folder.checkpoint
        kept = f"The last good checkpoint stays: {last}" if last.exists() else "Nothing is lost"
        raise TrainingError(
            f"The disk of {error.filename or folder.path} is full ({error.strerror}). {kept}. Make room and go on "
            f"with: stcl train --resume {folder.path}."
        ) from error
