"""Masked frames, from which a network has to learn what a patch is by what lies around it.

Masked image consistency: Hoyer et al. 2023, arXiv 2212.01322.
"""

import torch
from torch import Tensor

from stcl.errors import SettingError

RGB_MEAN = (0.485, 0.456, 0.406)
"""Usual mean colour of natural images, RGB 0..1: about zero once a network has normalised it."""


@torch.no_grad()
def mask_patches(frames: Tensor, share: float, patch: int, generator: torch.Generator) -> Tensor:
    """Replace random squares of a grid by the mean colour; the same ones in all frames of a clip.

    Args:
        frames: ``(B, T, 3, H, W)`` float RGB 0..1.
        share: probability 0..1 with which a square is replaced.
        patch: side of a square in pixels; those at the right and the lower border are cut off by it.
        generator: source of the draws, on the frames' device.

    Returns:
        Shape and type of ``frames``.
    """
    if not 0 <= share <= 1 or patch < 1:
        raise SettingError(
            f"Masking takes a share 0..1 of squares of at least 1 px, not a share of {share} of squares of {patch} px."
        )
    height, width = frames.shape[-2:]
    rows, columns = (torch.arange(side, device=frames.device) // patch for side in (height, width))
    shape = (len(frames), -(-height // patch), -(-width // patch))  # rounded up
    dropped = torch.rand(shape, generator=generator, device=frames.device) < share
    dropped = dropped[:, rows[:, None], columns].unsqueeze(1)  # (B, 1, H, W)
    # channel by channel: a tensor of three numbers would be copied to the device, for which the host waits
    channels = zip(frames.unbind(2), RGB_MEAN, strict=True)
    return torch.stack([channel.masked_fill(dropped, value) for channel, value in channels], dim=2)
