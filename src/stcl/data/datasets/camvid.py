"""CamVid: driving in Cambridge filmed at 30 Hz, labelled once a second, at 480x360 with 11 classes.

Source: the CamVid database in the form of the SegNet tutorial: 367 train and 233 test frames (`val` is not part of it).
Labels are 8-bit PNG: 0 sky, 1 building, 2 pole, 3 road, 4 pavement, 5 tree, 6 sign, 7 fence, 8 car, 9 pedestrian,
10 bicyclist, 11 void.
"""

from collections.abc import Iterable
from pathlib import Path

from stcl.data.base import IMAGE_SUFFIXES, VideoDataset
from stcl.data.listing import Key
from stcl.types import FrameRef

_NAME = r"(?P<sequence>.+)_f?(?P<frame>\d+)"  # 0006R0_f00930, 0016E5_00390, Seq05VD_f00000


class CamVid(VideoDataset):
    """Neighbouring frames lie 30 numbers, one second, apart: motion between them is large."""

    name = "camvid"
    layout = "<root>/<split>/<sequence>_<frame>.jpg (or .png) with <root>/<split>annot/<sequence>_<frame>.png"
    splits = ("train", "test")
    native_size = (480, 360)
    citation = "Brostow et al., Semantic object classes in video: A high-definition ground truth database, PRL 2009"
    step = 31  # one frame of 0016E5 is numbered one too high

    def find_frames(self) -> Iterable[FrameRef]:
        """Frames of the split's folder."""
        for match, path in self.files(self.folder(self.split), _NAME, IMAGE_SUFFIXES):
            yield FrameRef(match["sequence"], int(match["frame"]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files of the split's annotation folder."""
        for match, path in self.files(self.folder(f"{self.split}annot"), _NAME, (".png",)):
            yield (match["sequence"], int(match["frame"])), path
