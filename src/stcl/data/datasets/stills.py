"""Single labelled pictures with a number for a name: frames in one folder, labels of the same number in another."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from stcl.data.base import IMAGE_SUFFIXES, VideoDataset
from stcl.data.listing import Key
from stcl.types import FrameRef


class NumberedStills(VideoDataset):
    """Stills; the benchmarks train on all of them, so that there is one split.

    Class attributes:
        pictures, labels: folders below the root, by their parts.
    """

    pictures: ClassVar[tuple[str, ...]]
    labels: ClassVar[tuple[str, ...]]
    splits = ("train",)
    step = 0

    def find_frames(self) -> Iterable[FrameRef]:
        """Pictures."""
        for match, path in self.files(self.folder(*self.pictures), r"\d+", IMAGE_SUFFIXES):
            yield FrameRef(self.name, int(match[0]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files."""
        for match, path in self.files(self.folder(*self.labels), r"\d+", (".png",)):
            yield (self.name, int(match[0])), path
