"""Flow that others have computed, from files named after their frames.

The benchmarks publish ``<frame>_<previous frame>_int16_x10.npy``; own files are ``<frame>_to_<other frame>`` with the
ending ``.flo``, ``.png`` or ``.npy``. See docs/flow.md for the names and where they are looked for.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stcl.errors import DataError, SettingError
from stcl.files.names import LONGEST_BYTES
from stcl.files.paths import from_home
from stcl.flow.formats import X10, read_flow
from stcl.ops.warp import UNKNOWN_PX, resize_flow
from stcl.types import FrameRef

_ENDINGS = (".flo", ".png", ".npy")
_DEPTH = 6
"""Folders above a frame that a flow folder may mirror."""


class FilesFlow:
    """Flow from files, rescaled per axis to the images' size.

    A vector that is unknown in its file becomes ``(UNKNOWN_PX, 0)``, which leaves every frame: so no pseudo label is
    taken from there (:func:`stcl.ops.warp.inside`), and what is warped takes the border's value.

    Args:
        folder: where the files lie, in one folder or in a tree that mirrors the frames' folders.
        uncropped: ``(width, height)`` of frames that are cropped when they are read: flow of that shape shows more than
            the frames do, and is refused.
    """

    def __init__(self, folder: str | Path | None = None, uncropped: tuple[int, int] | None = None) -> None:
        if folder is None:
            raise SettingError("flow.folder is not set: flow 'files' needs the folder that the flow files lie in.")
        self.folder = from_home(folder).absolute()
        if not self.folder.is_dir():
            raise SettingError(f"flow.folder {self.folder} is not a folder. Flow 'files' needs one with flow files.")
        self.uncropped = uncropped
        self._frames: dict[Path, str] = {}  # file -> the frame that it was taken for

    @property
    def signature(self) -> str:
        """What decides the result besides the images."""
        return f"files({self.folder})"

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels of images ``(H, W, 3)`` uint8 RGB."""
        path = self.source_path(a, b)
        flow, known = read_flow(path)
        height, width = flow.shape[1:]
        if self.uncropped is not None and abs(width / height - self.uncropped[0] / self.uncropped[1]) < 0.01:
            raise DataError(
                f"Flow file {path} is {width}x{height}, the shape of whole frames of {self.uncropped[0]}x"
                f"{self.uncropped[1]}, but the data set crops its frames. Give the flow of cropped frames."
            )
        return fit(flow, known, (image_a.shape[0], image_a.shape[1]))

    def source_path(self, a: FrameRef, b: FrameRef) -> Path:
        """The file of the flow a -> b: the one that lies deepest in the mirrored tree, own names first."""
        folders = [folder for folder in self._folders(a) if folder.is_dir()]
        path = next((folder / name for folder in folders for name in names(a, b) if (folder / name).is_file()), None)
        if path is None:
            raise DataError(
                f"No flow file from frame {a.name} to frame {b.name} in {', '.join(map(str, folders))}. Looked for: "
                f"{', '.join(names(a, b))}. Put it there, or use flow 'dis'."
            )
        other = self._frames.setdefault(path, a.name)
        if other != a.name:
            raise DataError(
                f"Flow file {path} fits two frames, {other} and {a.name}: its name leaves the sequence open. "
                "Put the files of each sequence into a folder of the sequence's name."
            )
        return path

    def _folders(self, frame: FrameRef) -> Iterator[Path]:
        """Below the flow folder: every run of the folders above a frame, the longest first, then itself."""
        above = frame.image.absolute().parent.parts[1:][-_DEPTH:]
        for length in range(len(above), 0, -1):
            for end in range(len(above), length - 1, -1):
                yield self.folder.joinpath(*above[end - length : end])
        yield self.folder


def names(a: FrameRef, b: FrameRef) -> list[str]:
    """Names of the files that can hold the flow a -> b, in the order in which they are looked for; none is too long."""
    one, other = _stem(a), _stem(b)
    pairs = dict.fromkeys(((one, other), (a.name, b.name)))
    found = [f"{first}_to_{second}{ending}" for first, second in pairs for ending in _ENDINGS]
    digits = re.search(r"\d+$", other)
    if digits is not None:  # the second as the published training scripts join the numbers of VIPER
        found += [f"{one}_{digits[0]}{X10}", f"{one}{digits[0]}{X10}"]
    if b.number == a.number - 1:
        found.append(f"{one}{X10}")
    return [name for name in found if len(os.fsencode(name)) <= LONGEST_BYTES]


def fit(flow: NDArray[np.float32], known: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float32]:
    """Flow ``(2, h, w)``, zero where it is not ``known (h, w)``, at ``size (H, W)``: ``(2, H, W)`` pixels of that size.

    A vector is the mean of the known ones around it, by their weight in bilinear resizing, and unknown where these have
    less than half of it.
    """
    vectors, weight = torch.from_numpy(flow)[None], torch.from_numpy(known)[None, None].float()
    if flow.shape[1:] != size:
        vectors = resize_flow(vectors, size, align_corners=False)
        weight = F.interpolate(weight, size, mode="bilinear", align_corners=False)
    unknown = torch.tensor((UNKNOWN_PX, 0.0)).view(1, 2, 1, 1)
    return torch.where(weight >= 0.5, vectors / weight.clamp(min=0.5), unknown)[0].numpy()


def _stem(frame: FrameRef) -> str:
    """The frame's own name: that of its file without what all files of a data set share, or of the video and frame."""
    return frame.name if frame.frame is not None else frame.image.stem.removesuffix("_leftImg8bit")
