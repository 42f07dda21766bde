"""The properties of STCL that published code gets wrong, and what each of its switches does."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import stcl.methods.stcl as module
from closeness import NETWORK, assert_close, relative_difference
from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.methods import Preparation
from stcl.methods.self_training import with_labels
from stcl.methods.settings import Masking, Teacher
from stcl.methods.stcl import FeatureFusion
from stcl.models import inference_statistics
from stcl.models.norms import norm_layers
from stcl.ops.mixing import PAIR
from stcl.ops.pseudo_labels import (
    PseudoLabels,
    class_probabilities,
    expected_counts,
    expected_iou_labels,
    ignore_unsure,
    pseudo_labels,
    relabel,
)
from stcl.ops.warp import inside, warp
from stcl.types import ClipSpec, SegOutput

PLAIN = Preparation(flip=0.0)
SequenceFusion = partial(module.SequenceFusion, target_patches=True, into_source=True, close_ups=0)
Alignment = partial(module.Alignment, form="mmd")
"""With all the parts of the paper, also those that are off by default."""
EVERYWHERE = SequenceFusion(confidence=0.0)
"""The small network knows nothing, so target patches need a threshold that it passes."""
NO_PATCHES = SequenceFusion(source_patches=False, target_patches=False, long_tail_patches=0)
TERMS = {"source", "fused_source", "fused_target", "target", "align"}


@pytest.fixture
def make_stcl(make_method, make_run):
    """An STCL with its run, as ``(method, run)``."""

    def make(step=5, steps=10, **settings):
        published = {
            "sequence_fusion": EVERYWHERE,
            "alignment": Alignment(),
            "masking": Masking(),
            "labels": "likeliest",
        }
        settings = {"preparation": PLAIN, "weighting": "none", **published} | settings
        method = make_method("stcl", **settings)
        return method, make_run(method, step=step, steps=steps)

    return make


def prepared(method, data):
    return method.prepare_batch(data, method.step_generator())


def values(run, data, frozen=True):
    """Loss terms as numbers; ``frozen``: without dropout and batch statistics, by which terms touch each other."""
    run.method.network.train(not frozen)
    return {name: term.item() for name, term in run.losses(data).items()}


def target_labels(method, target):
    """Pseudo labels of t as the method makes them."""
    return method.label_target(target, method.teacher_view(target, -method.settings.teacher.interval))


def labels_of(logits, size, flow=None):
    view = class_probabilities(logits, size)
    return pseudo_labels(view) if flow is None else pseudo_labels(warp(view, flow), inside(flow))


class Watch:
    """Keeps what the student is fed and what was pasted where."""

    def __init__(self, method, monkeypatch):
        self.pairs, self.outputs, self.fused, self.patches = [], [], [], []
        method.network.register_forward_hook(self._passed)
        original = module.fuse

        def fuse(background, patches):
            self.fused.append(original(background, patches))
            self.patches.append(patches)
            return self.fused[-1]

        monkeypatch.setattr(module, "fuse", fuse)

    def _passed(self, _, inputs, output):
        self.pairs.append(inputs[0])
        self.outputs.append(output)


# ---- cross-frame pseudo labels ----


@pytest.mark.parametrize("h", [1, 2, 3])
def test_the_target_clip_holds_the_frames_of_the_interval(make_stcl, h):
    method, _ = make_stcl(teacher=Teacher(interval=h), alignment=Alignment(pairs=1))
    frames, flows = {0, -1, -h, -h - 1}, {(0, -1), (0, -h), (-h, -h - 1)}
    assert set(method.target_spec.frames) == frames and set(method.target_spec.flows) == flows
    along_time, _ = make_stcl(teacher=Teacher(interval=h), alignment=Alignment(pairs=2))
    assert set(along_time.target_spec.flows) == flows | {(0, -h - 1)}


def test_interval_zero_labels_a_frame_by_itself(make_stcl, make_batch):
    method, _ = make_stcl(teacher=Teacher(interval=0))
    assert method.target_spec == ClipSpec(frames=(0, -1), flows=((0, -1),))
    _, target = prepared(method, make_batch(method))
    pseudo = target_labels(method, target)
    expected = labels_of(method.average(target.pair()).logits, target.size)
    assert torch.equal(pseudo.labels, expected.labels)


@pytest.mark.parametrize("h", [1, 2])
def test_labels_of_t_are_the_teachers_view_of_the_earlier_frame_moved_along_the_flow(make_stcl, make_batch, h):
    """A flow of whole pixels moves labels by so many; what was outside the earlier frame has none."""
    method, _ = make_stcl(teacher=Teacher(interval=h))
    data = make_batch(method)
    flow = data["target"].flow(0, -h)
    flow[:, 0], flow[:, 1] = 3, -2  # frame_t[y, x] ~ frame_(t-h)[y - 2, x + 3]
    _, target = prepared(method, data)
    view = method.teacher_view(target, -h)
    pseudo = method.label_target(target, view)
    assert torch.equal(pseudo.labels[:, 2:, :-3], view.argmax(1)[:, :-2, 3:])
    assert_close(pseudo.confidence[:, 2:, :-3], view.amax(1)[:, :-2, 3:])
    assert (pseudo.labels[:, :2] == IGNORE).all() and (pseudo.labels[..., -3:] == IGNORE).all()
    other = method.average(target.pair(-h, -h - 1)).logits  # the view is of that pair, with the frame before
    assert_close(view, class_probabilities(other, target.size))


def test_labels_of_a_flipped_clip_are_the_flipped_labels(make_stcl, make_batch):
    """Geometry acts on frames, flow and the teacher's probabilities together."""
    method, _ = make_stcl()
    data = make_batch(method)
    clip = prepared(method, data)[1]
    method.preparation = Preparation(flip=1.0)
    flipped = prepared(method, data)[1]
    assert torch.equal(flipped.frames, clip.frames.flip(-1))
    logits = torch.randn(2, len(method.space), *clip.size)  # of a teacher that would commute with the flip
    method.average.forward = lambda *_: SegOutput(logits, None, {})
    here = target_labels(method, clip)
    method.average.forward = lambda *_: SegOutput(logits.flip(-1), None, {})
    there = target_labels(method, flipped)
    assert_close(there.confidence.flip(-1), here.confidence, 1e-4)
    assert (there.labels.flip(-1) != here.labels).float().mean() < 0.01  # ties within rounding


