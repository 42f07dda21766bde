"""Losses on segmentation scores."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stcl.labels import IGNORE
from stcl.types import SegOutput


def upsample(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores ``(B, C, h, w)`` on the grid ``size = (H, W)``, bilinear with aligned corners as published networks do."""
    if scores.shape[-2:] == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=True)


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over labelled pixels.

    Args:
        logits: ``(B, C, h, w)``; up-sampled to the labels' size.
        labels: ``(B, H, W)`` train ids, 255 = ignore.
        weight: optional pixel weights 0..1, ``(B, H, W)`` or broadcastable. The sum is divided by the number of
            labelled pixels, not by the sum of weights, so that an unsure image counts less than a sure one.

    Returns:
        Scalar; 0 where no pixel is labelled.
    """
    labels = labels.long()
    pixel_loss = F.cross_entropy(
        upsample(logits.float(), (labels.shape[-2], labels.shape[-1])), labels, ignore_index=IGNORE, reduction="none"
    )  # (B, H, W), 0 on ignored pixels
    labelled = (labels != IGNORE).sum().clamp(min=1)
    if weight is not None:
        pixel_loss = pixel_loss * weight
    return pixel_loss.sum() / labelled


def segmentation_loss(
    output: SegOutput, labels: Tensor, weight: Tensor | None = None, aux_weight: float = 0.1
) -> Tensor:
    """``CE + 0.1 CE_aux`` (method sections 3.1 and 3.3), see :func:`cross_entropy`."""
    loss = cross_entropy(output.logits, labels, weight)
    if output.aux is not None and aux_weight > 0:
        loss = loss + aux_weight * cross_entropy(output.aux, labels, weight)
    return loss


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy over the classes, in 0..1 of its maximum: ``(B, C, H, W) -> (B, H, W)``."""
    classes = probabilities.shape[1]
    log = torch.log(probabilities.clamp(min=1e-8))
    return -(probabilities * log).sum(1) / torch.log(torch.tensor(float(classes)))
