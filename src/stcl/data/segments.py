"""Segments of prepared data: some dozen frames in a folder, whole or not there, with a checksum for every array."""

import json
import zlib
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stcl.errors import DataError
from stcl.files.folders import new_folder, remove_listed
from stcl.files.plain import read_json
from stcl.files.writing import open_file, write_atomic

VERSION = "1"
"""Of the format; another version is never read."""

Kind = Literal["frames", "labels", "flow"]
KINDS: tuple[Kind, ...] = get_args(Kind)

REPAIR = "Prepare again, which makes this segment anew: stcl data prepare CONFIG."
_INDEX = "segment.json"


class Entry(NamedTuple):
    """One array to keep.

    Attributes:
        name: unique among those of its kind.
        stamp: says which state of its files it was made of.
        array: a frame ``(3, H, W)`` or labels ``(H, W)`` uint8, or flow ``(2, H, W)`` float16 or float32.
    """

    name: str
    stamp: str
    array: NDArray[Any]


def write_segment(path: Path, kinds: Mapping[Kind, tuple[DTypeLike, Iterable[Entry]]]) -> None:
    """Write ``<kind>.npy``, all arrays of a kind in one, and ``segment.json``: names, stamps and checksums.

    Args:
        path: folder of the segment; it appears once all of it is written.
        kinds: type of numbers and arrays of each kind; arrays are asked for one by one.
    """
    with new_folder(path) as folder:
        index = {kind: _write(folder / f"{kind}.npy", np.dtype(dtype), some) for kind, (dtype, some) in kinds.items()}
        write_atomic(folder / _INDEX, json.dumps({"checksum": _checksum(index), "kinds": index}).encode())


def is_segment(path: Path) -> bool:
    """Whether a folder is a segment, damaged or not; what is being written has a name with a dot."""
    return not path.name.startswith(".") and (path / _INDEX).is_file()


def remove_segment(path: Path) -> None:
    """Remove the files of a segment, its index last, and the folder, unless something else lies in it."""
    remove_listed(path.parent, [f"{path.name}/{file}" for file in (*(f"{kind}.npy" for kind in KINDS), _INDEX)])


class Segment:
    """A segment on disk; its arrays are read when they are asked for.

    Attributes:
        names, stamps: of the arrays of each kind, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / _INDEX
        try:
            content = read_json(path)
            if content["checksum"] != _checksum(content["kinds"]):
                raise ValueError("wrong checksum")
        except OSError as error:
            raise DataError(f"Cannot read {path} of prepared data: {error.strerror}. {REPAIR}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} of prepared data is damaged ({error}). {REPAIR}") from None
        self._kinds: dict[Kind, dict[str, Any]] = content["kinds"]
        self.names = {kind: part["names"] for kind, part in self._kinds.items()}
        self.stamps = {kind: part["stamps"] for kind, part in self._kinds.items()}

    def shape(self, kind: Kind) -> tuple[int, ...]:
        """Of one array."""
        return tuple(self._kinds[kind]["shape"])

    def is_whole(self) -> bool:
        """Whether every checksum is right."""
        try:
            for kind, names in self.names.items():
                for position in range(len(names)):
                    self.read(kind, position)
        except DataError:
            return False
        return True

    def read(self, kind: Kind, position: int) -> NDArray[Any]:
        """The array at a position; one whose checksum is wrong is an error.

        The file is opened and read for every array. A memory map would save a copy, but its pages count as the
        process's memory, it keeps files open by the thousand, and a file that is cut off kills the process.
        """
        part, path = self._kinds[kind], self.folder / f"{kind}.npy"
        count = prod(part["shape"])
        offset = part["offset"] + position * count * np.dtype(part["dtype"]).itemsize
        try:
            with open_file(path) as file:
                array = np.fromfile(file, part["dtype"], count, offset=offset)
        except OSError as error:
            raise DataError(f"Cannot read prepared file {path}: {error.strerror or error}. {REPAIR}") from None
        if array.size != count or zlib.crc32(array.data) != part["checksums"][position]:
            what = part["names"][position]
            raise DataError(f"Prepared file {path} is damaged: the {kind} of {what} have a wrong checksum. {REPAIR}")
        return array.reshape(part["shape"])


def _write(path: Path, dtype: np.dtype[Any], entries: Iterable[Entry]) -> dict[str, Any]:
    """One array file, written from front to back; returns what the index says of it."""
    part: dict[str, Any] = {"names": [], "stamps": [], "checksums": []}
    with path.open("wb") as file:
        for name, stamp, array in entries:
            if not part["names"]:
                part |= {"dtype": dtype.str, "shape": array.shape, "offset": _write_header(file, dtype, array.shape, 0)}
            if array.shape != part["shape"]:
                sizes = [f"{shape[-1]}x{shape[-2]}" for shape in (part["shape"], array.shape)]
                raise DataError(
                    f"Frame {part['names'][0]} is {sizes[0]}, but {name} is {sizes[1]}. Prepared frames have one size: "
                    "give source.size and target.size."
                )
            whole = np.ascontiguousarray(array, dtype)
            file.write(whole.data)
            part["names"].append(name)
            part["stamps"].append(stamp)
            part["checksums"].append(zlib.crc32(whole.data))
        file.seek(0)
        _write_header(file, dtype, part["shape"], len(part["names"]))  # NumPy leaves room for the count to grow
    return part


def _write_header(file: Any, dtype: np.dtype[Any], shape: tuple[int, ...], count: int) -> int:
    """The head of a ``.npy`` file; returns its bytes."""
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, about)
    return file.tell()


def _checksum(index: Any) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())
