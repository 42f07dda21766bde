"""Which disk is full: loader processes hand batches over in shared memory, which is a small disk of its own."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stcl.errors import DataError

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps it; containers often have 64 MB."""

FULL = (errno.ENOSPC, errno.EDQUOT)

_LEAST_BYTES = 2**20
"""A disk with less room than this is the one that is full."""


@contextmanager
def explain_full_memory() -> Iterator[None]:
    """An error of worker processes that comes of full shared memory says so; others pass."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _is_shared_memory_full(error):
            room = f", {shutil.disk_usage(SHARED_MEMORY).total / 1e6:.0f} MB" if SHARED_MEMORY.is_dir() else ""
            raise DataError(
                f"The shared memory of this machine ({SHARED_MEMORY}{room}) is full: worker processes hand over in it "
                "what they read. Give it more room (docker run --shm-size 8g), or use fewer workers or smaller batches."
            ) from error
        raise


def _is_shared_memory_full(error: OSError | RuntimeError) -> bool:
    if isinstance(error, OSError):  # of a semaphore, which names no file
        elsewhere = error.filename is not None and not Path(error.filename).is_relative_to(SHARED_MEMORY)
        return error.errno in FULL and not elsewhere and has_no_room(SHARED_MEMORY)
    words = str(error)
    return "Bus error" in words or ("shared memory" in words and "No space left" in words)


def has_no_room(place: Path) -> bool:
    """Whether the disk of a folder is full, as far as that can be told."""
    try:
        return shutil.disk_usage(place).free < _LEAST_BYTES
    except OSError:
        return False
