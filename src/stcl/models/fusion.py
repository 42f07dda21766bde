"""Temporal score fusion of ACCEL (Jain et al., CVPR 2019), as DA-VSN, TPS and STCL use it (method section 2).

``z_t = W [ phi(x_t) ; warp(phi(x_{t-1}), f[t->t-1]) ]`` with W a 1x1 convolution without bias, 2C -> C.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stcl.ops.warp import resize_flow, warp


class ScoreFusion(nn.Module):
    """W, initialised to [identity, 0]: at first the fused scores are the current frame's scores.

    The same W fuses the main and the auxiliary scores.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * classes, classes, 1, bias=False)
        initial = torch.cat((torch.eye(classes), torch.zeros(classes, classes)), dim=1)  # (C, 2C)
        with torch.no_grad():
            self.conv.weight.copy_(initial[:, :, None, None])

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """Fuse scores ``(B, C, h, w)`` of the current frame with those of the previous one, aligned to it."""
        fused: Tensor = self.conv(torch.cat((current, previous), dim=1))  # (B, 2C, h, w) -> (B, C, h, w)
        return fused


FUSIONS: dict[str, Callable[[int], ScoreFusion | None]] = {"accel": ScoreFusion, "none": lambda classes: None}
"""Every temporal fusion by name, called with the number of classes; ``none`` segments each frame by itself."""


def align_previous(previous: Tensor, current: Tensor, flow: Tensor, still: Tensor | None = None) -> Tensor:
    """Scores of the previous frame, aligned to the current one.

    Args:
        previous: scores ``(B, C, h, w)`` of the previous frame.
        current: scores ``(B, C, h, w)`` of the current frame.
        flow: current -> previous, ``(B, 2, H, W)`` pixels of the image; resized here to the scores' grid.
        still: ``(B, H, W)`` bool at image size: pasted pixels that do not move; there the previous score is the
            current one (method section 3.4), as a constant: no gradient runs through the previous frame.

    Returns:
        ``(B, C, h, w)``.
    """
    grid = current.shape[-2:]
    # in float32 even under autocast: sampling positions do not fit into bfloat16
    aligned = warp(previous.float(), resize_flow(flow.float(), (grid[0], grid[1]))).to(previous.dtype)
    if still is None:
        return aligned
    share = F.interpolate(still[:, None].float(), grid, mode="bilinear", align_corners=True)  # (B, 1, h, w)
    return torch.where(share >= 0.5, current.detach().to(aligned.dtype), aligned)
