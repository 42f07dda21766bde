import numpy as np
import pytest

from stcl.errors import SettingError
from stcl.labels import IGNORE, PALETTE, get_space
from stcl.ops.colors import colourise, flow_colours, overlay

SPACE = get_space("synthia_seq-cityscapes_seq")
LABEL = np.array([[SPACE.index("road"), SPACE.index("car")], [SPACE.index("sky"), IGNORE]], np.uint8)


def test_every_class_gets_its_colour() -> None:
    picture = colourise(LABEL, SPACE.palette)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [
        [list(PALETTE["road"]), list(PALETTE["car"])],
        [list(PALETTE["sky"]), [0, 0, 0]],
    ]


def test_overlay_mixes_and_leaves_ignored_pixels_alone() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    assert np.array_equal(overlay(image, LABEL, SPACE.palette, 0.0), image)
    full = overlay(image, LABEL, SPACE.palette, 1.0)
    assert np.array_equal(full[LABEL != IGNORE], colourise(LABEL, SPACE.palette)[LABEL != IGNORE])
    half = overlay(image, LABEL, SPACE.palette, 0.5)
    assert half[0, 0].tolist() == [114, 82, 114]  # (128, 64, 128) and 100, half each
    assert half[1, 1].tolist() == [100, 100, 100]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(SettingError, match=r"\(H, W\) integers"):
        colourise(np.zeros((1, 2, 2), np.uint8), SPACE.palette)
    with pytest.raises(SettingError, match=r"\(256, 3\)"):
        colourise(LABEL, SPACE.palette[:19])
    with pytest.raises(SettingError, match="same pixels"):
        overlay(np.zeros((3, 2, 3), np.uint8), LABEL, SPACE.palette)
    with pytest.raises(SettingError, match="alpha"):
        overlay(np.zeros((2, 2, 3), np.uint8), LABEL, SPACE.palette, 2.0)


def test_flow_colours_turn_with_the_direction_and_grow_with_the_length():
    directions = np.array([(1, 0), (np.cos(2.0944), np.sin(2.0944)), (np.cos(4.1888), np.sin(4.1888))], np.float32)
    flow = np.stack([directions.T, 0.5 * directions.T, 9 * directions.T], axis=1)  # (2, 3 lengths, 3 directions)
    colours = flow_colours(flow, 1.0).astype(int)
    assert colours[0].argmax(1).tolist() == [0, 1, 2]  # red right, then clockwise on the screen
    assert np.array_equal(colours[0], colours[2]) and (colours[1] > colours[0]).sum() == 6
    assert (flow_colours(np.zeros((2, 2, 2), np.float32), 1.0) == 255).all()
