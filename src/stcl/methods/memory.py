"""What methods remember from step to step. All of it lies in buffers, so a resumed run continues exactly."""

from typing import Any

import torch
from torch import Tensor, nn

from stcl.labels import IGNORE
from stcl.ops.align import Centroids
from stcl.ops.mixing import PatchSequence, class_counts
from stcl.types import VideoClip


class ResizableBuffers(nn.Module):
    """Buffers whose shapes are known only once data have been seen; loading takes the stored shapes."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in list(self._buffers.items()):
            stored = state_dict.get(prefix + name)
            if buffer is not None and stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


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


class PatchMemory(ResizableBuffers):
    """Long-tail bank: the latest source frames that hold a rare class, filled from the passing batches.

    Nothing is decoded twice and nothing waits for the host: writing and drawing are index operations on the device.

    Args:
        classes: C.
        slots: frames kept for each class.
        rare: train ids of the rare classes; None computes them from the source's pixel frequencies seen so far.
        rare_share: classes with a smaller share of the labelled pixels are rare.
        minimum_pixels: a frame enters the bank of a class with at least this many of its pixels.
    """

    frames: Tensor
    labels: Tensor
    written: Tensor
    pixels: Tensor
    fixed: Tensor | None

    def __init__(
        self,
        classes: int,
        slots: int = 4,
        rare: list[int] | None = None,
        rare_share: float = 0.02,
        minimum_pixels: int = 16,
    ) -> None:
        super().__init__()
        self.classes, self.slots, self.rare_share, self.minimum_pixels = classes, slots, rare_share, minimum_pixels
        self.register_buffer("frames", torch.zeros(0, 3, 0, 0, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(0, 0, 0, dtype=torch.uint8))
        self.register_buffer("written", torch.zeros(classes, dtype=torch.long))
        self.register_buffer("pixels", torch.zeros(classes))
        fixed = torch.zeros(classes, dtype=torch.bool)
        if rare is not None:
            fixed[rare] = True
        self.register_buffer("fixed", fixed if rare is not None else None)

    @property
    def rare(self) -> Tensor:
        """Rare classes ``(C,)`` bool."""
        if self.fixed is not None:
            return self.fixed
        return (self.pixels > 0) & (self.pixels < self.rare_share * self.pixels.sum())

    @torch.no_grad()
    def add(self, clip: VideoClip) -> None:
        """Remember each clip's frame t under the rarest of the rare classes in it."""
        frames, labels = clip.frame(0), clip.label(0)
        spare = self.classes * self.slots  # one more slot takes the frames that hold nothing rare
        if self.frames.shape[-2:] != frames.shape[-2:]:
            self.frames = frames.new_zeros((spare + 1, *frames.shape[1:]), dtype=torch.uint8)
            self.labels = labels.new_full((spare + 1, *labels.shape[1:]), IGNORE, dtype=torch.uint8)
            self.written.zero_()
        count = class_counts(labels, self.classes)
        self.pixels += count.sum(0)
        held = (count >= self.minimum_pixels) & self.rare  # (B, C)
        frequency = (self.pixels + 1).expand_as(count).masked_fill(~held, float("inf"))
        rarest = frequency.argmin(1)
        for row in range(len(frames)):  # a short loop over the batch keeps two frames of one class in two slots
            wanted = held[row].any()
            chosen = rarest[row]
            slot = torch.where(wanted, chosen * self.slots + self.written[chosen] % self.slots, spare)
            self.frames.index_copy_(0, slot.view(1), (frames[row : row + 1] * 255).round().to(torch.uint8))
            self.labels.index_copy_(0, slot.view(1), labels[row : row + 1].to(torch.uint8))
            self.written.index_add_(0, chosen.view(1), wanted.view(1).long())

    @torch.no_grad()
    def draw(self, like: VideoClip, count: int, generator: torch.Generator) -> list[PatchSequence]:
        """``count`` still patches for every clip of the batch ``like``; empty masks while the bank is empty."""
        patches: list[PatchSequence] = []
        if len(self.frames) == 0:
            return patches
        batch, steps = like.frames.shape[:2]
        for _ in range(count):
            luck = torch.rand(batch, self.classes, generator=generator, device=self.frames.device)
            filled = (self.written > 0) & self.rare
            chosen = luck.masked_fill(~filled, -1.0).argmax(1)  # (B)
            newest = self.written[chosen].clamp(max=self.slots)
            place = (torch.rand(batch, generator=generator, device=self.frames.device) * newest).long()
            slot = chosen * self.slots + place
            label = self.labels[slot].long()
            mask = (label == chosen.view(-1, 1, 1)) & filled[chosen].view(-1, 1, 1)
            frame = self.frames[slot].float() / 255
            clip = VideoClip(
                frames=frame.unsqueeze(1).expand(-1, steps, -1, -1, -1),
                labels=label.unsqueeze(1).expand(-1, steps, -1, -1),
                flows={key: torch.zeros_like(flow) for key, flow in like.flows.items()},
                offsets=like.offsets,
            )
            patches.append(PatchSequence(clip, mask.unsqueeze(1).expand(-1, steps, -1, -1), still=True))
        return patches


class ClipMemory(ResizableBuffers):
    """The clips of the last step: the other clip to cut patches from where a batch holds only one."""

    frames: Tensor
    labels: Tensor
    flow: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frames", torch.zeros(0))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))
        self.register_buffer("flow", torch.zeros(0))

    @torch.no_grad()
    def exchange(self, clip: VideoClip) -> VideoClip:
        """Another clip for each of ``clip``: its neighbour in the batch, or the last step's clip for a batch of one.

        ``clip`` has the frames (0, -1), labels and the flow (0, -1).
        """
        if len(clip.frames) > 1:
            return clip.map(lambda tensor: tensor.roll(1, 0))
        labels = clip.labels if clip.labels is not None else torch.zeros(0, dtype=torch.long)
        same_size = self.frames.shape == clip.frames.shape
        other = clip
        if same_size:
            other = VideoClip(self.frames, self.labels, {(0, -1): self.flow}, clip.offsets)
        self.frames, self.labels, self.flow = clip.frames.clone(), labels.long().clone(), clip.flow(0, -1).clone()
        return other
