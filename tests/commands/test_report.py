import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stcl.commands.report import page
from stcl.commands.report.page import write_report
from stcl.commands.report.samples import choose_samples
from stcl.commands.report.story import explain, find_roles
from stcl.errors import DataError, SettingError
from stcl.labels import get_space
from stcl.pages.figures import confusion_changes, loss_panels, smooth, thin, ticks
from stcl.pages.results import read_metrics
from stcl.pages.tables import compare

MakeRun = Callable[..., Path]


class Links(HTMLParser):
    """Collects what a page loads, its pictures, its ids, and whether its elements close."""

    VOID = frozenset({"meta", "img", "br", "line", "polyline", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.targets += [value or "" for key, value in attrs if key in {"src", "href", "srcset", "poster", "action"}]
        if tag == "img":
            self.pictures.append(found)
        if found.get("id"):
            self.ids.append(found["id"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(text: str) -> Links:
    links = Links()
    links.feed(text)
    assert links.open == []
    return links


def test_the_page_is_self_contained(four_runs: list[Path], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"not really a film")
    page.write_report(
        four_runs, tmp_path / "out", "A <title>", "One.\n\nTwo.", film, ["stcl train a.yaml"], {"all": 75.0}
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "results.csv", "results.md"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    links = parse(text)
    assert links.targets
    assert all(target.startswith("data:") for target in links.targets)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not {"script", "link", "iframe"} & links.tags
    assert "A &lt;title&gt;" in text
    assert "stcl train a.yaml" in text
    assert "1 min 15 s" in text
    assert "prefers-color-scheme: dark" in text
    assert len(set(links.ids)) == len(links.ids)
    assert all(picture["alt"] for picture in links.pictures)
    assert len(links.pictures) % 6 == 0  # frame, truth and four predictions a strip


@pytest.mark.parametrize("own", ["report.html", "results.md", "results.csv"])
def test_only_a_report_is_replaced(four_runs: list[Path], tmp_path: Path, own: str) -> None:
    (tmp_path / own).write_text("<html>mine</html>")
    with pytest.raises(SettingError, match=rf"{own} is there .*stays as it is"):
        write_report(four_runs, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.glob("re*")} == {own: "<html>mine</html>"}
    (tmp_path / own).unlink()
    write_report(four_runs, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("re*")}
    (tmp_path / "results.csv").unlink()
    write_report(four_runs, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("re*")} == before


def test_a_report_is_written_whole_or_not_at_all(four_runs: list[Path], tmp_path: Path, room_for) -> None:
    write_report(four_runs, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("re*")}
    with pytest.raises(OSError, match="File too large") as caught, room_for(5000):
        write_report(four_runs[:2], tmp_path)
    assert caught.value.filename == str(tmp_path / "report.html")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*e*")} == before


def test_embedded_label_maps_keep_their_classes(four_runs: list[Path], tmp_path: Path) -> None:
    text = page.write_page(tmp_path / "page.html", four_runs).read_text(encoding="utf-8")
    truth = parse(text).pictures[1]
    assert truth["alt"] == "Truth: class colours of frame street_000"
    content = base64.b64decode((truth["src"] or "").split(",")[1])
    shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    label = np.asarray(Image.open(four_runs[0] / "samples" / "truth" / "street_000.png"))
    assert np.array_equal(shown, get_space("synthia_seq-cityscapes_seq").palette[label])


def test_a_large_video_is_linked(four_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "EMBED_BYTES", 10)
    (tmp_path / "films").mkdir()
    film = tmp_path / "films" / "panes.mp4"
    film.write_bytes(bytes(11))
    text = page.write_page(tmp_path / "out", four_runs, video=film).read_text(encoding="utf-8")
    assert parse(text).targets.count("../films/panes.mp4") == 2  # the player and a plain link
    with pytest.raises(DataError, match="No video"):
        page.write_page(tmp_path / "out", four_runs, video=tmp_path / "none.mp4")


def test_a_single_bare_run_makes_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(frames=1)
    (run / "metrics.csv").unlink()
    for path in sorted((run / "samples").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    text = page.write_page(tmp_path / "one.html", [run]).read_text(encoding="utf-8")
    assert "Training losses" not in text
    assert "Frames, truth and predictions" not in text
    assert parse(text).targets == []


def test_sample_frames_are_chosen_and_explained(four_runs: list[Path]) -> None:
    comparison = compare(four_runs)
    samples = choose_samples(comparison, reference=0, subject=2)
    assert [sample.name for sample in samples[:3]] == ["street_000", "street_002", "street_005"]
    gains = {sample.name: sample.scores[2] - sample.scores[0] for sample in choose_samples(comparison, 0, 2, count=6)}
    reasons = {sample.name: sample.reason for sample in samples}
    assert reasons[max(gains, key=gains.__getitem__)].startswith("Largest gain of the 6 saved frames: +")
    assert "STCL against Source only (plain)" in reasons[max(gains, key=gains.__getitem__)]
    assert reasons[min(gains, key=gains.__getitem__)].startswith("No saved frame got worse; this is the smallest gain")
    losses = {sample.name: sample.reason for sample in choose_samples(comparison, reference=2, subject=0)}
    assert any(reason.startswith("No saved frame got better") for reason in losses.values())
    assert any(reason.startswith("Largest loss of the 6 saved frames: \u2212") for reason in losses.values())


def test_samples_that_do_not_fit_are_refused(make_run: MakeRun) -> None:
    run = make_run(frames=2)
    prediction = run / "samples" / "prediction" / "street_000.png"
    Image.new("L", (10, 10)).save(prediction)
    with pytest.raises(DataError, match="its truth is"):
        choose_samples(compare([run]), 0, 0)
    Image.new("RGB", (192, 96)).save(prediction)
    with pytest.raises(DataError, match="one channel of train ids"):
        choose_samples(compare([run]), 0, 0)


def test_the_story_says_how_much_is_photometric(four_runs: list[Path]) -> None:
    comparison = compare(four_runs)
    roles = find_roles(comparison)
    assert (roles.baseline, roles.strong, roles.adapted, roles.oracle) == (0, 1, 2, 3)
    text = " ".join(explain(comparison)).replace("\u00a0", " ")
    gain, photometric = comparison.miou[2] - comparison.miou[0], comparison.miou[1] - comparison.miou[0]
    assert f"a gain of {gain:.1f} points" in text
    assert f"{photometric:.1f} points ({100 * photometric / gain:.0f} %) can be photometric" in text
    assert "of the gap is closed by STCL" in text
    without = " ".join(explain(compare([four_runs[0], four_runs[2]])))
    assert "is not known" in without


def test_the_story_admits_failure(make_run: MakeRun) -> None:
    plain = make_run("plain", share=0.3)
    strong = make_run("strong", title="Strong", share=0.1)
    middle = make_run("stcl", title="STCL", method="stcl", share=0.2)
    worse = make_run("worse", title="STCL", method="stcl", share=0.5)
    assert "add nothing here" in " ".join(explain(compare([plain, strong, middle])))
    assert "adaptation did not help" in " ".join(explain(compare([plain, worse])))
    assert "No class got better" in " ".join(explain(compare([plain, worse])))


def test_curves(four_runs: list[Path]) -> None:
    comparison = compare(four_runs)
    panels = loss_panels(comparison, [read_metrics(run) for run in four_runs])
    assert [panel.title for panel in panels] == ["source", "consistency", "contrast"]
    assert panels[0].svg.count('class="curve') == 4
    assert panels[1].svg.count('class="curve') == 1
    assert 'aria-label="loss/source over training steps 0 to 300' in panels[0].svg
    assert smooth(np.full(9, 2.0), 4) == pytest.approx(np.full(9, 2.0))
    assert smooth(np.arange(9.0), 3)[1:-1] == pytest.approx(np.arange(1.0, 8.0))
    steps, values = thin((np.arange(1000.0), np.ones(1000)), 100)
    assert (len(steps), values.tolist()) == (100, [1.0] * 100)
    assert ticks(0.0, 2.3) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert ticks(0, 300) == [0, 50, 100, 150, 200, 250, 300]


def test_constant_and_single_point_losses_draw(make_run: MakeRun) -> None:
    comparison = compare([make_run(frames=1)])
    for curve in (np.array([1.0]), np.array([0.0, 0.0]), np.array([-1.0, 2.0])):
        (panel,) = loss_panels(comparison, [{"loss/x": (np.arange(float(len(curve))), curve)}])
        assert "nan" not in panel.svg


def test_confusion_changes_by_hand(make_run: MakeRun) -> None:
    before, after = np.zeros((12, 12), np.int64), np.zeros((12, 12), np.int64)
    before[1, :2], after[1, :2] = (30, 70), (10, 90)  # sidewalk taken for road: 30 %, then 10 %
    before[0, 0] = after[0, 0] = 100
    runs = [make_run("a", frames=1, confusion=before), make_run("b", frames=1, confusion=after, title="B")]
    (change,) = confusion_changes(compare(runs), 0, 1)
    assert (change.truth, change.taken_for, change.shares) == ("sidewalk", "road", (30.0, 10.0))


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (245, "4 min 5 s"), (7999, "2 h 13 min")])
def test_durations(seconds: float, text: str) -> None:
    assert page.duration_text(seconds) == text
