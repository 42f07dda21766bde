"""What every self-training method can do with the labels of its teacher, and what TPS and DACS make of them.

The teachers themselves are tested in test_stcl.py, where all three kinds are used.
"""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.nn.functional import one_hot

import stcl.methods.stcl as stcl_module
from closeness import assert_close
from stcl.labels import IGNORE
from stcl.methods import Preparation
from stcl.methods.self_training import with_labels
from stcl.methods.settings import Masking, Teacher
from stcl.methods.stcl import SequenceFusion
from stcl.ops.augment import flip_clip
from stcl.ops.losses import segmentation_loss
from stcl.ops.mixing import classes_present
from stcl.ops.pseudo_labels import Choice, PseudoLabels, Weighting, class_probabilities
from stcl.ops.warp import consistent, flip_pair, photometric_error
from stcl.types import ClipSpec, SegOutput

PLAIN = Preparation(flip=0.0)


@pytest.fixture
def make(make_method, make_run):
    """A method with its run, whose student and teacher are not the same, as ``(method, run)``."""

    def build(name="tps", step=5, **settings):
        method = make_method(name, preparation=PLAIN, **settings)
        with torch.no_grad():
            for parameter in method.average.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return method, make_run(method, step=step)

    return build


def prepared(method, data):
    return method.prepare_batch(data, method.step_generator())


def pseudo_of(method, target):
    return method.label_target(target, method.teacher_view(target, -method.settings.teacher.interval))


# ---- labels ----


def test_a_flipped_view_is_averaged_in(make, make_batch):
    method, _ = make(teacher=Teacher(flip=True))
    _, target = prepared(method, make_batch(method))
    pair = target.pair(-1, -2)
    there = class_probabilities(method.average(pair).logits, target.size)
    mirrored = class_probabilities(method.average(flip_pair(pair)).logits, target.size).flip(-1)
    assert_close(method.teacher_view(target, -1), (there + mirrored) / 2)
    assert (there - mirrored).abs().max() > 1e-3  # two opinions
    other = flip_clip(target, torch.ones(2, dtype=torch.bool))  # the same whichever way the clip came
    assert_close(method.teacher_view(other, -1).flip(-1), (there + mirrored) / 2)


def test_pixels_that_the_flow_does_not_explain_are_ignored(make, make_batch):
    method, _ = make(teacher=Teacher(flow_error=0.1))
    _, target = prepared(method, make_batch(method))
    pseudo = pseudo_of(method, target)
    wrong = photometric_error(target.frame(0), target.frame(-1), target.flow(0, -1)) > 0.1
    assert 0.1 < wrong.float().mean() < 0.95
    assert torch.equal(pseudo.labels == IGNORE, wrong) and not pseudo.confidence[wrong].any()
    method.settings = replace(method.settings, teacher=Teacher())
    without = pseudo_of(method, target)
    assert torch.equal(pseudo.labels[~wrong], without.labels[~wrong])


def test_pixels_whose_way_there_and_back_is_open_are_ignored(make, make_batch):
    method, run = make(teacher=Teacher(flow_consistency=True))
    assert method.target_spec == ClipSpec(frames=(0, -1, -2), flows=((0, -1), (-1, -2), (-1, 0)))
    data = make_batch(method)
    there, back = data["target"].flow(0, -1), data["target"].flow(-1, 0)
    there[:, 0], there[:, 1] = 3, 1
    back[..., :40], back[..., 40:] = -there[..., :40], there[..., 40:]  # on the left it is the way back
    _, target = prepared(method, data)
    pseudo = pseudo_of(method, target)
    open_ended = ~consistent(target.flow(0, -1), target.flow(-1, 0))
    assert open_ended[..., 40:].all() and not open_ended[:, :-1, :37].any()
    assert torch.equal(pseudo.labels == IGNORE, open_ended) and not pseudo.confidence[open_ended].any()
    assert torch.isfinite(torch.stack([*run.losses(data).values()])).all()


@pytest.mark.parametrize("name", ["tps", "dacs", "stcl"])
def test_consistency_is_off_unless_asked_for(make, make_batch, name):
    """No flow is asked for in vain, and the losses are those of a step that never heard of it."""
    method, run = make(name)
    assert not method.settings.teacher.flow_consistency and all(b < a for a, b in method.target_spec.flows)
    data = make_batch(method)
    perfect, after = make(name, teacher=Teacher(flow_consistency=True))
    assert set(perfect.target_spec.flows) - set(method.target_spec.flows) == {(-1, 0)}
    for flow in data["target"].flows.values():
        flow.zero_()
    perfect.load_state_dict(method.state_dict())
    torch.manual_seed(0)  # of dropout
    terms = run.losses(data)
    data["target"].flows[-1, 0] = torch.zeros_like(data["target"].flow(0, -1))
    torch.manual_seed(0)
    for key, term in after.losses(data).items():  # where every way is closed it ignores nothing
        assert torch.equal(term, terms[key])


