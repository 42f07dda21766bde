"""GTA5: single labelled pictures of driving in a game.

Source: Playing for Data, 24,966 pictures of about 1914x1052; sizes vary a little. Labels are palette PNG, whose indices
are Cityscapes label ids.
"""

from collections.abc import Iterable
from pathlib import Path

from stcl.data.base import IMAGE_SUFFIXES, VideoDataset
from stcl.data.listing import Key
from stcl.types import FrameRef

_MISFITS = {15188, 17705, *range(20801, 20861)}
"""Pictures that are known to differ in size from their label map."""


class GTA5(VideoDataset):
    """Stills; the benchmark trains on all of them, so that there is one split."""

    name = "gta5"
    layout = "<root>/images/<number>.png with <root>/labels/<number>.png"
    splits = ("train",)
    native_size = (1914, 1052)
    citation = "Richter et al., Playing for Data: Ground Truth from Computer Games, ECCV 2016"
    step = 0

    def find_frames(self) -> Iterable[FrameRef]:
        """Pictures."""
        for match, path in self.files(self.folder("images"), r"\d+", IMAGE_SUFFIXES):
            yield FrameRef(self.name, int(match[0]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files."""
        for match, path in self.files(self.folder("labels"), r"\d+", (".png",)):
            yield (self.name, int(match[0])), path

    def benchmark_frames(self, index: list[FrameRef]) -> list[FrameRef]:
        """All but the 62 whose label is of another size: there picture and label show different things at a pixel."""
        return [ref for ref in index if ref.number not in _MISFITS]
