"""SYNTHIA-RAND-CITYSCAPES: single rendered pictures of a city, 1280x760, with the classes of Cityscapes.

Source: the SYNTHIA data set, 9,400 pictures. Labels: 16-bit PNG with 3 channels, the class id in the first (red) one
and an instance id in the second. The ids are not those of SYNTHIA-Seq.
"""

from collections.abc import Iterable
from pathlib import Path

from stcl.data.base import IMAGE_SUFFIXES, VideoDataset
from stcl.data.listing import Key
from stcl.types import FrameRef


class SynthiaRand(VideoDataset):
    """Stills; the benchmark trains on all of them, so that there is one split."""

    name = "synthia_rand"
    layout = "<root>/RGB/<number>.png with <root>/GT/LABELS/<number>.png"
    splits = ("train",)
    native_size = (1280, 760)
    citation = "Ros et al., The SYNTHIA Dataset, CVPR 2016"
    step = 0
    label_channel = 0

    def find_frames(self) -> Iterable[FrameRef]:
        """Pictures."""
        for match, path in self.files(self.folder("RGB"), r"\d+", IMAGE_SUFFIXES):
            yield FrameRef(self.name, int(match[0]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files."""
        for match, path in self.files(self.folder("GT", "LABELS"), r"\d+", (".png",)):
            yield (self.name, int(match[0])), path
