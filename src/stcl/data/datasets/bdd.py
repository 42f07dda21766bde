"""BDDVid: frames of BDD100K videos around the labelled frame of BDD10K, 1280x720.

Source: UnifiedVideoDA (Kareer et al. 2024, arXiv 2402.00868) takes frames 303 to 311 of 2,999 train and 430 val videos,
of which 307 is the one that BDD10K labels. In the splits `..._orig_10k` that frame is BDD10K's own picture, which its
label fits exactly: measure on `val_orig_10k`. Labels: 8-bit PNG of Cityscapes train ids, 255 ignored.
"""

from collections.abc import Iterable
from pathlib import Path

from stcl.data.base import IMAGE_SUFFIXES, VideoDataset
from stcl.data.listing import Key
from stcl.types import FrameRef

LABELLED_FRAME = 307

_NAME = r"(?P<sequence>.+)_(?P<frame>\d+)"  # 0004974f-05e1c285_307


class BDD(VideoDataset):
    """One folder of frames for all videos of a split, as UnifiedVideoDA's set-up scripts leave it."""

    name = "bdd"
    layout = "<root>/<split>/images/<video>_<frame>.jpg with <root>/<split>/labels/<video>_307.png"
    splits = ("train", "val", "train_orig_10k", "val_orig_10k")
    native_size = (1280, 720)
    citation = "Yu et al., BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning, CVPR 2020"
    sparse = True

    def find_frames(self) -> Iterable[FrameRef]:
        """Frames of the split's image folder."""
        for match, path in self.files(self.folder(self.split, "images"), _NAME, IMAGE_SUFFIXES):
            yield FrameRef(match["sequence"], int(match["frame"]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files of the split's label folder."""
        for match, path in self.files(self.folder(self.split, "labels"), _NAME, (".png",)):
            yield (match["sequence"], int(match["frame"])), path

    def benchmark_frames(self, index: list[FrameRef]) -> list[FrameRef]:
        """Frame 307 of each video."""
        return [ref for ref in index if ref.number == LABELLED_FRAME]
