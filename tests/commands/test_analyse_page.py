"""The page about an analysis says what the file says, in one self-contained document."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stcl.commands.analyse.page import changed_mistakes, heat_map, line_panel, run_labels, write_analysis
from stcl.errors import DataError

CLASSES = ["road", "building", "person"]
GROUPS = {
    "confidence": ["0 to 0.5", "0.5 to 0.7", "0.7 to 0.9", "0.9 to 0.97", "0.97 to 1"],
    "boundary": ["0 to 1 px", "2 to 3 px", "4 to 7 px", "8 px and more"],
    "flow": ["valid", "unlike", "outside"],
}


def measured(value: float, flow: bool = True) -> dict[str, Any]:
    """What one network did: every share is ``value`` percent, and no label is a person."""
    shares = ("coverage", "precision", "sure_precision", "recall", "iou")
    by_class = {"road": value, "building": value, "person": None}
    return {
        "mean": dict.fromkeys((*shares, "accuracy"), value) | {"distance": 0.31},
        **dict.fromkeys(shares, by_class),
        "distance": {"road": 0.25, "building": 0.75, "person": None},
        "groups": {
            name: [
                {
                    "group": group,
                    "share": 100 / len(groups),
                    "precision": value,
                    "classes": {known: {"share": 50.0, "precision": number} for known, number in by_class.items()},
                }
                for group in groups
            ]
            for name, groups in GROUPS.items()
            if name != "flow" or flow
        },
    }


def run(folder: str, title: str, points: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    return {
        "folder": folder,
        "name": title.lower(),
        "title": title,
        "method": "stcl",
        "oracle": False,
        "labeller": "teacher",
        "statistics": "batch",
        "interval": 1,
        "threshold": 0.9,
        "note": "",
        "points": points,
        "worst": [{"frame": "street_07", "miou": 12.34}],
        **changed,
    }


def write(folder: Path, **changed: Any) -> Path:
    """An analysis of two runs: one with snapshots, one with its last weights alone."""
    adapted = [
        {"step": 200, "teacher": measured(41.5), "student": measured(31.5)},
        {"step": 400, "teacher": measured(51.5), "student": measured(48.5), "evaluated": measured(55.5)},
    ]
    last = [{"step": 400, "teacher": measured(21.5, flow=False), "evaluated": measured(22.5, flow=False)}]
    document = {
        "schema": 1,
        "classes": CLASSES,
        "reported": [0, 2],
        "space": "tiny",
        "target": "cityscapes_seq",
        "split": "train",
        "frames": 12,
        "runs": [run("a", "STCL", adapted), run("b", "Plain <b>", last, interval=0, note="No snapshots: x.")],
        "changes": [],
        **changed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps(document))
    for row in range(2):
        Image.fromarray(np.zeros((8, 32, 3), np.uint8)).save(folder / f"worst_{row}.png")
    return folder


@pytest.fixture
def page(tmp_path: Path) -> str:
    return write_analysis(write(tmp_path)).read_text("utf-8")


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_page_is_one_file_without_script_or_network(page):
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/jpeg") == 2


def test_it_says_that_target_labels_were_read(page):
    assert "Target labels were read for this analysis only" in words(page)


def test_numbers_of_the_end_and_dashes_where_there_are_none(page):
    text = words(page)
    assert "STCL 55.5 51.5 51.5 51.5 51.5 51.5 0.31" in text
    assert "Plain &lt;b&gt; 22.5 21.5" in text
    assert "road 51.5 48.5 0.25 21.5 – 0.25" in text
    assert "person – – – – – –" in text
    assert "road 51.5 51.5 51.5 21.5 21.5 21.5" in text
    assert "carried over 1 frame along the flow" in text
    assert "No snapshots: x." in text
    assert "street_07 12.3" in text
    assert "building 51.5" not in text  # not reported


def test_flow_is_told_of_runs_that_follow_it_alone(page):
    table = re.search(r"<caption>By what the flow says.*?</table>", page, re.DOTALL)
    assert table is not None
    assert words(table[0]).endswith("flow leaves the frame 33.3 51.5 ")
    assert "Plain" not in table[0]


def test_a_line_has_a_mark_for_every_point_that_has_a_value(page):
    figures = dict(re.findall(r"<figcaption>([^<]*)</figcaption>(.*?)</figure>", page, re.DOTALL))
    assert figures["Coverage"].count("<circle") == 3  # two points of the one run, one of the other
    assert figures["mIoU (dashed: student)"].count("<circle") == 5
    assert figures["Right labels by confidence"].count("<circle") == 10
    assert figures["person"] == ""


def test_without_snapshots_nothing_is_drawn_over_training(tmp_path):
    lone = [{"step": 400, "teacher": measured(21.5), "evaluated": measured(22.5)}]
    html = write_analysis(write(tmp_path, runs=[run("b", "Plain", lone)])).read_text("utf-8")
    assert "Over training" not in html
    assert "road 21.5 21.5 21.5" in words(html)


def test_marks_lie_where_the_values_say():
    svg = line_panel("told", [("series-0", [(0, 0), (50, 50), (100, 100)])], (0, 100))
    x, y = np.array([pair.split(",") for pair in re.search(r'points="([^"]+)"', svg)[1].split()], float).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)
    assert y[0] > y[2]  # up is more
    assert "NaN" not in line_panel("told", [("series-0", [(400, 5.0)])])


def test_runs_of_one_title_are_told_apart_and_an_oracle_is_marked():
    runs = [run("runs/a", "STCL", []), run("runs/b", "STCL", []), run("runs/c", "Upper bound", [], oracle=True)]
    assert run_labels(runs) == ["STCL, a", "STCL, b", "Upper bound (oracle)"]


def test_changed_mistakes_by_hand(make_run, tmp_path):
    before, after = np.zeros((2, 12, 12), np.int64)
    before[[0, 0], [0, 1]] = 80, 20
    before[1, 1], after[1, 1] = 50, 10  # another number of pixels, but all of them right
    after[[0, 0, 0], [0, 1, 2]] = 180, 10, 10
    strong, ours = make_run("strong", title="Strong", confusion=before), make_run("stcl", confusion=after)
    (change,) = changed_mistakes(strong, [strong, ours])
    assert (change["run"], change["against"]) == (str(ours), "Strong")
    found = {(item["truth"], item["taken_for"]): (item["before"], item["after"]) for item in change["mistakes"]}
    assert found == {("road", "sidewalk"): (20, 5), ("road", "building"): (0, 5)}
    assert change["matrix"][0][:4] == [10, -15, 5, 0]
    assert not np.any(change["matrix"][1:])
    assert "fence" in change["classes"]
    assert "fence" not in change["rows"]  # trained, not reported
    seen = re.findall(r'class="(better|worse)"[^/]*fill-opacity="(?!0\.00)', heat_map(change))
    assert seen == ["better", "better", "worse"]  # more is right, less is sidewalk, more is building
    folder = write(
        tmp_path / "out", changes=[change], runs=[run(str(ours), "STCL", [{"step": 1, "teacher": measured(1.0)}])]
    )
    text = words(write_analysis(folder).read_text("utf-8"))
    assert "Which mistakes change: STCL against Strong" in text
    assert "road taken for sidewalk 20.0 5.0 −15.0" in text


def test_what_cannot_be_read_gets_one_sentence(make_run, tmp_path):
    with pytest.raises(DataError, match=r"Cannot read the analysis .*analysis\.json"):
        write_analysis(tmp_path)
    (tmp_path / "analysis.json").write_text('{"schema": 7}')
    with pytest.raises(DataError, match="no analysis of schema 1"):
        write_analysis(tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"No results\.json in .*bare"):
        changed_mistakes(tmp_path / "bare", [make_run()])
