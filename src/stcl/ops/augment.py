"""Strong augmentation and geometry of whole clips, on the device.

A clip is changed as a whole: one draw of colours and blur for all of its frames, and geometry moves frames, labels and
flow together. Every random number comes from the caller's generator. Colours follow torchvision's definition of colour
jitter (factors, not offsets; contrast about the mean of the grey image) in a fixed order.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from kornia.filters import filter2d_separable
from pydantic import Field, field_validator
from torch import Tensor

from stcl.errors import SettingError
from stcl.fields import Group, group
from stcl.labels import IGNORE
from stcl.ops.warp import flip_flow, resize_flow
from stcl.types import VideoClip


@group
class StrongAugmentation(Group):
    """Strong augmentation; the defaults are the published ones for 1024x512 frames."""

    jitter_probability: float = Field(default=0.8, ge=0, le=1)
    """Of colour jitter, for each clip."""
    brightness: float = Field(default=0.8, ge=0)
    """The factor is drawn from 1 - value to 1 + value, not below 0."""
    contrast: float = Field(default=0.8, ge=0)
    """Likewise, about the clip's mean grey."""
    saturation: float = Field(default=0.8, ge=0)
    """Likewise; 0 is grey."""
    hue: float = Field(default=0.2, ge=0, le=0.5)
    """Largest shift as a share of the colour circle."""
    grey_probability: float = Field(default=0.2, ge=0, le=1)
    """Of dropping the colours."""
    blur_probability: float = Field(default=0.6, ge=0, le=1)
    """Of Gaussian blur."""
    blur_kernels_px: tuple[int, ...] = (5, 7, 9)
    """Sizes of the blur in pixels of the frames as they are trained on, odd; one is drawn. The standard deviation
    follows from the size."""

    @field_validator("blur_kernels_px")
    @classmethod
    def _check_odd(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or any(size < 1 or size % 2 == 0 for size in sizes):
            raise SettingError(f"{{key}} takes odd numbers of at least 1 and at least one of them, not {list(sizes)}.")
        return sizes


NO_AUGMENTATION = StrongAugmentation(jitter_probability=0, grey_probability=0, blur_probability=0)
"""Leaves every frame as it is."""


@torch.no_grad()
def strong_augment(frames: Tensor, settings: StrongAugmentation, generator: torch.Generator) -> Tensor:
    """Colour jitter, grey, blur: each clip has its own draw, which all of its frames share.

    Args:
        frames: ``(B, T, 3, H, W)`` float RGB 0..1. Bytes or mean-subtracted frames are refused or wrong.
        settings: what to do how often.
        generator: source of the draws, on the frames' device. Their number does not depend on ``settings``.

    Returns:
        Shape of ``frames``, 0..1.
    """
    if not frames.is_floating_point():
        raise TypeError(f"strong_augment takes float frames 0..1, not {frames.dtype}: divide bytes by 255 first.")
    batch, length, _, height, width = frames.shape
    draw = torch.rand(batch, 8, generator=generator, device=frames.device).unbind(1)

    # one tall image a clip, so that statistics (the contrast's mean) are the clip's
    tall = frames.transpose(1, 2).reshape(batch, 3, length * height, width)
    if settings.jitter_probability > 0:
        tall = _choose(draw[0] < settings.jitter_probability, _jitter(tall, settings, draw[1:5]), tall)
    if settings.grey_probability > 0:
        tall = _choose(draw[5] < settings.grey_probability, _grey(tall), tall)
    if settings.blur_probability > 0:
        sizes = settings.blur_kernels_px
        size = (draw[7] * len(sizes)).long().clamp(max=len(sizes) - 1)
        size = size.masked_fill(draw[6] >= settings.blur_probability, len(sizes))  # the last kernel changes nothing
        tall = _blur(tall.reshape(batch, 3 * length, height, width), sizes, size)
    return tall.reshape(batch, 3, length, height, width).transpose(1, 2).contiguous()


def _choose(chosen: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
    """``changed`` for the chosen clips ``(B,)``; exact, and several times as fast on a CPU as ``torch.where``."""
    return torch.lerp(kept, changed, _per_clip(chosen.to(kept.dtype)))


def _per_clip(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _grey(image: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, ``(B, 3, H, W) -> (B, 1, H, W)``."""
    red, green, blue = image.split(1, dim=1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _jitter(image: Tensor, settings: StrongAugmentation, draw: tuple[Tensor, ...]) -> Tensor:
    """Brightness, contrast, saturation, hue, in this order; each step clamps to 0..1."""

    def factor(amount: float, uniform: Tensor) -> Tensor:
        low = max(0.0, 1 - amount)
        return _per_clip(low + (1 + amount - low) * uniform)

    image = (image * factor(settings.brightness, draw[0])).clamp_(0, 1)
    mean = _grey(image).mean((-2, -1), keepdim=True)
    image = torch.lerp(mean, image, factor(settings.contrast, draw[1])).clamp_(0, 1)
    image = torch.lerp(_grey(image), image, factor(settings.saturation, draw[2])).clamp_(0, 1)
    return _turn_hue(image, (2 * draw[3] - 1) * settings.hue).clamp_(0, 1) if settings.hue > 0 else image


def _turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of ``(B, 3, H, W)`` by ``turn (B,)``, a share of the colour circle; HSV value and chroma stay.

    A channel is ``value - chroma * clamp(2 - |k - 2|, 0, 1)`` with ``k = (n + 6 hue) mod 6``, n = 5, 3, 1 for R, G, B.
    """
    red, green, blue = image.unbind(1)
    value = image.amax(1)
    chroma = value - image.amin(1)
    # Of the largest channel: 1 or 0. Products choose faster than torch.where does on a CPU.
    is_red = (red == value).to(image.dtype)
    is_green = (green == value).to(image.dtype) * (1 - is_red)
    is_blue = 1 - is_red - is_green
    hue = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    hue = hue.div_(chroma.clamp(min=1e-12)).add_(is_green, alpha=2).add_(is_blue, alpha=4)  # in sixths of the circle
    hue += 6 * turn.view(-1, 1, 1)
    k = torch.stack([hue + n for n in (5, 3, 1)], dim=1)
    k.sub_((k / 6).floor_(), alpha=6)
    return torch.addcmul(value.unsqueeze(1), chroma.unsqueeze(1), (2 - k.sub_(2).abs_()).clamp_(0, 1), value=-1)


def _blur(image: Tensor, kernels_px: tuple[int, ...], size: Tensor) -> Tensor:
    """Gaussian blur of ``(B, N, H, W)``: clip i by ``kernels_px[size[i]]``, or not at all by an index beyond them."""
    largest = max(kernels_px)
    if largest // 2 >= min(image.shape[-2:]):
        raise SettingError(f"A blur of {largest} px does not fit frames of {image.shape[-1]}x{image.shape[-2]} px.")
    place = torch.arange(largest, device=image.device, dtype=image.dtype) - largest // 2
    bank = []
    for kernel_px in kernels_px:
        sigma = 0.3 * ((kernel_px - 1) / 2 - 1) + 0.8  # OpenCV's rule: the standard deviation that belongs to a size
        kernel = (-0.5 * (place / sigma).square()).exp().masked_fill(place.abs() > kernel_px // 2, 0)
        bank.append(kernel / kernel.sum())
    taps = torch.stack([*bank, (place == 0).to(image.dtype)])[size]  # (B, largest)
    with torch.autocast(image.device.type, enabled=False):  # half precision would round the colours
        return filter2d_separable(image, taps, taps).clamp_(0, 1)


def flip_clip(clip: VideoClip, flip: Tensor) -> VideoClip:
    """Mirror the clips at ``flip (B,)`` bool horizontally: frames, labels and flow (whose u changes its sign)."""

    def choose(changed: Tensor, kept: Tensor) -> Tensor:
        return torch.where(flip.view(-1, *(1,) * (kept.ndim - 1)), changed, kept)

    return replace(
        clip,
        frames=choose(clip.frames.flip(-1), clip.frames),
        labels=None if clip.labels is None else choose(clip.labels.flip(-1), clip.labels),
        flows={key: choose(flip_flow(flow), flow) for key, flow in clip.flows.items()},
    )


def crop_clip(clip: VideoClip, top: int, left: int, size: tuple[int, int]) -> VideoClip:
    """Cut ``size = (height, width)`` pixels out of every tensor of a clip, from row ``top`` and column ``left`` on."""
    height, width = size
    if top < 0 or left < 0 or top + height > clip.size[0] or left + width > clip.size[1]:
        raise SettingError(
            f"A crop of {width}x{height} px at column {left}, row {top} does not fit a clip of "
            f"{clip.size[1]}x{clip.size[0]} px."
        )
    return clip.map(lambda tensor: tensor[..., top : top + height, left : left + width])


def zoom_clip(clip: VideoClip, factor: Tensor, fixed: Tensor) -> VideoClip:
    """Enlarge or shrink the content of each clip about a point that stays where it is; the clips keep their size.

    Frames and flow are interpolated, labels take the nearest pixel, and flow grows with the factor: what comes closer
    moves faster. Where a clip has nothing to show, it has no label.

    Args:
        clip: batch of clips.
        factor: ``(B,)``, above 1 enlarges.
        fixed: ``(B, 2)``, x and y of the pixel that stays.
    """
    (height, width), count = clip.size, len(factor)
    shrink = 1 / factor
    x, y = ((2 * place + 1) / side - 1 for place, side in zip(fixed.unbind(1), (width, height), strict=True))  # -1..1
    nothing = torch.zeros_like(shrink)
    rows = (torch.stack((shrink, nothing, x * (1 - shrink)), 1), torch.stack((nothing, shrink, y * (1 - shrink)), 1))
    grid = F.affine_grid(torch.stack(rows, 1), [count, 1, height, width], align_corners=False)  # (B, H, W, 2)

    def sample(tensor: Tensor) -> Tensor:
        flat = tensor.reshape(count, -1, height, width)
        return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(tensor.shape)

    labels = clip.labels
    if labels is not None:
        known = (labels.long() - IGNORE).float()  # 0 where nothing is known: the value outside
        seen = F.grid_sample(known, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        labels = (seen.round().long() + IGNORE).to(labels.dtype)
    flows = {key: sample(flow) * factor.view(-1, 1, 1, 1) for key, flow in clip.flows.items()}
    return replace(clip, frames=sample(clip.frames), labels=labels, flows=flows)


def rescale_clip(clip: VideoClip, size: tuple[int, int]) -> VideoClip:
    """Resample a batch of clips to ``size = (height, width)`` pixels.

    Frames are interpolated (with a low-pass filter where they shrink), labels take the nearest pixel, flow is
    interpolated and scaled per axis.
    """
    if clip.size == tuple(size):
        return clip
    frames = clip.frames.flatten(0, 1)  # (B * T, 3, H, W)
    resized = F.interpolate(frames.float(), size, mode="bilinear", align_corners=False, antialias=True)
    if not frames.is_floating_point():
        resized = resized.round_().clamp_(0, 255)
    return replace(
        clip,
        frames=resized.to(frames.dtype).unflatten(0, clip.frames.shape[:2]),
        labels=None if clip.labels is None else _nearest(clip.labels, size),
        flows={key: resize_flow(flow, size, align_corners=False) for key, flow in clip.flows.items()},
    )


def _nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixel under each new pixel's centre, for any integer type."""
    rows, columns = (
        ((torch.arange(new, device=labels.device) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns]