def test_the_teacher_sees_clean_frames_and_the_student_augmented_ones(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl()
    seen = []
    method.average.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    watch = Watch(method, monkeypatch)
    data = make_batch(method)
    run.losses(data)
    _, target = prepared(method, data)
    assert torch.equal(seen[0].current, target.frame(-1)) and torch.equal(seen[0].previous, target.frame(-2))
    student = watch.pairs[-1].current[:2]
    assert (student - target.frame(0)).abs().max() > 0.05
    assert student.min() >= 0 and student.max() <= 1  # augmented in its value range: nothing wraps around
    method.settings = replace(method.settings, augment_target=False)
    run.losses(data)
    assert torch.equal(watch.pairs[-1].current[:2], target.frame(0))


@pytest.mark.parametrize(
    ("settings", "frames"),
    [
        ({"alignment": Alignment(pairs=1)}, [0, -1]),
        ({"alignment": Alignment(pairs=2)}, [0, -1, -2]),
        ({"alignment": Alignment(pairs=2), "teacher": Teacher(interval=2)}, [0, -1, -3]),
        ({"alignment": Alignment(form=None), "teacher": Teacher(interval=2)}, [0, -1]),
    ],
    ids=["one pair", "two pairs", "two pairs further apart", "no alignment"],
)
def test_only_frames_that_the_student_segments_are_augmented(make_stcl, make_batch, monkeypatch, settings, frames):
    method, run = make_stcl(masking=Masking(share=0.5, patch_px=8), **settings)
    sizes = []
    for name in ("augment", "mask"):
        original = getattr(method, name)
        monkeypatch.setattr(
            method, name, lambda clip, draws, original=original: sizes.append(clip.offsets) or original(clip, draws)
        )
    run.losses(make_batch(method))
    assert sizes == [tuple(frames)] * 2


# ---- teachers ----


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("kind", ["ema", "frozen", "self"])
def test_a_teacher_has_no_gradient_no_dropout_and_moves_no_statistics(make_stcl, make_batch, kind, statistics):
    method, _ = make_stcl(teacher=Teacher(kind=kind, statistics=statistics))
    for part in method.modules():
        if isinstance(part, torch.nn.Dropout2d):
            part.p = 0.9
    _, target = prepared(method, make_batch(method))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    first, second = target_labels(method, target), target_labels(method, target)
    assert torch.equal(first.confidence, second.confidence)
    assert not any(tensor.requires_grad for tensor in first)
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(layer.training and layer.track_running_stats for layer in norm_layers(method.network))


@pytest.mark.parametrize("kind", ["ema", "frozen"])
def test_no_gradient_reaches_a_teacher_through_the_losses(make_stcl, make_batch, kind):
    method, run = make_stcl(step=0, teacher=Teacher(kind=kind))
    state = {key: value.clone() for key, value in method.average.state_dict().items()}
    sum(run.losses(make_batch(method)).values()).backward()
    assert all(parameter.grad is not None for parameter in method.network.parameters())
    copies = [teacher for teacher in (method.average, method.start) if teacher is not None]
    assert len(copies) == (2 if kind == "frozen" else 1)
    assert all(parameter.grad is None for teacher in copies for parameter in teacher.parameters())
    assert all(torch.equal(value, state[key]) for key, value in method.average.state_dict().items())


@pytest.mark.parametrize("kind", ["ema", "frozen", "self"])
def test_a_step_in_half_precision_trains_every_weight(make_stcl, make_batch, kind):
    """Weights that a teacher's pass has cast without gradient are not handed to the student; losses stay float32."""
    method, run = make_stcl(teacher=Teacher(kind=kind, frozen_steps=0))
    data = make_batch(method)
    torch.manual_seed(0)  # of dropout: the same for both
    expected = values(run, data, frozen=False)
    method, run = make_stcl(teacher=Teacher(kind=kind, frozen_steps=0))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = run.losses(data)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    for name in TERMS - {"align"}:  # which hangs on the arg-max of scores that are nearly equal yet
        assert terms[name].item() == pytest.approx(expected[name], rel=0.05)
    sum(terms.values()).backward()
    assert all(parameter.grad.any() for parameter in method.network.parameters())


def shake(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)


def labelled_as(method, target):
    """Which network gives the target's labels now."""
    found = target_labels(method, target).confidence
    statistics, pair = method.settings.teacher.statistics, target.pair(-1, -2)
    networks = {"average": method.average.network, "student": method.network}
    if method.settings.teacher.kind == "frozen":
        networks["start"] = method.start.network
    views = {}
    for name, network in networks.items():
        with torch.no_grad(), inference_statistics(network, statistics):
            views[name] = labels_of(network(pair).logits, target.size, target.flow(0, -1)).confidence
    return {name for name, confidence in views.items() if torch.equal(confidence, found)}


@pytest.mark.parametrize(("kind", "teacher"), [("ema", "average"), ("self", "student")])
def test_the_average_or_the_student_teaches(make_stcl, make_batch, kind, teacher):
    method, run = make_stcl(teacher=Teacher(kind=kind))
    _, target = prepared(method, make_batch(method))
    shake(method.network)
    assert labelled_as(method, target) == {teacher}
    before = target_labels(method, target).confidence
    method.average.update(method.network, 3)
    assert torch.equal(before, target_labels(method, target).confidence) == (kind == "self")
    run.method.step = 9
    assert labelled_as(method, target) == {teacher}


def test_the_frozen_teacher_is_the_student_after_the_warm_up_until_its_steps_are_over(make_stcl, make_batch):
    method, run = make_stcl(step=3, steps=20, warmup=3, teacher=Teacher(kind="frozen", frozen_steps=4))
    _, target = prepared(method, make_batch(method))
    shake(method.network)
    assert labelled_as(method, target) == {"start", "student"}  # the warm-up ends here: the copy is made
    shake(method.network)
    for step, teacher in ((4, "start"), (6, "start"), (7, "student"), (12, "student")):
        run.method.step = step
        assert labelled_as(method, target) == {teacher}


def test_the_frozen_teacher_stays_without_a_limit(make_stcl, make_batch):
    method, run = make_stcl(step=0, teacher=Teacher(kind="frozen"))
    _, target = prepared(method, make_batch(method))
    target_labels(method, target)
    shake(method.network)
    method.average.update(method.network, 0)
    run.method.step = 10_000
    assert labelled_as(method, target) == {"start"}


def test_statistics_of_the_teacher_are_those_asked_for(make_stcl):
    for kind in ("ema", "self", "frozen"):
        for statistics in ("batch", "running"):
            method, _ = make_stcl(teacher=Teacher(kind=kind, statistics=statistics))
            teachers = [method.average, *([] if kind == "ema" else [method.start])]
            assert {teacher.statistics for teacher in teachers} == {statistics}


# ---- terms and switches ----


def test_what_is_on_by_default(make_method, make_batch, make_run):
    method = make_method("stcl")
    terms = make_run(method, step=5).losses(make_batch(method))
    assert set(terms) == {"source", "fused_target", "target"} and method.settings.masking.share == 0.5


def test_a_step_with_the_defaults_is_what_they_say(make_method, make_batch, make_run, monkeypatch):
    """Pasted classes and close-ups in the augmented target, squares hidden at the end, and nothing in the source."""
    method = make_method("stcl", masking=Masking(share=0.5, patch_px=8))  # the usual squares would hide the frame whole
    run, watch = make_run(method, step=5), Watch(method, monkeypatch)
    data, (pole, road) = make_batch(method), map(method.space.index, ("pole", "road"))
    labels = data["source"].labels
    labels[labels == pole] = road
    labels[0, :, 8:16, 8:16] = pole  # less than 2 %
    run.losses(data)
    draws = method.step_generator()
    source, target = method.prepare_batch(data, draws)
    clear = method.augment(target.restrict(PAIR), draws)
    (fused,), (patches,), (fed_s, fed_t) = watch.fused, watch.patches, watch.pairs
    assert [patch.still for patch in patches] == [False, True, True, True]  # a clip's, a close-up, two of rare classes
    assert any((patch.clip.label(0)[patch.mask[:, 0]] == pole).any() for patch in patches[1:2])
    pasted = torch.stack([patch.mask for patch in patches]).any(0)  # (B, T, H, W)
    assert 0.05 < pasted.float().mean() < 0.95
    for at, offset in enumerate((0, -1)):
        outside = ~pasted[:, at].unsqueeze(1).expand(-1, 3, -1, -1)
        assert torch.equal(fused.clip.frame(offset)[outside], clear.frame(offset)[outside])
    assert torch.equal(fed_s.current, source.frame(0)) and torch.equal(fed_t.current[2:], fused.clip.frame(0))
    hidden = (fed_t.current[:2] != clear.frame(0)).any(1).unfold(1, 8, 8).unfold(2, 8, 8).float().mean((-2, -1))
    assert 0.3 < (hidden > 0.9).float().mean() < 0.7 and ((hidden > 0.9) | (hidden == 0)).all()


def test_all_terms_of_the_paper(make_stcl, make_batch):
    method, run = make_stcl(sequence_fusion=SequenceFusion())
    assert set(values(run, make_batch(method))) == TERMS


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"consistency": False}, {"target"}),
        ({"alignment": Alignment(form=None)}, {"align"}),
        ({"sequence_fusion": NO_PATCHES}, {"fused_source", "fused_target"}),
        ({"consistency": False, "alignment": Alignment(form=None)}, {"target", "align"}),
        ({"consistency": False, "sequence_fusion": NO_PATCHES}, TERMS - {"source", "align"}),
        (
            {"consistency": False, "alignment": Alignment(form=None), "sequence_fusion": NO_PATCHES},
            TERMS - {"source"},
        ),
    ],
    ids=["consistency", "alignment", "patches", "patches alone", "alignment alone", "nothing"],
)
def test_a_switch_removes_its_own_term_and_leaves_the_others(make_stcl, make_batch, settings, gone):
    method, run = make_stcl(augment_target=False)
    data = make_batch(method)
    whole = values(run, data)
    method, run = make_stcl(augment_target=False, **settings)
    part = values(run, data)
    assert set(part) == TERMS - gone
    assert_close(part, {name: whole[name] for name in part}, NETWORK)


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, ["moving", "moving", "still", "still"]),
        ({"source_patches": False}, ["moving", "still", "still"]),
        ({"target_patches": False}, ["moving", "still", "still"]),
        ({"long_tail_patches": 0}, ["moving", "moving"]),
        ({"long_tail_patches": 3}, ["moving", "moving", "still", "still", "still"]),
        ({"close_ups": 2, "long_tail_patches": 1}, ["moving", "moving", "still", "still", "still"]),
        ({"target_patches": False, "long_tail_patches": 0}, ["moving"]),
        ({"source_patches": False, "target_patches": False}, ["still", "still"]),
    ],
)
def test_each_kind_of_patch_has_its_switch(make_stcl, make_batch, monkeypatch, settings, kinds):
    method, run = make_stcl(sequence_fusion=SequenceFusion(confidence=0.0, **settings))
    watch = Watch(method, monkeypatch)
    assert set(values(run, make_batch(method))) == TERMS
    assert ["still" if patch.still else "moving" for patch in watch.patches[0]] == kinds


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"into_source": False}, {"fused_source"}),
        ({"into_target": False}, {"fused_target"}),
        ({"into_source": False, "into_target": False}, {"fused_source", "fused_target"}),
    ],
)
def test_each_domain_of_the_patches_has_its_switch(make_stcl, make_batch, monkeypatch, settings, gone):
    method, run = make_stcl(sequence_fusion=SequenceFusion(confidence=0.0, **settings))
    watch = Watch(method, monkeypatch)
    assert set(run.losses(make_batch(method))) == TERMS - gone
    assert len(watch.fused) == 2 - len(gone)  # and costs nothing when it is off


