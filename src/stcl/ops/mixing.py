"""Cutting patch sequences out of clips and pasting them into others: frames, labels and flow move together.

A patch sequence is the pixels of a chosen class set in every frame of a clip (each frame's own mask). Sources: STCL
(method section 3.4, bidirectional fusion at the image-sequence level), ClassMix (Olsson et al. 2021) for the choice by
class.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.types import ClipSpec, FramePair, VideoClip

PAIR = ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0, -1))
"""The part of a clip that is mixed: both frames, their labels, the flow between them."""


class PatchSequence(NamedTuple):
    """Pixels to paste: ``mask (B, T, H, W)`` bool says which of the clip; ``still`` patches do not move."""

    clip: VideoClip
    mask: Tensor
    still: bool = False


class FusedClip(NamedTuple):
    """A clip with patches: ``mask (B, H, W)`` where any patch lies at t, ``still (B, H, W)`` where a still one does."""

    clip: VideoClip
    mask: Tensor
    still: Tensor

    def pair(self) -> FramePair:
        """What the network eats."""
        return self.clip.pair()._replace(still=self.still)

    def weigh(self, weight: Tensor | None) -> Tensor | None:
        """Weights of a pseudo-labelled background with pasted pixels, which are sure: ``(B, H, W)``, or None."""
        return None if weight is None else torch.where(self.mask, torch.ones_like(weight), weight)


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """Pixels of each class in each label map: ``(B, ...) -> (B, C)`` float32, without a host synchronisation."""
    flat = labels.flatten(1).long()
    counts = torch.zeros(flat.shape[0], 256, device=labels.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))[:, :classes]


def classes_present(labels: Tensor, classes: int) -> Tensor:
    """Which classes occur in each label map: ``(B, ...) -> (B, C)`` bool."""
    return class_counts(labels, classes) > 0


def choose_classes(
    present: Tensor,
    count: int | Tensor,
    generator: torch.Generator,
    exclude: Tensor | None = None,
    always: Tensor | None = None,
) -> Tensor:
    """Choose ``count`` random classes among those present in each clip.

    Args:
        present: ``(B, C)`` bool.
        count: how many at most, for all clips or for each ``(B,)``; all that are left where fewer are present.
        generator: source of the random order, on the tensors' device.
        exclude: ``(B, C)`` or ``(C,)`` bool, classes that may not be chosen.
        always: ``(C,)`` bool, classes that are taken wherever present and not excluded, beside the random ones.

    Returns:
        ``(B, C)`` bool.
    """
    allowed = present if exclude is None else present & ~exclude
    drawn = allowed if always is None else allowed & ~always
    order = torch.rand(present.shape, generator=generator, device=present.device).masked_fill(~drawn, -1.0)
    rank = order.argsort(1, descending=True).argsort(1)
    chosen = (rank < (count.unsqueeze(1) if isinstance(count, Tensor) else count)) & drawn
    return chosen if always is None else chosen | (allowed & always)


def random_pixel(mask: Tensor, generator: torch.Generator) -> Tensor:
    """One of the pixels of each mask ``(B, H, W)`` bool: x and y, ``(B, 2)``; any pixel where the mask is empty."""
    luck = torch.rand(mask.shape, generator=generator, device=mask.device).masked_fill(~mask, -1.0)
    place, width = luck.flatten(1).argmax(1), mask.shape[-1]
    return torch.stack((place % width, place // width), 1)


def class_mask(labels: Tensor, chosen: Tensor) -> Tensor:
    """Pixels of the chosen classes: labels ``(B, ...)`` and chosen ``(B, C)`` give a bool mask of the labels' shape."""
    table = torch.zeros(chosen.shape[0], 256, dtype=torch.bool, device=chosen.device)
    table[:, : chosen.shape[1]] = chosen
    table[:, IGNORE] = False
    return table.gather(1, labels.flatten(1).long()).view(labels.shape)


def cut(clip: VideoClip, chosen: Tensor) -> PatchSequence:
    """The patch sequence of the classes ``chosen (B, C)``: their pixels in every frame of ``clip``."""
    if clip.labels is None:
        raise SettingError("A patch sequence is cut out by class, but this clip was loaded without labels.")
    return PatchSequence(clip, class_mask(clip.labels, chosen))


def paste(background: VideoClip, patch: VideoClip, mask: Tensor) -> VideoClip:
    """Paste the masked pixels of ``patch`` over ``background``.

    Frames and labels take each frame's own mask; a flow ``(a, b)`` takes the mask of frame a, whose pixels index it.

    Args:
        background: batch of clips, ``(B, T, 3, H, W)``.
        patch: batch of clips of the same size with (at least) the background's frames and flows.
        mask: ``(B, T, H, W)`` bool, in the order of the background's offsets.
    """
    if background.size != patch.size:
        raise SettingError(
            f"A patch of {patch.size[1]}x{patch.size[0]} px cannot be pasted into a clip of {background.size[1]}x"
            f"{background.size[0]} px. Crop both to one size first."
        )
    patch = patch.restrict(ClipSpec(background.offsets, tuple(background.flows)))
    frames = torch.where(mask.unsqueeze(2), patch.frames, background.frames)
    labels = background.labels
    if labels is not None:
        if patch.labels is None:
            labels = labels.masked_fill(mask, IGNORE)
        else:
            labels = torch.where(mask, patch.labels.to(labels.dtype), labels)
    flows = {
        (a, b): torch.where(mask[:, background.offsets.index(a)].unsqueeze(1), patch.flow(a, b), flow)
        for (a, b), flow in background.flows.items()
    }
    return replace(background, frames=frames, labels=labels, flows=flows)


def fuse(background: VideoClip, patches: Sequence[PatchSequence]) -> FusedClip:
    """Paste patch sequences one after the other; a later one covers an earlier one."""
    height, width = background.size
    covered = torch.zeros(background.frames.shape[0], height, width, dtype=torch.bool, device=background.frames.device)
    still = covered.clone()
    now = background.offsets.index(0)
    clip = background
    for patch in patches:
        clip = paste(clip, patch.clip, patch.mask)
        covered = covered | patch.mask[:, now]
        still = (still | patch.mask[:, now]) if patch.still else (still & ~patch.mask[:, now])
    return FusedClip(clip, covered, still)
