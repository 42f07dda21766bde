"""``stcl demo`` at a tiny scale: the same steps, the same files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stcl.cli import main
from stcl.commands.demo import run as demo
from stcl.errors import SettingError
from stcl.pages.tables import compare
from stcl.training.config import merge, read_yaml

SIZE = (64, 32)
TINY = {
    "source": {"size": list(SIZE)},
    "target": {"size": list(SIZE)},
    "network": {"backbone_settings": {"width": 8}, "weights": None},
    "training": {"steps": 2, "batch_size": 2, "workers": 0, "accelerator": "cpu"},
}


@pytest.fixture
def tiny_demo(monkeypatch) -> None:
    """The demo with few frames, two steps and a narrow network that starts at random."""
    requests = {
        name: replace(request, clips=2, frames=min(request.frames, 4), size=SIZE)
        for name, request in demo.EXPORTS.items()
    }
    monkeypatch.setattr(demo, "EXPORTS", requests)
    monkeypatch.setattr(demo, "cpu_count", lambda: 1)

    def read_tiny(path: Path) -> dict:
        adapts = {"method": {"warmup": 1}} if path.stem == "stcl" else {}
        return merge(merge(read_yaml(path), TINY), adapts)

    monkeypatch.setattr(demo, "read_yaml", read_tiny)


@pytest.mark.parametrize("method", demo.METHODS)
def test_the_demo_renders_the_size_that_it_trains_on(method, tmp_path):
    settings = demo.demo_settings(method, tmp_path, seed=3)
    assert {request.size for request in demo.EXPORTS.values()} == {settings.source.size, settings.target.size}
    assert settings.seed == 3


def test_the_demo_leaves_a_page_a_film_and_a_summary(tiny_demo, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--seed", "2"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= {*demo.METHODS, "seconds", "seed"}
    assert {"source_only", "stcl"} <= set(demo.METHODS)
    runs = [out / "runs" / method for method in demo.METHODS]
    assert [summary[method]["miou"] for method in demo.METHODS] == pytest.approx(compare(runs).miou, abs=1e-2)
    assert summary["seed"] == 2
    assert summary["seconds"]["total"] > 0
    page = (out / "report.html").read_text()
    assert "stcl demo" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (out / "demo.mp4").read_bytes()[4:8] == b"ftyp"
    assert _is_clean(out)
    # the runs are comparable: one network, start, schedule and number of steps
    starts = [json.loads((run / "results.json").read_text())["config"] for run in runs]
    assert len({json.dumps([start["network"], start["training"], start["seed"]]) for start in starts}) == 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert main(["demo", "--out", str(out), "--seed", "2"]) == 0
    assert "already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert main(["demo", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"stcl: error: {out} holds a finished demo of seed 2.")
    assert message.count("\n") == 1


def test_an_interrupted_demo_goes_on(tiny_demo, tmp_path, monkeypatch, capsys):
    """Trainings that were done are kept; the one under way goes on; another seed is another folder."""
    out, evaluate = tmp_path / "demo", demo.evaluate

    def breaks(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "evaluate", breaks)
    assert main(["demo", "--out", str(out)]) == 130
    weights = [out / "runs" / method / "model.safetensors" for method in demo.METHODS]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in weights]
    weights[-1].unlink()
    monkeypatch.setattr(demo, "evaluate", evaluate)
    capsys.readouterr()
    assert main(["demo", "--out", str(out), "--seed", "1"]) == 2
    assert "holds an unfinished demo of seed 0. Go on with --seed 0, or choose another" in capsys.readouterr().err
    assert main(["demo", "--out", str(out)]) == 0
    after = [(path.read_bytes(), path.stat().st_mtime_ns) for path in weights]
    assert after[:-1] == before[:-1]
    assert after[-1][0] == before[-1][0]
    assert _is_clean(out)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("own", ["runs/source_only/notes.txt", "summary.json", "report.html", "film/a.png", "any"])
def test_a_folder_with_other_content_is_not_touched(tiny_demo, tmp_path, monkeypatch, capsys, own):
    (tmp_path / own).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / own).write_text('{"mine": 1}')
    before = _tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "."]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "hoose a" in message and "--out" in message
    assert _tree(tmp_path) == before


def test_a_run_of_other_settings_is_refused_and_kept(tiny_demo, tmp_path):
    settings = demo.demo_settings("source_only", tmp_path, seed=0)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(demo.demo_settings("source_only", tmp_path, seed=3).dump())
    (run / "notes.txt").write_text("mine")
    before = _tree(tmp_path)
    with pytest.raises(SettingError, match=rf"{run} holds a run of other settings than the demo's"):
        demo._train(settings, run)
    assert _tree(tmp_path) == before


def test_of_two_demos_in_one_folder_the_second_is_told(tiny_demo, tmp_path, monkeypatch, capsys):
    def meanwhile(*_, **__):
        assert main(["demo", "--out", str(tmp_path / "demo"), "--seed", "1"]) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "export", meanwhile)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 130
    assert f"Another demo is at work in {tmp_path / 'demo'} right now" in capsys.readouterr().err


def _is_clean(out: Path) -> bool:
    """No half-written file is left."""
    return not [path for path in out.rglob("*") if path.suffix in (".tmp", ".partial") or path.name.startswith(".")]
