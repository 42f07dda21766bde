"""The page about flow: made from files alone, complete in one file, and true to their numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stcl.commands.flow.page import number_text, write_flow_page
from stcl.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record of one pair of one domain; of one of the two flows there is no way back."""
    (tmp_path / "pictures").mkdir()
    parts = ("frame", "previous", "warped", "error", "flow", "validity")
    for part in parts:
        Image.fromarray(np.full((16, 32, 3), 90, np.uint8)).save(tmp_path / f"pictures/{part}.png")
    row = {"signature": "<s>", "mean": 5.213, "median": 1.4, "p90": 14.0, "p99": 60.0, "length_px": 2.0}
    row |= {"inside": 99.61, "consistent": 91.5, "consistent_mean": 4.0, "milliseconds": 12.0}
    views = {part: f"pictures/{part}.png" for part in parts[2:]}
    shown = {"name": "clip <0>", "flows": {"dis": views, "exact": views}, "largest_px": 3.5}
    shown |= {part: f"pictures/{part}.png" for part in parts[:2]}
    domain = {"role": "source", "data": "Data set 'x'", "pairs": 12, "size": [32, 16], "shown": [shown]}
    domain["rows"] = [{"flow": "dis", **row}, {"flow": "exact", **row, "consistent": None, "consistent_mean": None}]
    record = {"schema": 1, "title": "STCL", "flows": ["dis", "exact"], "domains": [domain]}
    (tmp_path / "flow.json").write_text(json.dumps({**record, "largest_error": 64.0, "date": "2026-01-01"}))
    return tmp_path


def test_the_page_is_complete_in_one_file_and_says_the_numbers(folder):
    text = write_flow_page(folder).read_text("utf-8")
    assert text.count('src="data:image/jpeg;base64,') == 2 + 2 * 4 and not re.search(r'src="(?!data:)', text)
    cells = re.findall(r"<td>(.*?)</td>", text)
    assert cells[:9] == ["5.21", "1.40", "14.0", "60.0", "2.00", "99.6", "91.5", "4.00", "12.0"]
    assert cells[9:][6:8] == ["–", "–"]
    assert "clip &lt;0&gt;" in text and "<s>" not in text and "12 pairs of frames at 32x16" in text
    assert "DIS" in text and "exact flow" in text


def test_numbers():
    assert [number_text(value) for value in (None, 0.0, 9.994, 10.0, 123.4)] == ["–", "0.00", "9.99", "10.0", "123.4"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": 0}'])
def test_other_files_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "flow.json").write_text(content)
    with pytest.raises(DataError, match=r"flow\.json"):
        write_flow_page(tmp_path)
