"""What wrong input gets: exit status 2 and one line that names the file or key, says what was found and what to do."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stcl.cli import main
from stcl.data.io import write_image, write_label

TINY = [
    *("--quiet", "--source.size", "[64, 32]", "--target.size", "[64, 32]", "--flow.cache", "null"),
    *("--network.backbone_settings.width", "8", "--network.weights", "null", "--training.accelerator", "cpu"),
    *("--training.steps", "2", "--training.batch_size", "2", "--training.workers", "0"),
]
Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source and target trees and a finished, evaluated run."""
    root = tmp_path_factory.mktemp("pristine")
    for out, layout, style, split in (
        ("source", "synthia-seq", "clean", "train"),
        ("target", "cityscapes-seq", "camera", "train"),
        ("target", "cityscapes-seq", "camera", "val"),
    ):
        words = ["data", "render", "--layout", layout, "--style", style, "--split", split, "--out", str(root / out)]
        assert main([*words, "--size", "64", "32", "--clips", "2", "--frames", "3", "--workers", "1", "--quiet"]) == 0
    roots = ["--source.root", str(root / "source"), "--target.root", str(root / "target")]
    assert main(["train", "twinstreets/source_only", "--out", str(root / "run"), *TINY, *roots]) == 0
    assert main(["evaluate", str(root / "run"), "--quiet", "--samples", "1"]) == 0
    return root


