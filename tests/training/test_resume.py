"""A run that was killed, stopped or cut off goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import fields
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import yaml

from stcl.errors import CheckpointError, DataError, SettingError, TrainingError
from stcl.files.names import neighbour
from stcl.methods import STCL
from stcl.training.checkpoint import FREE_KEYS, read_checkpoint
from stcl.training.logs import MetricsFile
from stcl.training.model_folder import digest
from stcl.training.run_folder import RunFolder
from stcl.training.train import resume, train

MEMORIES = {
    "preparation": {"match_histogram": True, "augment_source": True, "rescale": [1.0, 1.5]},
    "warmup": 2,
    "teacher": {"kind": "frozen", "frozen_steps": 6},
    "sequence_fusion": {"confidence": 0.1, "into_source": True},
    "feature_fusion": {"stage": "stage2"},
    "alignment": {"form": "contrastive", "pairs": 2},
}
"""Everything that lasts from step to step: averages, frozen teacher, patches, last clips, prototypes, chance."""


@pytest.fixture(scope="module")
def settings(make_settings):
    return make_settings(
        method=MEMORIES, training={"steps": 24, "checkpoint_every": 3, "log_every": 2, "workers": 1, "batch_size": 1}
    )


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The same run without interruption."""
    return train(settings, tmp_path_factory.mktemp("runs") / "whole", quiet=True)


def same(one: Path, two: Path) -> None:
    """The results are equal to the bit: evaluated weights, the whole state of training, the rows of the log."""
    assert digest(one / "model.safetensors") == digest(two / "model.safetensors")
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (one, two))
    assert first["global_step"] == second["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(first[part], second[part]), part
    assert (one / "metrics.csv").read_text() == (two / "metrics.csv").read_text()


def equal(one, two) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def rows(run: Path) -> int:
    path = run / "metrics.csv"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_row(process: BaseProcess, run: Path, number: int) -> None:
    """Until the run has logged more than ``number`` rows."""
    while rows(run) <= number and process.is_alive():
        time.sleep(0.005)


def test_killed_at_random_points_again_and_again(settings, whole, tmp_path, start_stcl):
    """kill -9 of a real process, at moments that nobody chose; then one stop by signal; then the rest."""
    config, run, log = tmp_path / "config.yaml", tmp_path / "killed", tmp_path / "log.txt"
    config.write_text(settings.dump())
    chance, words, stopped = random.Random(time.time_ns()), [config, "--out", run], 0
    for number in (1, 3):
        process = start_stcl(log, "train", *words, "--quiet")
        wait_for_row(process, run, number)
        time.sleep(chance.random() * 0.1)
        process.kill()
        stopped += process.wait() == -signal.SIGKILL  # else it was faster
        words = ["--resume", run]
    process = start_stcl(log, "train", *words, "--quiet")
    wait_for_row(process, run, 6)
    process.terminate()
    process.join()
    if process.exitcode != 0:
        told, stopped = log.read_text(), stopped + 1
        assert process.exitcode == 75, told
        assert "stopped by SIGTERM after step" in told and f"stcl train --resume {run}" in told
        assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    process = start_stcl(log, "train", "--resume", run, "--quiet")
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert f"Finished: {run}" in log.read_text()
    same(whole, run)
    assert len(json.loads((run / "run.json").read_text()).get("resumed", [])) == stopped


def interrupted(settings, out: Path, monkeypatch, step: int = 10, error: BaseException | None = None) -> None:
    """A run that breaks off in the middle of a step."""
    whole_step = STCL.forward

    def breaks(self, batch):
        if self.step == step:
            raise error or RuntimeError("power cut")
        return whole_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(STCL, "forward", breaks)
        with pytest.raises(type(error) if error else RuntimeError):
            train(settings, out, quiet=True)


@pytest.fixture(scope="module")
def broken(settings, tmp_path_factory):
    """A run that broke off in its 11th step; copied, not changed."""
    with pytest.MonkeyPatch.context() as patch:
        interrupted(settings, path := tmp_path_factory.mktemp("runs") / "broken", patch)
    return path


@pytest.fixture
def run(broken, tmp_path):
    """A copy of it."""
    return shutil.copytree(broken, tmp_path / "run")


def test_an_error_leaves_a_run_that_goes_on(whole, run):
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["message"]) == ("failed", 10, "power cut")
    assert not (run / "model.safetensors").exists()
    assert resume(run, quiet=True) == run
    same(whole, run)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 24)
    assert [part["step"] for part in json.loads((run / "run.json").read_text())["resumed"]] == [9]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, run, capsys):
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    last.write_bytes(content)
    resume(run, quiet=True)
    assert "damaged" in " ".join(capsys.readouterr().err.split())
    same(whole, run)
    assert [part["step"] for part in json.loads((run / "run.json").read_text())["resumed"]] == [6]


