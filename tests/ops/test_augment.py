from contextlib import nullcontext

import cv2
import kornia.enhance as kornia
import pytest
import torch

from closeness import SAMPLED, assert_close
from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.ops.augment import (
    NO_AUGMENTATION,
    StrongAugmentation,
    crop_clip,
    flip_clip,
    rescale_clip,
    strong_augment,
    zoom_clip,
)
from stcl.ops.warp import warp
from stcl.types import VideoClip

ALWAYS = StrongAugmentation(jitter_probability=1, grey_probability=0, blur_probability=1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_clip(batch=2, height=16, width=24, seed=0):
    draws = generator(seed)
    return VideoClip(
        frames=torch.rand(batch, 2, 3, height, width, generator=draws),
        labels=torch.randint(0, 5, (batch, 2, height, width), generator=draws).byte(),
        flows={(0, -1): torch.randn(batch, 2, height, width, generator=draws)},
        offsets=(0, -1),
        names=[str(i) for i in range(batch)],
    )


# ---- strong augmentation ----


def test_the_generator_decides():
    frames = random_clip().frames
    same = [strong_augment(frames, ALWAYS, generator(3)) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], strong_augment(frames, ALWAYS, generator(4)))


def test_global_random_state_is_neither_read_nor_moved():
    frames = random_clip().frames
    torch.manual_seed(1)
    first, state = strong_augment(frames, ALWAYS, generator()), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, strong_augment(frames, ALWAYS, generator()))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_all_frames_of_a_clip_get_the_same_augmentation():
    frame = torch.rand(4, 1, 3, 16, 24, generator=generator())
    for seed in range(5):
        augmented = strong_augment(frame.expand(4, 3, 3, 16, 24), StrongAugmentation(), generator(seed))
        for t in (1, 2):
            assert_close(augmented[:, t], augmented[:, 0])


def test_one_colour_map_for_frames_of_different_brightness():
    # the contrast's mean is the clip's: a surface that both frames show stays equal in both
    frames = torch.rand(1, 2, 3, 16, 24, generator=generator())
    frames[:, 1, :, 8:] = 0
    frames[:, 1, :, :8] = frames[:, 0, :, :8]
    settings = StrongAugmentation(jitter_probability=1, grey_probability=0, blur_probability=0)
    augmented = strong_augment(frames, settings, generator())
    assert_close(augmented[:, 0, :, :8], augmented[:, 1, :, :8])
    assert (augmented - frames).abs().max() > 0.05


def test_each_clip_has_its_own_draw():
    frames = torch.rand(1, 2, 3, 16, 24, generator=generator()).expand(6, -1, -1, -1, -1)
    augmented = strong_augment(frames, ALWAYS, generator())
    for i in range(6):
        for j in range(i):
            assert (augmented[i] - augmented[j]).abs().max() > 0.01


@pytest.mark.parametrize("seed", range(8))
def test_values_stay_in_range(seed):
    # floats cast to bytes wrap around; extremes must clamp
    frames = torch.rand(4, 2, 3, 16, 24, generator=generator(seed)).round()
    augmented = strong_augment(frames, StrongAugmentation(brightness=2, contrast=2, saturation=2), generator(seed))
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert augmented.isfinite().all()
    assert augmented.shape == frames.shape


def test_bytes_are_refused():
    with pytest.raises(TypeError, match="divide bytes by 255"):
        strong_augment(torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), ALWAYS, generator())


def test_no_augmentation_is_the_identity():
    frames = random_clip().frames
    assert torch.equal(strong_augment(frames, NO_AUGMENTATION, generator()), frames)


def test_probabilities_are_kept():
    frames = torch.rand(1, 1, 3, 8, 8, generator=generator()).expand(2000, -1, -1, -1, -1)
    settings = StrongAugmentation(jitter_probability=0, grey_probability=0.3, blur_probability=0, blur_kernels_px=(3,))
    augmented = strong_augment(frames, settings, generator())
    grey = (augmented[:, :, 0] == augmented[:, :, 1]).flatten(1).all(1)
    assert 0.26 < grey.float().mean() < 0.34
    assert torch.equal(augmented[~grey], frames[~grey])


