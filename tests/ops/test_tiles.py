"""Tiles cover an image, overlap, and weigh least where they meet."""

import pytest
import torch

from closeness import assert_close
from stcl.ops.tiles import tile_starts, tile_weights


@pytest.mark.parametrize(("length", "tile"), [(512, 128), (520, 128), (136, 128), (128, 128), (64, 128), (1000, 192)])
def test_tiles_cover_and_overlap(length: int, tile: int) -> None:
    starts = tile_starts(length, tile, 8)
    ends = [start + tile for start in starts]
    assert starts[0] == 0 and ends[-1] >= length and all(start % 8 == 0 for start in starts)
    assert ends[-1] == length or length < tile
    assert all(end - start >= tile // 4 for end, start in zip(ends[:-1], starts[1:], strict=True))


def test_every_cell_has_weight_and_seams_are_ramps() -> None:
    total = torch.zeros(512)
    for start in tile_starts(512, 128, 8):
        weights = tile_weights(start, 128, 512)
        assert weights.min() > 0 and weights.max() == 1
        total[start : start + 128] += weights
    assert_close(total[: 96 * 3 + 16], torch.ones(96 * 3 + 16), 1e-4)  # a quarter each
    assert total.min() > 0.9
    inner = tile_weights(96, 128, 512)
    assert inner[:8].max() < 1e-4 and inner[-8:].max() < 1e-4 and torch.equal(inner, inner.flip(0))


def test_the_image_border_counts_in_full() -> None:
    assert tile_weights(0, 128, 512)[0] == 1 and tile_weights(384, 128, 512)[-1] == 1
    assert torch.equal(tile_weights(0, 128, 128), torch.ones(128))