@pytest.fixture
def world(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; the run's configuration names the copy's frames."""
    shutil.copytree(pristine, tmp_path / "world")
    config = tmp_path / "world" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(pristine), str(tmp_path / "world")))
    return tmp_path / "world"


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """``refuse("train", ...)``: the message of a command that must fail."""

    def run(*words: object) -> str:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's own mistakes
            status = stop.code
        message = capsys.readouterr().err
        assert status == 2, message
        assert message.startswith("stcl: error: ")
        assert message.count("\n") == 1, message
        return message.removeprefix("stcl: error: ")

    return run


@pytest.fixture
def refuse_train(refuse: Refuse, world: Path) -> Refuse:
    """``refuse_train(*overrides)``: train STCL on the (damaged) world."""

    def run(*words: object, config: str | Path = "twinstreets/stcl", out: str | Path = "") -> str:
        roots = ["--source.root", world / "source", "--target.root", world / "target"]
        return refuse("train", config, "--out", out or world / "new", *TINY, *roots, *words)

    return run


@pytest.fixture
def check_data(world: Path) -> Callable[..., int]:
    """``check_data(*overrides)``: status of `stcl data check` for what :func:`refuse_train` trains on."""

    def run(*words: object, config: str = "twinstreets/stcl") -> int:
        roots = ["--source.root", world / "source", "--target.root", world / "target"]
        return main(["data", "check", config, "--workers", "0", *map(str, [*TINY, *roots, *words])])

    return run


def cut(path: Path, count: int = 60) -> Path:
    path.write_bytes(path.read_bytes()[:count])
    return path


def ids(value: int, height: int = 32) -> np.ndarray:
    return np.full((height, 64, 3), value, np.uint16)


# frames, labels, flow


def missing(path: Path) -> Path:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return path


def emptied(path: Path) -> Path:
    missing(path).mkdir()
    return path


RGB, LABEL = "source/clip_0000/rgb/000001.png", "source/clip_0000/label/000001.png"


@pytest.mark.parametrize(
    ("damage", "place", "message"),
    [
        (missing, "source", "Root {} of data set 'synthia_seq' does not exist. Expected there: <root>"),
        (missing, "target", "Root {} of data set 'cityscapes_seq' does not exist. Expected there: <root>"),
        (emptied, "source", "in {}: no sequence found; there is: nothing. Expected: <root>"),
        (emptied, "target", "folder {}/leftImg8bit_sequence does not exist; in {} there is: no folder."),
        (missing, "target/leftImg8bit_sequence/train", "folder {} does not exist; in"),
        (emptied, "target/leftImg8bit_sequence/train", "holds no frame. Expected there: <root>"),
        (missing, "source/clip_0000/label", "folder {} does not exist; in"),
        (missing, LABEL, f"{RGB} has no label file; 1 of 6 frames have none."),
        (missing, RGB, f"{LABEL} has no frame (sequence 'clip_0000', number 1)"),
        (lambda path: write_label(path, ids(3, height=16)), LABEL, "Label file {} is 64x16, but its frame"),
        (lambda path: write_label(path, ids(99)), LABEL, "{} holds ids that data set 'synthia_seq' does not have: 99"),
        (cut, RGB, "PNG file {} is cut off after 60 bytes. Copy or download it again."),
        (cut, LABEL, "PNG file {} is cut off after 60 bytes. Copy or download it again."),
        (lambda path: cut(path, 0), RGB, "File {} is empty. Copy or download it again."),
        (lambda path: path.write_text("hello"), RGB, "File {} is neither a PNG nor a JPEG picture: it begins with"),
        (
            lambda path: write_image(path, np.zeros((40, 64, 3), np.uint8)),
            RGB,
            "Frames of one sequence must have one size",
        ),
        (lambda path: path.rename(path.with_name("preview.png")), RGB, "preview.png does not follow the layout."),
    ],
)
def test_files_of_a_data_set(refuse_train, check_data, world, damage, place, message):
    damage(world / place)
    assert message.replace("{}", str(world / place)) in refuse_train("--training.steps", "3")
    assert check_data() == 2


def darkened(path: Path) -> None:
    write_image(path, np.zeros((32, 64, 3), np.uint8))


def test_what_does_not_stop_training_does_not_fail_the_check(check_data, world, capsys):
    darkened(world / RGB)
    missing(world / "target/gtFine/train")
    for place in (None, "target/gtFine/val", "target/leftImg8bit_sequence/val"):
        if place is not None:
            missing(world / place)
        capsys.readouterr()
        assert check_data() == 0
        told = capsys.readouterr().out
        assert "Training can start." in told
        assert ("Evaluation cannot" in told) == (place is not None)
    roots = ["--source.root", str(world / "source"), "--target.root", str(world / "target")]
    assert main(["train", "twinstreets/stcl", "--out", str(world / "new"), *TINY, *roots]) == 0


def test_labels_that_all_are_ignored(refuse_train, check_data, world):
    """Said before training, which would go through with nothing learned; one pixel is enough."""
    for path in (world / "source").rglob("label/*.png"):
        write_label(path, ids(0))
    message = f"in {world / 'source'}: all labels of the 4 frames are ignored: no pixel has a class of label space"
    for kind in ("stcl", "source_only"):
        assert message in refuse_train(config=f"twinstreets/{kind}")
        assert not (world / "new").exists()
    assert check_data() == 2
    one = ids(0)
    one[5, 7] = 3
    write_label(world / LABEL, one)
    roots = ["--source.root", str(world / "source"), "--target.root", str(world / "target")]
    assert main(["train", "twinstreets/source_only", "--out", str(world / "new"), *TINY, *roots]) == 0


def test_links_to_themselves(refuse, refuse_train, world):
    loop = world / "loop"
    loop.symlink_to("loop")
    for place in (loop, loop / "x"):
        assert f"{place} is no run folder" in refuse("evaluate", place)
        assert f"No results.json in '{place}'" in refuse("report", place, "--out", world / "report")
        assert f"There is no folder {place}" in refuse("pull", place, "--out", world / "model")
        assert "source.root" in refuse_train("--source.root", place)
        assert str(loop) in refuse("arena", "arena/demo", "--out", place, "--table")
        assert str(loop) in refuse("export", world / "run", "--out", place, "--format", "safetensors")
        assert "Unknown configuration" in refuse("train", place, "--out", world / "new")
    assert f"list of frames {loop} cannot be read" in refuse_train("--source.frames", f"list:{loop}")


def test_homes_that_nobody_has(refuse, refuse_train, world):
    told = "The home folder that '~no_such_user/a' begins with is not known. Write the path in full."
    assert told in refuse("evaluate", "~no_such_user/a")
    assert told in refuse("predict", "~no_such_user/a", "--checkpoint", world / "run", "--out", world / "new")
    assert told in refuse("predict", "a.mp4", "--checkpoint", "~no_such_user/a", "--out", world / "new")
    for key in ("prepared", "network.weights", "target.classes", "source.frames"):
        value = "list:~no_such_user/a" if key == "source.frames" else "~no_such_user/a"
        assert told in refuse_train(
            f"--{key}", value, "--target.name", "folder" if "classes" in key else "cityscapes_seq"
        )
    assert told in refuse_train("--flow.name", "files", "--flow.folder", "~no_such_user/a")


def test_flow_of_other_frames_and_sizes(refuse_train, check_data, refuse, world):
    cache = ["--flow.cache", world / "flow"]
    roots = ["--source.root", world / "source", "--target.root", world / "target"]
    assert (
        main([str(word) for word in ["train", "twinstreets/stcl", "--out", world / "ok", *TINY, *roots, *cache]]) == 0
    )
    assert check_data(*cache) == 0
    larger = ["--source.size", "[96, 48]", "--target.size", "[96, 48]"]
    assert "belongs to other image sizes: found 64x32, expected 96x48. Delete the folder" in refuse_train(
        *cache, *larger
    )
    assert check_data(*cache, *larger) == 2
    for path in (world / "source").rglob("rgb/*.png"):
        write_image(path, np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    message = refuse_train(*cache, out=world / "new2")
    assert f"Flow cache file {world / 'flow'}/synthia_seq" in message
    assert "belongs to other frames (digest of the pixels)" in message
    assert check_data(*cache) == 2
    for path in (world / "flow").rglob("*.npz"):
        cut(path)
    assert "(60 bytes) is damaged or no flow cache file" in refuse_train(*cache, out=world / "new3")
    assert "has no exact flow: no folder 'exact_flow'" in refuse_train("--flow.name", "exact", out=world / "new4")
    assert check_data("--flow.name", "exact") == 2


# settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--training.step", "3"), "command line, group training: Unknown key 'step'. Did you mean 'steps'?"),
        (("--method.name", "mmseg"), "command line: Unknown method.name 'mmseg'. Known: source_only, tps, dacs, stcl."),
        (("--source.name", "synthia"), "command line: Unknown source.name 'synthia'. Did you mean 'synthia_seq'?"),
        (("--network.backbone", "resnet10"), "Unknown network.backbone 'resnet10'. Did you mean 'resnet101'?"),
        (("--space", "synthia"), "command line: Unknown space 'synthia'. Known: synthia_seq-cityscapes_seq,"),
        (("--training.steps", "many"), 'training.steps must be a whole number, found "many".'),
        (("--source.size", "[60, 32]"), "source.size is [60, 32], but width and height must be at least 32 and divis"),
        (("--target.size", "[24, 16]"), "The nearest such size is [32, 32]."),
        (("--target.size", "[96, 48]"), "Source clips of 64x32 px are smaller than the target's 96x48 px"),
        (("--training.workers", "-1"), "training.workers must be at least 0, found -1."),
        (("--training.batch_size", "1000000000"), "training.batch_size must be at most 65536, found 1000000000."),
        (("--source.size", "[800000000, 48]"), "source.size is [800000000, 48]: 38400000000 pixels, but at most 67108"),
        (("--training.precision", "8"), "training.precision must be one of 32-true, 16-mixed, bf16-mixed, found 8."),
        (("--training.accelerator", "quantum"), "training.accelerator 'quantum' with training.devices 1"),
        (("--network.weights", "builtin:none"), "Unknown weights file 'none'"),
        (("--network.weights", "none.safetensors"), "There is no weights file 'none.safetensors' (network.weights)."),
        (("--method.sequence_fusion.rare_classes", "[tram]"), "Unknown class of label space"),
        (("--training.steps",), "The override --training.steps has no value. Overrides look like"),
        (("--seed.x", "3"), 'command line: seed must be a whole number, found {"x": 3}.'),
        (("steps=3",), "'steps=3' is not an override. Overrides look like --training.steps 1000."),
    ],
)
def test_settings(refuse_train, refuse, check_data, world, words, message):
    told = refuse_train(*words)
    assert message in told
    if words == ("--target.size", "[96, 48]") or words[0] == "--network.weights":  # found along with everything else
        assert check_data(*words) == 2
    elif words[0] not in ("--training.accelerator",):  # which a check may run without
        assert refuse("data", "check", "twinstreets/stcl", *TINY, *words) == told


def test_source_is_target(refuse, world):
    words = ["--source.name", "cityscapes_seq", "--source.root", world / "target", "--target.root", f"{world}/target/"]
    message = refuse("train", "twinstreets/source_only", "--out", world / "new", *TINY, *words)
    assert "source and target are the same data set, so training would read target labels" in message


def test_configuration_files(refuse, world):
    def own(text: str) -> Path:
        (world / "own.yaml").write_text(text)
        return world / "own.yaml"

    def attempt(config: object) -> str:
        return refuse("train", config, "--out", world / "new")

    assert "Unknown configuration 'twinstreets/slct'. Did you mean 'twinstreets/stcl'?" in attempt("twinstreets/slct")
    assert f"Unknown configuration '{world}/none.yaml'." in attempt(world / "none.yaml")
    assert "own.yaml is not valid YAML: line 1, column 5" in attempt(own("a: ["))
    assert "own.yaml: base: there is no file" in attempt(own("base: none.yaml"))
    assert "configurations inherit in a circle" in attempt(own("base: own.yaml"))
    assert "own.yaml: the key method.name is missing" in attempt(own("name: own"))
    assert "CONFIG stands before the overrides" in refuse("train", "--seed", "3", "twinstreets/stcl")
    assert "Say where the run goes: --out DIR." in refuse("train", "twinstreets/stcl")


# weights and run folders


def test_weights(refuse_train, world):
    path = world / "run" / "model.safetensors"
    words = ["--network.weights", path]
    message = refuse_train(*words, "--network.backbone_settings.width", "16")
    assert f"'{path}' belongs to another network" in message
    assert "backbone.stem.0.weight (8, 3, 3, 3) instead of (16, 3, 3, 3)" in message
    assert "belongs to another network" in refuse_train(*words, "--network.auxiliary", "false")
    cut(path, 5000)
    assert f"'{path}' is not a whole safetensors file (5000 bytes" in refuse_train(*words)


def test_a_folder_that_holds_a_run(refuse_train, refuse, world):
    run = world / "run"
    assert f"{run} holds a finished run. Choose another folder" in refuse_train(out=run)
    missing(run / "model.safetensors")
    assert f"{run} holds an unfinished run. Go on with it: stcl train --resume" in refuse_train(out=run)
    assert f"{run} holds no model.safetensors: its training was interrupted" in refuse("evaluate", run)


def test_folders_that_cannot_be_written(refuse_train, refuse, world):
    taken = world / "file"
    taken.write_text("")
    assert f"Cannot write run folder {taken} (a file is there)" in refuse_train(out=taken)
    assert f"Cannot write run folder {taken}/new (Not a directory)" in refuse_train(out=taken / "new")
    assert f"{taken}: File exists. Check the path" in refuse("evaluate", world / "run", "--out", taken)
    assert f"{taken}: File exists. Check the path" in refuse("report", world / "run", "--out", taken)
    render = ["data", "render", "--layout", "synthia-seq", "--style", "clean", "--out"]
    assert f"Cannot export to {taken}: it is a file." in refuse(*render, taken)
    assert f"{taken}/new: Not a directory" in refuse(*render, taken / "new", "--workers", "1", "--quiet")


def test_evaluate(refuse, world):
    run = world / "run"
    assert f"{world} is no run folder: it holds no config.yaml" in refuse("evaluate", world)
    assert "'vla'. Did you mean 'val'?" in refuse("evaluate", run, "--split", "vla")
    assert "leftImg8bit_sequence/test does not exist; in" in refuse("evaluate", run, "--split", "test")
    assert "Root /nowhere of data set" in refuse("evaluate", run, "--root", "/nowhere")
    assert "expected a whole number from 0 up, found '-1'" in refuse("evaluate", run, "--samples", "-1")
    assert "--out takes one RUN" in refuse("evaluate", run, run, "--out", world / "new")
    missing(world / "target" / "gtFine" / "val")
    assert "gtFine/val does not exist; in" in refuse("evaluate", run)


def test_report(refuse, world):
    assert f"No results.json in '{world}'." in refuse("report", world, "--out", world / "report")
    other = shutil.copytree(world / "run", world / "other")
    results = json.loads((other / "results.json").read_text())
    results["protocol"]["version"] = 2
    (other / "results.json").write_text(json.dumps(results))
    message = refuse("report", world / "run", other, "--out", world / "report")
    assert "cannot be compared: the protocol version is 1 in the first and 2 in the second" in message
    cut(other / "results.json")
    assert "results.json' is not valid JSON" in refuse("report", other, "--out", world / "report")
    assert not (world / "report").exists()


# rendering


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", "0", "32"), "whole numbers of 32 to 4096 px, found (0, 32)"),
        (("--size", "64", "100000"), "whole numbers of 32 to 4096 px, found (64, 100000)"),
        (("--size", "-64", "32"), "argument --size: expected a whole number from 0 up, found '-64'"),
        (("--size", "64"), "argument --size: expected 2 arguments"),
        (("--clips", "0"), "at least 1 clip of 1 frame, found 0 of 30"),
        (("--frames", "1000"), "a clip has 1 to 120 frames, found 1000"),
        (("--seed", "-1"), "argument --seed: expected a whole number from 0 up, found '-1'"),
        (("--split", "vla"), "argument --split: invalid choice: 'vla'"),
        (("--exact-flow", "0"), "Flow offsets count frames back and are at least 1, found (0,)"),
        (("--exact-flow", "30"), "Flow offsets (30,) do not fit into a clip of 30 frames."),
        (("--layout", "kitti"), "argument --layout: invalid choice: 'kitti'"),
    ],
)
def test_render(refuse, tmp_path, words, message):
    common = ["--layout", "synthia-seq", "--style", "clean", "--workers", "1", "--quiet"]
    assert message in refuse("data", "render", "--out", tmp_path / "new", *common, *words)
    assert not (tmp_path / "new").exists()


def test_render_into_a_foreign_folder(refuse, world):
    words = ["data", "render", "--layout", "synthia-seq", "--style", "clean", "--workers", "1", "--quiet", "--out"]
    assert f"Cannot export to {world}: it holds" in refuse(*words, world)
    assert "records an export with other settings (clips 2 -> 40" in refuse(*words, world / "source")


# the command itself


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND. See 'stcl --help'"),
        (["trian"], "invalid choice: 'trian'"),
        (["data"], "required: COMMAND. See 'stcl data --help'"),
        (["train"], "Say what to train: stcl train CONFIG --out DIR."),
        (["report", "run"], "required: --out. See 'stcl report --help'"),
        (["evaluate", "run", "--splitt", "val"], "unrecognized arguments: --splitt val"),
        (["demo", "--out", ""], "argument --out: expected a path, found ''"),
        (["demo", "--out=--"], "argument --out: expected a value, found '--'"),
        (["evaluate", " "], "argument RUN: expected a path, found ' '"),
        (["predict", "", "--checkpoint", "a", "--out", "b"], "argument INPUT: expected a path, found ''"),
        (["predict", "a", "--checkpoint", "", "--out", "b"], "argument --checkpoint: expected a path, found ''"),
        (
            ["evaluate", "run", "--devices", "1000000000"],
            "--devices: expected a whole number from 0 to 1024, found '10",
        ),
        (["flow", "own", "--workers", "9" * 5000], "a whole number from 0 to 1024, found '999"),
        (
            ["flow", "own", "--shard", "1/" + "9" * 5000],
            "argument --shard: expected I/N with I from 1 to N, such as 2/4",
        ),
        (["flow", "own", "--pairs", "9" * 5000], f"to 2147483647, found '{'9' * 80}...{'9' * 10} (5000 characters)'"),
        (["demo", "--out", "x", "--seed", "one"], "argument --seed: expected a whole number from 0 up, found 'one'"),
    ],
)
def test_arguments(refuse, words, message):
    assert message in refuse(*words)


def test_as_a_process():
    command = [sys.executable, "-m", "stcl.cli", "data", "render", "--out", "x", "--layout", "viper", "--style", "red"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("stcl: error: argument --style: invalid choice: 'red'")
    assert result.stderr.count("\n") == 1
