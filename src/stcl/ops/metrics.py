"""What is measured: one confusion matrix a set, the IoU from it, and how steady predictions are along a video.

Counts add up over a set and are divided once, at the end; nothing is averaged over images. Updates stay on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.ops.warp import inside, warp


def confusion_counts(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Confusion matrix ``(C, C)`` int64, ``[label, prediction]``, without a host synchronisation on a GPU.

    Args:
        prediction: ``(..., H, W)`` train ids 0..C-1, any integer type.
        label: same shape; pixels of 255, or of any other id outside the classes, do not count.
        classes: C.
    """
    prediction, label = prediction.flatten().int(), label.flatten().int()
    cell = torch.where((label >= 0) & (label < classes), label * classes + prediction, classes**2)
    if prediction.device.type == "cpu":
        if prediction.numel() and int(prediction.max()) >= classes:
            raise SettingError(f"A prediction of id {int(prediction.max())} is outside the {classes} classes.")
        counts = torch.bincount(cell, minlength=classes**2 + 1)
    else:  # there bincount would read the largest value back to the host
        counts = torch.zeros(classes**2 + 1, dtype=torch.int64, device=cell.device)
        counts.scatter_add_(0, cell.long(), torch.ones_like(cell, dtype=torch.int64))
    return counts[:-1].view(classes, classes)


def leave_out(prediction: Tensor, label: Tensor, ignored: Sequence[int]) -> Tensor:
    """``label`` with 255 wherever it, or the prediction, is one of the train ids ``ignored``; both ``(..., H, W)``."""
    if not ignored:
        return label
    ids = torch.tensor(ignored, device=label.device)
    return label.masked_fill(torch.isin(label, ids) | torch.isin(prediction, ids), IGNORE)


def iou_from_confusion(counts: Tensor) -> Tensor:
    """Intersection over union of each class, ``(C,)`` float64 0..1; nan for a class in neither label nor prediction.

    Args:
        counts: ``(C, C)`` pixels, ``[label, prediction]``.
    """
    counts = counts.cpu().double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)  # 0 / 0 = nan


def mean_iou(counts: Tensor, reported: Sequence[int] | None = None) -> float:
    """Macro mean of the IoU over the ``reported`` train ids (None: all); absent classes are left out; 0..1 or nan."""
    iou = iou_from_confusion(counts)
    return float((iou if reported is None else iou[list(reported)]).nanmean())


class ConfusionMatrix(nn.Module):
    """Confusion matrix of a whole set, kept on the device and in the ``state_dict``.

    Args:
        classes: C.
        reported: train ids that enter the mean; None means all. :attr:`LabelSpace.reported` is what a set declares.
    """

    counts: Tensor

    def __init__(self, classes: int, reported: Sequence[int] | None = None) -> None:
        super().__init__()
        self.reported = None if reported is None else tuple(reported)
        self.register_buffer("counts", torch.zeros(classes, classes, dtype=torch.int64))

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add images: ``prediction`` and ``label`` are ``(B, H, W)`` train ids; 255 in the label does not count."""
        self.counts += confusion_counts(prediction, label, len(self.counts))

    def reset(self) -> None:
        """Forget all images."""
        self.counts.zero_()

    def iou(self) -> Tensor:
        """IoU of each class, ``(C,)`` float64 0..1; nan where absent."""
        return iou_from_confusion(self.counts)

    def miou(self) -> float:
        """Mean IoU over the reported classes that occur."""
        return mean_iou(self.counts, self.reported)


@dataclass(frozen=True)
class Share:
    """A share of pixels that can be summed over a set: ``hits`` of ``total``, scalar int64 tensors."""

    hits: Tensor
    total: Tensor

    def __add__(self, other: "Share") -> "Share":
        return Share(self.hits + other.hits, self.total + other.total)

    @property
    def value(self) -> float:
        """``hits / total``, 0..1; nan of nothing."""
        total = int(self.total)
        return int(self.hits) / total if total else float("nan")


def temporal_consistency(
    prediction: Tensor, previous: Tensor, flow: Tensor, valid: Tensor | None = None, label: Tensor | None = None
) -> Share:
    """Pixels whose class is the same as that of the previous frame's prediction, followed along the flow.

    Without ``label`` a constant prediction scores 1, however wrong: report it beside the accuracy, or give ``label``,
    and only pixels that agree AND are right are hits.

    Args:
        prediction: at t, ``(B, H, W)`` train ids.
        previous: at t-1, likewise.
        flow: t -> t-1, ``(B, 2, H, W)`` pixels.
        valid: ``(B, H, W)`` bool, where the flow can be trusted (not occluded); pixels whose flow leaves the image are
            never compared anyway.
        label: at t, ``(B, H, W)`` train ids; pixels of 255 are not compared.
    """
    # ids are small whole numbers, which floats hold exactly
    followed = warp(previous.unsqueeze(1).float(), flow.float(), mode="nearest").squeeze(1).long()
    compared = inside(flow) if valid is None else inside(flow) & valid
    agrees = prediction.long() == followed
    if label is not None:
        compared = compared & (label != IGNORE)
        agrees = agrees & (prediction.long() == label.long())
    return Share((agrees & compared).sum(), compared.sum())


def video_consistency(predictions: Tensor, labels: Tensor, window_frames: int) -> float:
    """VC_n: of the pixels whose label stays the same for n frames, the share that is right in all n; mean over windows.

    Definition: Miao et al., VSPW (CVPR 2021). All T - n + 1 windows of a video count, the last one too, and a steady
    but wrong prediction scores 0. A window without a steady pixel is left out. Over a set: the mean over its videos.

    Args:
        predictions: of one video with all frames labelled, ``(T, H, W)`` train ids.
        labels: likewise; pixels of 255 do not count.
        window_frames: n.

    Returns:
        0..1, or nan where no window has a steady pixel.
    """
    windows = len(labels) - window_frames + 1
    if window_frames < 1 or windows < 1:
        raise SettingError(f"A window of {window_frames} frames does not fit a video of {len(labels)} frames.")
    first = labels[:windows].long()
    steady = first != IGNORE
    right = steady.clone()
    for offset in range(window_frames):
        steady &= labels[offset : offset + windows].long() == first
        right &= predictions[offset : offset + windows].long() == first
    hits, total = (right & steady).flatten(1).sum(1), steady.flatten(1).sum(1)  # (windows,)
    return float((hits.cpu().double() / total.cpu()).nanmean())
