"""Between two steps: steps that do not count, clipping, checkpoints, being asked to stop."""

import json
import os
import signal
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from stcl.errors import TrainingError, TrainingStopped
from stcl.methods import STCL, AdaptationMethod, Optimization, SourceOnly
from stcl.training.checkpoint import read_checkpoint
from stcl.training.train import train

CONTRASTIVE = {"alignment": {"form": "contrastive"}, "evaluation_statistics": "running"}


def spoil(monkeypatch, steps, kind: str) -> list[dict[str, torch.Tensor]]:
    """Losses, gradients or features of some steps are no numbers; states before each step are kept."""
    losses, seen = STCL.losses, []

    def spoiled(self, source, target, generator):
        seen.append({name: value.detach().clone() for name, value in self.state_dict().items()})
        bad = self.step in steps
        if bad and kind == "features":
            source.frames[:] = float("nan")
        terms = losses(self, source, target, generator)
        if bad and kind == "loss":
            terms["source"] = terms["source"] + float("inf")
        if bad and kind == "gradient":
            terms["source"].register_hook(lambda gradient: gradient * float("nan"))
        return terms

    monkeypatch.setattr(STCL, "losses", spoiled)
    return seen


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("loss", "32-true"), ("gradient", "32-true"), ("features", "32-true"), ("loss", "bf16-mixed")],
)
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("optimizer", get_args(get_type_hints(Optimization)["optimizer"]))
def test_a_step_that_is_not_finite_changes_nothing(
    optimizer, kind, step, precision, make_settings, tmp_path, monkeypatch, capsys
):
    """Not the first one either, before which an optimiser has no state; memory that nobody filled holds NaN here."""
    seen = spoil(monkeypatch, {step}, kind)
    training = {"steps": step + 3, "precision": precision, "deterministic": True}
    method = {**CONTRASTIVE, "weighting": "class_share", "optimization": {"optimizer": optimizer}}
    out = train(make_settings(training=training, method=method), tmp_path / "run", quiet=True)
    before, after, later = seen[step : step + 3]
    for part in ("network.", "prototypes.", "seen.", "expected."):  # weights, statistics, flags, histograms, counts
        learned = [name for name in before if name.startswith(part)]
        assert all(torch.equal(before[name], after[name]) for name in learned)
        assert any(not torch.equal(after[name], later[name]) for name in learned)
    assert all(tensor.isfinite().all() for tensor in load_file(out / "model.safetensors").values())
    told = " ".join(capsys.readouterr().err.split())
    assert f"left out: loss or gradients of step {step} are not finite numbers (source = " in told
    assert "clips clip_000" in told
    assert json.loads((out / "status.json").read_text())["skipped_steps"] == [step]
    state = read_checkpoint(out / "checkpoints" / "last.ckpt")
    assert state["skipped"] == [step]


def test_a_step_left_out_is_no_step_of_the_optimiser(make_settings, tmp_path, monkeypatch):
    """Adam's bias correction counts the steps that were taken."""
    spoil(monkeypatch, {1, 2}, "loss")
    out = train(make_settings(training={"steps": 5}), tmp_path / "run", quiet=True)
    state = read_checkpoint(out / "checkpoints" / "last.ckpt")["optimizer_states"][0]["state"]
    assert {float(entry["step"]) for entry in state.values()} == {3.0}


def test_too_many_stop_the_training(make_settings, tmp_path, monkeypatch):
    spoil(monkeypatch, {1, 2, 3, 4, 5, 6}, "loss")
    settings = make_settings(training={"steps": 9, "skipped_steps": 3, "checkpoint_every": 2})
    with pytest.raises(TrainingError) as caught:
        train(settings, tmp_path / "run", quiet=True)
    told = str(caught.value)
    assert "loss or gradients of step 4 are not finite numbers (source = inf, " in told
    assert "3 steps were left out before (training.skipped_steps allows 3)" in told
    assert "The last good checkpoint is that of step 4" in told and "last.ckpt" in told
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point())
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and status["skipped_steps"] == [1, 2, 3, 4]


def test_gradients_are_clipped(make_settings, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def watched(self, closure=None):
        result = step(self, closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    method = {"optimization": {"optimizer": "sgd"}}
    for clip in (None, 0.5):
        training = {"steps": 2, "gradient_clip": clip}
        train(make_settings("source_only", training=training, method=method), tmp_path / str(clip), quiet=True)
    assert norms[0] > 0.6
    assert norms[2:] == pytest.approx([0.5, 0.5], rel=1e-4)


def stop_at(monkeypatch, step: int, number: signal.Signals, times: int = 1) -> None:
    whole_step = AdaptationMethod.forward

    def stopped(self, batch):
        if self.step == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return whole_step(self, batch)

    monkeypatch.setattr(SourceOnly, "forward", stopped)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)],
    ids=lambda value: str(value),
)
def test_asked_to_stop_it_saves_and_says_how_to_go_on(number, status, make_settings, tmp_path, monkeypatch):
    stop_at(monkeypatch, 3, number)
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with pytest.raises(TrainingStopped) as caught:
        train(make_settings("source_only", training={"steps": 9}), tmp_path / "run", quiet=True)
    assert caught.value.status == status
    assert f"stopped by {number.name} after step 4 of 9; everything is saved." in str(caught.value)
    assert f"stcl train --resume {tmp_path / 'run'}" in str(caught.value)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    assert handlers == {one: signal.getsignal(one) for one in handlers}


def test_a_second_interrupt_stops_at_once(make_settings, tmp_path, monkeypatch):
    stop_at(monkeypatch, 3, signal.SIGINT, times=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(make_settings("source_only", training={"steps": 9}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is handler