def test_a_checkpoint_that_lightnings_trainer_wrote_goes_on(whole, run):
    """Versions before kept the same under some other keys."""
    last = run / "checkpoints" / "last.ckpt"
    state = read_checkpoint(last)
    del state["scaler"]
    state |= {"callbacks": {"StepBoundary": {"skipped": state.pop("skipped")}}, "loops": {}, "epoch": 0}
    torch.save(state, last)
    resume(run, quiet=True)
    same(whole, run)


def test_another_machine_is_told(run, capsys):
    """The last part counts, and what decides no bit is left out."""
    record = json.loads((run / "run.json").read_text())
    assert record["environment"]["threads"] == 1
    elsewhere = record["environment"] | {"threads": 8, "cores": 128, "python": "3.99"}
    (run / "run.json").write_text(json.dumps(record | {"resumed": [{"step": 2, "environment": elsewhere}]}))
    resume(run, quiet=True)
    told = " ".join(capsys.readouterr().err.split())
    assert "This run goes on with threads 1 instead of 8: the same steps" in told


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", None])
def test_without_a_whole_checkpoint_it_says_so(run, content):
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(
        CheckpointError, match=r"No checkpoint of .*run can be read\. .*last\.ckpt is no whole .*Remove"
    ):
        resume(run, quiet=True)


