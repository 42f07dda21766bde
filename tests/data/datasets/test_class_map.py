"""Class maps: what they say, and what each mistake gets."""

import numpy as np
import pytest
from PIL import Image

from stcl.data.datasets.class_map import ClassMap, read_class_map
from stcl.data.io import write_label
from stcl.errors import DataError, SettingError
from stcl.labels import VOID, get_space

SPACE = get_space("twinstreets-camvid")


@pytest.fixture
def class_map(tmp_path):
    """``class_map(text)``: the map of a file with this text."""

    def make(text: str) -> ClassMap:
        path = tmp_path / "classes.yaml"
        path.write_text(text, "utf-8")
        return read_class_map(path)

    return make


def test_ids_ranges_merges_and_ignore(class_map) -> None:
    found = class_map("# of the simulator\n1, 3: road  # lanes too\n4-6: building\n65535: car\n0, 255: ignore\n")
    assert found.names == {
        **dict.fromkeys((1, 3), "road"),
        **dict.fromkeys((4, 5, 6), "building"),
        **dict.fromkeys((0, 255), VOID),
        65535: "car",
    }
    assert found.colors is None and found.channel is None
    found.check(SPACE)
    table = SPACE.lookup_table(found.names)
    assert table[[1, 3, 5]].tolist() == [SPACE.index("road")] * 2 + [SPACE.index("building")] and table[0] == 255


def test_colours_of_rgb_and_palette_masks(class_map, tmp_path) -> None:
    found = class_map('"#804080, #FF0000": road\n70 130 180: sky\n0 0 0: ignore\n')
    colors = np.array([[(128, 64, 128), (255, 0, 0)], [(70, 130, 180), (0, 0, 0)]], np.uint8)
    expected = [["road", "road"], ["sky", VOID]]
    write_label(tmp_path / "rgb.png", colors)
    Image.fromarray(colors).convert("RGBA").save(tmp_path / "rgba.png")
    palette = Image.fromarray(np.array([[2, 1], [3, 0]], np.uint8))
    palette.putpalette([0, 0, 0, 255, 0, 0, 128, 64, 128, 70, 130, 180])
    palette.save(tmp_path / "palette.png")
    for name in ("rgb.png", "rgba.png", "palette.png"):
        assert [[found.names[raw] for raw in row] for row in found.read(tmp_path / name).tolist()] == expected


def test_ids_of_palette_masks_and_of_one_channel(class_map, tmp_path) -> None:
    palette = Image.fromarray(np.array([[2, 1]], np.uint8))
    palette.putpalette([0, 0, 0, 255, 0, 0, 128, 64, 128])
    palette.save(tmp_path / "palette.png")
    assert class_map("1-2: road").read(tmp_path / "palette.png").tolist() == [[2, 1]]
    write_label(tmp_path / "three.png", np.array([[[7, 200, 3]]], np.uint8))
    assert class_map("7: road\nchannel: red").read(tmp_path / "three.png").tolist() == [[7]]
    assert class_map("3: road\nchannel: blue").read(tmp_path / "three.png").tolist() == [[3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: road\n2: car\n1: sky", "id 1 stands twice, in line 1 and line 3"),
        ("1-5: road\n3: car", "id 3 stands twice, in line 1 and line 2"),
        ("128,64,128: road", "id 128 stands twice, in line 1 and line 1. Keep one. A colour has no commas: 128 64 128"),
        ('"#804080": road\n128 64 128: car', "colour #804080 stands twice, in line 1 and line 2"),
        ('1: road\n2: sky\n"#804080": car', "line 1 has an id, line 3 a colour. Use one kind"),
        ("0: ignore", "gives no value a class"),
        ("", "gives no value a class. .* quote it"),
        ("#804080: road\n#000000: sky", "gives no value a class. .*quote it"),
        ("[1, 2]", "is no class map. Expected: one line a class"),
        ("1: {road: 2}", "line 1: a value must have the name of a class"),
        ("1: road\n2:", "line 2: a value must have the name of a class"),
        ("road: 1", "line 1: 'road' is neither an id nor a colour"),
        ("1: road\n300 0 0: sky", "line 2: '300 0 0' is neither an id nor a colour"),
        ("5-2: road", "'5-2' are no ids, which go from 0 to 65535"),
        ("70000: road", "'70000' are no ids"),
        ("1: road\nchannel: rot", "line 2: Unknown channel 'rot'. Known: red, green, blue"),
        ('"#804080": road\nchannel: red', "'channel' says where ids are, but the map has colours"),
        ("1: [road", "is not valid YAML"),
        (f"? {'9' * 5000}\n: road", r"line 1: '9{80}\.\.\.9{10} \(5000 characters\)' are no ids, which go from 0 to"),
        (f"? 1-{'9' * 5000}\n: road", "are no ids"),
        (f"? 1 2 {'9' * 5000}\n: road", "is neither an id nor a colour"),
    ],
)
def test_wrong_maps(class_map, text, message) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        class_map(text)
    assert "classes.yaml" in str(caught.value)


def test_a_class_of_another_label_space_is_refused(class_map) -> None:
    found = class_map("1: road\n2: sidewalks\n3: light\n")  # light is merged into sign
    with pytest.raises(SettingError, match=r"line 2: Unknown class of label space .* 'sidewalks'. Did"):
        found.check(SPACE)
    with pytest.raises(SettingError, match=r"Unknown class .* 'terrain'.* Known: road, .*car, light, ignore"):
        class_map("1: terrain").check(SPACE)
    class_map("1: light").check(SPACE)


def test_a_missing_map(tmp_path) -> None:
    with pytest.raises(SettingError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_class_map(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="is not valid YAML"):
        read_class_map(tmp_path / "binary.yaml")


def test_masks_of_the_other_kind(class_map, tmp_path) -> None:
    write_label(tmp_path / "ids.png", np.ones((4, 4), np.uint8))
    write_label(tmp_path / "rgb.png", np.ones((4, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r"rgb\.png has 3 channels; .* give .*classes\.yaml colours, or .*channel: red"):
        class_map("1: road").read(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"ids\.png has one channel; expected colours of 8 bits. Does it hold ids"):
        class_map("1 1 1: road").read(tmp_path / "ids.png")


def test_unknown_colours_are_counted(class_map, tmp_path) -> None:
    colors = np.full((4, 4, 3), (128, 64, 128), np.uint8)
    colors[0, :3], colors[1, 0] = (255, 255, 255), (1, 2, 3)
    write_label(tmp_path / "mask.png", colors)
    with pytest.raises(DataError, match=r"mask\.png holds colours .* have: #ffffff \(3 px\), #010203 \(1 px\)"):
        class_map("128 64 128: road").read(tmp_path / "mask.png")
