"""From scores to what is shown: labels and confidence at the frame's size, in little memory."""

import torch
import torch.nn.functional as F
from torch import Tensor

BAND_ROWS = 64
"""Rows of the frame that are decided together: scores of a whole frame at its own size would take gigabytes."""


def decide(scores: Tensor, size: tuple[int, int], confidence: bool = True) -> tuple[Tensor, Tensor | None]:
    """Likeliest class and its probability, as if the scores were up-sampled (:func:`stcl.ops.losses.upsample`).

    Args:
        scores: ``(C, h, w)`` logits.
        size: ``(H, W)`` of the frame.
        confidence: whether the probability is wanted; it takes most of the time.

    Returns:
        Train ids ``(H, W)`` uint8, and the highest softmax probability ``(H, W)`` float32 0..1 or None.
    """
    scores = scores.float()
    rows, height = scores.shape[1], size[0]
    labels, sure = [], []
    # aligned corners: row Y of the frame lies at y = Y (h - 1) / (H - 1) of the scores
    places = torch.arange(height, device=scores.device) * ((rows - 1) / max(height - 1, 1))
    upper = places.long().clamp(0, max(rows - 2, 0))
    lower = (upper + 1).clamp_max(rows - 1)
    part = (places - upper)[None, :, None]  # (1, H, 1)
    for top in range(0, height, BAND_ROWS):
        band = slice(top, top + BAND_ROWS)
        mixed = torch.lerp(scores[:, upper[band]], scores[:, lower[band]], part[:, band])  # (C, rows, w)
        wide = F.interpolate(mixed[None], (mixed.shape[1], size[1]), mode="bilinear", align_corners=True)[0]
        highest, label = wide.max(0)
        labels.append(label.to(torch.uint8))
        if confidence:
            sure.append(1 / (wide - highest).exp().sum(0))
    return torch.cat(labels), torch.cat(sure) if confidence else None
