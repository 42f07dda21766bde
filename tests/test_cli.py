"""The command line from end to end, in this process: what it leaves, what it measures, how fast it helps."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torchmetrics.classification import MulticlassJaccardIndex

import stcl
from closeness import assert_close
from stcl.cli import main
from stcl.labels import get_space

SPACE = get_space("synthia_seq-cityscapes_seq")
HEAVY = {"torch", "lightning", "pytorch_lightning", "kornia", "cv2", "matplotlib", "torchmetrics", "numpy", "yaml"}
STEPS = {"source_only": 2, "stcl": 3}


def render(*arguments: object) -> None:
    common = ["data", "render", "--size", 64, 32, "--clips", 2, "--workers", 1, "--quiet"]
    assert main([str(word) for word in [*common, *arguments]]) == 0


@dataclass
class World:
    """Everything that the commands left."""

    root: Path

    def files(self, *parts: str) -> set[str]:
        """Relative paths of all files in a folder; the name of an event file holds the time and the machine."""
        folder = self.root.joinpath(*parts)
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return {name[: name.index("tfevents") + 8] if "tfevents" in name else name for name in names}

    def results(self, method: str) -> dict:
        return json.loads((self.root / "runs" / method / "results.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two tiny data sets, two trained and evaluated runs, one report."""
    root = tmp_path_factory.mktemp("world")
    source, target, runs = root / "source", root / "target", root / "runs"
    render("--layout", "synthia-seq", "--style", "clean", "--frames", 3, "--out", source)
    city = ["--layout", "cityscapes-seq", "--style", "camera", "--seed", 1, "--out", target]
    render(*city, "--frames", 4)
    render(*city, "--frames", 2, "--split", "val", "--exact-flow", 1)
    overrides = [
        *("--source.root", source, "--target.root", target, "--flow.cache", root / "flow", "--seed", 3),
        *("--source.size", "[64, 32]", "--target.size=[64, 32]", "--training.workers=0", "--training.batch_size", 2),
        *("--network.backbone_settings.width", 8, "--network.weights", "null", "--training.checkpoint_every=2"),
        *("--training.accelerator", "cpu", "--training.log_every", 1),
    ]
    for method, steps in STEPS.items():
        words = ["train", f"twinstreets/{method}", "--out", runs / method, "--quiet", *overrides]
        assert main([str(word) for word in [*words, "--training.steps", steps]]) == 0
    folders = [str(runs / method) for method in STEPS]
    assert main(["evaluate", *folders, "--quiet"]) == 0
    assert main(["report", *folders, "--out", str(root / "report")]) == 0
    return World(root)


# what it leaves


def test_rendered_trees_are_complete_and_hold_nothing_else(world):
    names = [
        f"clip_{clip:04d}/{kind}/{frame:06d}.png" for clip in (0, 1) for kind in ("rgb", "label") for frame in range(3)
    ]
    assert world.files("source") == {*names, "twinstreets_train.json"}
    frames = {("train", clip, frame) for clip in (0, 1) for frame in (16, 17, 18, 19)}
    frames |= {("val", clip, frame) for clip in (0, 1) for frame in (18, 19)}
    city = "{0}/{1}/twinstreets/twinstreets_{2:06d}_{3:06d}_{4}.png"
    images = {city.format("leftImg8bit_sequence", *frame, "leftImg8bit") for frame in frames}
    labels = {city.format("gtFine", *frame, "gtFine_labelIds") for frame in frames if frame[-1] == 19}
    stem = "exact_flow/leftImg8bit_sequence/val/twinstreets/twinstreets_{0:06d}_000019_leftImg8bit"
    flow = {f"{stem}_to_twinstreets_{{0:06d}}_000018_leftImg8bit.png".format(clip) for clip in (0, 1)}
    assert world.files("target") == images | labels | flow | {"twinstreets_train.json", "twinstreets_val.json"}


@pytest.mark.parametrize("method", STEPS)
def test_a_run_folder_holds_exactly_these_files(world, method):
    samples = [f"twinstreets_{clip:06d}_000019_leftImg8bit.png" for clip in (0, 1)]
    pictures = {f"samples/{part}/{name}" for part in ("frame", "truth", "prediction") for name in samples}
    assert world.files("runs", method) == pictures | {
        "config.yaml",
        "run.json",
        "metrics.csv",
        "status.json",
        "model.safetensors",
        "results.json",
        "samples/samples.json",
        "checkpoints/last.ckpt",
        *(["checkpoints/previous.ckpt"] if STEPS[method] > 2 else []),
        "events/events.out.tfevents",
    }


def test_a_report_folder_holds_exactly_these_files(world):
    assert world.files("report") == {"report.html", "results.md", "results.csv"}
    page = (world.root / "report" / "report.html").read_text()
    assert "Source only" in page
    assert f"{world.results('stcl')['miou']:.1f}" in page


