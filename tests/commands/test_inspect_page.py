"""The page about a step: made from files alone, complete in one file, and true to their numbers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stcl.commands.inspect.page import OUTLINE, bar_length, label_colours, outlined, share_text, write_inspection
from stcl.errors import DataError
from stcl.labels import IGNORE, get_space

SPACE = get_space("synthia_seq-cityscapes_seq")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An inspection of two views, one of them with patches and weights."""
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    parts = {
        "frame": random.integers(0, 256, (16, 32, 3), np.uint8),
        "label": np.full((16, 32), SPACE.index("road"), np.uint8),
        "outline": np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((8, 16), np.uint8)),
        "weight": np.full((16, 32), 128, np.uint8),
    }
    for part, pixels in parts.items():
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{part}.png")
    clip = {
        "name": "clip <0>",
        "frame": "pictures/frame.png",
        "label": "pictures/label.png",
        "pixels": 512,
        "ignored": 7,
    }
    paths = {part: f"pictures/{part}.png" for part in ("outline", "weight")}
    shares = [98.0, *[0.0] * (len(SPACE) - 2), 2.0]
    record: dict[str, Any] = {
        "schema": 1,
        "title": "STCL",
        "method": "stcl",
        "source": "synthia_seq/train",
        "target": "cityscapes_seq/train",
        "seed": 0,
        "first_step": 40,
        "steps": 8,
        "left_out": [43],
        "classes": list(SPACE.names),
        "shares": {"fused_target": None, "source": shares, "patches": shares},
        "ignored": {"fused_target": 100.0, "source": 1.5},
        "warmup": {"configured": 500, "used": 40},
        "logged": {"loss/source": 0.25},
        "views": {"fused_target": [{**clip, **paths, "mean_weight": 0.5}], "source": [clip]},
    }
    (tmp_path / "inspect.json").write_text(json.dumps(record))
    return tmp_path


def test_the_page_is_complete_in_one_file_and_says_what_was_found(folder):
    page = write_inspection(folder).read_text("utf-8")
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 + 3  # frame and label twice, one weight
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in page
    assert "<script" not in page
    text = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())
    for told in (
        "What enters step 48 of STCL",
        "it ended after 40 steps",
        "not finite: step 43",
        "loss/source 0.2500",
        "ignored in source labels 1.50 %",
        "clip &lt;0&gt; · 7 of 512 pixels ignored · mean weight of its pixels 0.500",
        "road source labels: 98.0 pasted patches: 98.0 fused target: –",
    ):
        assert told in text
    assert text.index("Labelled source clips") < text.index("Target clips with patches")


def test_bars_are_logarithmic_from_a_ten_thousandth():
    assert [bar_length(share) for share in (0, 0.005, 0.01, 1, 100)] == pytest.approx([0, 0, 0, 50, 100])
    assert [share_text(share) for share in (0, 0.003, 0.012, 3.456, 45.67)] == ["0", "<0.01", "0.01", "3.46", "45.7"]


def test_outlines_follow_the_edge_and_leave_the_rest():
    pixels = np.zeros((12, 12, 3), np.uint8)
    mask = np.zeros((12, 12), np.uint8)
    mask[3:9, 3:9] = 255
    drawn = (outlined(pixels, mask) == OUTLINE).all(-1)
    edge = mask.astype(bool)
    edge[4:8, 4:8] = False
    assert (drawn == edge).all()
    assert not pixels.any(), "the picture itself stays as it was"
    assert not (SPACE.palette == OUTLINE).all(-1).any()


def test_ignored_pixels_are_hatched_in_no_class_colour():
    label = np.full((20, 20), IGNORE, np.uint8)
    label[:, :10] = SPACE.index("car")
    colours = label_colours(label, SPACE.palette)
    assert (colours[:, :10] == SPACE.palette[SPACE.index("car")]).all()
    hatch = {tuple(colour) for colour in colours[:, 10:].reshape(-1, 3).tolist()}
    assert len(hatch) == 2
    assert not hatch & {tuple(colour) for colour in SPACE.palette.tolist()}


def test_what_is_no_inspection_is_named(folder):
    (folder / "inspect.json").write_text('{"schema": 9}')
    with pytest.raises(DataError, match=r"inspect\.json' has schema 9"):
        write_inspection(folder)
    (folder / "inspect.json").write_text("{")
    with pytest.raises(DataError, match=r"inspect\.json' is not valid JSON"):
        write_inspection(folder)
    (folder / "inspect.json").unlink()
    with pytest.raises(DataError, match=r"Cannot read .*inspect\.json"):
        write_inspection(folder)
