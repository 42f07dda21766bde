"""The page and the tables about a check: made from plain data, complete in one file, true to their numbers."""

import io
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import stcl
from stcl.commands.check.domain import DomainSummary
from stcl.commands.check.findings import Finding, Severity
from stcl.commands.check.page import class_shares, rich_check, verdict, write_check
from stcl.errors import SettingError
from stcl.labels import get_space

SPACE = get_space("synthia_seq-cityscapes_seq")


def finding(severity: Severity, domain: str, what: str, places: tuple[str, ...] = ()) -> dict[str, Any]:
    return asdict(Finding(domain, "x", severity, what, f"Mend {what}.", len(places), places))


def domain(role: str, **facts: Any) -> dict[str, Any]:
    return asdict(DomainSummary(role, "synthia_seq", "train", "/data/<root>", 2, 1234, clips=5, **facts))


@pytest.fixture
def record() -> dict[str, Any]:
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (16, 32, 3), np.uint8)
    pixels = dict.fromkeys(SPACE.names, 0) | {"road": 600, "car": 1}
    counted = {"labelled": 7, "read_labels": 7, "pixels": pixels, "ignored": 399, "shown_in": {"road": 7, "car": 1}}
    flow = {"flows": 8, "stored_flows": 3, "flow_difference": 0.012, "still_difference": 0.045}
    return {
        "schema": 1,
        "title": "Tiny",
        "method": "stcl",
        "space": SPACE.name,
        "classes": list(SPACE.names),
        "flow": "dis",
        "full": False,
        "ready": False,
        "measurable": False,
        "findings": [
            finding("problem", "source", "Two <files>", ("/data/a.png", "/data/b.png")),
            finding("evaluation", "evaluation", "No labels"),
            finding("remark", "target", "Dark [frames]", tuple(f"/data/{n}.png" for n in range(300))),
        ],
        "domains": [
            domain("source", **counted, **flow),
            domain("target", size=(64, 32), sizes={"64x32": 9, "32x32": 1}, brightness=101.2),
        ],
        "labels": [{"domain": "source", "name": "clip_0", "frame": frame, "label": np.zeros((16, 32), np.uint8)}],
        "flows": [
            {"domain": "target", "name": "t", "previous": "t-1", "frame": frame, "warped": frame, "mean": 0.0123}
            | {"difference": np.full((16, 32), 0.1, np.float32), "still": 0.0456}
        ],
        "seconds": 3.21,
    }


def test_the_page_is_complete_in_one_file_and_says_what_was_found(record, tmp_path):
    out = write_check(record, tmp_path / "new" / "check.html")
    assert [path.name for path in out.parent.iterdir()] == ["check.html"]  # nothing beside it, nothing temporary
    page = out.read_text("utf-8")
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 + 3
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in page
    assert "<script" not in page
    text = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())
    for words in (
        "Data of Tiny",
        "Training cannot go through: 1 thing to mend.",
        "Stops training source Two &lt;files&gt; Mend Two &lt;files&gt;. 2 places /data/a.png /data/b.png",
        "Stops evaluation evaluation No labels",
        "Remarks target Dark [frames]",
        "300 places",
        "/data/199.png and 100 more",
        "frames 1,234 1,234",
        "with a label 7 not looked at",
        "size on disk – 64x32 (9), 32x32 (1)",
        "mean brightness – 101 of 255",
        "flows looked at 8 (3 from files) –",
        "neighbours differ 4.5%, warped 1.2% –",
        "road source: 60.0",
        "car source: 0.10",
        "ignored source: 39.9",
        "warped from t-1 · mean difference 1.2 %, without flow 4.6 %",
    ):
        assert words in text


def test_only_a_page_can_be_written(record, tmp_path):
    with pytest.raises(SettingError, match=r"such as check\.html, not '.*folder'"):
        write_check(record, tmp_path / "folder")
    assert not [*tmp_path.iterdir()]


def test_only_a_page_of_ours_is_replaced(record, tmp_path, monkeypatch):
    page = tmp_path / "index.html"
    page.write_text("<html>mine</html>")
    monkeypatch.setattr("stcl.commands.check.run.check_data", lambda *_: pytest.fail("the work has begun"))
    for way in (lambda: write_check(record, page), lambda: stcl.check_data(None, page)):
        with pytest.raises(SettingError, match=r"index\.html is there and is no page of stcl: it stays as it is"):
            way()
    assert page.read_text() == "<html>mine</html>"
    write_check(record, tmp_path / "check.html")
    write_check(record, tmp_path / "check.html")


def test_the_terminal_says_the_same(record):
    console = Console(width=120, file=io.StringIO())
    console.print(*rich_check(record), sep="")
    text = " ".join(console.file.getvalue().split())
    for words in (
        "Stops training source Two <files> /data/a.png and 1 more → Mend Two <files>.",
        "Remarks target Dark [frames] /data/0.png and 299 more",
        "60.0 7",
        "Training cannot go through: 1 thing to mend.",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("ready", "measurable", "sampled", "words"),
    [
        (True, True, False, "Training can start."),
        (True, True, True, "Training can start. A sample was read; --full reads every file."),
        (True, False, False, "Training can start. Evaluation cannot: 1 thing to mend."),
        (False, False, True, "Training cannot go through: 1 thing to mend."),
    ],
)
def test_the_verdict(record, ready, measurable, sampled, words):
    record["domains"][0]["sampled"] = sampled
    assert verdict({**record, "ready": ready, "measurable": measurable}) == words


def test_shares_are_of_all_pixels(record):
    shares = class_shares(record["domains"][0])
    assert sum(shares.values()) == pytest.approx(100)
    assert shares["ignored"] == pytest.approx(39.9)
