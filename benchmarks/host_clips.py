"""Clips on the host, changed one by one with NumPy, OpenCV, scikit-image and kornia, as published data code does.

Part of the yardstick (see yardstick.py); nothing of this project's own mathematics is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import kornia.enhance as enhance
import numpy as np
import torch
from numpy.typing import NDArray

from stcl.ops.augment import StrongAugmentation
from stcl.types import VideoClip

Array = NDArray[Any]
IGNORE = 255
PAIR = (0, -1)
"""Offsets of the frames that are mixed."""
GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue."""


@dataclass
class Clip:
    """One clip on the host.

    Attributes:
        frames: offset -> ``(3, H, W)`` RGB, bytes as loaded, later float32 0..1.
        labels: offset -> ``(H, W)`` train ids, 255 = ignore.
        flows: ``(a, b)`` -> ``(2, H, W)`` px.
        weight: of the labels of frame t, ``(H, W)``; None is 1 everywhere.
        still: where frame t shows a pasted still image, ``(H, W)`` bool, or None.
        pasted: where frame t shows anything pasted, likewise.
    """

    frames: dict[int, Array]
    labels: dict[int, Array]
    flows: dict[tuple[int, int], Array]
    weight: Array | None = None
    still: Array | None = None
    pasted: Array | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.frames[0].shape[1:]

    def map(self, change: Callable[[Array], Array]) -> "Clip":
        """``change`` applied to frames, labels and flows."""

        def each(group: dict[Any, Array]) -> dict[Any, Array]:
            return {key: np.ascontiguousarray(change(array)) for key, array in group.items()}

        return Clip(each(self.frames), each(self.labels), each(self.flows))


@dataclass
class Patch:
    """Pixels to paste: ``masks`` offset -> ``(H, W)`` bool of ``clip``; ``still`` ones do not move."""

    clip: Clip
    masks: dict[int, Array]
    still: bool = False


def clips_of(batch: VideoClip) -> list[Clip]:
    """The clips of a batch, without a copy."""
    frames, labels = batch.frames.numpy(), None if batch.labels is None else batch.labels.numpy()
    flows = {key: flow.numpy() for key, flow in batch.flows.items()}
    return [
        Clip(
            dict(zip(batch.offsets, frames[i], strict=True)),
            {} if labels is None else dict(zip(batch.offsets, labels[i], strict=True)),
            {key: flow[i] for key, flow in flows.items()},
        )
        for i in range(len(frames))
    ]


def as_floats(clip: Clip) -> Clip:
    """Bytes to 0..1."""
    return replace(clip, frames={t: frame.astype(np.float32) / 255 for t, frame in clip.frames.items()})


def match_colours(clip: Clip, reference: Array) -> Clip:
    """The clip with the colours of ``reference (3, H, W)`` bytes: one map for all of its frames, then 0..1."""
    from skimage.exposure import match_histograms  # not everywhere; the rest of the yardstick runs without

    tall = np.concatenate(list(clip.frames.values()), axis=1)  # (3, T * H, W)
    # channel by channel, since channel_axis would cut the result to bytes
    matched = np.stack([match_histograms(*channels) for channels in zip(tall, reference, strict=True)])
    frames = np.split((matched / 255).astype(np.float32), len(clip.frames), axis=1)
    return replace(clip, frames=dict(zip(clip.frames, frames, strict=True)))


def flip(clip: Clip) -> Clip:
    """Mirrored; u changes its sign."""
    mirrored = clip.map(lambda array: array[..., ::-1])
    for flow in mirrored.flows.values():
        flow[0] *= -1
    return mirrored


def crop(clip: Clip, size: tuple[int, int], place: tuple[float, float]) -> Clip:
    """A window of ``size``, at the share ``place`` (down, right) of the room that there is."""
    if clip.size == size:
        return clip
    top, left = (int(share * (whole - part + 1)) for share, whole, part in zip(place, clip.size, size, strict=True))
    return clip.map(lambda array: array[..., top : top + size[0], left : left + size[1]])


def augment(clip: Clip, strong: StrongAugmentation, draw: Array) -> Clip:
    """Colour jitter, grey, blur: one ``draw (8,)`` for all frames, only what was drawn is computed."""
    jitter, grey, blur = (draw[i] < p for i, p in zip((0, 5, 6), probabilities(strong), strict=True))
    tall = np.concatenate(list(clip.frames.values()), axis=1)  # (3, T * H, W): the contrast's mean is the clip's
    if jitter:
        tall = colour_jitter(tall, strong, *(float(number) for number in draw[1:5]))
    if grey:
        tall = np.broadcast_to(np.tensordot(GREY, tall, 1), tall.shape)
    frames = np.split(tall, len(clip.frames), axis=1)
    if blur:
        size = strong.blur_kernels_px[min(int(draw[7] * len(strong.blur_kernels_px)), len(strong.blur_kernels_px) - 1)]
        sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
        frames = [
            np.stack([cv2.GaussianBlur(channel, (size, size), sigma) for channel in np.ascontiguousarray(frame)])
            for frame in frames
        ]
    return replace(clip, frames=dict(zip(clip.frames, frames, strict=True)))


def probabilities(strong: StrongAugmentation) -> tuple[float, float, float]:
    """Of jitter, grey and blur."""
    return strong.jitter_probability, strong.grey_probability, strong.blur_probability


