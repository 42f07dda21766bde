import numpy as np
import pytest
import torch

from closeness import SAMPLED, assert_close
from stcl.ops.warp import compose_flow, consistent, flip_flow, inside, photometric_error, resize_flow, warp
from stcl.twinstreets import STYLE_NAMES, StreetClip, get_style

SIZE = (9, 14)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_image(batch=2, channels=3, seed=0):
    return torch.rand(batch, channels, *SIZE, generator=generator(seed))


def random_flow(batch=2, spread_px=4.0, seed=1):
    return torch.randn(batch, 2, *SIZE, generator=generator(seed)) * spread_px


def constant_flow(u, v, size=SIZE, batch=1):
    return torch.tensor((float(u), float(v))).view(1, 2, 1, 1).expand(batch, 2, *size).clone()


def clamp_corners(image, flow):
    """Independent resampler: bilinear weights of the unclamped position, each of the four corners clamped."""
    image, flow = image.numpy().astype(np.float64), flow.numpy().astype(np.float64)
    height, width = image.shape[-2:]
    rows, columns = np.mgrid[:height, :width]
    warped = np.empty_like(image)
    for number, (u, v) in enumerate(flow):
        x, y = columns + u, rows + v
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        a, b = x - left, y - top
        total = np.zeros(image.shape[1:])
        for step_y, weight_y in ((0, 1 - b), (1, b)):
            for step_x, weight_x in ((0, 1 - a), (1, a)):
                corner = np.clip(top + step_y, 0, height - 1), np.clip(left + step_x, 0, width - 1)
                total += weight_y * weight_x * image[number][:, corner[0], corner[1]]
        warped[number] = total
    return torch.from_numpy(warped).float()


def test_no_flow_is_the_identity():
    image = random_image()
    assert_close(warp(image, torch.zeros(2, 2, *SIZE)), image, SAMPLED)


@pytest.mark.parametrize(("u", "v"), [(2, 0), (0, 3), (-3, 1), (1, -2)])
def test_whole_pixels_are_a_roll(u, v):
    image = random_image(1)
    rolled = image.roll((-v, -u), dims=(-2, -1))
    visible = inside(constant_flow(u, v)).expand_as(image[:, 0])
    assert visible.sum() == (SIZE[0] - abs(v)) * (SIZE[1] - abs(u))
    warped = warp(image, constant_flow(u, v))
    assert_close(warped[:, :, visible[0]], rolled[:, :, visible[0]], SAMPLED)


@pytest.mark.parametrize("spread_px", [0.5, 4.0, 40.0])
def test_equals_an_independent_corner_clamped_resampler(spread_px):
    image, flow = random_image(), random_flow(spread_px=spread_px)
    assert_close(warp(image, flow), clamp_corners(image, flow), SAMPLED)


def test_flow_points_into_the_other_frame():
    # frame_a[y, x] ~ frame_b[y + v, x + u]: a dot of frame b at (row 5, column 9) is found from (3, 4) by (5, 2)
    frame_b = torch.zeros(1, 1, *SIZE)
    frame_b[..., 5, 9] = 1
    flow = torch.zeros(1, 2, *SIZE)
    flow[0, :, 3, 4] = torch.tensor((5.0, 2.0))
    warped = warp(frame_b, flow)[0, 0]
    assert_close(warped[3, 4], torch.tensor(1.0), SAMPLED)
    assert_close(warped.sum(), torch.tensor(2.0), SAMPLED)  # and the dot itself, where nothing moves


def test_outside_takes_the_border():
    image = random_image(1)
    warped = warp(image, constant_flow(100, -100))
    assert_close(warped, image[..., :1, -1:].expand_as(image), SAMPLED)


def test_nearest_gives_existing_values():
    image = torch.randint(0, 5, (2, 1, *SIZE), generator=generator()).float()
    warped = warp(image, random_flow(), mode="nearest")
    assert set(warped.unique().tolist()) <= set(image.unique().tolist())