def test_switching_one_part_off_leaves_the_draws_of_the_others():
    frames = random_clip().frames
    source = generator()
    strong_augment(frames, NO_AUGMENTATION, source)
    other = generator()
    strong_augment(frames, StrongAugmentation(), other)
    assert torch.equal(source.get_state(), other.get_state())


@pytest.mark.parametrize(
    ("part", "read"),
    [("jitter_probability", {0, 1, 2, 3, 4}), ("grey_probability", {5}), ("blur_probability", {6, 7})],
)
def test_each_part_reads_numbers_of_its_own(monkeypatch, part, read):
    """Or clips that are blurred more would be the ones that are recoloured."""
    off = {"jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": 0.0}
    settings = StrongAugmentation(**off | {part: 0.5}, blur_kernels_px=(3, 5, 9))
    frames = random_clip(batch=1).frames.expand(64, -1, -1, -1, -1).contiguous()
    numbers = torch.rand(64, 8, generator=generator())

    def augmented(changed=None):
        drawn = numbers.clone()
        if changed is not None:
            drawn[:, changed] = 1 - drawn[:, changed]
        monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
        return strong_augment(frames, settings, generator())

    plain = augmented()
    assert {place for place in range(8) if not torch.equal(augmented(place), plain)} == read


def test_larger_kernels_blur_more():
    frames = torch.rand(1, 1, 3, 32, 32, generator=generator())
    spread = []
    for size in (1, 3, 5, 9):
        settings = StrongAugmentation(0, grey_probability=0, blur_probability=1, blur_kernels_px=(size,))
        spread.append(strong_augment(frames, settings, generator()).std().item())
    assert spread == sorted(spread, reverse=True)
    constant = torch.full_like(frames, 0.4)
    assert_close(strong_augment(constant, settings, generator()), constant)


@pytest.mark.parametrize("seed", range(4))
def test_jitter_equals_an_independent_library(seed):
    """Factors and clamping in the documented order; grey pixels, which have no hue, among the others."""
    frames = torch.rand(6, 2, 3, 16, 24, generator=generator(seed))
    frames[:, :, :, :2] = frames[:, :, :1, :2]
    settings = StrongAugmentation(1, 0.6, 0.7, 1.2, 0.3, grey_probability=0, blur_probability=0)
    draw = torch.rand(6, 8, generator=generator(7)).unbind(1)
    expected = frames.transpose(1, 2).reshape(6, 3, 32, 24)
    expected = kornia.adjust_brightness_accumulative(expected, 0.4 + 1.2 * draw[1])
    expected = kornia.adjust_contrast_with_mean_subtraction(expected, 0.3 + 1.4 * draw[2])
    expected = kornia.adjust_saturation_with_gray_subtraction(expected, 2.2 * draw[3])
    expected = kornia.adjust_hue(expected, (2 * draw[4] - 1) * 0.3 * 2 * torch.pi)
    expected = expected.view(6, 3, 2, 16, 24).transpose(1, 2)
    assert_close(strong_augment(frames, settings, generator(7)), expected)


