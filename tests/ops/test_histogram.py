import numpy as np
import pytest
import torch
from skimage.exposure import match_histograms

from closeness import assert_close
from stcl.ops.histogram import apply_map, histogram_map, match_histogram


def bytes_as_floats(*shape, seed=0, low=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).float() / 255


def gaussian_frames(*shape, mean, spread, seed=0):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (mean + spread * noise).clamp(0, 1).mul(255).round() / 255


def reference_library(image, reference):
    """One image ``(3, H, W)``, matched by scikit-image in floating point."""
    matched = [match_histograms(a.numpy(), b.numpy()) for a, b in zip(image, reference, strict=True)]
    return torch.from_numpy(np.stack(matched))


@pytest.mark.parametrize(("low", "high"), [(0, 256), (40, 200), (120, 124)])
def test_equals_an_independent_library(low, high):
    frames = gaussian_frames(3, 3, 31, 45, mean=0.3, spread=0.1)
    reference = bytes_as_floats(3, 3, 20, 50, seed=1, low=low, high=high)
    matched = match_histogram(frames, reference)
    for image, target, result in zip(frames, reference, matched, strict=True):
        assert_close(result, reference_library(image, target))


def test_real_looking_bytes_agree_within_one_level():
    frames = gaussian_frames(1, 3, 64, 64, mean=0.6, spread=0.2)
    reference = gaussian_frames(1, 3, 64, 64, mean=0.4, spread=0.05, seed=1)
    as_bytes = [(image[0].permute(1, 2, 0) * 255).round().byte().numpy() for image in (frames, reference)]
    expected = torch.from_numpy(match_histograms(*as_bytes, channel_axis=-1)).permute(2, 0, 1).float() / 255
    assert (match_histogram(frames, reference)[0] - expected).abs().max() <= 1 / 255 + 1e-6


def test_bytes_are_taken_as_they_are():
    frames, reference = bytes_as_floats(2, 2, 3, 9, 11), bytes_as_floats(2, 1, 3, 8, 8, seed=1, high=90)
    matched = match_histogram((frames * 255).round().byte(), (reference * 255).round().byte())
    assert matched.dtype == torch.float32
    assert torch.equal(matched, match_histogram(frames, reference))


def test_an_image_keeps_its_own_histogram():
    frames = bytes_as_floats(2, 3, 16, 16)
    assert_close(match_histogram(frames, frames), frames)


def test_takes_the_references_statistics():
    frames = gaussian_frames(2, 3, 64, 64, mean=0.7, spread=0.05)
    reference = gaussian_frames(2, 3, 64, 64, mean=0.3, spread=0.15, seed=1)
    matched = match_histogram(frames, reference)
    assert_close(matched.mean((2, 3)), reference.mean((2, 3)), 0.01, scale=1)
    assert_close(matched.std((2, 3)), reference.std((2, 3)), 0.01, scale=1)


def test_each_clip_is_matched_alone():
    frames, reference = bytes_as_floats(3, 2, 3, 8, 12), bytes_as_floats(3, 1, 3, 9, 10, seed=1, high=100)
    matched = match_histogram(frames, reference)
    alone = torch.cat([match_histogram(frames[i : i + 1], reference[i : i + 1]) for i in range(3)])
    assert torch.equal(matched, alone)


def test_the_frames_of_a_clip_share_one_map():
    current = bytes_as_floats(1, 1, 3, 16, 16)
    clip = torch.cat((current, current.flip(-1)), dim=1)
    reference = bytes_as_floats(1, 2, 3, 16, 16, seed=1, high=128)
    matched = match_histogram(clip, reference)
    assert torch.equal(matched[:, 0], matched[:, 1].flip(-1))
    # a darker second frame does not get the first one's brightness
    clip = torch.cat((current, current * 0.5), dim=1)
    matched = match_histogram(clip, reference)
    assert (matched[:, 1] <= matched[:, 0]).all()
    assert matched[:, 1].mean() < matched[:, 0].mean() - 0.05


def test_a_map_from_one_frame_serves_another():
    source = bytes_as_floats(1, 3, 16, 16, low=100, high=200)
    reference = bytes_as_floats(1, 3, 16, 16, seed=1, low=50, high=80)
    levels = histogram_map(source, reference)
    assert (levels.diff(dim=-1) >= 0).all()
    # values that the frame did not have stay within the reference's range
    other = apply_map(torch.linspace(0, 1, 256).view(1, 1, 1, 256).expand(1, 3, 1, 256), levels)
    assert other.min() >= 50 / 255 - 1e-6
    assert other.max() <= 79 / 255 + 1e-6


def test_one_colour_images():
    dark, bright = torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.8)
    assert_close(match_histogram(dark, bright), bright)


def test_type_and_range_stay():
    frames = bytes_as_floats(1, 2, 3, 8, 8).half()
    matched = match_histogram(frames, bytes_as_floats(1, 1, 3, 8, 8, seed=1))
    assert matched.dtype == torch.float16
    assert matched.shape == frames.shape
    assert matched.min() >= 0
    assert matched.max() <= 1


def test_nothing_is_read_back_to_the_host():
    # tensors on the meta device have no values to read
    frames = torch.empty(2, 2, 3, 8, 8, device="meta")
    assert match_histogram(frames, frames[:, :1]).shape == frames.shape
