"""Overlapping tiles that cover an image, and how their scores are blended."""

import torch
from torch import Tensor

MARGIN = 16
"""A tile of length L does not count in its outer L / 16 where it meets another one: it sees too little around them."""


def tile_starts(length: int, tile: int, grid: int) -> list[int]:
    """Where tiles begin along one axis: they overlap by at least a quarter, and the last one ends with the image.

    Args:
        length: of the image.
        tile: length of a tile.
        grid: starts are multiples of this (what the network's stride asks for), and so are ``length`` and ``tile``.
    """
    if tile >= length:
        return [0]
    step = max(grid, tile * 3 // 4 // grid * grid)
    return [*range(0, length - tile, step), length - tile]


def tile_weights(start: int, tile: int, length: int, device: torch.device | None = None) -> Tensor:
    """How much each cell of a tile counts along one axis: ``(tile,)`` float32 0..1, made on ``device``.

    It rises linearly from (almost) nothing at a margin's inner end to 1, over twice the margin, so that two tiles that
    overlap by a quarter sum to 1. Where the tile ends with the image it counts in full: there is no more to see there.
    """
    margin = tile // MARGIN
    ramp = (torch.arange(tile, device=device) + 0.5 - margin).clamp_min(1e-6) / max(2 * margin, 1)
    ramp = ramp.clamp_max(1.0)
    weights = torch.ones(tile, device=device)
    if start > 0:
        weights = weights * ramp
    if start + tile < length:
        weights = weights * ramp.flip(0)
    return weights
