"""The contract of every registered provider, and what is particular to each."""

import pickle

import cv2
import numpy as np
import pytest
import torch

from stcl.errors import DataError, SettingError
from stcl.files.pictures import encode_flow, encode_image, read_flow_png
from stcl.files.writing import exact_flow_path, write_atomic
from stcl.flow import FLOWS, CachedFlow, get_flow
from stcl.ops.warp import warp

every_flow = pytest.mark.parametrize("name", FLOWS)
every_moving_flow = pytest.mark.parametrize("name", [name for name in FLOWS if name != "zero"])
MARGIN = np.s_[..., 12:-12, 12:-12]


@every_moving_flow
def test_direction_sign_and_axis_order(name, scene, make):
    flow = make(name)(*scene.pair)
    assert flow.shape == (2, 96, 128)
    assert flow.dtype == np.float32
    assert flow.flags.c_contiguous
    assert np.abs(flow[MARGIN][0] - 5).mean() < 0.2
    assert np.abs(flow[MARGIN][1] - 3).mean() < 0.2


@every_moving_flow
def test_every_other_convention_is_worse_on_a_street(name, street, make):
    """Sign, order of the axes and which frame's pixels index the flow, where each of them tells."""
    flow = make(name)(*street.pair)
    moving = (np.hypot(*street.flow) > 3) & ~street.occluded
    assert moving.mean() > 0.1
    right = np.hypot(*(flow - street.flow))[moving]
    for wrong in (-flow, flow[::-1], -flow[::-1], flow * [[[1]], [[-1]]], flow * [[[-1]], [[1]]]):
        assert np.hypot(*(wrong - street.flow))[moving].mean() > 2 * right.mean()
    image_b = torch.from_numpy(street.image_b).permute(2, 0, 1)[None].float()
    errors = {}
    for sign in (1, -1, 0):
        aligned = warp(image_b, sign * torch.from_numpy(flow)[None])[0].permute(1, 2, 0).numpy()
        errors[sign] = np.abs(aligned - street.image_a)[moving].mean()
    assert errors[1] < 0.75 * errors[0] < 0.75 * errors[-1]


@every_moving_flow
def test_warp_aligns_b_to_a(name, scene, make):
    flow = torch.from_numpy(make(name)(*scene.pair))[None]
    image_b = torch.from_numpy(scene.image_b).permute(2, 0, 1)[None].float()
    aligned = warp(image_b, flow)[0].permute(1, 2, 0).numpy()
    error = np.abs(aligned - scene.image_a)[12:-12, 12:-12].mean()
    still = np.abs(scene.image_b.astype(float) - scene.image_a)[12:-12, 12:-12].mean()
    assert error < 0.1 * still


@every_moving_flow
@pytest.mark.parametrize("size", [(64, 32), (256, 144)])
def test_motion_scales_per_axis_with_the_image(name, scene, make, size):
    """Smaller or larger, u goes with the width and v with the height."""
    images = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (scene.image_a, scene.image_b)]
    small = scene._replace(image_a=images[0], image_b=images[1])
    flow = make(name)(*small.pair)
    assert flow.shape == (2, size[1], size[0])
    inner = flow[..., 6:-6, 6:-6]
    assert np.abs(np.median(inner[0]) - 5 * size[0] / 128) < 0.2
    assert np.abs(np.median(inner[1]) - 3 * size[1] / 96) < 0.2


def test_no_motion(scene, make):
    flow = make("zero")(*scene.pair)
    assert flow.shape == (2, 96, 128) and flow.dtype == np.float32 and not flow.any()


@every_flow
def test_provider_travels_to_workers(name, scene, make):
    made = make(name)
    made(*scene.pair)
    flow = pickle.loads(pickle.dumps(made))
    assert np.array_equal(flow(*scene.pair), made(*scene.pair))
    assert flow.signature == made.signature == make(name).signature


