"""Pseudo labels: what a teacher's scores say about unlabelled frames."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.ops.losses import upsample

Choice = Literal["likeliest", "expected_iou"]

Weighting = Literal["none", "threshold", "share", "class_threshold", "class_share"]

BINS = 100
"""Steps in which thresholds of classes are found."""


class PseudoLabels(NamedTuple):
    """What a teacher says of each pixel; 0 for both probabilities where a pixel has no label.

    Attributes:
        labels: ``(B, H, W)`` int64 train ids, 255 = ignore.
        confidence: ``(B, H, W)``, the probability 0..1 of the label.
        certainty: ``(B, H, W)``, the probability 0..1 of the likeliest class, which need not be the label: how clear
            the pixel is, however it is labelled.
    """

    labels: Tensor
    confidence: Tensor
    certainty: Tensor


def class_probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores ``(B, C, h, w)`` to constant probabilities ``(B, C, H, W)`` float32 on the grid ``size``."""
    return upsample(logits.detach().float(), size).contiguous().softmax(1)  # classes apart: sums over them are fast


def pseudo_labels(probabilities: Tensor, seen: Tensor | None = None) -> PseudoLabels:
    """Arg-max and maximum of the probabilities (method section 3.2): the likeliest classes.

    Args:
        probabilities: ``(B, C, H, W)``, of the frame itself or carried to it from another one.
        seen: ``(B, H, W)`` bool, where they have a witness; other pixels are ignored. None: everywhere.
    """
    confidence, labels = probabilities.max(1)
    if seen is not None:
        labels, confidence = labels.masked_fill(~seen, IGNORE), confidence * seen
    return PseudoLabels(labels, confidence, confidence)


def relabel(pseudo: PseudoLabels, probabilities: Tensor, labels: Tensor) -> PseudoLabels:
    """Other labels ``(B, H, W)``, each with its own probability; what was ignored stays so, and certainty stays."""
    confidence = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    ignored = pseudo.labels == IGNORE
    return pseudo._replace(labels=labels.masked_fill(ignored, IGNORE), confidence=confidence.masked_fill(ignored, 0.0))


def expected_counts(probabilities: Tensor, labels: Tensor) -> Tensor:
    """What labels are worth if the probabilities are right: ``(3, C)``, in pixels.

    For each class the pixels that are labelled so and right, those that are labelled so, and those that are so.

    Args:
        probabilities: ``(B, C, H, W)``.
        labels: ``(B, H, W)`` int64; ignored pixels do not count.
    """
    classes, known = probabilities.shape[1], (labels != IGNORE).unsqueeze(1)  # (B, 1, H, W)
    label = labels.unsqueeze(1).masked_fill(~known, 0)
    right, labelled = probabilities.gather(1, label) * known, known.to(probabilities.dtype)
    counts = torch.zeros(2, classes, dtype=probabilities.dtype, device=label.device)
    counts.scatter_add_(1, label.flatten().expand(2, -1), torch.stack((right.flatten(), labelled.flatten())))
    return torch.cat((counts, (probabilities * known).sum((0, 2, 3)).unsqueeze(0)))


def expected_iou_labels(probabilities: Tensor, counts: Tensor) -> Tensor:
    """Labels ``(B, H, W)`` of the highest expected mean IoU (Nowozin, CVPR 2014); the likeliest are most often right.

    With J the expected IoU of a class and U its union, one more pixel in it changes J by ``(p (1 + J) - J) / U``, p the
    pixel's probability. Every pixel joins the class that gains most. So a rare class wins from a probability of about
    J / (1 + J) on, which is below one half, and is not lost where it never is the likeliest.

    Args:
        probabilities: ``(B, C, H, W)``.
        counts: see :func:`expected_counts`, of many frames.
    """
    right, labelled, present = counts
    union = (labelled + present - right).clamp(min=1e-6 * counts[1].sum())
    iou = (right / union).view(-1, 1, 1)
    return ((probabilities * (1 + iou) - iou) / union.view(-1, 1, 1)).max(1).indices