def test_the_teacher_labels_the_previous_frame_only_for_target_patches(make_stcl, make_batch):
    for patches, calls in ((True, 2), (False, 1)):
        method, run = make_stcl(teacher=Teacher(interval=0), sequence_fusion=SequenceFusion(target_patches=patches))
        seen = []
        method.average.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        run.losses(make_batch(method))
        assert len(seen) == calls


@pytest.mark.parametrize("lambda_t", [0.0, 0.2, 1.0, 3.0])
def test_lambda_t_is_what_the_configuration_says(make_stcl, make_batch, lambda_t):
    method, run = make_stcl()
    data = make_batch(method)
    unit = values(run, data)
    method, run = make_stcl(lambda_t=lambda_t)
    found = values(run, data)
    weighted = {"target", "fused_target"}
    expected = {name: value * (lambda_t if name in weighted else 1) for name, value in unit.items()}
    assert_close(found, expected)
    for step in range(3):  # and stays what it is
        run.step(make_batch(method, seed=step))
    assert method.settings.lambda_t == lambda_t


def test_weights_of_alignment_and_auxiliary_head(make_stcl, make_batch):
    method, run = make_stcl()
    data = make_batch(method)
    unit = values(run, data)
    method, run = make_stcl(alignment=Alignment(weight=0.5))
    assert_close(values(run, data)["align"], unit["align"] * 50)
    plain, heavy = (make_stcl(aux_weight=weight)[1] for weight in (0.0, 0.2))
    without, double = values(plain, data), values(heavy, data)
    for name in TERMS - {"align"}:  # linear in the weight
        assert_close(unit[name], (without[name] + double[name]) / 2)
        assert double[name] > without[name]


