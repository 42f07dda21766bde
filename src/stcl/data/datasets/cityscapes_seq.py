"""Cityscapes-Seq: 30-frame snippets of city driving at 17 Hz, 2048x1024; one frame of each snippet is labelled.

Source: Cityscapes packages leftImg8bit_sequence and gtFine: 2,975 train and 500 val snippets. The label belongs to the
20th frame of its snippet. Labels are 8-bit PNG of Cityscapes label ids.
"""

from stcl.data.base import split_runs
from stcl.data.datasets.cities import Cities
from stcl.types import FrameRef

SNIPPET_FRAMES = 30
LABELLED_FRAME = 19
"""Position of the labelled frame in its snippet."""


class CityscapesSeq(Cities):
    """Root holds ``leftImg8bit_sequence``, and ``gtFine`` where labels are wanted."""

    name = "cityscapes_seq"
    layout = (
        "<root>/leftImg8bit_sequence/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png with "
        "<root>/gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png"
    )
    package = "leftImg8bit_sequence"
    sparse = True

    def benchmark_frames(self, index: list[FrameRef]) -> list[FrameRef]:
        """The 20th frame of each snippet, by frame numbers alone.

        Several snippets of one recording can follow each other without a gap, so contiguous runs are cut into
        snippets of 30. A snippet with fewer than 20 frames (rendered trees) is taken to end at its labelled frame.
        """
        chosen = []
        for run in split_runs(index, self.step):
            snippets = (run[start : start + SNIPPET_FRAMES] for start in range(0, len(run), SNIPPET_FRAMES))
            chosen += [snippet[min(LABELLED_FRAME, len(snippet) - 1)] for snippet in snippets]
        return chosen
