"""Cityscapes: single labelled pictures of city driving, 2048x1024.

Source: Cityscapes packages leftImg8bit and gtFine: 2,975 train and 500 val pictures. Labels are 8-bit PNG of Cityscapes
label ids. With the frames before each picture it is the data set `cityscapes_seq`.
"""

from collections.abc import Iterable
from pathlib import Path

from stcl.data.base import VideoDataset
from stcl.data.listing import Key
from stcl.types import FrameRef

_NAME = r"(?P<sequence>.+_\d{6})_(?P<frame>\d{6})"


class Cityscapes(VideoDataset):
    """Root holds ``leftImg8bit``, and ``gtFine`` where labels are wanted."""

    name = "cityscapes"
    layout = (
        "<root>/leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png with "
        "<root>/gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png"
    )
    splits = ("train", "val", "test")
    native_size = (2048, 1024)
    citation = "Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016"
    step = 0

    def find_frames(self) -> Iterable[FrameRef]:
        """Pictures of every city."""
        for city in self.folders(self.folder("leftImg8bit", self.split)):
            for match, path in self.files(city, _NAME, ("_leftImg8bit.png", "_leftImg8bit.jpg")):
                yield FrameRef(match["sequence"], int(match["frame"]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files of every city; the other files of gtFine (instances, colours, polygons) are not used."""
        for city in self.folders(self.folder("gtFine", self.split)):
            for match, path in self.files(city, _NAME, ("_gtFine_labelIds.png",)):
                yield (match["sequence"], int(match["frame"])), path
