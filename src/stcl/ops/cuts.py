"""Does the flow still explain a frame? Where it does not, the video was cut, or moves too far for flow to follow."""

import torch
from torch import Tensor

from stcl.ops.warp import inside, warp


def unexplained(frame: Tensor, previous: Tensor, flow: Tensor) -> Tensor:
    """Photometric error of the flow, as a share of the frame's own contrast.

    ``mean |warp(previous, flow) - frame|`` over the pixels whose flow stays inside, divided by the frame's mean
    absolute deviation from its mean colour. 0: the previous frame says all about this one; 1: it says no more than the
    mean colour would. Small copies of the frames do, and are better: a flow that is half a pixel off costs nothing.

    Args:
        frame, previous: ``(B, 3, H, W)`` float RGB 0..1.
        flow: frame -> previous, ``(B, 2, H, W)`` pixels.

    Returns:
        ``(B,)``, from 0 up.
    """
    seen = inside(flow)  # (B, H, W)
    difference = (warp(previous, flow) - frame).abs().mean(1)
    error = (difference * seen).flatten(1).sum(1) / seen.flatten(1).sum(1).clamp_min(1)
    error = torch.where(seen.flatten(1).any(1), error, 1.0)  # all of it points outside
    contrast = (frame - frame.mean((2, 3), keepdim=True)).abs().mean((1, 2, 3))
    return error / contrast.clamp_min(1 / 255)  # of a plain frame, such as a black one: a step of its bytes
