"""What a video is, wherever it comes from: frames in order, with their times; and folders of pictures as videos."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stcl.data.base import IMAGE_SUFFIXES
from stcl.data.io import read_image
from stcl.errors import DataError
from stcl.files.names import file_name, same_file
from stcl.files.paths import real_path
from stcl.files.writing import counting_order


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video.

    Attributes:
        index: from 0.
        ticks: when it is shown, in ``time_base_s`` of its source, counted from the first frame.
        image: ``(H, W, 3)`` uint8 RGB, upright.
        name: for the files that are made of it.
        follows: whether it comes right after the frame before; False for the first frame and after a gap.
    """

    index: int
    ticks: int
    image: NDArray[np.uint8]
    name: str
    follows: bool


class FrameSource(Protocol):
    """Where frames come from.

    Attributes:
        name: fit for a folder.
        fps: frames a second, as the source says.
        time_base_s: seconds of a tick.
        size: ``(height, width)`` px of the first frame.
        count: number of frames as far as it is known.
        live: a camera or a stream from the net: it has no beginning to go back to, and no end.
    """

    name: str
    fps: Fraction
    time_base_s: Fraction
    size: tuple[int, int]
    count: int | None
    live: bool

    def frames(self, first: int = 0) -> Iterator[VideoFrame]:
        """Frames from number ``first`` on, in order; an error comes after the last frame that could be had."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells this video from another one, as plain data."""
        ...


class FrameFolder:
    """Pictures of a folder as a video, in counting order.

    A jump in their numbers (the last one in a name) that is larger than the usual step is a gap, and so is another name
    before the number.

    Args:
        path: folder with PNG or JPEG files.
        fps: frames a second to show them at.
    """

    live = False

    def __init__(self, path: Path, fps: Fraction = Fraction(10)) -> None:
        self.path = path
        self.name = file_name(real_path(path).name)
        self.fps = fps
        self.time_base_s = 1 / fps
        files = (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        self._files = sorted(files, key=lambda file: counting_order(file.name))
        if not self._files:
            others = sorted(file.name for file in path.iterdir())[:3]
            found = f"there is: {', '.join(others)}, ..." if others else "it is empty"
            raise DataError(
                f"Folder {path} holds no frame ({', '.join(IMAGE_SUFFIXES)}); {found}. Name the folder that holds the "
                "frames themselves, or the video files one by one."
            )
        taken = set[str]()
        for file in self._files:
            name = same_file(file_name(file.stem))
            if name in taken:
                raise DataError(f"Folder {path} holds two pictures named '{file.stem}'. Keep one of each name.")
            taken.add(name)
        self.count: int | None = len(self._files)
        self.size = read_image(self._files[0]).shape[:2]
        self._follows = follows([file.stem for file in self._files])

    def frames(self, first: int = 0) -> Iterator[VideoFrame]:
        """Frames from number ``first`` on; all must have one size."""
        for index in range(first, len(self._files)):
            file = self._files[index]
            image = read_image(file)
            if image.shape[:2] != self.size:
                raise DataError(
                    f"Frame {file} is {image.shape[1]}x{image.shape[0]}, but the first one, {self._files[0].name}, is "
                    f"{self.size[1]}x{self.size[0]}. A video has one size: put other sizes into other folders."
                )
            yield VideoFrame(index, index, image, file_name(file.stem), self._follows[index])

    def identity(self) -> dict[str, Any]:
        """The folder with names and sizes of its pictures."""
        listing = "\n".join(f"{file.name} {file.stat().st_size}" for file in self._files)
        digest = hashlib.blake2b(os.fsencode(listing), digest_size=16).hexdigest()
        return {"folder": str(real_path(self.path)), "frames": self.count, "digest": digest}


def follows(names: list[str]) -> list[bool]:
    """For each name of a frame, whether its number goes on from the one before by the usual step.

    The number is the last one in the name before what all names end with, as in ``aachen_000001_000019_leftImg8bit``.
    """
    columns = zip(*(reversed(name) for name in names), strict=False)
    common = "".join(letters[0] for letters in takewhile(lambda letters: len({*letters}) == 1, columns))
    ending = common[::-1].lstrip("0123456789")  # no half of a number
    parts = [re.fullmatch(r"(.*?)(\d*)(\D*)", name[: len(name) - len(ending)]) for name in names]
    heads = [(part[1], part[3]) if part else ("", "") for part in parts]
    numbers = [int(part[2]) if part and part[2] else None for part in parts]
    if all(number is None for number in numbers):  # the order is all that there is
        return [place > 0 for place in range(len(names))]
    steps = [
        0 if a is None or b is None or head != next_head else b - a
        for (head, a), (next_head, b) in pairwise(zip(heads, numbers, strict=True))
    ]
    usual = Counter(step for step in steps if step > 0).most_common(1)
    longest = usual[0][0] if usual else 0
    return [False, *(0 < step <= longest for step in steps)]
