"""Files of optical flow in the formats that people publish, read into one form.

Every reader returns the flow ``(2, H, W)`` float32 in pixels of the file's own size and, ``(H, W)`` bool, where it is
known. Vectors that are unknown in a file (KITTI: third channel 0; Middlebury: above 1e9; any: not finite) hold zero.
"""

import io
import struct
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stcl.errors import DataError
from stcl.files.pictures import LARGEST_PX, read_flow_png
from stcl.files.writing import read_file

Known = tuple[NDArray[np.float32], NDArray[np.bool_]]

X10 = "_int16_x10.npy"
"""How the names of the published files of ten times the flow end."""

UNREADABLE_ARRAY = (
    *(ValueError, LookupError, TypeError, EOFError, MemoryError),
    *(SyntaxError, tokenize.TokenError, SystemError),  # the head is a Python literal
)
"""What NumPy may raise of a damaged array."""

_FLO_MAGIC = 202021.25  # "PIEH" as a float: the file has this byte order
_FLO_UNKNOWN = 1e9
_FLO_HEAD = struct.Struct("<fii")
_LONGEST_SIDE = 65536
_LARGEST_BYTES = 17 * LARGEST_PX  # two numbers of 8 bytes a pixel, and the head


def read_flow(path: Path) -> Known:
    """The flow of a file, by its ending, and where it is known.

    Args:
        path: ``.flo`` (Middlebury), ``.png`` (KITTI, 16 bits), ``_int16_x10.npy`` (ten times the flow, as published
            with DA-VSN and TPS) or ``.npy`` (floats in pixels), both ``(H, W, 2)``.

    Raises:
        DataError: the file cannot be read, is cut off, has another form, or no vector of it is known.
    """
    try:
        flow, known = READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"Cannot read flow file {path}: {error.strerror or error}.") from error
    if not known.any():
        raise DataError(f"Flow file {path} holds no known vector: all are marked as unknown. Write it again.")
    return np.where(known, flow, np.float32(0)), known


def read_flo(path: Path) -> Known:
    """Middlebury: the number 202021.25, width, height, then u and v of each pixel by rows, little-endian floats."""
    content = read_file(path, _LARGEST_BYTES)
    if len(content) < _FLO_HEAD.size or _FLO_HEAD.unpack_from(content)[0] != _FLO_MAGIC:
        raise DataError(
            f"Flow file {path} ({len(content)} bytes) does not begin as a Middlebury .flo file does. Is it one?"
        )
    _, width, height = _FLO_HEAD.unpack_from(content)
    if not (0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE):
        raise DataError(f"Flow file {path} says that it is {width}x{height} pixels. It is damaged: copy it again.")
    wanted = _FLO_HEAD.size + width * height * 8
    if len(content) != wanted:
        raise DataError(
            f"Flow file {path} has {len(content)} bytes, but {width}x{height} pixels need {wanted}. Copy it again."
        )
    stored = np.frombuffer(content, "<f4", offset=_FLO_HEAD.size).reshape(height, width, 2)
    return _planes(stored)


def read_npy(path: Path) -> Known:
    """``(H, W, 2)``: integers of ten times the flow where the name ends in :data:`X10`, else floats in pixels."""
    content = read_file(path, _LARGEST_BYTES)
    try:
        stored: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except UNREADABLE_ARRAY as error:
        raise DataError(
            f"Flow file {path} ({len(content)} bytes) is damaged or no array: {error}. Copy it again."
        ) from error
    if stored.ndim != 3 or stored.shape[2] != 2 or 0 in stored.shape:
        raise DataError(f"Flow file {path}: expected an array (height, width, 2) of (u, v), found {stored.shape}.")
    tenths = path.name.endswith(X10)
    if tenths and stored.dtype != np.int16:
        raise DataError(f"Flow file {path}: a name in {X10} promises int16, found {stored.dtype}. Rename it.")
    if not tenths and stored.dtype.kind != "f":
        raise DataError(
            f"Flow file {path}: expected floats in pixels, found {stored.dtype}. Integers of ten times the flow belong "
            f"into files whose names end in {X10}."
        )
    return _planes(stored / np.float32(10) if tenths else stored)


READERS: dict[str, Callable[[Path], Known]] = {".flo": read_flo, ".png": read_flow_png, ".npy": read_npy}
"""Every format by the ending of its files."""


def _planes(stored: NDArray[np.floating]) -> Known:
    """``(H, W, 2)`` as ``(2, H, W)``, and where both numbers are known."""
    with np.errstate(over="ignore"):
        flow = np.ascontiguousarray(stored.transpose(2, 0, 1), dtype=np.float32)
    known: NDArray[np.bool_] = np.abs(flow).max(axis=0) <= _FLO_UNKNOWN  # False also where they are not numbers
    return flow, known
