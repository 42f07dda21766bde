"""Whether exported graphs compute what the network does."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from stcl.commands.export.graph import Run
from stcl.errors import SettingError
from stcl.models.segmenter import VideoSegmenter
from stcl.types import FramePair

LARGEST_DIFFERENCE = 1e-3
"""Between a score of a graph and of the network, as a share of the largest score."""

SMALLEST_AGREEMENT = 0.99
"""Share of cells in which a graph has to choose the network's class; those with two equal scores may differ."""


class Parity(NamedTuple):
    """How far graphs are from their network.

    Attributes:
        difference: largest difference of a score, as a share of the largest score.
        agreement: share of cells of the scores' grid in which both choose the same class.
        random_frames, real_frames: how many were compared, of noise and of a data set.
    """

    difference: float
    agreement: float
    random_frames: int
    real_frames: int


def random_pairs(size: tuple[int, int], dynamic: bool) -> list[FramePair]:
    """Pairs of noise to compare on; with dynamic axes also a batch of two, and frames of another size."""
    generator = torch.Generator().manual_seed(1)
    width, height = size
    other = (height, width) if width != height else (2 * width, height)
    shapes = [(1, width, height)] + ([(2, width, height), (1, *other)] if dynamic else [])

    def pair(batch: int, w: int, h: int) -> FramePair:
        frames = torch.rand(2, batch, 3, h, w, generator=generator)
        return FramePair(frames[0], frames[1], 4 * torch.randn(batch, 2, h, w, generator=generator))

    return [pair(*shape) for shape in shapes]


@torch.no_grad()
def compare(
    network: VideoSegmenter, runs: dict[str, Run], random: Sequence[FramePair], real: Sequence[FramePair]
) -> Parity:
    """Run graphs the way a stream does and compare them with the network's own forward pass.

    Args:
        network: in evaluation mode, on the CPU.
        runs: graphs by name, as :func:`list_graphs` calls them.
        random, real: pairs with flow, of the graphs' size.

    Raises:
        SettingError: a score or the choice of classes differs by more than rounding.
    """
    difference, largest, equal, cells = 0.0, 0.0, 0, 0
    for pair in (*random, *real):
        current, previous = runs["frame"](pair.current), runs["frame"](pair.previous)
        compared = [(current, network(FramePair(pair.current)).logits)]
        if "fusion" in runs:
            compared.append((runs["fusion"](current, previous, pair.flow), network(pair).logits))
        for found, wanted in compared:
            if found.shape != wanted.shape:
                raise SettingError(f"A graph gives {tuple(found.shape)}, the network {tuple(wanted.shape)}.")
            gap = float((found - wanted).abs().max())
            difference = max(difference, gap) if gap == gap else float("nan")
            largest = max(largest, float(wanted.abs().max()))
            equal += int((found.argmax(1) == wanted.argmax(1)).sum())
            cells += found[:, 0].numel()
    counts = (sum(len(pair.current) for pair in pairs) for pairs in (random, real))
    parity = Parity(difference / max(largest, 1e-12), equal / cells, *counts)
    if not parity.difference <= LARGEST_DIFFERENCE or parity.agreement < SMALLEST_AGREEMENT:  # not: NaN is refused, too
        raise SettingError(
            f"The exported graphs do not compute what the network does: scores differ by {parity.difference:.2g} of "
            f"the largest (allowed: {LARGEST_DIFFERENCE:g}), and {parity.agreement:.2%} of the cells have the same "
            f"class (wanted: {SMALLEST_AGREEMENT:.0%}). Nothing was written. Choose another format."
        )
    return parity
