"""The yardstick of the training step is an independent implementation: its losses, gradients and weights are ours."""

import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import stcl
from closeness import NETWORK, assert_close

CPU = torch.device("cpu")
TINY = [
    "--source.size=[96,48]",
    "--target.size=[64,32]",
    "--network.weights=null",
    "--network.backbone_settings.width=4",
    "--network.head_settings.width=8",
    "--training.batch_size=2",
    "--method.warmup=0",
    # random weights are sure of nothing
    "--method.threshold=0.1",
    "--method.sequence_fusion.confidence=0.1",
]


@pytest.fixture(scope="module")
def script(load):
    return load("train_step")


@pytest.fixture
def tiny_settings():
    """``tiny_settings("--group.key=value", ...)``: STCL with the paper's parts on tiny clips."""
    parts = [
        "--method.preparation.match_histogram=true",
        "--method.masking.share=0",
        "--method.labels=likeliest",
        "--method.sequence_fusion.close_ups=0",
        "--method.sequence_fusion.target_patches=true",
        "--method.sequence_fusion.into_source=true",
        "--method.alignment.form=mmd",
    ]
    return lambda *overrides: stcl.load_settings("twinstreets/stcl", [*TINY, *parts, *overrides])


@pytest.fixture
def smooth(monkeypatch):
    """No kinks: where rounding carries an activation over one, a tiny network's gradient jumps by per cents."""
    monkeypatch.setattr(F, "relu", lambda features, inplace=False: F.gelu(features))


VARIANTS = {
    "as configured": [],
    "one clip": ["--training.batch_size=1"],
    "one size": ["--source.size=[64,32]"],
    "two pairs, fused features": ["--method.alignment.pairs=2", "--method.feature_fusion.stage=decode4"],
    "one published clip": [
        "--training.batch_size=1",
        "--method.alignment.pairs=2",
        "--method.feature_fusion.stage=decode4",
        "--method.preparation.augment_source=false",
        "--method.sequence_fusion.rare_classes=[fence, pole]",
        "--method.preparation.strong.blur_kernels_px=[5, 7, 9]",
    ],
    "sure pixels": ["--method.weighting=threshold", "--method.threshold=0.15"],
    "all pixels": ["--method.weighting=none", "--method.sequence_fusion.long_tail_patches=0"],
    "own colours, no alignment": ["--method.preparation.match_histogram=false", "--method.alignment.form=null"],
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_same_losses_and_gradients(script, tiny_settings, smooth, overrides):
    losses, gradients = script.compare(tiny_settings(*overrides), CPU, steps=3, shrink=1)
    assert losses < 1e-5
    assert gradients < 1e-4


@pytest.mark.parametrize("part", ["paste", "augment", "match_colours", "mmd", "sample", "choose"])
def test_a_difference_is_seen(script, tiny_settings, smooth, monkeypatch, part):
    instead = {
        "paste": lambda clip, patches: replace(clip, pasted=np.zeros(clip.size, bool)),
        "augment": lambda clip, *_: clip,
        "match_colours": lambda clip, _: sys.modules["yardstick"].as_floats(clip),
        "mmd": lambda source, target: (source - target).square().mean(),
        "sample": lambda image, flow: image,
        "choose": lambda present, count, luck: set(),
    }
    monkeypatch.setattr(sys.modules["yardstick"], part, instead[part])
    _, gradients = script.compare(tiny_settings(), CPU, steps=1, shrink=1)
    assert gradients > 1e-3


def test_same_weights_and_teacher_after_steps(script, tiny_settings, smooth):
    settings = tiny_settings("--method.optimization.optimizer=sgd", "--method.ema_momentum=0.9")
    method = script.make_method(settings, CPU)
    method.average.statistics = "running"
    ours = script.Driver(method, settings, step=400)
    yardstick = script.PublishedStep(method, settings.training.steps)
    method.network.eval()
    yardstick.student.eval()
    before = [parameter.clone() for parameter in method.network.parameters()]
    for seed in range(2):
        data = script.synthetic_batch(method, settings, seed)
        yardstick.train_step(data, script.Draws.of(method), method.step)
        ours.step(data)
    networks = [(method.network, yardstick.student), (method.average.network, yardstick.teacher)]
    for mine, theirs in networks:
        assert_close(dict(mine.state_dict()), dict(theirs.state_dict()), NETWORK)
    assert not all(torch.equal(a, b) for a, b in zip(before, method.network.parameters(), strict=True))


@pytest.mark.parametrize(
    "override",
    ["--method.teacher.kind=self", "--method.alignment.form=contrastive", "--method.preparation.rescale=[0.8, 1.2]"],
)
def test_what_is_not_written_down_is_refused(script, capsys, override):
    assert script.main([*TINY, override]) == 2
    assert "The yardstick needs" in capsys.readouterr().err


def test_from_end_to_end(script, capsys, tmp_path):
    arguments = ["--steps", "2", "--part-steps", "1", "--gradient-steps", "1", "--published-code", str(tmp_path)]
    assert script.main(["--device", "cpu", *arguments, *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert (found["size"], found["device"], found["precision"]) == ("builtin", "cpu", "32-true")
    assert found["ratio"] == pytest.approx(found["yardstick_seconds"] / found["step_seconds"])
    assert found["steps"] == [2, 2]
    assert found["step_flop"] > 1e6 and found["fraction_of_matmul_rate"] > 0
    assert found["fraction_of_matmul_rate"] == pytest.approx(found["flop_per_second"] / found["matmul_flop_per_second"])
    assert found["hours_for_40000_steps_extrapolated"] == pytest.approx(found["step_seconds"] * 40_000 / 3600)
    assert found["max_loss_difference"] < 1e-5
    assert found["max_smooth_gradient_difference"] < 1e-4
    assert found["max_gradient_difference"] < 1  # a jump at a kink is allowed
    assert found["memory_bytes"] >= 0 and "resident" in found["memory_is"]
    assert found["machine"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    parts = (script.PREPARATION, script.TEACHER, script.MIXING, script.STUDENT, script.BACKWARD, script.OPTIMISER)
    for whose in ("ours", "yardstick"):
        assert set(found["parts"][whose]) == {*parts, script.REST}
        assert all(seconds > 0 for seconds in found["parts"][whose].values())
    assert found["networks"] is None and "no checkout" in found["networks_problem"]
    assert any("no checkout" in line for line in lines[:-1])  # the table says it, too


def test_what_was_not_measured_is_null(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "matmul_rate", lambda device: 1e12)
    arguments = ["--steps", "1", "--yardstick-steps", "0", "--part-steps", "0", "--gradient-steps", "0"]
    assert script.main([*arguments, "--device", "cpu", *TINY]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for key in ("ratio", "yardstick_seconds", "max_gradient_difference", "max_smooth_gradient_difference"):
        assert found[key] is None
    assert found["parts"] == {"ours": {}}


def test_parts_do_not_count_what_is_inside_them(script, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Work:
        def outer(self):
            clock[0] += 2
            self.inner()
            clock[0] += 1

        def inner(self):
            clock[0] += 5

    work, parts = Work(), script.Parts(CPU)
    with parts.watch({"outer": [(work, "outer")], "inner": [(work, "inner")]}, "rest"):
        work.outer()
        clock[0] += 7
    assert vars(work) == {}  # watched no longer
    assert parts.seconds() == {"outer": 3, "inner": 5, "rest": 7}
