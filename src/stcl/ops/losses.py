"""Losses on segmentation scores."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stcl.labels import IGNORE
from stcl.ops.processes import mean_over_processes, world_size
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
        weight: optional pixel weights 0..1, ``(B, H, W)`` or broadcastable, constants. The sum is divided by the number
            of labelled pixels, not by the sum of weights, so that an unsure image counts less than a sure one.

    Returns:
        Scalar; 0 where no pixel is labelled. In a run of several processes their MEAN is the loss of the whole batch.
    """
    return _mean(logits, _pixels(labels, weight))


def segmentation_loss(
    output: SegOutput, labels: Tensor, weight: Tensor | None = None, aux_weight: float = 0.1
) -> Tensor:
    """``CE + 0.1 CE_aux`` (method sections 3.1 and 3.3), see :func:`cross_entropy`."""
    pixels = _pixels(labels, weight)
    loss = _mean(output.logits, pixels)
    if output.aux is not None and aux_weight > 0:
        loss = loss + aux_weight * _mean(output.aux, pixels)
    return loss


class _Pixels(NamedTuple):
    """What a loss asks of pixels: ``label (B, 1, H, W)`` int64 in 0..C-1, ``weight`` float, how many are labelled.

    Ignored pixels have label 0 and weight 0.
    """

    label: Tensor
    weight: Tensor
    labelled: Tensor


def _pixels(labels: Tensor, weight: Tensor | None) -> _Pixels:
    labels = labels.unsqueeze(1)
    known = labels != IGNORE
    # The processes' mean number makes the mean of their losses that of the whole batch; 1 / world_size is one pixel.
    labelled = mean_over_processes(known.sum()).clamp(min=1 / world_size())
    label, share = labels.long().masked_fill(~known, 0), known.float()
    if weight is not None:
        share = share * (weight.unsqueeze(1) if weight.ndim == 3 else weight)
    return _Pixels(label, share, labelled)


def _mean(logits: Tensor, pixels: _Pixels) -> Tensor:
    total: Tensor = _CrossEntropySum.apply(logits, pixels.label, pixels.weight)  # type: ignore[no-untyped-call]
    return total / pixels.labelled


class _CrossEntropySum(torch.autograd.Function):
    """Weighted sum of the pixels' cross-entropy, in float32.

    The gradient is found on the way forward, in the one buffer of full size, and kept at the scores' own small size:
    nothing of full size waits for the backward pass, and the exponential is taken once.
    """

    @staticmethod
    def forward(context: Any, logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            # :func:`upsample` as two products, whose transposes are its gradient: no scattered sums, so equal bits
            rows, columns = (_spread(logits.shape[axis], label.shape[axis], logits.device) for axis in (2, 3))
            scores = rows.T @ (logits.float() @ columns)  # (B, C, H, W)
            scores -= scores.amax(1, keepdim=True)
            own = scores.gather(1, label)  # (B, 1, H, W)
            total = scores.exp_().sum(1, keepdim=True)
            if context.needs_input_grad[0]:
                gradient = scores.mul_(weight / total).scatter_add_(1, label, -weight)  # weight * (softmax - one hot)
                context.save_for_backward((rows @ gradient) @ columns.T)
            return ((total.log() - own) * weight).sum()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = context.saved_tensors
        return gradient * gradients[0], None, None  # autograd casts it to the scores' type


def _spread(length: int, size: int, device: torch.device) -> Tensor:
    """Weights of bilinear interpolation with aligned corners along one axis, ``(length, size)``."""
    return F.interpolate(torch.eye(length, device=device).unsqueeze(0), size, mode="linear", align_corners=True)[0]


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy over the classes in nats, 0 .. log C: ``(B, C, H, W) -> (B, H, W)``."""
    return -(probabilities * torch.log(probabilities.clamp(min=1e-8))).sum(1)
