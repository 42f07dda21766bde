"""Category-aware feature alignment (method section 3.6): class centroids and two ways to bring two sets together.

Centroids are those of all processes' clips, so every process has the same loss. Products are exact also under autocast.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stcl.ops.losses import entropy
from stcl.ops.processes import mean_over_processes, sum_over_processes


class Centroids(NamedTuple):
    """``mean (C, D)`` feature of each class, ``present (C,)`` bool; an absent class has no centroid, takes no part."""

    mean: Tensor
    present: Tensor


def class_centroids(features: Tensor, labels: Tensor, classes: int, minimum_pixels: int = 5) -> Centroids:
    """Mean feature of each class over a batch, the shares of all processes together.

    Args:
        features: ``(B, D, h, w)``.
        labels: ``(B, H, W)`` train ids, 255 = ignore; resampled (nearest) to the features' grid.
        classes: number of classes C.
        minimum_pixels: classes with fewer pixels on the features' grid are absent.
    """
    size = features.shape[-2:]
    labels = F.interpolate(labels.unsqueeze(1).float(), size, mode="nearest").long().flatten()  # (B*h*w)
    flat = features.float().permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, D)
    member = (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).to(flat.dtype)  # (B*h*w, C)
    with torch.autocast(flat.device.type, enabled=False):
        total = torch.cat((member.T @ flat, member.sum(0).unsqueeze(1)), 1)  # (C, D + 1), pixels in the last column
    total = sum_over_processes(total)
    count = total[:, -1]
    return Centroids(total[:, :-1] / count.clamp(min=1).unsqueeze(1), count >= minimum_pixels)


def temporal_weights(logits: list[Tensor], adaptive: bool) -> Tensor:
    """Weight of each pair of frames: equal, or ``softmax(-mean entropy)`` of its scores; ``(pairs,)`` summing to 1.

    The entropy is that of a pixel's classes in nats, its mean that over all pixels.
    """
    if not adaptive:
        return torch.full((len(logits),), 1 / len(logits), device=logits[0].device)
    uncertainty = torch.stack([entropy(scores.detach().float().softmax(1)).mean() for scores in logits])
    return (-mean_over_processes(uncertainty)).softmax(0)


def aggregate(centroids: list[Centroids], weights: Tensor) -> Centroids:
    """Weighted mean of centroids along time; a class that a pair lacks takes the others' weight."""
    present = torch.stack([item.present for item in centroids])  # (pairs, C)
    weight = weights.unsqueeze(1) * present
    total = weight.sum(0)
    share = (weight / total.clamp(min=1e-8)).unsqueeze(2)  # (pairs, C, 1)
    mean = (share * torch.stack([item.mean for item in centroids])).sum(0)
    return Centroids(mean, present.any(0))


def mmd(source: Centroids, target: Centroids, kernels: int = 5, factor: float = 2.0) -> Tensor:
    """Squared maximum mean discrepancy between two centroid sets with a sum of RBF kernels.

    The bandwidth is the mean squared distance between the rows, scaled by powers of ``factor`` around it (Long et al.
    2015). Only classes present in both sets take part; 0 where there is none.
    """
    both = (source.present & target.present).to(source.mean.dtype)
    rows = torch.cat((source.mean, target.mean))  # (2C, D)
    weight = torch.cat((both, -both)) / both.sum().clamp(min=1)  # +1/n source, -1/n target
    used = torch.cat((both, both))
    distance = (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(-1)  # (2C, 2C)
    pairs = used.unsqueeze(0) * used.unsqueeze(1)
    others = (pairs.sum() - used.sum()).clamp(min=1)
    bandwidth = ((distance * pairs).sum() / others).detach().clamp(min=1e-8)
    kernel = torch.zeros_like(distance)
    for power in range(kernels):
        kernel = kernel + torch.exp(-distance / (bandwidth * factor ** (power - kernels // 2)))
    return (torch.outer(weight, weight) * kernel).sum()  # no matrix product: autocast would make it bfloat16


def contrastive(target: Centroids, anchors: Centroids, temperature: float = 0.1) -> Tensor:
    """Pull each target centroid to its class's anchor and push it from the others (InfoNCE on cosine similarity).

    Args:
        target: centroids of this step.
        anchors: running source centroids, without gradient.
        temperature: smaller is sharper.

    Returns:
        Mean over the classes present in both; 0 where there is none.
    """
    rows, columns = F.normalize(target.mean, dim=1), F.normalize(anchors.mean.detach(), dim=1)
    similarity = (rows.unsqueeze(1) * columns.unsqueeze(0)).sum(-1) / temperature  # (C, C)
    similarity = similarity.masked_fill(~anchors.present.unsqueeze(0), -1e4)
    wanted = torch.arange(len(similarity), device=similarity.device)
    both = target.present & anchors.present
    loss = F.cross_entropy(similarity, wanted, reduction="none")
    return torch.where(both, loss, torch.zeros_like(loss)).sum() / both.sum().clamp(min=1)