def test_labelling_a_frame_by_itself_needs_no_way_back(make):
    method, _ = make(teacher=Teacher(interval=0, flow_consistency=True))
    assert method.target_spec == ClipSpec(frames=(0, -1), flows=((0, -1),))


def test_labels_can_be_those_of_the_highest_expected_iou(make, make_batch):
    """A class that is never the likeliest is labelled where it is likely enough."""
    method, run = make(labels="expected_iou", teacher=Teacher(interval=0))
    _, target = prepared(method, make_batch(method))
    view = torch.zeros(2, len(method.space), *target.size)
    view[:, 0] = 1
    view[:, 0, :4], view[:, 1, :4] = 0.55, 0.45
    chosen = method.label_target(target, view)
    logged = run.logged["pseudo/confidence"]
    assert (chosen.labels[:, :4] == 1).all() and not chosen.labels[:, 4:].any()
    assert torch.equal(method.state_dict()["expected.counts"], method.expected.counts)  # remembered by a checkpoint
    method.expected = None
    likeliest = method.label_target(target, view)
    # what is logged is what the labels are worth, not how clear their pixels are
    assert run.logged["pseudo/confidence"] == pytest.approx(likeliest.confidence.mean().item())
    assert logged == pytest.approx(chosen.confidence.mean().item()) != pytest.approx(chosen.certainty.mean().item())
    assert not likeliest.labels.any() and torch.equal(likeliest.certainty, chosen.certainty)
    assert torch.equal(chosen.confidence[:, :4], view[:, 1, :4])


def test_frames_without_labels_are_ignored_whole(make, make_batch):
    method, _ = make(teacher=Teacher(interval=2))
    _, target = prepared(method, make_batch(method))
    labels = torch.randint(0, 5, (2, *target.size))
    clip = with_labels(target, {-2: labels})
    assert torch.equal(clip.label(-2), labels) and clip.offsets == target.offsets == (0, -1, -2, -3)
    assert all((clip.label(offset) == IGNORE).all() for offset in (0, -1, -3))


def test_each_class_has_its_own_threshold(make):
    """A class that is never surer than 0.6 is trained on all the same; no threshold lies above the common one."""
    method, _ = make(weighting="class_threshold", kept_share=0.5, threshold=0.9)
    labels = torch.zeros(1, 4, 100, dtype=torch.long)
    labels[:, 2:] = 1
    confidence = torch.linspace(0.945, 0.999, 200).view(1, 2, 100)
    weak = torch.linspace(0.2, 0.6, 200).view(1, 2, 100)
    pseudo = PseudoLabels(labels, torch.cat((confidence, weak), 1), torch.ones(1, 4, 100))
    weight = method.weigh(pseudo)
    assert weight[:, :2].all()  # half of them would be above 0.97, but 0.9 is enough
    assert 0.45 < weight[:, 2:].mean() < 0.55 and weight[0, 3].all() and not weight[0, 2, :90].any()
    assert torch.equal(method.state_dict()["seen.histogram"], method.seen.histogram)  # remembered by a checkpoint


def weights_by_hand(pseudo, weighting, threshold, kept_share, classes):
    """What the pixels of a first step count, from the documentation."""
    known, steps = pseudo.labels != IGNORE, (pseudo.confidence * 100).floor()
    if weighting == "none":
        return torch.ones_like(pseudo.confidence)
    if weighting == "threshold":
        return (pseudo.confidence > threshold).float()
    if weighting == "share":
        return (pseudo.certainty > threshold).float().mean((1, 2), keepdim=True).expand_as(pseudo.certainty)
    weight = torch.zeros_like(pseudo.confidence)
    for own in (known & (pseudo.labels == c) for c in range(classes)):
        if weighting == "class_share":
            weight[own] = (steps[own] >= round(threshold * 100)).float().mean()
        elif own.any():  # in steps of a hundredth
            surest = steps[own].sort(descending=True).values
            lowest = surest[math.ceil(kept_share * len(surest)) - 1] / 100
            weight[own] = (pseudo.confidence[own] >= lowest.clamp(max=threshold)).float()
    return weight


