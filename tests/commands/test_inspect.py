"""What an inspection shows is what a training step takes, and no label of the target is needed for it."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from stcl.cli import main
from stcl.commands.inspect.run import count_pixels, draw_view, inspect
from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.methods import METHODS
from stcl.methods.base import View
from stcl.training.settings import Settings
from stcl.training.train import train
from stcl.types import VideoClip

EXPECTED = {
    "source_only": {"source"},
    "tps": {"source", "target"},
    "dacs": {"source", "mixed"},
    "stcl": {"source", "target", "fused_source", "fused_target"},
}
MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def unlabelled(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target's frames without any label file."""
    root = tmp_path_factory.mktemp("unlabelled")
    shutil.copytree(streets / "target", root, dirs_exist_ok=True)
    for folder in root.glob("gtFine*"):
        shutil.rmtree(folder)
    assert not list(root.rglob("*label*"))
    return root


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "inspect.json").read_text())


def losses_of(run: Path, step: int) -> dict[str, float]:
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    return {name: float(value) for name, value in rows[step - 1].items() if name.startswith("loss/") and value}


def picture(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_shows_its_views_without_labels_of_the_target(method, make_settings, unlabelled, tmp_path):
    warmup: dict[str, Any] = {"warmup": 500} if hasattr(make_settings(method).method, "warmup") else {}
    if method == "stcl":  # both fused domains, of which one is off by default
        warmup["sequence_fusion"] = {"into_source": True}
    settings = make_settings(method, target={"root": str(unlabelled)}, method=warmup)
    record = record_of(inspect(settings, tmp_path / "out", steps=2))
    assert set(record["views"]) == EXPECTED.get(method, set(record["views"]))
    assert record["warmup"] == {"configured": warmup.get("warmup", 0), "used": 0}
    assert {"loss/source", "loss/total"} <= set(record["logged"])
    for name, clips in record["views"].items():
        assert len(clips) == 2
        for clip in clips:
            assert picture(tmp_path / "out" / clip["frame"]).shape == (32, 64, 3)
            label = picture(tmp_path / "out" / clip["label"])
            assert label.shape == (32, 64)
            assert clip["ignored"] == (label == IGNORE).sum()
            assert ("loaded" in clip) == (name in ("source", "target"))
            assert ("outline" in clip) == (name in ("fused_source", "fused_target", "mixed"))
            assert ("mean_weight" in clip) == (name in ("target", "fused_target", "mixed"))
    for shares in record["shares"].values():
        assert sum(shares) == pytest.approx(100)
    patched = {"dacs", "stcl"} & {method}
    assert set(record["shares"]) == {*record["views"], *(["patches", "target"] if patched else [])}


def test_the_steps_are_those_of_a_run(make_settings, tmp_path):
    method = {"optimization": {"schedule_steps": 10}, "weighting": "none"}
    two, three = (make_settings("stcl", method=method, training={"steps": n, "log_every": 1}) for n in (2, 3))
    run = train(two, tmp_path / "two", quiet=True)
    whole = train(three, tmp_path / "three", quiet=True)
    for subject, steps, first in ((three, 3, 0), (run, 1, 2)):
        record = record_of(inspect(subject, tmp_path / f"from_{first}", steps))
        logged = {name: value for name, value in record["logged"].items() if name.startswith("loss/")}
        assert min(logged.values()) > 0
        assert logged == pytest.approx(losses_of(whole, 3), rel=1e-5)  # as many digits as the file has
        assert (record["first_step"], record["steps"]) == (first, steps)
    left = {path.name for path in run.iterdir()}
    assert left == {path.name for path in whole.iterdir()}, "an inspection leaves nothing in the run's folder"


def test_the_command(make_settings, tmp_path, capsys):
    config, out = tmp_path / "own.yaml", str(tmp_path / "out")
    config.write_text(make_settings("source_only").dump())
    assert main(["inspect", str(config), "--out", out, "--steps", "1", "--seed", "3"]) == 0
    assert record_of(tmp_path / "out")["seed"] == 3
    assert (tmp_path / "out" / "inspect.html").is_file()
    for words, told in (
        (["--training.steps", "5", str(config)], "CONFIG stands before the overrides: stcl inspect CONFIG"),
        ([str(tmp_path), "--seed", "3"], "A run is inspected with its own settings"),
        ([str(config), "--steps", "0"], "at least 1, not 0"),
        ([str(config), "--trainning.steps", "3"], "trainning"),
    ):
        capsys.readouterr()
        assert main(["inspect", *words, "--out", out]) == 2
        message = capsys.readouterr().err
        assert told in message
        assert message.count("\n") == 1


def clip_of(labels: list[list[int]]) -> VideoClip:
    """One clip of one frame; the labels are ``(H, W)``."""
    ids = torch.tensor(labels)
    return VideoClip(torch.rand(1, 1, 3, *ids.shape), ids[None, None], {}, (0,), ["clip"])


def test_pixels_are_counted_by_class_and_inside_the_outlines():
    inside = torch.tensor([[[True, True, False], [False, True, False]]])
    views = {
        "source": View(clip_of([[0, 1, 1], [2, IGNORE, 1]])),
        "mixed": View(clip_of([[2, 2, 0], [1, 0, IGNORE]]), inside),
    }
    counts = {name: pixels.tolist() for name, pixels in count_pixels(views, classes=3).items()}
    assert counts == {"source": [1, 3, 1, 1], "mixed": [2, 1, 2, 1], "patches": [1, 0, 2, 0], "target": [1, 1, 0, 1]}
    shown = {**views, "target": View(clip_of([[1, 1, 1]]))}
    assert count_pixels(shown, classes=3)["target"].tolist() == [0, 3, 0, 0]
    assert "patches" not in count_pixels({"source": views["source"]}, classes=3)


def test_pictures_are_what_the_step_took():
    clip = clip_of([[0, 1], [2, IGNORE]])
    clip.frames[0, 0] = torch.tensor([1.0, 0.5, 0.0])[:, None, None]  # r, g, b
    view = View(clip, torch.tensor([[[True, False], [False, False]]]), torch.tensor([[[0.0, 0.2], [0.6, 1.0]]]))
    raw = VideoClip(torch.full((1, 1, 3, 2, 2), 7, dtype=torch.uint8), None, {}, (0,))
    (entry,), pictures = draw_view("target", view, {"source": raw, "target": raw})
    assert pictures[entry["frame"]][0, 0].tolist() == [255, 128, 0]
    assert (pictures[entry["loaded"]] == 7).all()
    assert pictures[entry["label"]].tolist() == [[0, 1], [2, IGNORE]]
    assert pictures[entry["outline"]].tolist() == [[255, 0], [0, 0]]
    assert pictures[entry["weight"]].tolist() == [[0, 51], [153, 255]]
    assert entry["mean_weight"] == pytest.approx(0.45)
    assert (entry["ignored"], entry["pixels"]) == (1, 4)
    assert "previous" not in entry
    (entry,), _ = draw_view("target", view._replace(weight=torch.tensor([[[0.3]]])), {"source": raw})
    assert entry["mean_weight"] == pytest.approx(0.3)
    assert not {"weight", "loaded"} & set(entry)


def test_an_earlier_inspection_is_replaced_and_nothing_else(make_settings, tmp_path):
    settings, out = make_settings("source_only"), tmp_path / "out"
    inspect(make_settings("tps"), out, steps=1)
    before = {path.name for path in (out / "pictures").iterdir()}
    own = [out / "notes.txt", out / "pictures" / "own.png", out / "pictures" / "target_0_frame_marked.png"]
    for path in own:
        path.write_text("mine")
    inspect(settings, out, steps=1)
    after = {path.name for path in (out / "pictures").iterdir()} - {path.name for path in own}
    assert after < before and not [name for name in after if name.startswith("target")]
    assert [path.read_text() for path in own] == ["mine"] * 3
    assert {path.relative_to(out).as_posix() for path in (out / "pictures").iterdir()} - {
        f"pictures/{path.name}" for path in own
    } == {*record_of(out)["files"]} - {"inspect.html"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with pytest.raises(SettingError, match=r"other holds something else than the work of .*: letter\.txt.*--out"):
        inspect(settings, tmp_path / "other")
    with pytest.raises(SettingError, match=r"letter\.txt \(a file is there\)"):
        inspect(settings, tmp_path / "other" / "letter.txt")
    with pytest.raises(SettingError, match=r"--steps counts .* at least 1, not 0"):
        inspect(settings, tmp_path / "fresh", steps=0)
    with pytest.raises(SettingError, match=r"other is no run folder"):
        inspect(tmp_path / "other", tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
