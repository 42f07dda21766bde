"""Own data from end to end: a labelled export and a video without labels become a network that segments the video."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from stcl.cli import main
from stcl.commands.check.run import check_data
from stcl.data.io import write_image, write_label
from stcl.data.prepared import use_prepared
from stcl.errors import SettingError
from stcl.resources import config_path
from stcl.training.config import load_settings
from stcl.training.domains import open_dataset, training_clips
from stcl.types import ClipSpec


@pytest.fixture(scope="module")
def own(tmp_path_factory, moving_frames, write_video) -> Path:
    """``simulator/`` with two sequences of labelled pictures, and ``my camera.mp4``."""
    root = tmp_path_factory.mktemp("own")
    for sequence in ("a", "b"):
        for number, frame in enumerate(moving_frames(4, (32, 64))):
            write_image(root / f"simulator/images/{sequence}/{number}.png", frame)
            write_label(root / f"simulator/masks/{sequence}/{number}.png", (frame[..., 0] // 64).astype(np.uint8))
    (root / "simulator/classes.yaml").write_text("0: ignore\n1: road\n2, 3: sky\n")
    write_video(root / "my camera.mp4", moving_frames(12, (48, 96), seed=1))
    return root


@pytest.fixture(scope="module")
def overrides(own) -> list[str]:
    """The shipped configuration at a tiny size, on these data."""
    return [
        *("--source.root", str(own / "simulator"), "--target.root", str(own / "my camera.mp4")),
        *("--source.size", "[64, 32]", "--target.size", "[64, 32]", "--flow.cache", "null"),
        *("--network.weights", "null", "--network.backbone_settings.width", "8", "--training.accelerator", "cpu"),
        *("--training.steps", "2", "--training.batch_size", "2", "--training.workers", "0"),
    ]


def test_a_video_without_labels_is_enough(own, overrides, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert main(["train", "own/stcl", "--out", str(run), "--quiet", *overrides]) == 0
    assert main(["evaluate", str(run), "--quiet"]) == 2
    assert "my camera.mp4 has no labels: there are no folders 'images' and 'masks'" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--quiet", "--root", str(own / "simulator")]) == 0
    assert main(["predict", str(own / "my camera.mp4"), "--checkpoint", str(run), "--out", str(tmp_path / "p")]) == 0
    assert (tmp_path / "p/my camera/overlay.mp4").stat().st_size > 0


def test_the_check_says_once_that_there_is_nothing_to_measure_on(overrides) -> None:
    record = check_data(load_settings(config_path("own/stcl"), overrides), workers=0, quiet=True)
    assert record["ready"] and not record["measurable"]
    (finding,) = [finding for finding in record["findings"] if finding["severity"] == "evaluation"]
    assert "my camera.mp4 has no labels" in finding["what"]
    assert "shared_frame" not in {finding["kind"] for finding in record["findings"]}


def test_no_flow_is_computed_for_an_evaluation_that_cannot_be(overrides, tmp_path, capsys) -> None:
    cache = tmp_path / "flow"
    assert main(["flow", "own/stcl", "--workers", "0", "--quiet", *overrides, "--flow.cache", str(cache)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["evaluation", "source", "target"]
    assert "no flow is needed, as nothing can be measured: " in said[0] and "my camera.mp4 has no labels" in said[0]
    assert {path.parent.name for path in cache.rglob("*.npz")} == {"train"}


def test_what_is_wrong_with_a_class_map_is_said_before_training(own, overrides, tmp_path, capsys) -> None:
    (tmp_path / "classes.yaml").write_text("1: road\n1: sky\n")
    words = ["train", "own/source_only", "--out", str(tmp_path / "run"), "--quiet", *overrides]
    assert main([*words, "--source.classes", str(tmp_path / "classes.yaml")]) == 2
    assert "id 1 stands twice, in line 1 and line 2" in capsys.readouterr().err
    (tmp_path / "classes.yaml").write_text("1: road\n0, 2-3: terrain\n")
    assert main([*words, "--source.classes", str(tmp_path / "classes.yaml")]) == 2
    assert "line 2: Unknown class of label space 'twinstreets-camvid' 'terrain'" in capsys.readouterr().err


def test_the_key_classes(own, overrides, tmp_path) -> None:
    path = shutil.copy(own / "simulator/classes.yaml", tmp_path / "map.yaml")
    settings = load_settings(config_path("own/stcl"), [*overrides, "--source.classes", str(path)])
    assert open_dataset(settings.source).class_map.path == tmp_path / "map.yaml"
    clips = training_clips(settings, settings.source, ClipSpec((0, -1), labels=(0,)))
    assert len(clips) == 6 and {*np.unique(clips[0].labels[0])} == {*map(settings.space.index, ("road", "sky")), 255}
    other = ["--source.name", "synthia_seq", "--source.classes", str(path)]
    with pytest.raises(SettingError, match="'synthia_seq' has classes of its own and takes no class map"):
        open_dataset(load_settings(config_path("own/stcl"), [*overrides, *other]).source)


def test_prepared_data_know_colours_and_videos(own, overrides, tmp_path) -> None:
    """The same clips as without; another colour of the same class is another folder."""
    root = tmp_path / "coloured"
    shutil.copytree(own / "simulator/images", root / "images")
    for path in (own / "simulator/images").rglob("*.png"):
        mask = np.full((32, 64, 3), (128, 64, 128), np.uint8)
        mask[:, 32:] = 7
        write_image(root / "masks" / path.relative_to(own / "simulator/images"), mask)
    (root / "classes.yaml").write_text("128 64 128: road\n7 7 7: ignore\n")
    words = [*overrides, "--source.root", str(root), "--prepared", str(tmp_path / "prepared")]
    assert main(["data", "check", "own/stcl", "--quiet", *words]) == 0
    load = partial(load_settings, config_path("own/stcl"), words)
    specs = ("source", ClipSpec((0, -1), ((0, -1),), (0,))), ("target", ClipSpec((0, -1, -2), ((0, -1), (-1, -2))))
    before = {name: training_clips(load(), getattr(load(), name), spec) for name, spec in specs}
    assert main(["data", "prepare", "own/stcl", "--workers", "0", "--quiet", *words]) == 0
    for name, spec in specs:
        clips = training_clips(load(), getattr(load(), name), spec)
        assert "are used" in use_prepared(clips, tmp_path / "prepared")
        assert len(clips) == len(before[name]) > 3
        for item in (0, len(clips) - 1):
            found, wanted = clips[item], before[name][item]
            assert torch.equal(found.frames, wanted.frames) and torch.equal(found.flow(0, -1), wanted.flow(0, -1))
            assert wanted.labels is None or torch.equal(found.labels, wanted.labels)
    (root / "classes.yaml").write_text("7 7 7: ignore\n9 9 9: road\n")  # the same table of ids, other colours
    assert use_prepared(training_clips(load(), load().source, specs[0][1]), tmp_path / "prepared") == ""
