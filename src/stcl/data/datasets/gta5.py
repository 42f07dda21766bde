"""GTA5: single labelled pictures of driving in a game.

Source: Playing for Data, 24,966 pictures of about 1914x1052; sizes vary a little. Labels are palette PNG, whose indices
are Cityscapes label ids.
"""

from stcl.data.datasets.stills import NumberedStills
from stcl.types import FrameRef

_MISFITS = {15188, 17705, *range(20801, 20861)}
"""Pictures that are known to differ in size from their label map."""


class GTA5(NumberedStills):
    """The whole data set; the benchmark leaves out a few of its pictures."""

    name = "gta5"
    pictures, labels = ("images",), ("labels",)
    layout = "<root>/images/<number>.png with <root>/labels/<number>.png"
    native_size = (1914, 1052)
    citation = "Richter et al., Playing for Data: Ground Truth from Computer Games, ECCV 2016"

    def benchmark_frames(self, index: list[FrameRef]) -> list[FrameRef]:
        """All but the 62 whose label is of another size: there picture and label show different things at a pixel."""
        return [ref for ref in index if ref.number not in _MISFITS]
