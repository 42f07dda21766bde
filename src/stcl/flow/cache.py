"""Flow on disk: computed once, checked against the very images it is asked for."""

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stcl.errors import DataError
from stcl.files.names import file_name
from stcl.files.paths import from_home
from stcl.files.writing import open_file, write_atomic
from stcl.flow.formats import UNREADABLE_ARRAY
from stcl.types import FrameRef

VERSION = "1"
"""Of the file format; part of every file."""


class SignedFlow(Protocol):
    """A :class:`~stcl.types.FlowProvider` that names itself and its settings."""

    @property
    def signature(self) -> str:
        """What decides the result besides the images."""
        ...

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels."""
        ...


class CachedFlow:
    """A provider whose results are kept in a folder, one ``<a>_to_<b>.npz`` a pair of frames, float16.

    Each file carries the size, the provider's signature and a digest of the two images; one that belongs to other
    images, another size or another provider is an error, never silently used or replaced. Files are written whole or
    not at all, so that several worker processes may share the folder.

    Args:
        provider: computes what is not there.
        folder: where the files lie; it is made.
        compress: False makes files about 1.4 times larger and spares 10 ms of decompression (1024x512).

    Attributes:
        written: files that this object has written.
    """

    dtype = np.float16
    """Type of numbers that loses nothing of the results."""

    def __init__(self, provider: SignedFlow, folder: str | Path, compress: bool = True) -> None:
        self.provider = provider
        self.folder = from_home(folder)
        self.compress = compress
        self.written = 0

    @property
    def signature(self) -> str:
        """That of the provider: a cache changes no result but for the rounding to float16."""
        return self.provider.signature

    def path(self, a: FrameRef, b: FrameRef) -> Path:
        """File of the flow a -> b."""
        return self.folder / f"{file_name(f'{a.name}_to_{b.name}')}.npz"

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels, from the file where there is one."""
        path = self.path(a, b)
        stamp = self._stamp(image_a, image_b)
        if path.exists():
            return self._read(path, stamp, (2, *image_a.shape[:2]))
        flow = self.provider(a, b, image_a, image_b).astype(np.float16)
        try:
            write_atomic(path, self._encode(flow, stamp))
        except OSError as error:
            raise DataError(
                f"Cannot write flow to {self.folder} ({error.strerror or error}). What is finished is kept: mend that "
                "(is the disk full?) and start again."
            ) from None
        self.written += 1
        return flow.astype(np.float32)  # the rounded values, so that first and later epochs see the same

    def holds(self, a: FrameRef, b: FrameRef, size: tuple[int, int] | None) -> bool:
        """Whether the flow a -> b need not be computed, told without decoding a frame or the flow where that can be.

        A file that is younger than both frames is believed to be of these frames, once size and settings agree; that of
        frames which have been written since is not, and a call compares its digest.

        Args:
            a, b: the frames.
            size: ``(width, height)`` of the flow; None where only the frames know it.

        Raises:
            DataError: the file is damaged, or of another size or of other settings.
        """
        path = self.path(a, b)
        if not path.exists():
            return False
        stamp = {"version": VERSION, "provider": self.signature}
        with self._opened(path, stamp if size is None else {**stamp, "size": f"{size[0]}x{size[1]}"}):
            pass
        return path.stat().st_mtime > max(frame.image.stat().st_mtime for frame in (a, b))

    def _stamp(self, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]) -> dict[str, str]:
        """What a file must agree with, in the order in which disagreement is reported."""
        digest = hashlib.blake2b(np.ascontiguousarray(image_a).data, digest_size=16)
        digest.update(np.ascontiguousarray(image_b).data)
        return {
            "version": VERSION,
            "size": f"{image_a.shape[1]}x{image_a.shape[0]}",
            "provider": self.signature,
            "images": digest.hexdigest(),
        }

    def _encode(self, flow: NDArray[np.float16], stamp: dict[str, str]) -> bytes:
        buffer = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if self.compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:  # as np.savez, at a faster level
            for key, value in {**stamp, "flow": flow}.items():
                with archive.open(f"{key}.npy", "w") as entry:
                    np.lib.format.write_array(entry, np.asarray(value), allow_pickle=False)
        return buffer.getvalue()

    def _read(self, path: Path, stamp: dict[str, str], shape: tuple[int, ...]) -> NDArray[np.float32]:
        with self._opened(path, stamp) as archive:
            flow = _read_array(archive, "flow", _LARGEST_STAMP_BYTES + 2 * math.prod(shape))
            if flow.shape != shape or flow.dtype != np.float16:
                raise ValueError(f"flow of shape {flow.shape} and type {flow.dtype}")
        return flow.astype(np.float32)

    @contextmanager
    def _opened(self, path: Path, stamp: dict[str, str]) -> Iterator[zipfile.ZipFile]:
        """A file that agrees with ``stamp``; what goes wrong while it is read is said of the file."""
        try:
            with open_file(path) as file, zipfile.ZipFile(file) as archive:
                found = {key: str(_read_array(archive, key, _LARGEST_STAMP_BYTES)) for key in stamp}
                for key, wanted in stamp.items():
                    if found[key] != wanted:
                        raise DataError(
                            f"Flow cache file {path} belongs to other {_PLURAL[key]}: found {found[key]}, expected "
                            f"{wanted}. Delete the folder {self.folder}, or give this run a flow cache folder of its "
                            "own."
                        )
                yield archive
        except _UNREADABLE as error:
            raise DataError(
                f"Flow cache file {path} ({path.stat().st_size} bytes) is damaged or no flow cache file: {error}. "
                "Delete it; it will be computed again."
            ) from error


def _read_array(archive: zipfile.ZipFile, key: str, largest_bytes: int) -> NDArray[Any]:
    """An array of a ``.npz`` file; a few bytes of it may claim gigabytes."""
    size = archive.getinfo(f"{key}.npy").file_size
    if size > largest_bytes:
        raise ValueError(f"its part '{key}' has {size} bytes")
    with archive.open(f"{key}.npy") as entry:
        array: NDArray[Any] = np.lib.format.read_array(entry, allow_pickle=False)
        if entry.read(1):  # also compares the checksum
            raise ValueError(f"its part '{key}' goes on after its end")
    return array


_LARGEST_STAMP_BYTES = 4096
"""Of a part that holds a few words; the header of the flow is smaller, too."""

_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, *UNREADABLE_ARRAY)  # RuntimeError: encrypted

_PLURAL = {
    "version": "versions of the file format",
    "size": "image sizes",
    "provider": "flow settings",
    "images": "frames (digest of the pixels)",
}