def test_gradient_reaches_the_image():
    image = random_image().requires_grad_()
    warp(image, random_flow()).sum().backward()
    assert_close(image.grad.sum(), torch.tensor(float(image.numel())), SAMPLED)  # weights of a pixel sum to one


@pytest.mark.parametrize("seed", range(3))
def test_flip_commutes_with_warp(seed):
    """A flipped clip needs flow with u negated; flipped probabilities are warped with flipped flow."""
    probabilities, flow = random_image(channels=5, seed=seed).softmax(1), random_flow(seed=seed + 10)
    there = warp(probabilities, flow).flip(-1)
    assert_close(warp(probabilities.flip(-1), flip_flow(flow)), there, SAMPLED)
    assert (warp(probabilities.flip(-1), flow.flip(-1)) - there).abs().max() > 0.01  # mirrored only: wrong
    assert (warp(probabilities.flip(-1), flow) - there).abs().max() > 0.01  # untouched: wrong


def test_flip_twice_is_the_identity():
    flow = random_flow()
    assert torch.equal(flip_flow(flip_flow(flow)), flow)
    assert torch.equal(flip_flow(flow)[:, 1], flow[:, 1].flip(-1))


@pytest.mark.parametrize("align_corners", [True, False])
def test_rescaling_multiplies_each_axis_by_its_own_ratio(align_corners):
    flow = constant_flow(6, 4, size=(16, 24))
    small = resize_flow(flow, (4, 12), align_corners)
    assert small.shape == (1, 2, 4, 12)
    assert_close(small[:, 0], torch.full((1, 4, 12), 3.0))
    assert_close(small[:, 1], torch.full((1, 4, 12), 1.0))
    assert resize_flow(flow, (16, 24), align_corners) is flow


def test_rescaled_flow_of_a_zooming_camera():
    # doubled pixels: with pixel centres at (i + 0.5) the flow of a resized image follows its resized content
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 2, 6, 8)
    doubled = resize_flow(ramp, (12, 16), align_corners=False)
    centres = ((torch.arange(16.0) + 0.5) / 2 - 0.5).clamp(0, 7) * 2
    assert_close(doubled[0, 0, 0], centres)
    corners = resize_flow(ramp, (12, 16), align_corners=True)[0, 0, 0]
    assert_close(corners, torch.linspace(0, 7, 16) * 2)


def test_composition_of_constant_flows_adds():
    total = compose_flow(constant_flow(2, -1), constant_flow(-0.5, 3))
    assert_close(total, constant_flow(1.5, 2))


def test_composed_flow_warps_like_two_warps():
    image, ab = random_image(1), constant_flow(2, 1)
    bc = torch.randint(-2, 3, (1, 2, *SIZE), generator=generator(3)).float()
    once, twice = warp(image, compose_flow(ab, bc)), warp(warp(image, bc), ab)
    visible = inside(ab)
    assert_close(once[:, :, visible[0]], twice[:, :, visible[0]], SAMPLED)


def test_inside_ends_at_the_last_pixel_centre():
    height, width = SIZE
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    to_last_corner = torch.stack((width - 1 - columns, height - 1 - rows))[None].float()
    assert inside(to_last_corner).all()
    assert not inside(to_last_corner + 0.1).any()
    assert inside(torch.stack((-columns, -rows))[None].float()).all()
    assert not inside(torch.stack((-columns, -rows))[None].float() - 0.1).any()
    assert inside(random_flow()).dtype == torch.bool


def test_flow_that_explains_a_shifted_image_has_no_error():
    other, flow = random_image(1), constant_flow(2, -1)
    frame = other.roll((1, -2), dims=(-2, -1))
    error = photometric_error(frame, other, flow)
    assert error.shape == (1, *SIZE) and error.dtype == torch.float32
    assert_close(error[inside(flow)], torch.zeros(int(inside(flow).sum())), SAMPLED, scale=1)
    assert (error[~inside(flow)] == 1).all() and (~inside(flow)).any()
    assert photometric_error(frame, other, constant_flow(0, 0)).mean() > 0.2


