import pytest
import torch

from stcl.errors import SettingError
from stcl.ops.masking import RGB_MEAN, mask_patches

SIZE = (32, 48)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(batch=2, size=SIZE):
    return torch.rand(batch, 2, 3, *size, generator=generator(9))


def masked(frames):
    """Pixels that have the mean colour, ``(B, T, H, W)``."""
    return (frames == torch.tensor(RGB_MEAN).view(3, 1, 1)).all(2)


def test_whole_squares_of_the_grid_take_the_mean_colour_and_the_rest_stays():
    frames = clips()
    result = mask_patches(frames, 0.5, 8, generator())
    dropped = masked(result)
    squares = dropped.unflatten(-1, (6, 8)).unflatten(-3, (4, 8)).float().mean((-3, -1))  # (B, T, 4, 6)
    assert set(squares.unique().tolist()) == {0.0, 1.0}
    kept = ~dropped.unsqueeze(2).expand_as(frames)
    assert torch.equal(result[kept], frames[kept])


def test_all_frames_of_a_clip_share_a_draw_and_clips_do_not():
    dropped = masked(mask_patches(clips(), 0.5, 8, generator()))
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_share_is_a_probability(share):
    found = masked(mask_patches(torch.zeros(4, 1, 3, 128, 128), share, 4, generator())).float().mean()
    assert found == pytest.approx(share, abs=0.03 if 0 < share < 1 else 0)


def test_squares_at_the_border_are_cut_off():
    dropped = masked(mask_patches(clips(8, (20, 30)), 0.5, 16, generator()))[:, 0]
    for rows in (slice(0, 16), slice(16, 20)):
        for columns in (slice(0, 16), slice(16, 30)):
            part = dropped[:, rows, columns].flatten(1).float().mean(1)
            assert set(part.tolist()) == {0.0, 1.0}  # of eight clips


def test_the_generator_decides_and_the_input_stays():
    frames, before = clips(), clips()
    first, again, other = (mask_patches(frames, 0.5, 8, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(frames, before)
    assert mask_patches(frames.half(), 0.5, 8, generator()).dtype == torch.float16


@pytest.mark.parametrize(("share", "patch"), [(-0.1, 8), (1.1, 8), (0.5, 0)])
def test_impossible_masks_are_refused(share, patch):
    with pytest.raises(SettingError, match=f"not a share of {share} of squares of {patch} px"):
        mask_patches(clips(), share, patch, generator())


def test_nothing_is_read_back_to_the_host():
    frames = torch.empty(2, 2, 3, 20, 30, device="meta")
    assert mask_patches(frames, 0.5, 8, generator()).shape == frames.shape