def colour_jitter(image: Array, strong: StrongAugmentation, *chance: float) -> Array:
    """Brightness, contrast, saturation and hue of ``(3, H, W)``, each drawn by a number 0..1."""

    def factor(amount: float, number: float) -> float:
        low = max(0.0, 1 - amount)
        return low + (1 + amount - low) * number

    tensor = torch.from_numpy(image).unsqueeze(0)
    tensor = enhance.adjust_brightness_accumulative(tensor, factor(strong.brightness, chance[0]))
    tensor = enhance.adjust_contrast_with_mean_subtraction(tensor, factor(strong.contrast, chance[1]))
    tensor = enhance.adjust_saturation_with_gray_subtraction(tensor, factor(strong.saturation, chance[2]))
    if strong.hue > 0:
        tensor = enhance.adjust_hue(tensor, (2 * chance[3] - 1) * strong.hue * 2 * np.pi)
    return tensor[0].clamp(0, 1).numpy()


def pseudo_label(
    clip: Clip, now: Array, before: Array, threshold: float, weighting: str
) -> tuple[Clip, dict[int, Array]]:
    """The clip with labels of (t, t-1) and the pixel weights of t; the confidence of both labels.

    Args:
        clip: of the target.
        now, before: probabilities ``(C, H, W)`` of t (warped from t-1) and of t-1.
        threshold: on the confidence, for the weights.
        weighting: ``none``, ``threshold`` or ``share``.
    """
    height, width = clip.size
    u, v = clip.flows[PAIR]
    x, y = np.arange(width, dtype=np.float32) + u, np.arange(height, dtype=np.float32)[:, None] + v
    seen = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)  # elsewhere the flow leaves the frame
    labels = {0: np.where(seen, now.argmax(0), IGNORE), -1: before.argmax(0)}
    confidence = {0: now.max(0) * seen, -1: before.max(0)}
    sure = (confidence[0] > threshold).astype(np.float32)
    weight = {"none": None, "threshold": sure, "share": np.full_like(sure, sure.mean())}[weighting]
    return replace(clip, labels=labels, weight=weight), confidence


def choose(present: set[int], count: int, luck: Array) -> set[int]:
    """The ``count`` classes with the most luck among those present."""
    return set(sorted(present, key=lambda c: -luck[c])[:count])


def cut(clip: Clip, chosen: set[int]) -> Patch:
    """The pixels of the chosen classes, in each frame its own."""
    return Patch(clip, {t: np.isin(clip.labels[t], sorted(chosen)) for t in PAIR})


def paste(background: Clip, patches: Sequence[Patch]) -> Clip:
    """Patches over (t, t-1) of a clip, one after the other; the flow follows the mask of t, whose pixels index it."""
    frames, flow = {t: background.frames[t].copy() for t in PAIR}, background.flows[PAIR].copy()
    label = background.labels[0].copy()
    still, pasted = np.zeros(background.size, bool), np.zeros(background.size, bool)
    for patch in patches:
        for t in PAIR:
            frames[t][:, patch.masks[t]] = patch.clip.frames[t][:, patch.masks[t]]
        now = patch.masks[0]
        label[now] = patch.clip.labels[0][now]
        flow[:, now] = patch.clip.flows[PAIR][:, now]
        still[now], pasted[now] = patch.still, True
    weight = None if background.weight is None else np.where(pasted, np.float32(1), background.weight)
    return Clip(frames, {0: label}, {PAIR: flow}, weight, still, pasted)


class LongTail:
    """The latest source frames with a rare class, by class.

    Args:
        classes: number of classes.
        slots: frames kept for each class.
        rare: rare classes; None takes those with less than ``rare_share`` of the labelled pixels seen so far.
        rare_share: see ``rare``.
        minimum_pixels: that a frame must hold of the class.
    """

    def __init__(
        self, classes: int, slots: int, rare: Sequence[int] | None, rare_share: float, minimum_pixels: int
    ) -> None:
        self.slots, self.given, self.rare_share, self.minimum_pixels = slots, rare, rare_share, minimum_pixels
        self.pixels = np.zeros(classes, np.int64)
        self.images: list[list[tuple[Array, Array]]] = [[] for _ in range(classes)]
        self.written = [0] * classes

    @property
    def rare(self) -> list[int]:
        """Rare classes."""
        if self.given is not None:
            return list(self.given)
        return [c for c, n in enumerate(self.pixels) if 0 < n < self.rare_share * self.pixels.sum()]

    def add(self, clips: Sequence[Clip]) -> None:
        """Keep frame t of each clip under the rarest of the rare classes in it."""
        counts = [np.bincount(clip.labels[0].ravel(), minlength=256)[: len(self.pixels)] for clip in clips]
        self.pixels += sum(counts)
        for clip, count in zip(clips, counts, strict=True):
            held = [c for c in self.rare if count[c] >= self.minimum_pixels]
            if not held:
                continue
            rarest = min(held, key=lambda c: self.pixels[c])
            image = (np.rint(clip.frames[0] * 255).astype(np.uint8), clip.labels[0])
            place = self.written[rarest] % self.slots
            self.images[rarest][place : place + 1] = [image]
            self.written[rarest] += 1

    def draw(self, like: Clip, luck: Array, place: float) -> Patch | None:
        """The pixels of one class in one image, as a clip that stands still."""
        filled = [c for c in self.rare if self.images[c]]
        if not filled:
            return None
        chosen = max(filled, key=lambda c: luck[c])
        image, label = self.images[chosen][int(place * len(self.images[chosen]))]
        frame = image.astype(np.float32) / 255
        clip = Clip(dict.fromkeys(PAIR, frame), dict.fromkeys(PAIR, label), {PAIR: np.zeros_like(like.flows[PAIR])})
        return Patch(clip, dict.fromkeys(PAIR, label == chosen), still=True)
