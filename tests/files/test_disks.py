"""The message about a full disk names the disk that is full: shared memory is one of its own."""

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from stcl.data.loading import ClipLoader
from stcl.errors import DataError, TrainingError
from stcl.files import disks
from stcl.files.disks import explain_full_memory, has_no_room
from stcl.training.devices import explained_failures
from stcl.training.run_folder import RunFolder

WORKER = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
SHARED = "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)"
FULL = [
    RuntimeError(
        f"{WORKER}unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)\n"
    ),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers"),
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm/sem.mp-1"),
]
OTHER = [
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/run/metrics.csv"),
    OSError(errno.EACCES, os.strerror(errno.EACCES)),
]


@pytest.fixture
def full(monkeypatch):
    """Shared memory has no room."""
    monkeypatch.setattr(disks, "has_no_room", lambda place: place == disks.SHARED_MEMORY)


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_full_shared_memory_is_named(full, monkeypatch, error):
    def broken(self):
        raise error
        yield

    monkeypatch.setattr(DataLoader, "__iter__", broken)
    message = r"shared memory of this machine \(/dev/shm.*\) is full: .*--shm-size.*fewer workers or smaller batches"
    with pytest.raises(DataError, match=message):
        next(iter(ClipLoader([1])))


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_other_errors_pass(full, error):
    with pytest.raises(type(error), match=re.escape(str(error))) as caught, explain_full_memory():
        raise error
    assert caught.value is error


def test_a_full_disk_elsewhere_is_not_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(disks, "has_no_room", lambda place: False)
    with pytest.raises(OSError, match="No space left"), explain_full_memory():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not has_no_room(tmp_path / "nowhere")


@pytest.mark.parametrize("file", [None, "/cache/flow.npz"])
def test_training_names_the_disk_of_the_file(tmp_path, file):
    message = rf"The disk of {file or tmp_path} is full \(No space.*--resume {tmp_path}"
    folder = RunFolder(Path(tmp_path))
    with pytest.raises(TrainingError, match=message), explained_failures(SimpleNamespace(), folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([file] if file else []))
