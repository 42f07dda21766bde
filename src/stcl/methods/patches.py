"""Where patches come from: what methods remember of clips, in buffers, so that a resumed run continues exactly."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from stcl.labels import IGNORE
from stcl.ops.augment import zoom_clip
from stcl.ops.mixing import PatchSequence, class_counts, random_pixel
from stcl.ops.processes import sum_over_processes
from stcl.types import VideoClip

LEAST_SHARE = 1e-12
"""Share of the pixels below which classes are drawn alike; a pixel of a million full frames is more."""


class ResizableBuffers(nn.Module):
    """Buffers whose shapes are known only once data have been seen; loading takes the stored shapes."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in list(self._buffers.items()):
            stored = state_dict.get(prefix + name)
            if buffer is not None and stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


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
    largest: Tensor
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
        self.register_buffer("largest", torch.zeros(classes))  # pixels of each class in the frame that has most of it
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
        torch.maximum(self.largest, count.amax(0), out=self.largest)
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
        """``count`` still patches for every clip of the batch ``like``; empty masks while the bank is empty.

        Every rare class is drawn as often.
        """
        if len(self.frames) == 0 or count == 0:
            return []
        return _still(self._pick(like, count, generator), like, count)

    @torch.no_grad()
    def close_ups(
        self, like: VideoClip, count: int, zoom: tuple[float, float], generator: torch.Generator
    ) -> list[PatchSequence]:
        """``count`` still patches, enlarged about one of their own pixels.

        What is rare is mostly far away and small; a network that has hardly seen it near takes a person before the
        camera for a car. Classes are drawn by their share of the source's pixels: if a rider were as frequent as a
        person, the upper half of either, which is all that a close-up may show, would be a rider's too often. And none
        becomes larger than the class has ever been seen, or every large plain surface would be a sign.

        Args:
            like: batch of clips that the patches are for.
            count: patches for each.
            zoom: range of the factor, which is drawn evenly in its logarithm.
            generator: of the draws.
        """
        if len(self.frames) == 0 or count == 0:
            return []
        low, high = map(math.log, zoom)
        picked = self._pick(like, count, generator, self.pixels / self.pixels.sum().clamp(min=1))
        drawn = torch.rand(len(picked.frames), generator=generator, device=picked.frames.device)
        mask = picked.label(0) != IGNORE  # (count * B, H, W)
        classes = picked.label(0).masked_fill(~mask, 0).flatten(1).amax(1).long()  # (count * B)
        most = (self.largest[classes] / mask.sum((1, 2)).clamp(min=1)).sqrt().clamp(min=1)
        factor = torch.minimum((low + (high - low) * drawn).exp(), most)
        return _still(zoom_clip(picked, factor, random_pixel(mask, generator)), like, count)

    def _pick(self, like: VideoClip, count: int, generator: torch.Generator, share: Tensor | None = None) -> VideoClip:
        """``count * B`` stored frames, each with the label of one rare class; no label while the bank is empty.

        Args:
            like: batch of B clips.
            count: frames for each.
            generator: of the draws.
            share: how often each class is drawn, ``(C,)``; None: all alike.
        """
        batch, device = len(like.frames), self.frames.device
        shapes = ((batch, self.classes), (batch,))
        draws = [[torch.rand(shape, generator=generator, device=device) for shape in shapes] for _ in range(count)]
        score, uniform = (torch.cat(column) for column in zip(*draws, strict=True))  # (count * B, C), (count * B)
        if share is not None:  # Efraimidis and Spirakis 2006: the largest log(U) / w belongs to each with probability w
            score = score.clamp(min=torch.finfo(score.dtype).tiny).log() / share.clamp(min=LEAST_SHARE)
        filled = (self.written > 0) & self.rare
        chosen = score.masked_fill(~filled, -torch.inf).argmax(-1)  # (count * B)
        kept = self.written[chosen].clamp(max=self.slots)
        slot = chosen * self.slots + (uniform * kept).long()
        labels, frames = self.labels[slot], self.frames[slot].float().div_(255)  # (count * B, H, W), (..., 3, H, W)
        outside = (labels != chosen.view(-1, 1, 1)) | ~filled[chosen].view(-1, 1, 1)
        return VideoClip(frames.unsqueeze(1), labels.masked_fill(outside, IGNORE).unsqueeze(1), {}, (0,))


def _still(picked: VideoClip, like: VideoClip, count: int) -> list[PatchSequence]:
    """Frames ``(count * B, 1, 3, H, W)`` as patches that do not move, in clips like ``like``."""
    steps, labels = len(like.offsets), picked.label(0).unsqueeze(1)
    at_rest = {key: torch.zeros_like(flow) for key, flow in like.flows.items()}
    patches = []
    for frame, label in zip(picked.frames.chunk(count), labels.chunk(count), strict=True):
        label = label.expand(-1, steps, -1, -1)
        clip = VideoClip(frame.expand(-1, steps, -1, -1, -1), label, at_rest, like.offsets)
        patches.append(PatchSequence(clip, label != IGNORE, still=True))
    return patches


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
        last = clip
        if self.frames.shape == clip.frames.shape:
            last = VideoClip(self.frames, self.labels, {(0, -1): self.flow}, clip.offsets)
        self.frames, self.labels, self.flow = clip.frames.clone(), labels.long().clone(), clip.flow(0, -1).clone()
        return last
