"""Warping along optical flow, and flow under changes of the image's geometry.

Convention: ``flow[:, y, x] = (u, v)`` in pixels, ``frame_a[y, x] ~ frame_b[y + v, x + u]``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stcl.types import FramePair

UNKNOWN_PX = 1e4
"""u of a vector that is not known (v is 0): it leaves every frame, also mirrored, resized or as float16."""


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Resample ``image`` of frame b so that it is aligned to frame a.

    Corner-clamped resampling: positions outside the image take the border's value, as the published CUDA op does.

    Args:
        image: ``(B, C, H, W)`` float, of frame b.
        flow: ``(B, 2, H, W)`` pixels, a -> b.
        mode: ``bilinear`` or ``nearest``.

    Returns:
        ``(B, C, H, W)``, aligned to frame a.
    """
    height, width = image.shape[-2:]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype).view(1, height, 1)
    x = torch.arange(width, device=flow.device, dtype=flow.dtype).view(1, 1, width)
    # grid_sample with align_corners=True: -1 and 1 are the centres of the first and last pixels
    grid_x = (x + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    grid_y = (y + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack((grid_x, grid_y), dim=-1)  # (B, H, W, 2)
    return F.grid_sample(image, grid.to(image.dtype), mode=mode, padding_mode="border", align_corners=True)


def resize_flow(flow: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Resample flow to ``size = (height, width)`` and scale u by the width ratio and v by the height ratio.

    Args:
        flow: ``(B, 2, H, W)`` pixels.
        size: of the result.
        align_corners: True for a grid of scores, which are up-sampled so; False for images, which are resized about the
            centres of pixels.
    """
    height, width = flow.shape[-2:]
    if (height, width) == tuple(size):
        return flow
    resized = F.interpolate(flow, size, mode="bilinear", align_corners=align_corners)
    return _times(resized, size[1] / width, size[0] / height)


def flip_flow(flow: Tensor) -> Tensor:
    """Flow of the horizontally flipped frames: mirrored, with u negated."""
    return _times(flow.flip(-1), -1, 1)


def flip_pair(pair: FramePair) -> FramePair:
    """The pair horizontally mirrored: frames, flow, and what does not move."""
    previous, flow, still = pair.previous, pair.flow, pair.still
    return FramePair(
        pair.current.flip(-1),
        None if previous is None else previous.flip(-1),
        None if flow is None else flip_flow(flow),
        None if still is None else still.flip(-1),
    )


def photometric_error(frame: Tensor, other: Tensor, flow: Tensor) -> Tensor:
    """How badly the flow explains a frame: its mean absolute difference from the other frame, warped to it.

    Args:
        frame, other: ``(B, 3, H, W)`` float RGB 0..1.
        flow: frame -> other, ``(B, 2, H, W)`` pixels.

    Returns:
        ``(B, H, W)`` float32 0..1; 1 where the flow leaves the frame.
    """
    difference = (frame.float() - warp(other.float(), flow.float())).abs().mean(1)
    return difference.masked_fill(~inside(flow), 1.0)


def _times(flow: Tensor, u: float, v: float) -> Tensor:
    """Flow ``(..., 2, H, W)`` scaled per axis."""
    # not by a tensor of both numbers: it would be copied to the device, for which the host waits
    return torch.stack((flow[..., 0, :, :] * u, flow[..., 1, :, :] * v), dim=-3)


def compose_flow(flow_ab: Tensor, flow_bc: Tensor) -> Tensor:
    """Flow a -> c from a -> b and b -> c, ``(B, 2, H, W)`` each."""
    return flow_ab + warp(flow_bc, flow_ab)


def inside(flow: Tensor) -> Tensor:
    """True where the flow points into the image: ``(B, H, W)`` bool."""
    height, width = flow.shape[-2:]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype).view(1, height, 1)
    x = torch.arange(width, device=flow.device, dtype=flow.dtype).view(1, 1, width)
    target_x, target_y = x + flow[:, 0], y + flow[:, 1]
    return (target_x >= 0) & (target_x <= width - 1) & (target_y >= 0) & (target_y <= height - 1)


def consistent(forward: Tensor, backward: Tensor, relative: float = 0.01, absolute: float = 0.5) -> Tensor:
    """True where the way there and back ends where it began: such pixels are seen in both frames.

    ``|f(x) + b(x + f(x))|^2 < a1 (|f|^2 + |b|^2) + a2`` (Sundaram et al., ECCV 2010, with the a1 and a2 that UnFlow has
    adopted, Meister et al., AAAI 2018); a pixel that leaves the frame fails.

    Args:
        forward: flow a -> b, ``(B, 2, H, W)`` pixels.
        backward: flow b -> a, likewise.
        relative: a1, the share of the lengths of both ways.
        absolute: a2, in squared pixels.

    Returns:
        ``(B, H, W)`` bool, of the pixels of a.
    """
    back = warp(backward, forward)
    missed = (forward + back).square().sum(1)
    lengths = forward.square().sum(1) + back.square().sum(1)
    return (missed < relative * lengths + absolute) & inside(forward)