def test_the_warm_up_sees_the_source_alone(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl(step=2, warmup=3)
    watch = Watch(method, monkeypatch)
    data = make_batch(method)
    terms = run.losses(data)
    source, _ = prepared(method, data)
    assert set(terms) == {"source"}
    assert len(watch.pairs) == 1 and torch.equal(watch.pairs[0].current, source.frame(0))
    assert method.bank.pixels.sum() > 0  # but the long-tail bank fills
    run.method.step = 3
    assert set(run.losses(data)) == TERMS


def test_fusion_during_the_warm_up_pastes_patches_of_the_source(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl(step=2, warmup=3, sequence_fusion=SequenceFusion(during_warmup=True))
    watch = Watch(method, monkeypatch)
    data = make_batch(method)
    source, _ = prepared(method, data)
    terms = run.losses(data)
    assert set(terms) == {"source", "fused_source"}
    (fused,) = watch.fused
    assert [patch.still for patch in watch.patches[0]] == [False, True, True]  # none of the target
    assert torch.equal(watch.patches[0][0].clip.frame(0), source.frame(0).flip(0))
    assert torch.equal(watch.pairs[0].current[2:], fused.clip.frame(0)) and fused.mask.any()
    run.method.step = 3
    assert set(run.losses(data)) == TERMS  # it ends with the warm-up
    del data["target"]  # where there is no target at all, it never does
    for step in (2, 3):
        run.method.step = step
        assert set(run.losses(data)) == {"source", "fused_source"}


def test_without_a_target_clip_only_the_source_is_left(make_stcl, make_batch):
    method, run = make_stcl()
    data = make_batch(method)
    del data["target"]
    assert set(run.losses(data)) == {"source"}


def test_unsure_pixels_count_nothing_and_pasted_ones_are_sure(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl(weighting="threshold", threshold=0.9999, sequence_fusion=SequenceFusion())
    watch = Watch(method, monkeypatch)
    data = make_batch(method)
    unsure = values(run, data)
    assert unsure["target"] == 0 < unsure["fused_target"]
    fused, pixels = watch.fused[1], watch.fused[1].clip.label(0) != IGNORE
    assert torch.equal(fused.weigh(torch.zeros(fused.mask.shape)) == 1, fused.mask) and (fused.mask & pixels).any()
    method, run = make_stcl(weighting="share", threshold=0.0, sequence_fusion=SequenceFusion())
    known = values(run, data)  # pixels that the flow leads out of the frame have no confidence
    method, run = make_stcl(weighting="none", sequence_fusion=SequenceFusion())
    whole = values(run, data)
    for name in ("target", "fused_target"):
        assert unsure[name] < 0.7 * known[name] and 0.7 * whole[name] < known[name] < whole[name]


# ---- fusion at the image-sequence level ----


def test_both_fused_domains_show_the_same_patch_pixels(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl(augment_target=False)
    watch = Watch(method, monkeypatch)
    data = make_batch(method)
    run.losses(data)
    source, target = prepared(method, data)
    fused_s, fused_t = watch.fused
    assert torch.equal(fused_s.mask, fused_t.mask) and 0.05 < fused_s.mask.float().mean() < 0.95
    any_patch = torch.stack([patch.mask for patch in watch.patches[0]]).any(0)  # (B, T, H, W)
    for position, offset in enumerate((0, -1)):
        inside = any_patch[:, position].unsqueeze(1).expand(-1, 3, -1, -1)
        assert torch.equal(fused_s.clip.frame(offset)[inside], fused_t.clip.frame(offset)[inside])
        assert torch.equal(fused_s.clip.frame(offset)[~inside], source.frame(offset)[~inside])
        assert torch.equal(fused_t.clip.frame(offset)[~inside], target.frame(offset)[~inside])
    inside = any_patch[:, 0]
    assert torch.equal(fused_s.clip.label(0)[inside].long(), fused_t.clip.label(0)[inside])
    moving = inside.unsqueeze(1).expand(-1, 2, -1, -1)
    assert torch.equal(fused_s.clip.flow(0, -1)[moving], fused_t.clip.flow(0, -1)[moving])
    assert torch.equal(fused_t.clip.flow(0, -1)[~moving], target.flow(0, -1)[~moving])
    # and this is what the network is fed
    assert torch.equal(watch.pairs[0].current[2:], fused_s.clip.frame(0))
    assert torch.equal(watch.pairs[1].current[2:], fused_t.clip.frame(0))
    assert torch.equal(watch.pairs[1].flow[2:], fused_t.clip.flow(0, -1))


def test_patches_come_from_another_clip(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl(augment_target=False)
    watch = Watch(method, monkeypatch)
    data = make_batch(method)
    run.losses(data)
    source, target = prepared(method, data)
    for patch, clip in zip(watch.patches[0][:2], (source, target), strict=True):
        assert torch.equal(patch.clip.frame(0), clip.frame(0).flip(0))  # of two clips, the neighbour
        assert torch.equal(patch.clip.frame(-1), clip.frame(-1).flip(0))


def test_a_single_clip_gets_the_patches_of_the_last_step(make_stcl, make_batch, monkeypatch):
    """Of each domain its own."""
    method, run = make_stcl(augment_target=False)
    watch = Watch(method, monkeypatch)
    steps = [make_batch(method, 1, seed=seed) for seed in range(3)]
    for data in steps:
        run.losses(data)
    for before, patches in zip(steps, watch.patches[2::2], strict=False):  # into both domains in each step
        for patch, clip in zip(patches[:2], prepared(method, before), strict=True):
            assert torch.equal(patch.clip.frames, clip.restrict(PAIR).frames)


def test_target_patches_look_as_the_student_sees_the_target(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl()
    monkeypatch.setattr(method, "augment", lambda clip, _: replace(clip, frames=1 - clip.frames))
    watch = Watch(method, monkeypatch)
    data = make_batch(method)
    run.losses(data)
    _, target = prepared(method, data)
    for offset in (0, -1):
        assert torch.equal(watch.patches[0][1].clip.frame(offset), 1 - target.frame(offset).flip(0))


@pytest.mark.parametrize("interval", [1, 2])
def test_target_patches_are_labelled_alike_in_both_frames(make_stcl, make_batch, monkeypatch, interval):
    """By the highest expected IoU, at t-1 from the teacher's view of t-1."""
    method, run = make_stcl(labels="expected_iou", teacher=Teacher(interval=interval))
    confident = []
    monkeypatch.setattr(method, "draw_patches", lambda source, clip, _: confident.append(clip) or [])
    data = make_batch(method)
    run.losses(data)
    _, target = prepared(method, data)
    flow = target.flow(0, -interval)
    view, before = warp(method.teacher_view(target, -interval), flow), method.teacher_view(target, -1)
    likeliest = pseudo_labels(view, inside(flow))
    chosen = relabel(likeliest, view, expected_iou_labels(view, expected_counts(view, likeliest.labels)))
    earlier = expected_iou_labels(before, expected_counts(view, chosen.labels))  # by what the first labels were worth
    assert torch.equal(confident[0].label(0), chosen.labels) and torch.equal(confident[0].label(-1), earlier)
    assert not torch.equal(earlier, before.argmax(1))


def test_source_patches_are_random_classes_and_all_rare_ones(make_stcl, make_batch, monkeypatch):
    rare = ["fence", "pole", "rider"]
    fusion = SequenceFusion(confidence=0.0, random_classes=2, rare_classes=rare)
    method, run = make_stcl(sequence_fusion=fusion)
    watch = Watch(method, monkeypatch)
    ids = {method.space.index(name) for name in rare}
    for seed in range(4):
        run.losses(make_batch(method, seed=seed))
        patch = watch.patches[-1][0]
        for label, mask in zip(patch.clip.label(0), patch.mask[:, 0], strict=True):
            chosen, present = set(label[mask].tolist()), set(label.unique().tolist()) - {IGNORE}
            assert chosen & ids == present & ids
            assert len(chosen - ids) == min(2, len(present - ids))
            assert torch.equal(mask, torch.isin(label, torch.tensor(sorted(chosen))))


def test_target_patches_are_sure_pixels_of_classes_not_chosen_before(make_stcl, make_batch):
    method, _ = make_stcl(sequence_fusion=SequenceFusion(confidence=0.5, random_classes=1, long_tail_patches=0))
    source, target = prepared(method, make_batch(method))
    draws = torch.Generator().manual_seed(0)
    shape = (2, *target.size)
    pseudo, previous = (
        PseudoLabels(
            torch.randint(0, 12, shape, generator=draws), torch.rand(shape, generator=draws), torch.ones(shape)
        )
        for _ in range(2)
    )
    sure = {
        at: ignore_unsure(labels, method.settings.sequence_fusion.confidence)
        for at, labels in ((0, pseudo), (-1, previous))
    }
    confident = with_labels(target, sure).restrict(PAIR)
    for seed in range(4):
        patch_s, patch_t = method.draw_patches(source, confident, torch.Generator().manual_seed(seed))
        for i in range(2):
            chosen_s = set(patch_s.clip.label(0)[i][patch_s.mask[i, 0]].tolist())
            other = 1 - i
            for t, teacher in enumerate((pseudo, previous)):  # each frame's own mask
                labels, mask = teacher.labels[other], patch_t.mask[i, t]
                chosen_t = set(labels[mask].tolist())
                assert len(chosen_t) <= 1 and not chosen_t & chosen_s
                wanted = torch.isin(labels, torch.tensor(sorted(chosen_t))) & (teacher.confidence[other] > 0.5)
                assert torch.equal(mask, wanted)
            assert len(chosen_t) > 0


def test_an_unsure_teacher_gives_no_target_patches(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl(sequence_fusion=SequenceFusion(confidence=0.9))
    watch = Watch(method, monkeypatch)
    for layer in method.average.network.head.modules():  # scores far above 0.9 that say nothing: a probability of 1/12
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.constant_(layer.weight, 0.5)
    data = make_batch(method)
    _, target = prepared(method, data)
    assert method.average(target.pair(-1, -2)).logits.abs().max() > 0.9
    run.losses(data)
    assert not watch.patches[0][1].mask.any()


def test_long_tail_patches_do_not_move(make_stcl, make_batch, monkeypatch):
    """The still mask reaches the network, which replaces the previous frame's score by the current one there."""
    rare = [name for name in make_stcl()[0].space.names if name not in ("road", "sky")]
    fusion = SequenceFusion(source_patches=False, target_patches=False, long_tail_patches=2, rare_classes=rare)
    method, run = make_stcl(sequence_fusion=fusion)
    watch = Watch(method, monkeypatch)
    run.losses(make_batch(method))
    for position, fused in enumerate(watch.fused):
        assert torch.equal(fused.still, fused.mask) and fused.still.any()
        pair = watch.pairs[position]
        assert not pair.still[:2].any()
        assert torch.equal(pair.still[2:], fused.still)
        where = fused.still.unsqueeze(1)
        assert not fused.clip.flow(0, -1)[where.expand(-1, 2, -1, -1)].any()
        same = where.expand(-1, 3, -1, -1)
        assert torch.equal(fused.clip.frame(0)[same], fused.clip.frame(-1)[same])


def test_rare_classes_follow_from_the_source_unless_they_are_named(make_stcl, make_batch):
    method, run = make_stcl()
    data = make_batch(method)
    label = data["source"].labels[:, 0]
    label[:] = method.space.index("road")
    label[:, :2, :10] = method.space.index("pole")  # 1 %
    label[:, 10:, :] = method.space.index("car")
    run.losses(data)
    assert [method.space.names[i] for i in method.bank.rare.nonzero().flatten()] == ["pole"]
    assert method.bank.written[method.space.index("pole")] == 2
    named, run = make_stcl(sequence_fusion=SequenceFusion(rare_classes=["sign", "rider"], bank_slots=3))
    run.losses(data)
    assert [named.space.names[i] for i in named.bank.rare.nonzero().flatten()] == ["sign", "rider"]
    assert not named.bank.written.any() and named.bank.slots == 3


@pytest.mark.parametrize("batch", [1, 2])
def test_a_larger_source_is_cropped_to_the_targets_size(make_stcl, make_batch, monkeypatch, batch):
    rare = list(make_stcl()[0].space.names)
    method, run = make_stcl(sequence_fusion=SequenceFusion(confidence=0.0, rare_classes=rare))
    watch = Watch(method, monkeypatch)
    windows = set()
    for seed in range(4):
        data = make_batch(method, batch, seed=seed, source_size=(48, 72))
        terms = run.losses(data)
        assert set(terms) == TERMS and all(term.isfinite() for term in terms.values())
        source, _ = prepared(method, data)
        fused = watch.fused[-2]
        assert fused.clip.size == (32, 64) and method.bank.frames.shape[-2:] == (32, 64)
        kept = ~torch.stack([patch.mask for patch in watch.patches[-1]]).any(0)
        place = [(y, x) for y in range(17) for x in range(9) if is_window(fused.clip, source, kept, y, x)]
        assert len(place) == 1
        windows.add(place[0])
        run.method.step += 1
    assert len(windows) > 1
    assert watch.pairs[0].current.shape[-2:] == (48, 72)  # the supervised loss keeps the whole frame


def is_window(clip, source, kept, top, left):
    rows, columns = slice(top, top + 32), slice(left, left + 64)
    frames = source.frames[..., rows, columns][kept.unsqueeze(2).expand_as(clip.frames)]
    labels = source.labels[..., rows, columns][kept]
    flow = source.flow(0, -1)[..., rows, columns]
    current = kept[:, 0].unsqueeze(1).expand_as(flow)
    return (
        torch.equal(frames, clip.frames[kept.unsqueeze(2).expand_as(clip.frames)])
        and torch.equal(labels, clip.labels[kept])
        and torch.equal(flow[current], clip.flow(0, -1)[current])
    )


@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("size", [(24, 64), (32, 56)])
def test_a_smaller_source_is_an_error(make_stcl, make_batch, size, step):
    method, run = make_stcl(step=step, warmup=3)  # already in the warm-up, not only after it
    with pytest.raises(SettingError, match=r"smaller than the target's 64x32 px.*source\.size"):
        run.losses(make_batch(method, source_size=size))


# ---- fusion at the feature level ----


@pytest.mark.parametrize("stage", ["stage1", "decode4"])
def test_gradient_reaches_both_branches_of_the_feature_fusion(make_stcl, make_batch, monkeypatch, stage):
    """The loss of F_t trains through the features of F_s, inside the patches only; without the fusion it does not."""
    reached = {}
    for switch in (stage, None):
        method, run = make_stcl(step=5, feature_fusion=FeatureFusion(stage=switch))
        watch, features = Watch(method, monkeypatch), []

        def keep(_, inputs, output, features=features):
            if output.requires_grad:  # the previous frame runs without gradient
                output.retain_grad()
                features.append(output)

        getattr(method.network.backbone, stage).register_forward_hook(keep)
        run.losses(make_batch(method))["fused_target"].backward()
        source_pass, target_pass = features
        assert target_pass.grad[2:].abs().sum() > 0
        reached[switch] = source_pass.grad
        mask = watch.fused[1].mask
    assert reached[None] is None
    assert not reached[stage][:2].any()  # the plain source clips take no part
    inside = torch.nn.functional.interpolate(mask[:, None].float(), reached[stage].shape[-2:])
    touched = (reached[stage][2:] != 0).any(1, keepdim=True)
    assert touched.any()
    if stage == "decode4":  # an early layer's batch statistics mix pixels, the last stage's features do not
        assert torch.equal(touched, touched & (inside == 1))


@pytest.fixture
def tap_of(make_stcl):
    """The tap of a method on given features of F_s and a patch mask."""

    def make(features, mask, step=5, **settings):
        method, _ = make_stcl(step=step, steps=10, feature_fusion=FeatureFusion(stage="stage2", **settings))
        return method.feature_tap(mask, SegOutput(torch.zeros(2, 12, 4, 8), None, {"stage2": features}))

    return make


def test_features_are_mixed_inside_the_patches(tap_of):
    source, target = torch.rand(2, 16, 4, 8), torch.rand(6, 16, 4, 8)  # the last two of the six are F_t
    mask = torch.zeros(2, 32, 64, dtype=torch.bool)
    mask[:, :16, 32:] = True
    tap = tap_of(source, mask)
    mixed = tap("stage2", target)
    expected = target.clone()
    expected[4:, :, :2, 4:] = 0.3 * source[:, :, :2, 4:] + 0.7 * target[4:, :, :2, 4:]
    assert_close(mixed, expected)
    assert tap("stage1", target) is target
    assert_close(tap_of(source, mask, source_share=0.0)("stage2", target), target)


def test_feature_fusion_begins_at_its_share_of_the_schedule(tap_of):
    features, mask = torch.rand(2, 16, 4, 8), torch.ones(2, 32, 64, dtype=torch.bool)
    assert tap_of(features, mask, step=1) is None
    assert tap_of(features, mask, step=2) is not None  # 20 % of 10 steps
    assert tap_of(features, mask, step=4, start=0.5) is None
    assert tap_of(features, mask, step=0, start=0.0) is not None


def test_feature_fusion_changes_the_fused_target_alone(make_stcl, make_batch):
    found = []
    for settings in ({}, {"feature_fusion": FeatureFusion(stage="decode4")}):
        method, run = make_stcl(**settings)
        with torch.no_grad():
            method.network.head.head[1].weight.mul_(30)  # scores that features matter to
        found.append(values(run, make_batch(method)))
    differences = {name: relative_difference(found[1][name], found[0][name]) for name in TERMS}
    assert {name for name, difference in differences.items() if difference > NETWORK} == {"fused_target"}


# ---- alignment ----


@pytest.mark.parametrize(("form", "sides"), [("mmd", 2), ("contrastive", 1)])
def test_alignment_pulls_the_features(make_stcl, make_batch, form, sides):
    """The discrepancy pulls both domains; the contrastive form pulls the target to the source's running centroids."""
    method, run = make_stcl(alignment=Alignment(form=form, minimum_pixels=1))
    features = []

    def keep(_, inputs, output):
        if output.requires_grad:
            output.retain_grad()
            features.append(output)

    method.network.backbone.decode4.register_forward_hook(keep)
    run.losses(make_batch(method))["align"].backward()
    source_pass, target_pass = features
    assert (source_pass.grad is not None and source_pass.grad[:2].any()) == (sides == 2)
    assert target_pass.grad[:2].any()
    assert not target_pass.grad[2:].any()  # fused clips take no part
    assert method.prototypes.present.any() == (form == "contrastive")


def test_forms_of_alignment_change_the_alignment_alone(make_stcl, make_batch):
    data = make_batch(make_stcl(alignment=Alignment(pairs=2))[0])  # serves one pair, too
    results = []
    for settings in ({}, {"form": "contrastive"}, {"pairs": 2}, {"pairs": 2, "adaptive": True}):
        alignment = Alignment(minimum_pixels=1, **settings)
        method, run = make_stcl(alignment=alignment, augment_target=False)
        with torch.no_grad():
            weight = method.network.fusion.conv.weight
            weight.copy_(weight + 5 * weight.roll(len(method.space), dims=1))  # the previous frame matters most
        results.append(values(run, data))
    distances = [result.pop("align") for result in results]
    assert len(set(distances)) == 4 and min(distances) > 0
    for result in results:
        assert_close(result, results[0], NETWORK)


def test_adaptive_weights_need_two_pairs(make_stcl, make_batch):
    method, run = make_stcl()
    data = make_batch(method)
    expected = values(run, data)["align"]
    assert_close(values(make_stcl(alignment=Alignment(adaptive=True))[1], data)["align"], expected)


def test_alignment_along_time_uses_the_pair_before_the_earlier_one(make_stcl, make_batch, monkeypatch):
    method, run = make_stcl(alignment=Alignment(pairs=2), teacher=Teacher(interval=2), augment_target=False)
    watch = Watch(method, monkeypatch)
    data = make_batch(method)
    run.losses(data)
    _, target = prepared(method, data)
    pair = watch.pairs[1]
    assert torch.equal(pair.current[:2], target.frame(0))
    assert torch.equal(pair.previous[:4], torch.cat((target.frame(-1), target.frame(-3))))
    assert torch.equal(pair.flow[:4], torch.cat((target.flow(0, -1), target.flow(0, -3))))


def test_classes_with_too_few_pixels_are_not_aligned(make_stcl, make_batch):
    method, run = make_stcl(alignment=Alignment(minimum_pixels=10_000))
    assert values(run, make_batch(method))["align"] == 0


@pytest.mark.parametrize("form", ["mmd", "contrastive"])
@pytest.mark.parametrize("domain", ["source", "target"])
def test_a_class_that_one_domain_hardly_has_is_not_aligned(make_stcl, form, domain):
    """As many pixels as ``minimum_pixels`` less one are as good as none, one more is not."""

    def distance(pixels):
        method, _ = make_stcl(alignment=Alignment(form=form, minimum_pixels=7))
        draws = torch.Generator().manual_seed(0)
        labels = {name: torch.randint(1, 5, (1, 8, 8), generator=draws) for name in ("source", "target")}
        labels["source"].view(-1)[20:30] = labels["target"].view(-1)[20:30] = 5
        rare = labels[domain].view(-1)[20:30]
        rare[pixels:] = IGNORE if domain == "source" else 11  # which the source has not
        classes, grid = len(method.space), (1, method.network.backbone.channels[method.aligned_stage], 8, 8)
        features = [{method.aligned_stage: torch.randn(grid, generator=draws)} for _ in range(2)]
        scores = torch.nn.functional.one_hot(labels["target"].clamp(max=classes - 1), classes).movedim(-1, 1).float()
        source, target = (SegOutput(scores, None, each) for each in features)
        return method.align(source, labels["source"], [target]).item()

    assert distance(6) == pytest.approx(distance(0), rel=1e-5)
    assert distance(7) != pytest.approx(distance(6), rel=1e-2)


def test_the_temperature_belongs_to_the_contrastive_form(make_stcl, make_batch):
    found = []
    for temperature in (0.05, 1.0):
        method, run = make_stcl(alignment=Alignment(form="contrastive", temperature=temperature))
        found.append(values(run, make_batch(method))["align"])
    assert found[0] != pytest.approx(found[1], rel=0.05)


# ---- settings that cannot work ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_fusion": FeatureFusion(stage="layer4")}, r"Unknown method\.feature_fusion\.stage 'layer4'.*decode4"),
        ({"sequence_fusion": SequenceFusion(rare_classes=["pol"])}, "Did you mean 'pole'"),
    ],
)
def test_settings_are_checked_when_the_method_is_made(make_stcl, settings, message):
    with pytest.raises(SettingError, match=message):
        make_stcl(**settings)


def test_clips_may_hold_more_than_the_method_asked_for(make_stcl, make_batch, make_clip):
    """Further frames and flows change nothing: a longer clip serves several methods."""
    method, run = make_stcl(augment_target=False)
    data = make_batch(method)
    longer = ClipSpec(frames=(0, -1, -2, -5), flows=((0, -1), (-1, -2), (0, -5)), labels=(0, -1))
    expected = values(run, data)
    more = make_clip(longer.without_labels(), 2, (32, 64), 1)
    own = data["target"]
    frames = torch.cat((own.frames, more.frames[:, 3:]), 1)
    flows = own.flows | {(0, -5): more.flow(0, -5)}
    data["target"] = replace(own, frames=frames, flows=flows, offsets=longer.frames)
    _, run = make_stcl(augment_target=False)
    assert_close(values(run, data), expected)
