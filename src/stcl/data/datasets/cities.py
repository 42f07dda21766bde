"""The layout of the Cityscapes packages: a folder a city, frames in one tree and labels in gtFine."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from stcl.data.base import VideoDataset
from stcl.data.listing import Key
from stcl.types import FrameRef

_NAME = r"(?P<sequence>.+_\d{6})_(?P<frame>\d{6})"


class Cities(VideoDataset):
    """What the packages have in common; root holds :attr:`package`, and ``gtFine`` where labels are wanted.

    Class attributes:
        package: folder of the frames.
    """

    package: ClassVar[str]
    splits = ("train", "val", "test")
    native_size = (2048, 1024)
    citation = "Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016"

    def find_frames(self) -> Iterable[FrameRef]:
        """Frames of every city."""
        for city in self.folders(self.folder(self.package, self.split)):
            for match, path in self.files(city, _NAME, ("_leftImg8bit.png", "_leftImg8bit.jpg")):
                yield FrameRef(match["sequence"], int(match["frame"]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files of every city; the other files of gtFine (instances, colours, polygons) are not used."""
        for city in self.folders(self.folder("gtFine", self.split)):
            for match, path in self.files(city, _NAME, ("_gtFine_labelIds.png",)):
                yield (match["sequence"], int(match["frame"])), path
