"""SYNTHIA-Seq: rendered city driving with a label for every frame.

Source: the SYNTHIA video sequences; the benchmark uses SEQS-04-DAWN, camera Stereo_Left/Omni_F: 850 frames of
1280x760. Labels: 16-bit PNG with 3 channels, the class id in the first (red) one and an instance id in the second.
The bottom 120 rows are cropped (to 1280x640) before any resizing.
"""

from collections.abc import Iterable
from pathlib import Path

from numpy.typing import NDArray

from stcl.data.base import IMAGE_SUFFIXES, VideoDataset
from stcl.data.listing import Key
from stcl.errors import DataError
from stcl.types import FrameRef

_FOLDERS = (  # frames, labels; the longer one first, for file systems to which "RGB" is "rgb"
    ("RGB/Stereo_Left/Omni_F", "GT/LABELS/Stereo_Left/Omni_F"),
    ("rgb", "label"),
)
_CROPPED_ROWS = 120


class SynthiaSeq(VideoDataset):
    """Root is one sequence folder or a folder of several; the published data have no splits, all frames are `train`.

    The crop is done for frames of exactly 1280x760, the published size; other sizes, such as rendered trees in this
    layout, are used whole.
    """

    name = "synthia_seq"
    layout = (
        "<root>[/<sequence>]/rgb/<frame>.png with label/<frame>.png, "
        "or RGB/Stereo_Left/Omni_F/<frame>.png with GT/LABELS/Stereo_Left/Omni_F/<frame>.png"
    )
    splits = ("train",)
    native_size = (1280, 760)
    citation = "Ros et al., The SYNTHIA Dataset, CVPR 2016"
    label_channel = 0

    def find_frames(self) -> Iterable[FrameRef]:
        """Frames of every sequence folder."""
        for sequence, (frames, _) in self._sequences():
            for match, path in self.files(sequence / frames, r"(\d+)", IMAGE_SUFFIXES):
                yield FrameRef(sequence.name, int(match[1]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files of every sequence folder."""
        for sequence, (_, labels) in self._sequences():
            folder = self.folder(*(sequence / labels).relative_to(self.root).parts)
            for match, path in self.files(folder, r"(\d+)", (".png",)):
                yield (sequence.name, int(match[1])), path

    def crop(self, pixels: NDArray) -> NDArray:  # type: ignore[type-arg]
        """Frames and labels of the published size without the bottom 120 rows (the ego vehicle)."""
        width, height = self.native_size
        return pixels[:-_CROPPED_ROWS] if pixels.shape[:2] == (height, width) else pixels

    def _sequences(self) -> list[tuple[Path, tuple[str, str]]]:
        """Sequence folders with the names of their frame and label folders."""
        found = []
        for folder in [self.root, *self.folders(self.root)]:
            names = next((names for names in _FOLDERS if (folder / names[0]).is_dir()), None)
            if names is not None:
                found.append((folder, names))
        if not found:
            there = ", ".join(sorted(path.name for path in self.root.iterdir())[:12]) or "nothing"
            raise DataError(f"{self}: no sequence found; there is: {there}. Expected: {self.layout}")
        return found