def pixel_weights(pseudo: PseudoLabels, weighting: Weighting, threshold: float) -> Tensor | None:
    """Weights of pseudo-labelled pixels, from probabilities (never logits).

    Args:
        pseudo: the labels.
        weighting: ``none`` every pixel counts 1; ``threshold`` pixels whose label is surer than the threshold count 1,
            others 0; ``share`` all pixels of an image count the share of its pixels that are clearer than the
            threshold, whatever they are labelled as (DACS).
        threshold: probability 0..1, of the label's ``confidence`` or of the pixel's ``certainty``.

    Returns:
        ``(B, H, W)`` or ``(B, 1, 1)`` float, or None for ``none``.
    """
    if not 0 <= threshold <= 1:
        raise SettingError(f"The confidence threshold is a probability between 0 and 1, not {threshold}.")
    if weighting == "none":
        return None
    if weighting == "threshold":
        return (pseudo.confidence > threshold).to(pseudo.confidence.dtype)
    return (pseudo.certainty > threshold).to(pseudo.certainty.dtype).mean(dim=(1, 2), keepdim=True)


def ignore_unsure(pseudo: PseudoLabels, threshold: float) -> Tensor:
    """Labels ``(B, H, W)``; those whose own probability is at or below the threshold are set to ignore."""
    return pseudo.labels.masked_fill(pseudo.confidence <= threshold, IGNORE)


def confidence_histogram(pseudo: PseudoLabels, classes: int) -> Tensor:
    """Pixels of each class by their confidence, in steps of 1 / :data:`BINS`: ``(C, BINS)`` float32."""
    step = (pseudo.confidence * BINS).long().clamp(0, BINS - 1)
    cell = (pseudo.labels.clamp(max=classes) * BINS + step).flatten()  # ignored pixels lie behind the last class
    counts = torch.zeros((classes + 1) * BINS, dtype=torch.int64, device=cell.device)
    return counts.scatter_add_(0, cell, torch.ones_like(cell)).view(-1, BINS)[:classes].float()


def class_thresholds(histogram: Tensor, share: float, highest: float) -> Tensor:
    """Confidence from which on a pixel is among the most confident of its class (Zou et al. 2018, arXiv 1810.07911).

    Without it, hard and rare classes would hardly be among the pixels above one common threshold.

    Args:
        histogram: ``(C, BINS)``, see :func:`confidence_histogram`.
        share: of each class's pixels that is kept at least, 0..1.
        highest: no threshold lies above this probability; that of a class without pixels is about this.

    Returns:
        ``(C,)`` multiples of 1 / BINS, or ``highest``.
    """
    if not (0 <= share <= 1 and 0 <= highest <= 1):
        raise SettingError(f"The share and the highest threshold lie between 0 and 1, not at {share} and {highest}.")
    place = torch.arange(histogram.shape[1], device=histogram.device)
    # (C, BINS), pixels in each step and those above it; a cumulative sum of floats is not deterministic on a GPU
    above = (histogram.unsqueeze(1) * (place >= place.unsqueeze(1))).sum(-1)
    steps = (above >= share * above[:, :1]).sum(1)  # so many steps, from 0 on, have enough pixels above them
    return ((steps - 1).clamp(min=0).to(histogram.dtype) / BINS).clamp(max=highest)


def class_shares(histogram: Tensor, threshold: float) -> Tensor:
    """How reliable the labels of each class are: the share of its pixels that are surer than ``threshold``, ``(C,)``.

    Args:
        histogram: ``(C, BINS)``, see :func:`confidence_histogram`.
        threshold: probability 0..1, in steps of 1 / BINS, rounded down.
    """
    sure = torch.arange(histogram.shape[1], device=histogram.device) >= int(threshold * BINS + 1e-9)
    return (histogram * sure).sum(1) / histogram.sum(1).clamp(min=1e-6)


def reliability_weights(pseudo: PseudoLabels, shares: Tensor) -> Tensor:
    """The share of its class, ``shares (C,)``, for each labelled pixel, 0 for the others: ``(B, H, W)`` float."""
    wanted = shares[pseudo.labels.clamp(max=len(shares) - 1)]
    return wanted.to(pseudo.confidence.dtype).masked_fill(pseudo.labels == IGNORE, 0.0)


def class_weights(pseudo: PseudoLabels, thresholds: Tensor) -> Tensor:
    """1 where the confidence reaches its class's threshold, ``thresholds (C,)``, else 0: ``(B, H, W)`` float."""
    wanted = thresholds[pseudo.labels.clamp(max=len(thresholds) - 1)]
    kept = (pseudo.confidence >= wanted) & (pseudo.labels != IGNORE)
    return kept.to(pseudo.confidence.dtype)