@pytest.mark.parametrize("size", [3, 7])
def test_blur_equals_an_independent_library(size):
    frame = torch.rand(3, 20, 24, generator=generator())
    # a larger kernel in the list must not change what a smaller one does
    settings = StrongAugmentation(0, grey_probability=0, blur_probability=1, blur_kernels_px=(size, size, 9))
    blurred = strong_augment(frame.expand(6, 1, 3, 20, 24), settings, generator(1))[:, 0]
    sigma = {3: 0.8, 7: 1.4}[size]
    expected = cv2.GaussianBlur(frame.permute(1, 2, 0).numpy(), (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)
    distance = (blurred - torch.from_numpy(expected).permute(2, 0, 1)).abs().flatten(1).amax(1)
    assert 0 < (distance < 1e-5).sum() < 6


@pytest.mark.parametrize(
    "wrong",
    [{"grey_probability": 1.5}, {"hue": 0.6}, {"contrast": -0.1}, {"blur_kernels_px": (4,)}, {"blur_kernels_px": ()}],
)
def test_settings_that_cannot_work(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StrongAugmentation(**wrong)


def test_a_blur_wider_than_the_frame():
    with pytest.raises(SettingError, match="does not fit frames of 8x4 px"):
        strong_augment(torch.rand(1, 1, 3, 4, 8), ALWAYS, generator())


def test_nothing_is_read_back_to_the_host(monkeypatch):
    # tensors on the meta device have no values to read, and no autocast to switch off
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    frames = torch.empty(2, 2, 3, 16, 24, device="meta")
    assert strong_augment(frames, StrongAugmentation(), generator()).shape == frames.shape
    clip = random_clip().to("meta")
    flipped = flip_clip(clip, torch.empty(2, dtype=torch.bool, device="meta"))
    assert rescale_clip(flipped, (8, 12)).size == (8, 12)


# ---- geometry ----


def assert_same_clip(a, b, tolerance=None):
    assert_close(a.frames, b.frames, tolerance)
    assert torch.equal(a.labels, b.labels)
    for key in a.flows:
        assert_close(a.flows[key], b.flows[key], tolerance)


def test_flip_twice_is_the_identity():
    clip, chosen = random_clip(3), torch.tensor([True, False, True])
    assert_same_clip(flip_clip(flip_clip(clip, chosen), chosen), clip, 0.0)


def test_flip_moves_the_chosen_clips_only():
    clip = random_clip()
    flipped = flip_clip(clip, torch.tensor([True, False]))
    assert torch.equal(flipped.frames[0], clip.frames[0].flip(-1))
    assert torch.equal(flipped.labels[0], clip.labels[0].flip(-1))
    assert torch.equal(flipped.flow(0, -1)[0, 0], -clip.flow(0, -1)[0, 0].flip(-1))
    assert torch.equal(flipped.flow(0, -1)[0, 1], clip.flow(0, -1)[0, 1].flip(-1))
    assert_same_clip(flipped.map(lambda tensor: tensor[1]), clip.map(lambda tensor: tensor[1]), 0.0)


def test_flip_commutes_with_warp():
    clip = random_clip()
    flipped = flip_clip(clip, torch.tensor([True, True]))
    there = warp(clip.frame(-1), clip.flow(0, -1)).flip(-1)
    assert_close(warp(flipped.frame(-1), flipped.flow(0, -1)), there, SAMPLED)


def test_clips_without_labels_or_flow():
    clip = random_clip()
    clip = VideoClip(clip.frames, None, {}, clip.offsets)
    changed = crop_clip(rescale_clip(flip_clip(clip, torch.tensor([True, True])), (8, 12)), 1, 2, (4, 6))
    assert changed.labels is None
    assert changed.flows == {}
    assert changed.size == (4, 6)


def test_crop_cuts_everything_alike():
    clip = random_clip()
    cut = crop_clip(clip, 3, 5, (8, 10))
    assert torch.equal(cut.frames, clip.frames[..., 3:11, 5:15])
    assert torch.equal(cut.labels, clip.labels[..., 3:11, 5:15])
    assert torch.equal(cut.flow(0, -1), clip.flow(0, -1)[..., 3:11, 5:15])


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (9, 0), (0, 15)])
def test_a_crop_outside_the_clip(top, left):
    with pytest.raises(SettingError, match="does not fit a clip of 24x16 px"):
        crop_clip(random_clip(), top, left, (8, 10))


def test_rescale_scales_flow_per_axis():
    clip = random_clip()
    clip.flows[0, -1] = torch.ones(2, 2, 16, 24) * torch.tensor([6.0, 4.0]).view(2, 1, 1)
    small = rescale_clip(clip, (4, 12))
    assert_close(small.flow(0, -1)[:, 0], torch.full((2, 4, 12), 3.0))
    assert_close(small.flow(0, -1)[:, 1], torch.full((2, 4, 12), 1.0))


def test_rescale_keeps_flow_where_its_pixels_are():
    """Pixels are areas: the middle of pixel x of the larger clip lies at (x + 0.5) / 2 - 0.5 of the smaller one."""
    clip = random_clip()
    x = torch.arange(24.0).expand(2, 16, 24)
    clip.flows[0, -1] = torch.stack((x, torch.zeros_like(x)), 1)
    large = rescale_clip(clip, (32, 48)).flow(0, -1)[:, 0, :, 1:-1]  # beyond the outermost middles it stays the same
    assert_close(large, (2 * ((torch.arange(1.0, 47.0) + 0.5) / 2 - 0.5)).expand_as(large))


