"""Files of torch.save as data: never run, and never unpacked into more than they are."""

import mmap
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from stcl.errors import CheckpointError
from stcl.files.writing import open_file

UNREADABLE = (
    *(EOFError, pickle.UnpicklingError, struct.error, AssertionError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError),
)
"""What torch.load raises at files that are damaged or hold more than data."""

LARGEST_RATIO = 4
"""How many times a file's size its parts may have: torch packs nothing, and weights that others pack shrink little."""

_ROOM = b"\nbytearray\n"
"""Name in a pickle of the one thing that torch.load makes of any length which is not in the file."""


def load_saved(path: Path, checksums: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU; nothing but tensors and plain data is read.

    Args:
        path: in the zip format, or the one before it.
        checksums: compare those of a zip file first.

    Raises:
        CheckpointError: a few bytes of it would take gigabytes, or a checksum is wrong.
        Exception: of :data:`UNREADABLE`, and zipfile.BadZipFile.
        OSError: it cannot be opened.
    """
    with open_file(path) as file:
        if checksums or file.read(2) == b"PK":
            try:
                _check_archive(path, file, checksums)
            except (zlib.error, OSError, NotImplementedError) as error:  # what damage leads to
                raise zipfile.BadZipFile(str(error)) from None
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_pickle(path, content)
    with warnings.catch_warnings():  # about the age of the format
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path, file: BufferedReader, checksums: bool) -> None:
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        unpacked = sum(part.file_size for part in parts)
        if unpacked > LARGEST_RATIO * size:
            raise CheckpointError(
                f"'{path}' has {size} bytes, but its parts say that they have {unpacked}: no checkpoint shrinks so "
                "much. Ask whoever gave it to you for the file that torch.save wrote."
            )
        for part in parts:
            if part.filename.endswith(".pkl"):
                _check_pickle(path, archive.read(part))
        if checksums and (damaged := archive.testzip()) is not None:
            raise CheckpointError(f"{path} is damaged: its part '{damaged}' does not have the right checksum.")


def _check_pickle(path: Path, content: bytes | mmap.mmap) -> None:
    if content.find(_ROOM) >= 0:
        raise CheckpointError(
            f"'{path}' holds a bytearray, which could take any memory, so it was not opened. Ask for a file with the "
            "state_dict() alone."
        )