@pytest.mark.parametrize("weighting", get_args(Weighting))
@pytest.mark.parametrize("labels", get_args(Choice))
def test_each_pixel_counts_what_the_weighting_says(make, make_batch, weighting, labels):
    method, run = make(weighting=weighting, labels=labels, lambda_t=0.5, kept_share=0.3)
    outputs = []
    method.network.register_forward_hook(lambda _, __, output: outputs.append(output))
    data = make_batch(method)
    _, target = prepared(method, data)
    pseudo = pseudo_of(method, target)
    if method.expected is not None:
        method.expected.counts.zero_()  # it has labelled nothing yet
    certain = pseudo.certainty[pseudo.labels != IGNORE]
    threshold = math.floor(certain.quantile(0.7).item() * 100) / 100
    method.settings = replace(method.settings, threshold=threshold)
    terms = run.losses(data)
    weight = weights_by_hand(pseudo, weighting, threshold, 0.3, len(method.space))
    assert weighting == "none" or 0.02 < weight.mean() < 0.98
    assert_close(terms["target"], 0.5 * segmentation_loss(outputs[1], pseudo.labels, weight))
    assert terms["target"] > 0


def test_squares_are_hidden_from_the_student_alone(make, make_batch):
    method, run = make(masking=Masking(share=0.5, patch_px=8), augment_target=False)
    seen = []
    method.average.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].current))
    fed = []
    method.network.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    data = make_batch(method)
    run.losses(data)
    _, target = prepared(method, data)
    assert torch.equal(seen[0], target.frame(-1))
    changed = (fed[-1].current != target.frame(0)).any(1)
    assert 0.3 < changed.float().mean() < 0.7
    squares = changed.unfold(1, 8, 8).unfold(2, 8, 8)
    assert ((squares.float().mean((-2, -1)) > 0.9) | ~squares.any(-1).any(-1)).all()
    before = (fed[-1].previous != target.frame(-1)).any(1)
    assert (before == changed).float().mean() > 0.99  # one draw for both frames; a pixel may have the mean's colour


def test_a_share_of_squares_may_be_none_or_all(make, make_batch):
    method, _ = make()
    _, target = prepared(method, make_batch(method))
    assert method.mask(target, method.step_generator()) is target  # and costs nothing
    method.settings = replace(method.settings, masking=Masking(share=1.0, patch_px=8))
    hidden = method.mask(target, method.step_generator())
    assert hidden.frames.flatten(3).std(-1).max() < 1e-5 < target.frames.flatten(3).std(-1).min()


# ---- methods ----


def test_tps_trains_on_the_augmented_clip_with_the_carried_labels(make, make_batch):
    method, run = make(weighting="none")
    method.views, fed = {}, []
    method.network.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    data = make_batch(method)
    assert set(run.losses(data)) == {"source", "target"}
    _, target = prepared(method, data)
    view = method.views["target"].clip
    assert torch.equal(view.label(0), pseudo_of(method, target).labels) and (view.label(0) == IGNORE).any()
    assert torch.equal(fed[1].current, view.frame(0)) and (view.frame(0) - target.frame(0)).abs().max() > 0.05
    assert torch.equal(fed[1].flow, target.flow(0, -1))


def answers(labels, classes, shift=0):
    """Sure scores of the given labels, or of the classes after them."""
    known = (labels.long().masked_fill(labels == IGNORE, 0) + shift) % classes
    return SegOutput(100 * one_hot(known, classes).movedim(-1, 1).float(), None, {})


@pytest.mark.parametrize("name", ["tps", "dacs", "stcl"])
def test_a_perfect_prediction_costs_nothing(make, make_batch, monkeypatch, name):
    """Every term is zero where the network answers with the labels of its clip, and large where it never does."""
    parts = {"sequence_fusion": SequenceFusion(into_source=True)} if name == "stcl" else {}
    method, run = make(name, weighting="none", lambda_t=0.5, **parts)
    labels, original = {}, stcl_module.fuse
    monkeypatch.setattr(method, "mask", lambda clip, _: labels.setdefault("t", []).append(clip.label(0)) or clip)

    def fuse(background, patches):
        fused = original(background, patches)
        labels.setdefault("fused", []).append(fused.clip.label(0))
        return fused

    monkeypatch.setattr(stcl_module, "fuse", fuse)
    data = make_batch(method)
    source = prepared(method, data)[0].label(0)
    for shift in (0, 1):
        labels.clear()

        def segment(pairs_s, pairs_t, tap=None, shift=shift):
            fused = labels.get("fused", [])
            domains = [source, *fused[:1]], [*labels["t"], *fused[1:]]
            assert [len(pairs_s), len(pairs_t)] == [len(domain) for domain in domains]
            return tuple([answers(label, len(method.space), shift) for label in domain] for domain in domains)

        monkeypatch.setattr(method, "segment", segment)
        terms = run.losses(data)
        assert len(terms) == (4 if name == "stcl" else 2)
        for key, term in terms.items():
            whole = 100 * (0.5 if key in ("target", "mixed", "fused_target") else 1)
            assert term == pytest.approx(shift * whole, abs=1e-3), key