def test_the_error_is_the_mean_over_the_colours():
    frame, other = torch.zeros(1, 3, *SIZE), torch.tensor((0.1, 0.2, 0.6)).view(1, 3, 1, 1).expand(1, 3, *SIZE)
    assert_close(photometric_error(frame, other, constant_flow(0, 0)), torch.full((1, *SIZE), 0.3))
    half = photometric_error(frame.half(), other.half(), constant_flow(0, 0).half())
    assert_close(half, torch.full((1, *SIZE), 0.3), 1e-3)


@pytest.mark.parametrize("style", STYLE_NAMES)
def test_exact_flow_explains_a_moving_street_but_for_what_was_hidden(style):
    clip = StreetClip(get_style(style), 1, (128, 64))
    frame, other = (torch.from_numpy(clip.render(t).image).movedim(-1, 0)[None] / 255 for t in (6, 5))
    exact, occluded = (torch.from_numpy(part)[None] for part in clip.flow(6, 5))
    error, still = photometric_error(frame, other, exact), photometric_error(frame, other, torch.zeros_like(exact))
    seen = ~occluded & inside(exact)
    assert error[seen].mean() < 0.8 * still[seen].mean()
    assert error[occluded & inside(exact)].mean() > 1.5 * error[seen].mean()


def test_the_way_back_closes_the_way_there():
    there, back = constant_flow(2, -1), constant_flow(-2, 1)
    assert torch.equal(consistent(there, back), inside(there)) and not inside(there).all()
    assert not consistent(there, constant_flow(0, 0)).any()
    assert consistent(constant_flow(0, 0), constant_flow(0, 0)).all()  # no motion is consistent with itself


@pytest.mark.parametrize(("missed", "closes"), [(0.7, True), (0.72, False)])
def test_half_a_squared_pixel_may_be_missed_by_what_does_not_move(missed, closes):
    """0.7^2 < 0.5 < 0.72^2, the share of the lengths counted."""
    lengths = 0.01 * missed**2
    assert (missed**2 < lengths + 0.5) is closes
    assert bool(consistent(constant_flow(0, 0), constant_flow(missed, 0)).all()) is closes


def test_long_ways_may_miss_a_hundredth_of_their_squared_lengths():
    there = constant_flow(10, 0)
    for miss, closes in ((1.4, True), (1.7, False)):  # bound: 0.01 (100 + (10 - miss)^2) + 0.5
        back = constant_flow(miss - 10, 0)
        assert bool(consistent(there, back)[..., : SIZE[1] - 10].all()) is closes
    strict = consistent(there, constant_flow(-9.9, 0), relative=0.0, absolute=0.001)
    assert not strict.any()


def test_consistency_is_mirrored_with_the_flow():
    there, back = random_flow(seed=1, spread_px=1.0), random_flow(seed=2, spread_px=1.0)
    plain, mirrored = consistent(there, back), consistent(flip_flow(there), flip_flow(back))
    assert torch.equal(plain.flip(-1), mirrored) and 0.05 < plain.float().mean() < 0.95


def test_consistency_of_exact_flow_tells_hidden_pixels():
    """Those that fail it are hidden far more often than others; few seen ones fail."""
    hidden, failed = [], []
    for seed in (1, 2):
        clip = StreetClip(get_style("clean"), seed, (256, 128))
        (there, occluded), (back, _) = clip.flow(6, 3), clip.flow(3, 6)
        both = torch.from_numpy(there)[None], torch.from_numpy(back)[None]
        within = inside(both[0])[0].numpy()
        hidden.append(occluded[within])
        failed.append(~consistent(*both)[0].numpy()[within])
    occluded, flagged = np.concatenate(hidden), np.concatenate(failed)
    assert occluded[flagged].mean() > 5 * occluded.mean()
    assert flagged[occluded].mean() > 15 * flagged[~occluded].mean() > 0
