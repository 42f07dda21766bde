from dataclasses import replace

import numpy as np
import pytest

from closeness import assert_close
from stcl.labels import get_space
from stcl.twinstreets import SPACE_NAME, STYLE_NAMES, StreetClip, get_style
from stcl.twinstreets.camera import FRAME_RATE

SIZE = (256, 128)
SPACE = get_space(SPACE_NAME)


def make_clip(name: str, seed: int, size: tuple[int, int] = SIZE, **ego) -> StreetClip:
    clip = StreetClip(get_style(name), seed, size)
    clip.world.ego = replace(clip.world.ego, **ego)
    return clip


def steady(speed: float) -> dict:
    """Ego motion along the camera's own axis: no sway, no tilt, on a straight street."""
    return {"speed": speed, "sway": (0.0, 0.0, 0.0), "yaw": 0.0, "pitch": 0.0}


def straight_clip(speed: float) -> StreetClip:
    """The first clip whose ego drives on an (almost) straight street: bend is part of the path as well."""
    clip = make_clip("clean", 5, **steady(speed))
    clip.world.street = replace(clip.world.street, bend=0.0)
    clip.world.ego = replace(clip.world.ego, street=clip.world.street)
    return clip


def nearest(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the nearest pixels that the flow points to, clipped to the frame."""
    _, height, width = flow.shape
    y, x = np.mgrid[:height, :width]
    return np.rint(y + flow[1]).astype(int).clip(0, height - 1), np.rint(x + flow[0]).astype(int).clip(0, width - 1)


@pytest.mark.parametrize("name", STYLE_NAMES)
@pytest.mark.parametrize("gap", [1, 2])
def test_warping_the_previous_labels_gives_the_current_ones(name, gap):
    occluded_shares = []
    for seed in range(6):
        clip = make_clip(name, seed)
        current, previous = clip.render(10), clip.render(10 - gap)
        flow, occluded = clip.flow(10, 10 - gap)
        agree = previous.label[nearest(flow)] == current.label
        assert agree[~occluded].mean() >= 0.995
        # judged without the mask the flow must be right almost everywhere that stays in view
        assert agree.mean() > 0.86
        occluded_shares.append(occluded.mean())
    assert np.mean(occluded_shares) < (0.1 if gap == 1 else 0.15)
    assert max(occluded_shares) < (0.2 if gap == 1 else 0.3)


@pytest.mark.parametrize("name", STYLE_NAMES)
def test_flow_there_and_back_cancels(name):
    """Says nothing about labels or part numbers: the two flows are computed from different frames' rays."""
    for seed in range(3):
        clip = make_clip(name, seed)
        flow, occluded = clip.flow(9, 8)
        back, _ = clip.flow(8, 9)
        row, column = nearest(flow)
        residual = np.abs(flow + back[:, row, column]).max(0)[~occluded]
        # half a pixel of rounding leaves what the flow changes over half a pixel
        assert np.median(residual) < 0.05
        assert np.quantile(residual, 0.98) < 0.75


@pytest.mark.parametrize("name", STYLE_NAMES)
def test_warped_image_looks_like_the_current_one(name):
    clip = make_clip(name, 1)
    current, previous = clip.render(6).image.astype(float), clip.render(5).image.astype(float)
    flow, occluded = clip.flow(6, 5)
    warped = previous[nearest(flow)]
    assert np.abs(warped - current)[~occluded].mean() < 0.8 * np.abs(previous - current)[~occluded].mean()


def test_flow_of_a_frame_to_itself_is_zero():
    flow, occluded = make_clip("camera", 2).flow(3, 3)
    assert np.abs(flow).max() < 1e-3
    assert not occluded.any()


def test_flow_of_a_still_scene_follows_from_depth_and_camera_motion():
    clip = straight_clip(speed=8.0)
    geometry, (flow, _) = clip.geometry(6), clip.flow(6, 5)
    still = ~clip.world.table.moving[geometry.part] & np.isfinite(geometry.depth)
    (cx, cy), step = clip.lens.center, 8.0 / FRAME_RATE
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    # one step back the same point is `step` metres farther away: everything shrinks towards the centre
    shrink = -step / (geometry.depth + step)
    assert_close(flow[0][still], ((x - cx) * shrink)[still], 2e-3, scale=1)
    assert_close(flow[1][still], ((y - cy) * shrink)[still], 2e-3, scale=1)


def test_driving_forwards_moves_the_past_towards_the_centre():
    clip = straight_clip(speed=8.0)
    flow, _ = clip.flow(6, 5)
    road = clip.render(6).label == SPACE.index("road")
    lower = np.zeros_like(road)
    lower[100:] = True
    assert (flow[1][road & lower] < 0).all()


def test_sky_does_not_move_when_the_camera_only_translates():
    clip = straight_clip(speed=9.0)
    sky = clip.render(4).label == SPACE.index("sky")
    flow, _ = clip.flow(4, 2)
    assert sky.any()
    assert np.abs(flow[:, sky]).max() < 1e-3


def test_turning_the_camera_moves_the_sky_by_the_focal_length_times_the_angle():
    clip = make_clip("clean", 5, **(steady(0.0) | {"sway": (0.0, 0.0, 0.02), "rates": (1.0, 1.0, 3.0)}))
    ego, sky = clip.world.ego, clip.render(8).label == SPACE.index("sky")
    turn = 0.02 * (np.sin(3.0 * 8 / FRAME_RATE + ego.phases[2]) - np.sin(3.0 * 4 / FRAME_RATE + ego.phases[2]))
    flow, _ = clip.flow(8, 4)
    # at frame 8 the camera looks `turn` farther to the right, so at frame 4 the sky stood that much farther right
    expected = clip.lens.focal * np.tan(turn)
    assert abs(turn) > 1e-3
    assert np.median(flow[0][sky]) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", STYLE_NAMES)
def test_moving_things_move_seen_from_a_standing_camera(name):
    found = 0
    for seed in range(8):
        clip = make_clip(name, seed, **{key: value for key, value in steady(0.0).items() if key != "pitch"})
        moving = clip.world.table.moving[clip.geometry(8).part]
        flow, _ = clip.flow(8, 6)
        assert np.abs(flow[:, ~moving]).max() < 1e-2
        found += int((np.abs(flow[:, moving]) > 0.25).any(0).sum())
    assert found > 200


@pytest.mark.parametrize("name", STYLE_NAMES)
def test_every_class_appears(name):
    seen: set[int] = set()
    for seed in range(40):
        seen |= set(np.unique(StreetClip(get_style(name), seed, (128, 64)).labels(10)))
        if len(seen) == len(SPACE):
            return
    pytest.fail(f"missing: {[c for i, c in enumerate(SPACE.names) if i not in seen]}")
