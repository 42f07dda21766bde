"""Scores of a frame from several views of it: mirrored, at other sizes, in tiles."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stcl.errors import SettingError
from stcl.models.segmenter import VideoSegmenter
from stcl.ops.losses import upsample
from stcl.ops.tiles import tile_starts, tile_weights

GRID_PX = 8
"""Sides of what a network sees are multiples of this."""


class FrameViews:
    """Unfused scores of a frame as the mean over views, for :meth:`stcl.models.VideoSegmenter.stream`.

    Scores (logits) are averaged, not probabilities: fusion over time is linear in them, so that the mean may be taken
    before it and each frame still passes once a view.

    Args:
        network: in evaluation mode.
        flip: also look at the mirrored frame.
        scales: sizes of the views relative to the frame's.
        tile: ``(height, width)`` px of tiles that each view is cut into, which overlap and are blended; a frame whose
            activations do not fit into memory passes so. None: in one piece.
    """

    def __init__(
        self,
        network: VideoSegmenter,
        flip: bool = False,
        scales: tuple[float, ...] = (1.0,),
        tile: tuple[int, int] | None = None,
    ) -> None:
        check_views(scales, tile)
        self.network = network
        self.flip = flip
        self.scales = scales
        self.tile = tile

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Scores ``(B, C, h, w)`` of float RGB 0..1 ``image (B, 3, H, W)``, on the grid of the view of its own size."""
        views = [self._mirrored(scaled(image, scale)) for scale in self.scales]
        if len(views) == 1:
            return views[0]
        nearest = min(range(len(views)), key=lambda index: abs(self.scales[index] - 1))
        grid = (views[nearest].shape[-2], views[nearest].shape[-1])
        return torch.stack([upsample(view, grid) for view in views]).mean(0)

    def _mirrored(self, image: Tensor) -> Tensor:
        scores = self._tiled(image)
        return (scores + self._tiled(image.flip(-1)).flip(-1)) / 2 if self.flip else scores

    def _tiled(self, image: Tensor) -> Tensor:
        """Scores of a view, tile by tile where it is larger than one."""
        height, width = image.shape[-2:]
        if self.tile is None or (self.tile[0] >= height and self.tile[1] >= width):
            return self.network.main_scores(image)
        tile = min(self.tile[0], height), min(self.tile[1], width)
        total, weight = torch.empty(0), torch.empty(0)
        for top in tile_starts(height, tile[0], GRID_PX):
            for left in tile_starts(width, tile[1], GRID_PX):
                scores = self.network.main_scores(image[..., top : top + tile[0], left : left + tile[1]])
                rows, columns = scores.shape[-2:]
                stride, edge = _grid(tile[0], rows)
                if (stride, edge) != _grid(tile[1], columns) or GRID_PX % stride:
                    raise SettingError(
                        f"Tiles of {tile[1]}x{tile[0]} px have scores of {columns}x{rows} cells with this network; "
                        f"their stride must divide {GRID_PX}. Segment the frames in one piece, or smaller (--size)."
                    )
                cells = height // stride + edge, width // stride + edge
                if not total.numel():
                    total, weight = scores.new_zeros(*scores.shape[:2], *cells), scores.new_zeros(1, 1, *cells)
                y, x = top // stride, left // stride
                down, across = ((y, rows, cells[0]), (x, columns, cells[1]))
                share = tile_weights(*down, scores.device)[:, None] * tile_weights(*across, scores.device)
                total[..., y : y + rows, x : x + columns] += scores * share
                weight[..., y : y + rows, x : x + columns] += share
        return total / weight


def _grid(side: int, cells: int) -> tuple[int, int]:
    """Pixels from cell to cell, and how many cells lie on the far edge: ResNets have one there, as on the near one."""
    edge = int(side % cells > 0 and cells > 1 and side % (cells - 1) == 0)
    return (side // (cells - edge), edge) if side % (cells - edge) == 0 else (side + 1, 0)


def check_views(scales: tuple[float, ...], tile: tuple[int, int] | None) -> None:
    """Refuse views that cannot be; ``tile`` is ``(height, width)`` px."""
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise SettingError(f"Scales of views must be positive numbers; found {list(scales)}.")
    if tile is not None and (min(tile) < 64 or any(side % (4 * GRID_PX) for side in tile)):
        size = f"{tile[1]}x{tile[0]}"
        raise SettingError(f"Tiles must be at least 64 px and multiples of {4 * GRID_PX}; found {size}.")


def scaled(image: Tensor, scale: float) -> Tensor:
    """The image ``(B, 3, H, W)`` at another size, whose sides are multiples of the grid; 1.0 is the image itself."""
    if scale == 1.0:
        return image
    size = [max(4 * GRID_PX, round(side * scale / GRID_PX) * GRID_PX) for side in image.shape[-2:]]
    return F.interpolate(image, size, mode="bilinear", antialias=scale < 1)