@every_flow
def test_same_flow_twice(name, scene, make):
    one, two = (make(name)(*scene.pair) for _ in range(2))
    assert np.array_equal(one, two)


@every_flow
def test_cache_is_an_option_of_every_provider(name, scene, make, tmp_path):
    cached = make(name, cache=tmp_path / "cache")
    assert isinstance(cached, CachedFlow)
    wanted = make(name)(*scene.pair)
    for _ in range(2):
        assert np.abs(cached(*scene.pair) - wanted).max() < 0.02
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["clip_0000_000001_to_clip_0000_000000.npz"]


def test_unknown_names_list_the_right_ones():
    with pytest.raises(SettingError, match=r"Unknown flow provider 'diss'\. Did you mean 'dis'"):
        get_flow("diss")
    with pytest.raises(
        SettingError, match=r"setting of flow 'dis' 'presets'. Did you mean 'preset'\? Known: cache, preset"
    ):
        get_flow("dis", presets="fast")
    with pytest.raises(SettingError, match=r"preset of flow 'dis' 'slow'.*ultrafast, fast, medium"):
        get_flow("dis", preset="slow")


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_dis_presets(preset, scene):
    flow = get_flow("dis", preset=preset)(*scene.pair)
    assert abs(np.median(flow[0]) - 5) < 0.5
    assert preset in get_flow("dis", preset=preset).signature


def test_dis_refuses_what_opencv_would_crash_on(scene):
    with pytest.raises(DataError, match=r"000001.png is 8x8 .* needs 12 pixels"):
        get_flow("dis")(scene.a, scene.b, scene.image_a[:8, :8], scene.image_b[:8, :8])
    with pytest.raises(SettingError, match="two images of one size"):
        get_flow("dis")(scene.a, scene.b, scene.image_a, scene.image_b[:50])


def test_exact_flow_of_another_pair(scene):
    with pytest.raises(DataError, match=r"000000_to_000001.png does not exist; there is none from this frame"):
        get_flow("exact")(scene.b, scene.a, scene.image_b, scene.image_a)
    with pytest.raises(DataError, match=r"from this frame there is: 000001_to_000000.png"):
        get_flow("exact")(scene.a, scene.a, scene.image_a, scene.image_a)


def test_exact_flow_outside_a_rendered_tree(scene, tmp_path):
    (tmp_path / "tree/exact_flow").rename(tmp_path / "tree/elsewhere")
    with pytest.raises(DataError, match=r"no folder 'exact_flow' beside it or above it.*use flow 'dis'"):
        get_flow("exact")(*scene.pair)


def test_damaged_exact_flow(scene, tmp_path):
    path = exact_flow_path(tmp_path / "tree", scene.a.image, scene.b.image)
    grey = encode_image(np.zeros((4, 4), np.uint16))
    for content, message in (
        (b"", f"File {path} is empty"),
        (b"x" * 100, f"File {path} is neither a PNG nor a JPEG picture"),
        (path.read_bytes()[:60], f"PNG file {path} is cut off after 60 bytes"),
        (grey, rf"Flow file {path}: expected a 16-bit PNG with 3 channels, found uint16 of shape \(4, 4\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            get_flow("exact")(*scene.pair)


def test_flow_file_keeps_a_64th_of_a_pixel(tmp_path):
    random = np.random.default_rng(0)
    flow = random.normal(scale=40, size=(2, 20, 30)).astype(np.float32)
    valid = random.random((20, 30)) < 0.7
    flow[:, 0, 0] = 900, np.nan
    write_atomic(tmp_path / "f.png", encode_flow(flow, valid))
    stored, stored_valid = read_flow_png(tmp_path / "f.png")
    assert not stored_valid[0, 0]
    assert stored[0, 0, 0] == 511
    flow[:, 0, 0] = stored[:, 0, 0]
    assert np.abs(stored - flow).max() <= 0.5 / 64 + 1e-4
    assert np.array_equal(stored_valid.ravel()[1:], valid.ravel()[1:])
