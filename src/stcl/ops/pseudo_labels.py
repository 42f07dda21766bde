"""Pseudo labels: what a teacher's scores say about unlabelled frames."""

from typing import Literal, NamedTuple

from torch import Tensor

from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.ops.losses import upsample
from stcl.ops.warp import inside, warp

Weighting = Literal["none", "threshold", "share"]


class PseudoLabels(NamedTuple):
    """``labels (B, H, W)`` int64 train ids, 255 = ignore; ``confidence (B, H, W)``, the probability 0..1 of each."""

    labels: Tensor
    confidence: Tensor


def class_probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores ``(B, C, h, w)`` to constant probabilities ``(B, C, H, W)`` float32 on the grid ``size``."""
    return upsample(logits.detach().float(), size).contiguous().softmax(1)  # classes apart: sums over them are fast


def pseudo_labels(probabilities: Tensor, flow: Tensor | None = None) -> PseudoLabels:
    """Arg-max and maximum of the probabilities, warped along ``flow`` first (method section 3.2).

    Args:
        probabilities: ``(B, C, H, W)`` of the frame t-h, see :func:`class_probabilities`.
        flow: ``(B, 2, H, W)`` pixels t -> t-h; None for labels of the segmented frame itself. Pixels whose flow leaves
            the frame have no witness and are ignored.
    """
    if flow is None:
        confidence, labels = probabilities.max(1)
        return PseudoLabels(labels, confidence)
    confidence, labels = warp(probabilities, flow).max(1)
    visible = inside(flow)
    return PseudoLabels(labels.masked_fill(~visible, IGNORE), confidence * visible)


def pixel_weights(confidence: Tensor, weighting: Weighting, threshold: float) -> Tensor | None:
    """Weights of pseudo-labelled pixels, from probabilities (never logits).

    Args:
        confidence: ``(B, H, W)`` in 0..1.
        weighting: ``none`` every pixel counts 1; ``threshold`` pixels above the threshold count 1, others 0; ``share``
            all pixels of an image count the share of its pixels that are above the threshold (DACS).
        threshold: probability 0..1.

    Returns:
        ``(B, H, W)`` or ``(B, 1, 1)`` float, or None for ``none``.
    """
    if not 0 <= threshold <= 1:
        raise SettingError(f"The confidence threshold is a probability between 0 and 1, not {threshold}.")
    sure = (confidence > threshold).to(confidence.dtype)
    if weighting == "none":
        return None
    if weighting == "threshold":
        return sure
    return sure.mean(dim=(1, 2), keepdim=True)


def ignore_unsure(pseudo: PseudoLabels, threshold: float) -> Tensor:
    """Labels ``(B, H, W)`` with every pixel at or below the threshold set to ignore."""
    return pseudo.labels.masked_fill(pseudo.confidence <= threshold, IGNORE)