def test_dacs_pastes_half_of_the_source_classes_into_both_frames(make, make_batch):
    method, run = make("dacs", augment_target=False, teacher=Teacher(interval=0), weighting="share")
    assert method.target_spec == ClipSpec(frames=(0, -1), flows=((0, -1),))
    method.views = {}
    data = make_batch(method)
    threshold = float(pseudo_of(method, prepared(method, data)[1]).confidence.median())
    method.settings = replace(method.settings, threshold=threshold)
    terms = run.losses(data)
    source, target = prepared(method, data)
    pseudo = pseudo_of(method, target)
    view = method.views["mixed"]
    assert set(terms) == {"source", "mixed"}
    for i in range(2):
        label, mask = source.label(0)[i].long(), view.outline[i]
        chosen = set(label[mask].tolist())
        present = int(classes_present(source.label(0), len(method.space))[i].sum())
        assert len(chosen) == (present + 1) // 2 and IGNORE not in chosen
        assert torch.equal(mask, torch.isin(label, torch.tensor(sorted(chosen))))
        assert torch.equal(view.clip.label(0)[i], torch.where(mask, label, pseudo.labels[i]))
        for offset in (0, -1):  # each frame's own mask
            own = torch.isin(source.label(offset)[i].long(), torch.tensor(sorted(chosen)))
            assert torch.equal(
                view.clip.frame(offset)[i], torch.where(own, source.frame(offset)[i], target.frame(offset)[i])
            )
    share = (pseudo.confidence > method.settings.threshold).float().mean((1, 2))
    assert 0 < share.mean() < 1
    expected = torch.where(view.outline, torch.ones(()), share.view(2, 1, 1))
    assert_close(view.weight, expected)


def test_dacs_augments_the_mixed_clip_and_not_the_target_alone(make, make_batch, monkeypatch):
    """Pasted pixels and the others go through one and the same augmentation, and are masked after it."""
    method, run = make("dacs", masking=Masking(share=0.5, patch_px=8))
    method.views, order = {}, []
    monkeypatch.setattr(method, "augment", lambda clip, _: order.append(clip) or replace(clip, frames=1 - clip.frames))
    monkeypatch.setattr(method, "mask", lambda clip, _: order.append(clip) or clip)
    data = make_batch(method)
    run.losses(data)
    source, target = prepared(method, data)
    mixed, seen = method.views["mixed"], [clip.frame(0) for clip in order]
    pasted = mixed.outline.unsqueeze(1)
    assert 0.1 < pasted.float().mean() < 0.9
    expected = torch.where(pasted, source.frame(0), target.frame(0))
    assert len(seen) == 2 and torch.equal(seen[0], expected) and torch.equal(seen[1], 1 - expected)
    assert torch.equal(mixed.clip.frame(0), 1 - expected)


@pytest.mark.parametrize("name", ["tps", "dacs", "stcl"])
def test_the_warm_up_sees_the_source_alone(make, make_batch, name):
    method, run = make(name, step=2, warmup=3)
    assert set(run.losses(make_batch(method))) == {"source"}
    run.method.step = 3
    assert len(run.losses(make_batch(method))) > 1


@pytest.mark.parametrize("name", ["tps", "dacs", "stcl"])
def test_domains_are_normalised_apart_or_together(make, make_batch, name):
    """What the target looks like changes the source's loss only where both share their batch statistics."""
    for shared in (False, True):
        method, run = make(name, shared_statistics=shared)
        data, losses = make_batch(method), []
        for _ in range(2):
            torch.manual_seed(0)  # of dropout
            losses.append(run.losses(data)["source"].item())
            data["target"] = replace(data["target"], frames=255 - data["target"].frames)
        assert (losses[0] != losses[1]) == shared
