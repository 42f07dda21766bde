"""Where a run's devices come from."""

import pytest

from stcl.training.devices import launched_devices
from stcl.training.settings import TrainingSettings

TORCHRUN = {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_NTASKS": "6", "SLURM_JOB_NAME": "train", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "2"}
SBATCH = {"SLURM_NTASKS": "6", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "3"}  # one process, before srun


@pytest.mark.parametrize(
    ("environment", "training", "expected"),
    [
        ({}, TrainingSettings(), (1, 1)),
        ({}, TrainingSettings(devices=2, nodes=3), (2, 3)),
        (TORCHRUN, TrainingSettings(), (4, 2)),
        (SRUN, TrainingSettings(), (3, 2)),
        (SBATCH, TrainingSettings(), (1, 1)),
        (TORCHRUN, TrainingSettings(devices=4, nodes=2), (4, 2)),
    ],
)
def test_launchers_say_how_many(environment, training, expected, monkeypatch):
    for name in {*TORCHRUN, *SRUN, *SBATCH}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_devices(training.devices, training.nodes) == expected
