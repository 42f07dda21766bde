"""Colour histogram matching on the device: one clip takes the colours of another.

Per channel, a value of rank r in the source becomes the value of rank r in the reference. Exact on byte-valued images:
ranks are compared as integers, and between two values that occur in the reference the map is linear, as
``skimage.exposure.match_histograms`` has it (an independent implementation; the tests compare the two).
"""

import torch
from torch import Tensor

LEVELS = 256
"""Values of a channel, as in a byte."""


@torch.no_grad()
def match_histogram(frames: Tensor, reference: Tensor) -> Tensor:
    """Give ``frames`` the colour histogram of ``reference``, channel by channel.

    The frames of a clip share one map, made from the histograms of all of them, so that a surface keeps its colour from
    frame to frame. Each clip of the batch has its own map. To take the map from one frame only, see
    :func:`histogram_map` and :func:`apply_map`.

    Args:
        frames: ``(B, T, 3, H, W)``, or ``(B, 3, H, W)`` for single images; bytes, or float 0..1, which are rounded to
            256 levels.
        reference: ``(B, T', 3, H', W')`` or ``(B, 3, H', W')``, likewise; sizes may differ.

    Returns:
        Shape of ``frames``; float 0..1, finer than 256 levels: float32 for bytes, else the type of ``frames``.
    """
    cells = _cells(frames)
    return _values(cells, _map(_ranks(cells), _ranks(_cells(reference))), frames.dtype)


@torch.no_grad()
def histogram_map(source: Tensor, reference: Tensor) -> Tensor:
    """The map that :func:`match_histogram` applies: value at each of the 256 levels, ``(B, 3, 256)`` float32 0..1.

    Args:
        source: ``(B, T, 3, H, W)`` or ``(B, 3, H, W)``, bytes or float 0..1.
        reference: the same with its own T, H and W.
    """
    return _map(_ranks(_cells(source)), _ranks(_cells(reference)))


@torch.no_grad()
def apply_map(frames: Tensor, levels: Tensor) -> Tensor:
    """Replace each value by its entry in ``levels (B, 3, 256)``; ``frames`` as in :func:`match_histogram`."""
    return _values(_cells(frames), levels, frames.dtype)


def _map(source_ranks: Tensor, reference_ranks: Tensor) -> Tensor:
    """:func:`histogram_map` of two cumulative histograms."""
    # rank / pixels of the two sides, both times both numbers of pixels: integers compare exactly
    wanted = source_ranks * reference_ranks[..., -1:]
    found = reference_ranks * source_ranks[..., -1:]
    # the level that reaches the wanted rank, and the occupied level below it
    upper = torch.searchsorted(found, wanted.clamp(min=1))  # levels below the source's darkest: as the darkest
    rank_upper = found.gather(-1, upper)
    rank_lower = torch.where(upper > 0, found.gather(-1, (upper - 1).clamp(min=0)), 0)
    lower = torch.searchsorted(found, rank_lower)
    lower = torch.where(rank_lower > 0, lower, upper)  # nothing lies below the first occupied level
    share = (wanted - rank_lower).float() / (rank_upper - rank_lower).clamp(min=1).float()
    return torch.lerp(lower.float(), upper.float(), share) / (LEVELS - 1)


def _values(cells: Tensor, levels: Tensor, dtype: torch.dtype) -> Tensor:
    values = levels.flatten().index_select(0, cells.flatten()).view(cells.shape)
    return values.to(dtype) if dtype.is_floating_point else values


def _ranks(cells: Tensor) -> Tensor:
    """Cumulative histogram ``(B, 3, 256)`` int64: number of pixels up to and with each level."""
    flat, size = cells.flatten(), len(cells) * 3 * LEVELS
    if cells.device.type == "cpu":
        counts = torch.bincount(flat, minlength=size)
    else:  # there bincount would read the largest value back to the host
        counts = torch.zeros(size, dtype=torch.int64, device=cells.device)
        counts.scatter_add_(0, flat.long(), torch.ones_like(flat, dtype=torch.int64))
    return counts.view(len(cells), 3, LEVELS).cumsum(-1)


def _cells(frames: Tensor) -> Tensor:
    """For each value its place in a flattened ``(B, 3, 256)`` table, in the shape of ``frames``, int32."""
    if frames.is_floating_point():
        frames = (frames.float() * (LEVELS - 1)).round_().clamp_(0, LEVELS - 1)
    level = frames.int()
    table = torch.arange(len(frames) * 3, device=frames.device, dtype=torch.int32).mul_(LEVELS)
    between = (1,) * (frames.ndim - 4)  # the axis of frames, where there is one
    return level.add_(table.view(len(frames), *between, 3, 1, 1))
