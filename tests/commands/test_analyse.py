"""Snapshots change nothing and lie where they should; an analysis says what an independent count says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stcl.cli import main
from stcl.commands.analyse.labelling import Run, label_target, load_frames
from stcl.commands.analyse.run import analyse
from stcl.errors import CheckpointError, DataError, SettingError
from stcl.labels import IGNORE
from stcl.methods import STCL
from stcl.methods.settings import Teacher
from stcl.models.weights.own import read_weights
from stcl.ops.warp import consistent
from stcl.training.checkpoint import FREE_KEYS, read_checkpoint
from stcl.training.evaluate import evaluate
from stcl.training.model_folder import digest
from stcl.training.networks import build_method, untrained
from stcl.training.train import resume, train

SHORT = {"steps": 4, "snapshot_every": 2, "checkpoint_every": 2}
METHOD = {"threshold": 0.2, "teacher": {"flip": True, "flow_error": 0.05}}
ROLES = ("teacher", "student")


def half(path: Path, role: str) -> dict[str, torch.Tensor]:
    """The weights of one network of a snapshot."""
    return {name.removeprefix(f"{role}."): w for name, w in read_weights(path)[0].items() if name.startswith(role)}


@pytest.fixture(scope="module")
def settings(make_settings):
    return make_settings("stcl", training=SHORT, method=METHOD)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    return train(settings, tmp_path_factory.mktemp("runs") / "stcl", quiet=True)


@pytest.fixture(scope="module")
def document(run, trained, tmp_path_factory):
    return analyse([run, trained], tmp_path_factory.mktemp("analysis"), quiet=True)


# ---- snapshots ----


def test_a_snapshot_is_the_state_between_two_steps(run):
    assert [path.name for path in sorted((run / "snapshots").iterdir())] == [
        "step-000002.safetensors",
        "step-000004.safetensors",
    ]
    for step, file in ((2, "previous.ckpt"), (4, "last.ckpt")):
        checkpoint = read_checkpoint(run / "checkpoints" / file)
        assert checkpoint["global_step"] == step
        for role, prefix in (("teacher", "average.copy."), ("student", "network.")):
            for name, weights in half(run / "snapshots" / f"step-{step:06d}.safetensors", role).items():
                assert torch.equal(weights, checkpoint["state_dict"][prefix + name]), (step, role, name)


def test_nobody_asks_for_snapshots_by_default(trained):
    assert not (trained / "snapshots").exists()


def test_training_with_snapshots_needs_no_target_label_and_changes_no_bit(make_settings, streets, run, tmp_path):
    shutil.copytree(streets / "target", tmp_path / "target")
    shutil.rmtree(tmp_path / "target" / "gtFine")
    blind = {"target": {"root": str(tmp_path / "target")}, "method": METHOD}
    with_them = train(make_settings("stcl", training=SHORT, **blind), tmp_path / "with", quiet=True)
    without = train(make_settings("stcl", training={"steps": 4}, **blind), tmp_path / "without", quiet=True)
    assert len(list((with_them / "snapshots").iterdir())) == 2
    for other in (with_them, without):
        one, two = (read_weights(folder / "model.safetensors")[0] for folder in (run, other))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_resumed_run_has_the_snapshots_of_an_uninterrupted_one(settings, run, tmp_path, monkeypatch):
    whole_step = STCL.forward

    def breaks(self, batch):
        if self.step == 3:
            raise RuntimeError("power cut")
        return whole_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(STCL, "forward", breaks)
        with pytest.raises(RuntimeError, match="power cut"):
            train(settings, tmp_path / "cut", quiet=True)
    assert len(list((tmp_path / "cut" / "snapshots").iterdir())) == 1
    resume(tmp_path / "cut", quiet=True)
    for path in (run / "snapshots").iterdir():
        assert digest(path) == digest(tmp_path / "cut" / "snapshots" / path.name)
    assert "training.snapshot_every" in FREE_KEYS


# ---- numbers ----


def by_hand(run: Path, step: int, role: str) -> dict:
    """The same by another way: labels of the method itself, pixels counted one after the other."""
    opened = Run.open(run)
    method = build_method(opened.settings)
    method.log = lambda *_, **__: None
    method.average.network.load_state_dict(half(opened.snapshots[step], role))
    pixels = []
    for clip in load_frames(opened.settings, {1}, None, 100).target:
        clip = clip.to_float()
        pseudo = method.label_target(clip, method.teacher_view(clip, -1))
        y, x = np.mgrid[: clip.size[0], : clip.size[1]]
        u, v = clip.flow(0, -1).numpy().transpose(1, 0, 2, 3)
        leaves = (x + u < 0) | (x + u > clip.size[1] - 1) | (y + v < 0) | (y + v > clip.size[0] - 1)
        pixels.append([part.ravel() for part in (clip.label(0).numpy(), *(p.numpy() for p in pseudo[:2]), leaves)])
    truth, label, confidence, leaves = np.concatenate(pixels, axis=1)
    leaves = leaves[truth != 255]
    label, confidence = label[truth != 255], confidence[truth != 255]
    truth = truth[truth != 255]
    found: dict = {"precision": {}, "recall": {}, "coverage": {}}
    for index, name in enumerate(opened.settings.space.names):
        is_it, said = truth == index, label == index
        found["precision"][name] = 100 * (is_it & said).sum() / said.sum() if said.any() else None
        found["recall"][name] = 100 * (is_it & said).sum() / is_it.sum() if is_it.any() else None
        found["coverage"][name] = 100 * (confidence[is_it] > 0.2).mean() if is_it.any() else None
    low = (confidence <= 0.5) & (label != 255)
    # of the share, pixels without a label are a part: nobody is less sure
    found["low"] = 100 * (confidence <= 0.5).mean(), 100 * (truth == label)[low].mean()
    found["outside"], found["accuracy"] = 100 * leaves.mean(), 100 * (truth == label)[label != 255].mean()
    assert (label == 255).sum() > leaves.sum() > 0  # the flow's error leaves some out as well
    return found


@pytest.mark.parametrize("role", ROLES)
def test_shares_agree_with_an_independent_count(run, document, role):
    wanted, found = by_hand(run, 2, role), document["runs"][0]["points"][0][role]
    for key in ("precision", "recall", "coverage"):
        assert found[key] == {name: value and pytest.approx(value, abs=0.02) for name, value in wanted[key].items()}
        reported = [wanted[key][document["classes"][index]] for index in document["reported"]]
        assert found["mean"][key] == pytest.approx(np.mean([v for v in reported if v is not None]), abs=0.02)
    lowest, flow = found["groups"]["confidence"][0], found["groups"]["flow"]
    assert (lowest["share"], lowest["precision"]) == pytest.approx(wanted["low"], abs=0.02)
    assert flow[2]["share"] == pytest.approx(wanted["outside"], abs=0.02)
    assert found["mean"]["accuracy"] == pytest.approx(wanted["accuracy"], abs=0.02)
    for groups in found["groups"].values():
        assert sum(group["share"] for group in groups) == pytest.approx(100, abs=0.1)


def test_the_evaluated_network_is_measured_as_by_evaluate(trained, document, tmp_path):
    results = evaluate(trained, split="train", out=tmp_path, samples=0, quiet=True)
    found = document["runs"][1]["points"][-1]["evaluated"]
    assert found["mean"]["iou"] == pytest.approx(results["miou"], abs=0.01)
    assert found["iou"] == {name: value and pytest.approx(value, abs=0.01) for name, value in results["iou"].items()}


def test_points_in_time_and_what_is_said_about_them(document):
    with_teacher, without = document["runs"]
    assert [sorted(point) for point in with_teacher["points"]] == [
        ["step", "student", "teacher"],
        ["evaluated", "step", "student", "teacher"],
    ]
    assert [point["step"] for point in with_teacher["points"]] == [2, 4]
    assert (with_teacher["interval"], with_teacher["threshold"], with_teacher["note"]) == (1, 0.2, "")
    assert [sorted(point) for point in without["points"]] == [["evaluated", "step", "teacher"]]
    assert without["interval"] == 0
    assert "flow" not in without["points"][0]["teacher"]["groups"]
    assert "--training.snapshot_every" in without["note"]
    assert document["split"] == "train"
    assert document["frames"] == 2
    assert {*document["runs"][0]["points"][0]["teacher"]["distance"]} == {*document["classes"]}


def test_the_file_and_the_sheets_of_worst_frames(run, trained, tmp_path):
    written = analyse([run], tmp_path, frames=1, quiet=True)
    assert json.loads((tmp_path / "analysis.json").read_text()) == written
    assert written["frames"] == 1
    assert [frame["frame"].startswith("twinstreets_") for frame in written["runs"][0]["worst"]] == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analysis.json", "worst_0.png"]


def test_an_unfinished_run_is_analysed_up_to_its_last_snapshot(run, document, tmp_path):
    for part in ("config.yaml", "snapshots"):
        copy = shutil.copytree if (run / part).is_dir() else shutil.copy
        copy(run / part, tmp_path / part)
    points = analyse([tmp_path], tmp_path / "out", quiet=True)["runs"][0]["points"]
    assert [sorted(point) for point in points] == [["step", "student", "teacher"]] * 2
    assert points[0] == document["runs"][0]["points"][0]


# ---- what cannot be analysed ----


def test_wrong_input_gets_one_sentence(make_settings, run, trained, streets, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"bare has neither snapshots nor model\.safetensors.*snapshot_every"):
        analyse([tmp_path / "bare"], out, quiet=True)
    with pytest.raises(SettingError, match=r"Unknown split .*'dusk'"):
        analyse([trained], out, split="dusk", quiet=True)
    with pytest.raises(SettingError, match="at least 1 frame, found 0"):
        analyse([trained], out, frames=0, quiet=True)
    camvid = tmp_path / "camvid"
    shutil.copytree(trained, camvid)
    text = (camvid / "config.yaml").read_text()
    (camvid / "config.yaml").write_text(
        text.replace("name: cityscapes_seq", "name: camvid").replace("split: val", "split: test")
    )
    with pytest.raises(SettingError, match="target data set is 'cityscapes_seq' and 'camvid'"):
        analyse([trained, camvid], out, quiet=True)
    shutil.copytree(streets / "target", tmp_path / "target")
    shutil.rmtree(tmp_path / "target" / "gtFine")
    blind = make_settings("source_only", target={"root": str(tmp_path / "target")})
    (tmp_path / "bare" / "config.yaml").write_text(blind.dump())
    shutil.copy(trained / "model.safetensors", tmp_path / "bare")
    with pytest.raises(DataError, match=r"gtFine.*needs labelled frames of the target"):
        analyse([tmp_path / "bare"], out, quiet=True)
    assert not out.exists()


def test_the_command_from_runs_to_page(trained, run, tmp_path, capsys):
    for source, name in ((trained, "plain"), (run, "stcl")):
        shutil.copytree(source, tmp_path / name)
        evaluate(tmp_path / name, samples=0, quiet=True)
    words = [
        "analyse",
        *(str(tmp_path / name) for name in ("plain", "stcl")),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    assert main([*words, "--frames", "2", "--against", str(tmp_path / "plain")]) == 0
    assert "plain: No snapshots" in capsys.readouterr().out
    assert "Target labels were read for this analysis only" in (tmp_path / "out" / "analysis.html").read_text("utf-8")
    (change,) = json.loads((tmp_path / "out" / "analysis.json").read_text())["changes"]
    assert change["run"] == str(tmp_path / "stcl")
    assert main([*words, "--against", str(run)]) == 2
    assert "No results.json" in capsys.readouterr().err


def test_the_way_back_is_loaded_where_a_teacher_asks_for_it(settings):
    """And pixels whose way there and back is open have no label, as in training."""
    clip = load_frames(settings, {1}, None, 1, back=True).target[0].to_float()
    assert set(clip.flows) == {(0, -1), (-1, -2), (-1, 0)}
    network = untrained(settings).eval()
    pseudo, _ = label_target(network, clip, Teacher(flow_consistency=True), None)
    trusted = consistent(clip.flow(0, -1), clip.flow(-1, 0))
    assert torch.equal(pseudo.labels != IGNORE, trusted) and 0 < trusted.float().mean() < 1
