"""What methods remember from step to step. All of it lies in buffers, so a resumed run continues exactly."""

from typing import Any

import torch
from torch import Tensor, nn

from stcl.labels import IGNORE
from stcl.ops.align import Centroids
from stcl.ops.mixing import PatchSequence, class_counts
from stcl.ops.processes import sum_over_processes
from stcl.ops.pseudo_labels import BINS, PseudoLabels, class_shares, class_thresholds, confidence_histogram
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


class PatchMemory(ResizableBuffers):
    """Long-tail bank: the latest source frames that hold a rare class, filled from the passing batches.

    Nothing is decoded twice and nothing waits for the host: writing and drawing are index operations on the device.
    Patches are each process's own, cut from the clips of its share; what is rare is counted over all processes' clips.

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
        self.pixels += sum_over_processes(count.sum(0))
        held = (count >= self.minimum_pixels) & self.rare  # (B, C)
        frequency = (self.pixels + 1).expand_as(count).masked_fill(~held, float("inf"))
        rarest = frequency.argmin(1)  # (B)
        # Frames of one class go to successive slots: each one's rank among those of its class in this batch
        joins = (rarest.unsqueeze(1) == torch.arange(self.classes, device=rarest.device)) & held  # (B, C)
        rank = joins.cumsum(0).gather(1, rarest.unsqueeze(1)).squeeze(1) - 1
        joining = joins.sum(0)
        kept = joins.any(1) & (rank >= joining[rarest] - self.slots)  # more than there are slots: the last ones
        slot = torch.where(kept, rarest * self.slots + (self.written[rarest] + rank) % self.slots, spare)
        self.frames.index_copy_(0, slot, (frames * 255).round_().to(torch.uint8))
        self.labels.index_copy_(0, slot, labels.to(torch.uint8))
        self.written += joining

    @torch.no_grad()
    def draw(self, like: VideoClip, count: int, generator: torch.Generator) -> list[PatchSequence]:
        """``count`` still patches for every clip of the batch ``like``; empty masks while the bank is empty."""
        if len(self.frames) == 0 or count == 0:
            return []
        (batch, steps), device = like.frames.shape[:2], self.frames.device
        shapes = ((batch, self.classes), (batch,))
        draws = [[torch.rand(shape, generator=generator, device=device) for shape in shapes] for _ in range(count)]
        luck, place = (torch.stack(column) for column in zip(*draws, strict=True))  # (count, B, C), (count, B)
        filled = (self.written > 0) & self.rare
        chosen = luck.masked_fill(~filled, -1.0).argmax(-1)  # (count, B)
        newest = self.written[chosen].clamp(max=self.slots)
        slot = chosen * self.slots + (place * newest).long()
        labels, frames = self.labels[slot], self.frames[slot].float().div_(255)  # (count, B, H, W), (count, B, 3, H, W)
        masks = (labels == chosen[..., None, None]) & filled[chosen][..., None, None]
        at_rest = {key: torch.zeros_like(flow) for key, flow in like.flows.items()}

        def still(frame: Tensor, label: Tensor, mask: Tensor) -> PatchSequence:
            frame, label, mask = (tensor.unsqueeze(1) for tensor in (frame, label, mask))
            clip = VideoClip(
                frame.expand(-1, steps, -1, -1, -1), label.expand(-1, steps, -1, -1), at_rest, like.offsets
            )
            return PatchSequence(clip, mask.expand(-1, steps, -1, -1), still=True)

        return [still(*parts) for parts in zip(frames, labels, masks, strict=True)]


class ClipMemory(ResizableBuffers):
    """The clips of a process's last step: the other clip to cut patches from where its share of a batch is only one."""

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