def test_the_flow_cache_has_a_folder_for_each_split(world):
    """Frames of two splits may share their names."""
    folders = {Path(name).parent.as_posix() for name in world.files("flow")}
    assert len(folders) == 3
    assert [sum(folder.endswith(f"/{split}") for folder in folders) for split in ("train", "val")] == [2, 1]


# what it measures


@pytest.mark.parametrize("method", STEPS)
def test_results_follow_the_schema(world, method):
    results = world.results(method)
    assert results["schema"] == 1
    assert results["method"] == results["name"] == method
    assert (results["protocol"]["name"], results["protocol"]["version"]) == (SPACE.name, 1)
    assert results["protocol"]["classes"] == list(SPACE.names)
    assert list(results["iou"]) == list(SPACE.names)
    assert results["data"]["frames"] == 2
    assert results["selection"] == "last EMA weights"
    assert (results["seed"], results["steps"]) == (3, STEPS[method])
    assert results["config"] == yaml.safe_load((world.root / "runs" / method / "config.yaml").read_text())
    assert results["code"]["version"] == stcl.__version__
    assert results["seconds"]["train"] > 0


@pytest.mark.parametrize("method", STEPS)
def test_scores_are_torchmetrics_of_the_confusion_matrix_in_percent(world, method):
    results = world.results(method)
    counts = torch.tensor(results["confusion"])
    assert counts.shape == (len(SPACE), len(SPACE))
    ids = torch.cartesian_prod(torch.arange(len(SPACE)), torch.arange(len(SPACE)))  # (C * C, 2): truth, prediction
    truth, prediction = ids.repeat_interleave(counts.flatten(), dim=0).T
    jaccard = MulticlassJaccardIndex(len(SPACE), average="none", zero_division=float("nan"))
    iou = 100 * jaccard(prediction, truth).double()
    stored = torch.tensor([float("nan") if score is None else score for score in results["iou"].values()])
    assert_close(stored.double(), iou, 2e-3, scale=1)
    assert results["miou"] == pytest.approx(float(iou[list(SPACE.reported)].nanmean()), abs=2e-3)


# what it prints


def test_print_config_shows_every_key_and_is_itself_a_configuration(world, capsys, tmp_path):
    config = world.root / "runs" / "stcl" / "config.yaml"
    assert main(["train", str(config), "--print-config", "--seed", "4"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed) == yaml.safe_load(config.read_text()) | {"seed": 4}
    (tmp_path / "own.yaml").write_text(printed)
    assert main(["train", str(tmp_path / "own.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_the_next_step_is_named(world, capsys):
    assert main(["evaluate", str(world.root / "runs" / "stcl"), "--quiet", "--out", str(world.root / "again")]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert main(["report", str(world.root / "again"), "--out", str(world.root / "report")]) == 0
    assert f"Page: {world.root / 'report' / 'report.html'}" in capsys.readouterr().out


# how fast it helps


@pytest.mark.parametrize("command", ["", "demo", "train", "evaluate", "report", "data", "data render"])
def test_help_answers_at_once(command):
    """With light imports only, in a second and a half of the processor's time: the machine may be busy."""
    words = [*command.split(), "--help"]
    code = f"import sys, time; from stcl.cli import main\ntry: main({words!r})\n"
    code += "finally: print(time.process_time(), *sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: stcl{' ' if command else ''}{command}")
    seconds, *modules = result.stderr.split()
    assert not {name.partition(".")[0] for name in modules} & HEAVY
    assert float(seconds) < 1.5


def test_help_of_train_lists_the_shipped_configurations(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "  twinstreets/stcl\n" in text
    assert "--print-config" in text


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"stcl {stcl.__version__}\n"


EVIL = ("csv", "yaml", "random", "signal", "socket", "tempfile", "pickle", "selectors")
"""Modules that a command, or an interpreter that it starts, imports."""

SPAWN = """
import multiprocessing, os
from stcl.cli import main
if __name__ == "__main__":
    try:
        main(["--version"])
    except SystemExit:
        pass
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    assert process.exitcode == 0
"""


@pytest.mark.parametrize("way", ["python -m", "a process of its own"])
def test_nothing_is_imported_from_the_working_folder(tmp_path, way):
    work, script = tmp_path / "work", tmp_path / "elsewhere" / "script.py"
    for folder in (work, script.parent):
        folder.mkdir()
    for name in EVIL:
        (work / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    script.write_text(SPAWN)
    words = ["-m", "stcl.cli", "report", "nowhere", "--out", "report"] if way == "python -m" else [str(script)]
    own = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=work, env=own, capture_output=True, text=True, timeout=300, check=False
    )
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    assert ("No results.json" in done.stderr) if way == "python -m" else done.returncode == 0, done.stderr