def test_rescale_by_whole_factors():
    clip = random_clip()
    large = rescale_clip(clip, (32, 48))
    assert torch.equal(large.labels, clip.labels.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert torch.equal(rescale_clip(large, (16, 24)).labels, clip.labels)
    assert large.labels.dtype == torch.uint8
    assert rescale_clip(clip, (16, 24)) is clip


def test_rescale_keeps_bytes_bytes():
    clip = random_clip()
    clip.frames = (clip.frames.round() * 255).byte()
    resized = rescale_clip(clip, (11, 13)).frames
    assert resized.dtype == torch.uint8
    assert resized.shape == (2, 2, 3, 11, 13)
    clip.frames = torch.randint(0, 256, (2, 2, 3, 16, 24), generator=generator()).byte()
    as_floats = rescale_clip(VideoClip(clip.frames / 255, None, {}, clip.offsets), (11, 13)).frames
    assert (rescale_clip(clip, (11, 13)).frames / 255 - as_floats).abs().max() <= 0.5 / 255 + 1e-5  # rounded, not cut


def test_rescale_keeps_frames_and_labels_aligned():
    labels = torch.zeros(1, 1, 32, 32, dtype=torch.int64)
    labels[..., 8:24, 4:20] = 1
    clip = VideoClip(labels.unsqueeze(2).expand(-1, -1, 3, -1, -1).float(), labels, {}, (0,))
    for size in ((16, 16), (20, 28), (64, 48)):
        changed = rescale_clip(clip, size)
        differs = ((changed.frames[:, :, 0] > 0.5) != (changed.labels == 1)) & (
            (changed.frames[:, :, 0] - 0.5).abs() > 0.25
        )
        assert not differs.any()


# ---- zooming about a pixel ----


def blocks(side=32):
    """A clip whose red channel says what its labels say."""
    labels = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    labels[..., 8:12, 16:20] = 3
    frames = torch.zeros(1, 1, 3, side, side)
    frames[:, :, 0] = labels / 4
    return VideoClip(frames, labels, {(0, -1): torch.ones(1, 2, side, side)}, (0, -1))


def zoomed(clip, factor, x, y):
    count = len(clip.frames)
    return zoom_clip(clip, torch.full((count,), factor), torch.tensor([[x, y]] * count))


def test_a_zoom_of_one_changes_nothing():
    clip = random_clip()
    same = zoomed(clip, 1.0, 5, 7)
    assert_close(same.frames, clip.frames)
    assert torch.equal(same.labels, clip.labels) and same.labels.dtype == clip.labels.dtype
    assert_close(same.flow(0, -1), clip.flow(0, -1))


def test_a_zoom_enlarges_frames_labels_and_flow_together():
    clip = zoomed(blocks(), 3.0, 17, 9)
    rows, columns = (clip.labels[0, 0] == 3).nonzero().unbind(1)
    # the square's pixels 8..11 and 16..19, each three times as large, about the pixel (17, 9), whose middle stays
    assert (rows.min(), rows.max()) == (5, 16) and (columns.min(), columns.max()) == (13, 24)
    seen = clip.frames[0, 0, 0] > 3 / 8
    assert (seen != (clip.labels[0, 0] == 3)).sum() == 4  # interpolation rounds the corners off
    assert_close(clip.flow(0, -1), torch.full((1, 2, 32, 32), 3.0))


def test_what_a_smaller_clip_does_not_show_has_no_label():
    clip = blocks()
    clip.labels[0, 0, 0, 0] = IGNORE
    small = zoomed(clip, 0.5, 0, 0).labels[0, 0]
    assert (small == 3).sum() == 4
    assert (small[17:] == IGNORE).all() and (small[:, 17:] == IGNORE).all() and (small[1:16, 1:16] != IGNORE).all()
    assert small[0, 0] == IGNORE


def test_each_clip_is_zoomed_by_itself():
    clip, factor, fixed = random_clip(), torch.tensor((0.8, 2.5)), torch.tensor(((3, 4), (20, 9)))
    both = zoom_clip(clip, factor, fixed)
    for i in range(2):
        one = zoom_clip(clip.select(torch.tensor([i])), factor[i : i + 1], fixed[i : i + 1])
        assert_close(both.frames[i], one.frames[0])
        assert torch.equal(both.labels[i], one.labels[0])
        assert_close(both.frames[i, :, :, *fixed[i].flip(0)], clip.frames[i, :, :, *fixed[i].flip(0)])