def test_a_checkpoint_is_data_not_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    path = tmp_path / "last.ckpt"
    torch.save({"stcl": {}, "state_dict": Harmful()}, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is no checkpoint of a run"):
        read_checkpoint(path)
    assert not (tmp_path / "harm").exists()


def test_what_another_process_has_finished_meanwhile_is_left_alone(whole, run, monkeypatch):
    """A call looks, another one finishes the run, and then the first one gets the folder to itself."""
    lock, finished = RunFolder.lock, list[Path]()

    @contextmanager
    def late(self):
        if not finished:
            finished.append(self.path)
            resume(run, quiet=True)
        with lock(self):
            yield

    monkeypatch.setattr(RunFolder, "lock", late)
    assert resume(run, quiet=True) == run
    same(whole, run)
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 1


def test_killed_when_it_had_just_begun(settings, whole, tmp_path):
    """The settings are there, and nothing else yet."""
    run = tmp_path / "run"
    RunFolder(run).claim(settings, {})
    (run / "run.json").unlink()
    resume(run, quiet=True)
    same(whole, run)
    record, known = (json.loads((path / "run.json").read_text()) for path in (run, whole))
    assert record["data"] == known["data"] and [part["step"] for part in record["resumed"]] == [0]


@pytest.mark.parametrize("part", ["config.yaml", "run.json"])
def test_a_full_disk_at_the_start_is_no_dead_end(settings, tmp_path, part, room_for):
    run, record = RunFolder(tmp_path / "run"), {"command": "x" * 2 * len(settings.dump())}
    room = len(settings.dump()) + (-1 if part == "config.yaml" else 1)
    with (
        pytest.raises(SettingError, match=r"Cannot write run folder .*run \(File too large\)"),
        room_for(room),
        run.lock(),
    ):
        run.claim(settings, record)
    assert not run.path.exists()
    with run.lock():
        run.claim(settings, record)
    assert run.settings().dump() == settings.dump() and run.read_record() == record


def test_an_empty_configuration_is_said_to_be_one(settings, tmp_path):
    (tmp_path / "config.yaml").touch()
    for way in (lambda: train(settings, tmp_path), lambda: resume(tmp_path)):
        with pytest.raises(SettingError, match=r"config\.yaml is empty.*was the disk full.*Remove that folder, or"):
            way()


def test_killed_before_the_first_checkpoint_it_starts_over(settings, whole, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    interrupted(settings, run, monkeypatch, step=2)
    assert not (run / "checkpoints").exists()
    resume(run, quiet=True)
    assert "holds no checkpoint yet: it starts over" in " ".join(capsys.readouterr().err.split())
    same(whole, run)


def test_killed_after_the_last_step_only_the_rest_is_done(settings, whole, tmp_path, monkeypatch):
    """The statistics are recomputed and the weights written from the last step's checkpoint."""
    run, full = tmp_path / "run", OSError(28, "No space left")
    with monkeypatch.context() as patch:
        patch.setattr("stcl.training.train.save_trained", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left"):
            train(settings, run, quiet=True)

    def no_more(self, batch):
        raise AssertionError("all steps are done")

    monkeypatch.setattr(STCL, "forward", no_more)
    neighbour(run / "checkpoints" / "last.ckpt").write_bytes(b"half")  # killed while it wrote one
    resume(run, quiet=True)
    same(whole, run)
    assert not [*run.rglob("*.tmp")]


def test_a_finished_run_is_left_alone(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert resume(whole, quiet=True) == whole
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_a_full_disk_leaves_the_last_good_checkpoint(settings, tmp_path, monkeypatch):
    run = tmp_path / "run"
    room = [6]  # config.yaml, run.json and the first checkpoint, each with its folder

    def fsync(handle):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("stcl.files.writing.os.fsync", fsync)
        message = (
            r"checkpoint of step 6 could not be written to .*\(No space left on device\)\. The last good .*--resume"
        )
        patch.setattr("stcl.training.train.TensorBoardLogger", lambda *_, **__: MetricsFile(tmp_path / "other.csv"))
        with pytest.raises(TrainingError, match=message):
            train(settings, run, quiet=True)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 3


# what may change between two parts


def test_only_keys_that_do_not_change_the_result(run):
    with pytest.raises(SettingError, match=r"method\.lambda_t, training\.steps would change its result\. These may"):
        resume(run, ["--training.steps", "30", "--method.lambda_t", "0.5"], quiet=True)


FREE = {"workers": 0, "log_every": 3, "checkpoint_every": 100, "snapshot_every": 20, "skipped_steps": 3}
"""Other values than the run began with."""
ELSEWHERE = {"accelerator", "devices", "nodes"}
"""Where a run goes on; other devices share its batches in another way, which it says."""
FIXED = {
    "steps": 30,
    "batch_size": 2,
    "rare_class_sampling": 0.1,
    "precision": "bf16-mixed",
    "deterministic": True,
    "compile": True,
    "gradient_checkpointing": True,
    "sync_batchnorm": False,
    "gradient_clip": 1.0,
    "calibration_clips": 1,
    "channels_last": False,
}


def test_keys_that_may_change_change_no_bit(settings, whole, run):
    assert {key.removeprefix("training.") for key in FREE_KEYS} == {*FREE} | ELSEWHERE | {"prepared"}
    assert all(getattr(settings.training, key) != value for key, value in FREE.items())
    resume(run, [f"--training.{key}={value}" for key, value in FREE.items()], quiet=True)
    assert digest(whole / "model.safetensors") == digest(run / "model.safetensors")
    states = [read_checkpoint(each / "checkpoints" / "last.ckpt")["state_dict"] for each in (whole, run)]
    assert equal(*states)


def test_every_other_key_of_training_is_fixed(settings, run):
    assert {*FIXED} | {*FREE} | ELSEWHERE == {field.name for field in fields(settings.training)}
    with pytest.raises(SettingError) as caught:
        resume(run, [f"--training.{key}={value}" for key, value in FIXED.items()], quiet=True)
    refused = str(caught.value).partition("began with; ")[2].partition(" would change")[0]
    assert refused == ", ".join(sorted(f"training.{key}" for key in FIXED))


def test_steps_that_were_left_out_are_not_forgotten(make_settings, tmp_path, monkeypatch):
    """A run that is stopped again and again is allowed no more of them than one that is not."""
    losses, run = STCL.losses, tmp_path / "run"

    def spoiled(self, source, target, generator):
        terms = losses(self, source, target, generator)
        return {name: term * (float("nan") if self.step in (1, 5) else 1) for name, term in terms.items()}

    monkeypatch.setattr(STCL, "losses", spoiled)
    settings = make_settings(training={"steps": 7, "checkpoint_every": 2, "skipped_steps": 1})
    interrupted(settings, run, monkeypatch, step=4)
    with pytest.raises(TrainingError, match=r"step 5 are not finite .*, and 1 steps were left out before"):
        resume(run, quiet=True)
    assert json.loads((run / "status.json").read_text())["skipped_steps"] == [1, 5]
    resume(run, ["--training.skipped_steps=2"], quiet=True)
    assert json.loads((run / "status.json").read_text())["skipped_steps"] == [1, 5]


def test_a_changed_configuration_is_refused(run):
    plain = yaml.safe_load((run / "config.yaml").read_text())
    plain["method"]["optimization"]["learning_rate"] = 0.5
    (run / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(CheckpointError, match=r"config\.yaml was changed .*: method\.optimization\.learning_rate\."):
        resume(run, quiet=True)


def test_other_data_are_refused(make_settings, streets, tmp_path, monkeypatch):
    shutil.copytree(streets, tmp_path / "streets")
    roots = {name: {"root": str(tmp_path / "streets" / name)} for name in ("source", "target")}
    settings = make_settings(method=MEMORIES, training={"steps": 12, "checkpoint_every": 3}, **roots)
    interrupted(settings, tmp_path / "run", monkeypatch)
    frame = next((tmp_path / "streets" / "target" / "leftImg8bit_sequence" / "train").rglob("*.png"))
    frame.write_bytes(frame.read_bytes() + b" ")
    with pytest.raises(
        DataError, match=r"The target data in .* are not those that run .*\(files of other names or sizes\)"
    ):
        resume(tmp_path / "run", quiet=True)


def test_two_processes_never_train_into_one_folder(run, locked_elsewhere):
    message = r"Another process is training into .*run right now"
    with locked_elsewhere(run / ".lock"), pytest.raises(SettingError, match=message):
        resume(run, quiet=True)
    resume(run, quiet=True)


def test_no_run_folder(tmp_path):
    with pytest.raises(SettingError, match=r"is no run folder: it holds no config\.yaml"):
        resume(tmp_path)
