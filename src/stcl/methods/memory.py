"""What methods remember of features and labels. All of it lies in buffers, so a resumed run continues exactly."""

import torch
from torch import Tensor, nn

from stcl.ops.align import Centroids
from stcl.ops.processes import sum_over_processes
from stcl.ops.pseudo_labels import (
    BINS,
    PseudoLabels,
    class_shares,
    class_thresholds,
    confidence_histogram,
    expected_counts,
    expected_iou_labels,
    relabel,
)


class PrototypeBank(nn.Module):
    """Running source centroid of every class.

    Args:
        classes: C.
        channels: D of the features.
        momentum: share of the old centroid at each update.
    """

    mean: Tensor
    present: Tensor

    def __init__(self, classes: int, channels: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(classes, channels))
        self.register_buffer("present", torch.zeros(classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, centroids: Centroids) -> Centroids:
        """Move towards ``centroids`` (a class seen for the first time takes its centroid whole) and return the bank."""
        fresh = centroids.mean.detach()
        moved = self.momentum * self.mean + (1 - self.momentum) * fresh
        known = torch.where(self.present.unsqueeze(1), moved, fresh)
        self.mean.copy_(torch.where(centroids.present.unsqueeze(1), known, self.mean))
        self.present |= centroids.present
        return Centroids(self.mean.clone(), self.present.clone())


class ConfidenceMemory(nn.Module):
    """How confident the labels of each class have lately been, over all processes.

    Args:
        classes: C.
        momentum: share of the old histogram at each update; a class keeps its own where it has no pixel.
    """

    histogram: Tensor

    def __init__(self, classes: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("histogram", torch.zeros(classes, BINS))

    @torch.no_grad()
    def update(self, pseudo: PseudoLabels) -> None:
        """Move towards the histograms of these labels; the first ones count as if there had been no others."""
        fresh = sum_over_processes(confidence_histogram(pseudo, len(self.histogram)))
        rate = (1 - self.momentum) * fresh.any(1, keepdim=True)
        self.histogram.lerp_(fresh, rate.to(fresh.dtype).expand_as(fresh))

    def shares(self, threshold: float) -> Tensor:
        """Reliability of each class's labels ``(C,)``, see :func:`~stcl.ops.pseudo_labels.class_shares`."""
        return class_shares(self.histogram, threshold)

    def thresholds(self, share: float, highest: float) -> Tensor:
        """Threshold of each class ``(C,)``, see :func:`~stcl.ops.pseudo_labels.class_thresholds`."""
        return class_thresholds(self.histogram, share, highest)


class ExpectedIou(nn.Module):
    """Chooses labels by the IoU that is to be expected of them; remembers how well each class has lately done.

    Args:
        classes: C.
        momentum: share of the old counts at each update.
    """

    counts: Tensor

    def __init__(self, classes: int, momentum: float = 0.95) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("counts", torch.zeros(3, classes))

    @torch.no_grad()
    def choose(self, probabilities: Tensor, pseudo: PseudoLabels) -> PseudoLabels:
        """The labels ``pseudo`` chosen anew, see :func:`~stcl.ops.pseudo_labels.expected_iou_labels`.

        Ignored pixels stay so. A label that is not the likeliest has its own, smaller confidence.
        """

        def count(labels: Tensor) -> Tensor:
            return sum_over_processes(expected_counts(probabilities, labels))

        known = self.counts.any()
        labels = expected_iou_labels(probabilities, torch.where(known, self.counts, count(pseudo.labels)))
        chosen = relabel(pseudo, probabilities, labels)
        fresh = count(chosen.labels)
        self.counts.copy_(torch.where(known, torch.lerp(fresh, self.counts, self.momentum), fresh))
        return chosen
