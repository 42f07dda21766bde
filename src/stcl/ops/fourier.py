"""Colours and light of one domain, layout of the other: low frequencies exchanged (Yang and Soatto 2020, FDA).

The amplitude of an image's lowest frequencies is mostly how it looks, the phase where things are (arXiv 2004.05498).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stcl.errors import SettingError


@torch.no_grad()
def swap_amplitude(frames: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Give ``frames`` the amplitudes of the lowest frequencies of ``reference``; all phases stay.

    The frequencies are those of a square window of side ``2 b + 1`` about zero, ``b = floor(beta min(H, W))``. All
    frames of a clip take the amplitudes of the same reference frame; each channel and each clip has its own.

    Args:
        frames: ``(B, T, 3, H, W)`` float RGB 0..1.
        reference: ``(B, T', 3, H', W')`` likewise; the first frame counts, resampled to ``H, W`` where sizes differ.
        beta: 0 to below 0.5; 0 takes the mean colour alone, the paper 0.01 to 0.09.

    Returns:
        Shape and type of ``frames``, clamped to 0..1.
    """
    check_beta(beta)
    height, width = frames.shape[-2:]
    other = reference[:, 0].float()  # in half precision the sums over a whole frame would be lost
    if other.shape[-2:] != (height, width):
        other = F.interpolate(other, (height, width), mode="bilinear", align_corners=False, antialias=True)
    amplitude = torch.fft.rfft2(other.unsqueeze(1)).abs()  # (B, 1, 3, H, W // 2 + 1)
    spectrum = torch.fft.rfft2(frames.float())  # (B, T, 3, H, W // 2 + 1): the other half mirrors it
    b = int(beta * min(height, width))
    for rows in (slice(0, b + 1), slice(height - b, height)):  # frequencies 0..b and -b..-1 along y, 0..b along x
        low = spectrum[..., rows, : b + 1]
        spectrum[..., rows, : b + 1] = torch.polar(amplitude[..., rows, : b + 1].expand(low.shape), low.angle())
    return torch.fft.irfft2(spectrum, s=(height, width)).clamp_(0, 1).to(frames.dtype)


def check_beta(beta: float) -> None:
    """Refuse a window that is no part of the spectrum."""
    if not 0 <= beta < 0.5:
        raise SettingError(f"fourier_beta is a share of the frame's shorter side, from 0 to below 0.5, not {beta}.")
