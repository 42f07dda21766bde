"""How good the labels are that a network gives, and how far apart it sees two domains.

Pixels are counted by group, truth and label; counts add up over a set and are divided once, at the end.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stcl.labels import IGNORE
from stcl.ops.warp import inside

CONFIDENCE_EDGES = (0.5, 0.7, 0.9, 0.97)
CONFIDENCE_GROUPS = ("0 to 0.5", "0.5 to 0.7", "0.7 to 0.9", "0.9 to 0.97", "0.97 to 1")
"""What :func:`confidence_group` tells apart; an edge belongs to the group below it."""

BOUNDARY_RADII_PX = (2, 4, 8)
BOUNDARY_GROUPS = ("0 to 1 px", "2 to 3 px", "4 to 7 px", "8 px and more")
"""What :func:`boundary_group` tells apart: pixels between a pixel and the nearest one of another class."""

FLOW_GROUPS = ("valid", "unlike", "outside")
"""What :func:`flow_group` tells apart."""


def label_counts(label: Tensor, truth: Tensor, classes: int, *groups: tuple[Tensor, int]) -> Tensor:
    """Pixels by group, truth and label, ``(G1, G2, ..., C, C + 1)`` int64; the last column is "no label".

    Args:
        label: ``(B, H, W)`` train ids, 255 = no label.
        truth: likewise; pixels of 255 do not count.
        classes: C.
        groups: any number of groupings: group of each pixel, broadcastable to ``(B, H, W)``, and how many there are.
    """
    cell = torch.zeros_like(truth, dtype=torch.int64)
    for group, size in groups:
        cell = cell * size + group
    known = truth < classes
    column = label.long().masked_fill(label == IGNORE, classes)
    cell = (cell * classes + truth) * (classes + 1) + column
    shape = (*(size for _, size in groups), classes, classes + 1)
    return torch.bincount(cell[known], minlength=torch.Size(shape).numel()).view(shape)


def precision(counts: Tensor) -> Tensor:
    """Share of the pixels labelled c that are c, ``(..., C)`` float64 of ``(..., C, C + 1)``; nan where none is."""
    labelled = counts[..., :-1].double()
    return labelled.diagonal(dim1=-2, dim2=-1) / labelled.sum(-2)


def recall(counts: Tensor) -> Tensor:
    """Share of the pixels of class c that are labelled c, ``(..., C)`` float64; nan for an absent class."""
    return counts[..., :-1].double().diagonal(dim1=-2, dim2=-1) / counts.sum(-1)


def coverage(counts: Tensor, sure: Tensor) -> Tensor:
    """Share of the pixels of class c that have a label in ``sure``, the counts of sure ones alone; ``(..., C)``."""
    return sure[..., :-1].double().sum(-1) / counts.sum(-1)


def accuracy(counts: Tensor) -> Tensor:
    """Share of the labelled pixels that are right, ``(...)`` float64 of ``(..., C, C + 1)``; nan where none is."""
    labelled = counts[..., :-1].double()
    return labelled.diagonal(dim1=-2, dim2=-1).sum(-1) / labelled.sum((-2, -1))


def confidence_group(confidence: Tensor) -> Tensor:
    """Positions in :data:`CONFIDENCE_GROUPS`, int64, of probabilities of any shape."""
    return torch.bucketize(confidence, torch.tensor(CONFIDENCE_EDGES, device=confidence.device))


def boundary_group(truth: Tensor) -> Tensor:
    """How far the next pixel of another class is, as positions in :data:`BOUNDARY_GROUPS`.

    A distance is the larger one of the vertical and the horizontal; unlabelled pixels are no class.

    Args:
        truth: ``(B, H, W)`` train ids, 255 = ignore.

    Returns:
        ``(B, H, W)`` int64.
    """
    label = truth.unsqueeze(1).float()
    unknown = label == IGNORE
    highest, lowest = label.masked_fill(unknown, -1.0), label.masked_fill(unknown, float(IGNORE))
    groups = [_largest(highest, radius) <= -_largest(-lowest, radius) for radius in BOUNDARY_RADII_PX]
    return torch.stack(groups).sum(0).squeeze(1)


def _largest(image: Tensor, radius: int) -> Tensor:
    """Maximum over a square window, one axis after the other; outside the image there is nothing."""
    rows = F.max_pool2d(image, (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(rows, (1, 2 * radius + 1), 1, (0, radius))


def flow_group(error: Tensor, flow: Tensor, limit: float = 0.1) -> Tensor:
    """Whether a label may follow the flow, as positions in :data:`FLOW_GROUPS`, ``(B, H, W)`` int64.

    ``outside``: the flow leaves the frame. ``unlike``: what it leads to looks different, as where something came into
    view. ``valid``: the rest.

    Args:
        error: ``(B, H, W)``, see :func:`~stcl.ops.warp.photometric_error`.
        flow: ``(B, 2, H, W)`` pixels.
        limit: largest error of a valid pixel, 0..1.
    """
    return (error > limit).long().masked_fill(~inside(flow), FLOW_GROUPS.index("outside"))


@dataclass(frozen=True)
class FeatureSums:
    """Of each class: ``count (C,)``, sum ``total (C, D)`` and sum of squares ``squares (C,)``, float64; they add up."""

    count: Tensor
    total: Tensor
    squares: Tensor

    def __add__(self, other: "FeatureSums") -> "FeatureSums":
        return FeatureSums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> Tensor:
        """Centroid of each class ``(C, D)``; nan for an absent one."""
        return self.total / self.count.unsqueeze(1)

    @property
    def scatter(self) -> Tensor:
        """Sum of the squared distances to the class's centroid ``(C,)``."""
        return (self.squares - self.mean.square().sum(1) * self.count).clamp(min=0)


def feature_sums(features: Tensor, labels: Tensor, classes: int) -> FeatureSums:
    """Sums over a batch.

    Args:
        features: ``(B, D, h, w)``.
        labels: ``(B, H, W)`` train ids, 255 = ignore; resampled (nearest) to the features' grid.
        classes: C.
    """
    small = F.interpolate(labels.unsqueeze(1).float(), features.shape[-2:], mode="nearest").long().flatten()
    flat = features.permute(0, 2, 3, 1).flatten(0, 2).double()  # (B*h*w, D)
    member = (small == torch.arange(classes, device=labels.device).unsqueeze(1)).double()  # (C, B*h*w)
    return FeatureSums(member.sum(1), member @ flat, member @ flat.square().sum(1))


def domain_distance(source: FeatureSums, target: FeatureSums, minimum_pixels: int = 5) -> Tensor:
    """Distance of a class's centroids in two domains, in units of how far its own features spread.

    The unit is the root mean squared distance of the class's features to the centroid of their own domain, both
    domains together. Below 1 the domains overlap; the number does not depend on the scale of the features.

    Args:
        source, target: sums over each domain.
        minimum_pixels: a class with fewer cells of the features' grid in either domain is left out.

    Returns:
        ``(C,)`` float64; nan for a class that is left out.
    """
    spread = ((source.scatter + target.scatter) / (source.count + target.count)).sqrt()
    distance = (source.mean - target.mean).square().sum(1).sqrt() / spread
    few = torch.minimum(source.count, target.count) < minimum_pixels
    return distance.masked_fill(few, torch.nan)
