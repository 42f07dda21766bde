import numpy as np
import pytest
import torch

from closeness import assert_close
from stcl.errors import SettingError
from stcl.ops.fourier import swap_amplitude

SIZES = [(16, 24), (15, 24), (16, 23), (17, 21)]


def clips(*shape, seed=0, low=0.3, high=0.7):
    """Frames whose values stay far enough from 0 and 1 for the result not to be clamped."""
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def whole_spectrum(image, reference, beta):
    """An independent way, of one channel: the whole spectrum with zero frequency in the middle, by numpy in float64."""
    spectrum = np.fft.fftshift(np.fft.fft2(image.double().numpy()))
    other = np.fft.fftshift(np.fft.fft2(reference.double().numpy()))
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    b, y, x = int(beta * min(image.shape)), image.shape[0] // 2, image.shape[1] // 2
    window = slice(y - b, y + b + 1), slice(x - b, x + b + 1)
    amplitude[window] = np.abs(other)[window]
    mixed = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phase)))
    assert np.abs(mixed.imag).max() < 1e-9
    return torch.from_numpy(mixed.real.clip(0, 1)).float()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.1, 0.49])
def test_equals_the_whole_spectrum_done_by_another_library(size, beta):
    frames, reference = clips(2, 2, 3, *size), clips(2, 1, 3, *size, seed=1, low=0, high=0.6)
    swapped = swap_amplitude(frames, reference, beta)
    for clip in range(2):
        for t in range(2):
            for channel in range(3):
                expected = whole_spectrum(frames[clip, t, channel], reference[clip, 0, channel], beta)
                assert_close(swapped[clip, t, channel], expected)


def test_its_own_amplitudes_change_nothing():
    frames = clips(2, 1, 3, 16, 24, low=0, high=1)
    assert_close(swap_amplitude(frames, frames, 0.2), frames)


def test_the_mean_colour_alone():
    frames, reference = clips(2, 2, 3, 16, 24), clips(2, 1, 3, 16, 24, seed=1)
    moved = frames - frames.mean((-2, -1), keepdim=True) + reference.mean((-2, -1), keepdim=True)
    assert_close(swap_amplitude(frames, reference, 0), moved)


def test_frequencies_outside_the_window_and_all_phases_stay():
    frames, reference = clips(1, 1, 3, 16, 24, low=0.45, high=0.55), clips(1, 1, 3, 16, 24, seed=1, low=0.45, high=0.55)
    before, after = (torch.fft.fft2(x) for x in (frames, swap_amplitude(frames, reference, 0.13)))  # b = 2
    mean = float(before.abs().max())  # what the transform sums up to, and loses digits beside
    assert_close(after[..., 3:-2, :], before[..., 3:-2, :], 1e-6, scale=mean)
    assert_close(after[..., 3:-2], before[..., 3:-2], 1e-6, scale=mean)
    assert (torch.angle(after * before.conj()).abs() < 1e-2).all()
    kept = torch.fft.fft2(reference).abs()
    assert_close(after.abs()[..., :3, :3], kept[..., :3, :3], 1e-6)


def test_all_frames_of_a_clip_take_the_same_reference_frame():
    frames, reference = clips(1, 2, 3, 16, 24), clips(1, 2, 3, 16, 24, seed=1)
    swapped = swap_amplitude(frames, reference, 0.1)
    first = torch.cat([swap_amplitude(frames[:, t : t + 1], reference[:, :1], 0.1) for t in range(2)], 1)
    assert_close(swapped, first)


def test_each_clip_has_its_own():
    frames, reference = clips(3, 2, 3, 16, 24), clips(3, 1, 3, 16, 24, seed=1)
    alone = torch.cat([swap_amplitude(frames[i : i + 1], reference[i : i + 1], 0.1) for i in range(3)])
    assert_close(swap_amplitude(frames, reference, 0.1), alone)


def test_a_reference_of_another_size_lends_its_look():
    frames, ramp = clips(1, 1, 3, 32, 48), torch.linspace(0.1, 0.5, 96).expand(1, 1, 3, 64, 96)
    swapped = swap_amplitude(frames, ramp, 0.05)
    assert swapped.shape == frames.shape
    assert_close(swapped.mean((-2, -1)), ramp.mean((-2, -1)), 0.01, scale=1)


def test_type_and_range_stay():
    frames, bright = clips(1, 2, 3, 16, 24, low=0, high=1).half(), torch.ones(1, 1, 3, 16, 24)
    swapped = swap_amplitude(frames, bright, 0.1)
    assert swapped.dtype == torch.float16 and swapped.shape == frames.shape
    assert swapped.min() >= 0 and swapped.max() == 1
    flat = swap_amplitude(torch.zeros(1, 1, 3, 16, 24), bright, 0.1)  # frequencies without a phase
    assert_close(flat, bright)


def test_autocast_makes_no_difference():
    frames, reference = clips(1, 1, 3, 16, 24), clips(1, 1, 3, 20, 30, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = swap_amplitude(frames, reference, 0.1)
    assert torch.equal(inside, swap_amplitude(frames, reference, 0.1))


@pytest.mark.parametrize("beta", [-0.1, 0.5, 9])
def test_a_window_larger_than_the_spectrum_is_refused(beta):
    with pytest.raises(SettingError, match=f"from 0 to below 0.5, not {beta}"):
        swap_amplitude(clips(1, 1, 3, 8, 8), clips(1, 1, 3, 8, 8), beta)


def test_nothing_is_read_back_to_the_host():
    frames = torch.empty(2, 2, 3, 16, 24, device="meta")
    assert swap_amplitude(frames, torch.empty(2, 1, 3, 20, 30, device="meta"), 0.1).shape == frames.shape
