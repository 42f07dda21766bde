"""What methods share: schedule, preparation of the clips, joint passes."""

from dataclasses import replace

import pytest
import torch

import stcl.methods.base as base
from closeness import GRADIENT, NETWORK, assert_close
from stcl.errors import SettingError
from stcl.fields import read
from stcl.methods import Optimization, Preparation
from stcl.models.segmenter import segment_together
from stcl.ops.augment import StrongAugmentation
from stcl.ops.fourier import swap_amplitude
from stcl.types import ClipSpec, FramePair

PAIR = ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0, -1))


def prepared(make_method, data, seed=0, **settings):
    method = make_method("source_only", seed=seed, preparation=Preparation(**settings))
    return method.prepare_batch(data, method.step_generator())


@pytest.fixture
def data(make_clip):
    """Source and target clips; the source is larger."""
    return {"source": make_clip(PAIR, 4, (40, 72), 0), "target": make_clip(PAIR.without_labels(), 4, (32, 64), 1)}


# ---- schedule ----


def test_the_schedule_and_the_stopping_point_are_two_numbers():
    """Published: the decay is laid out for 250,000 steps and training stops at 40,000, far from a rate of zero."""
    published = Optimization(schedule_steps=250_000, power=0.9)
    assert published.factor(0, 40_000) == 1
    assert published.factor(40_000, 40_000) == pytest.approx((1 - 40 / 250) ** 0.9)
    assert published.factor(40_000, 40_000) == published.factor(40_000, 77)
    own = Optimization(schedule_steps=None, power=0.9)
    assert own.factor(20_000, 40_000) == pytest.approx(0.5**0.9)
    assert own.factor(40_000, 40_000) == 0
    assert own.factor(40_001, 40_000) == 0


def test_the_schedule_that_is_configured_is_the_one_that_runs(make_method, make_batch, make_run):
    for schedule_steps, expected in ((None, 0.8), (8, 0.875)):
        optimization = Optimization("sgd", 0.1, 10.0, schedule_steps=schedule_steps, power=1.0)
        method = make_method("source_only", optimization=optimization)
        run = make_run(method, steps=5)
        run.step(make_batch(method))
        rates = {group["role"]: group["lr"] for group in run.optimizer.param_groups}
        assert rates == pytest.approx({"backbone": 0.1 * expected, "heads": expected, "fusion": 0.1 * expected})


def test_the_rate_rises_and_then_falls():
    optimization = Optimization(warmup_steps=4, power=1.0)
    rates = [optimization.factor(step, 100) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5 * 0.99, 0.75 * 0.98, 0.97, 0.96, 0.95])


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_the_one_asked_for(make_method, make_run, name, kind):
    optimization = Optimization(name, momentum=0.7, weight_decay=0.03)
    optimizer = make_run(make_method("source_only", optimization=optimization)).optimizer
    assert isinstance(optimizer, kind)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.03}
    if name == "sgd":
        assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


def test_norms_can_be_left_out_of_weight_decay(make_method, make_run):
    optimization = Optimization("adamw", weight_decay=0.03, decayed="all_but_norms")
    groups = make_run(make_method("source_only", optimization=optimization)).optimizer.param_groups
    assert [(group["role"], group["weight_decay"]) for group in groups] == [
        ("backbone", 0.03),
        ("backbone", 0.0),
        ("heads", 0.03),
        ("fusion", 0.03),
    ]


# ---- preparation ----


def test_without_preparation_bytes_become_floats(make_method, data):
    source, target = prepared(make_method, data, flip=0.0)
    assert torch.equal(source.frames, data["source"].frames.float() / 255)
    assert torch.equal(target.frames, data["target"].frames.float() / 255)
    assert torch.equal(source.labels, data["source"].labels)
    assert torch.equal(source.flow(0, -1), data["source"].flow(0, -1))


def test_a_flip_mirrors_frames_labels_and_flow_and_negates_u(make_method, data):
    source, target = prepared(make_method, data, flip=1.0)
    for clip, raw in ((source, data["source"]), (target, data["target"])):
        assert torch.equal(clip.frames, raw.frames.flip(-1).float() / 255)
        assert torch.equal(clip.flow(0, -1)[:, 0], -raw.flow(0, -1)[:, 0].flip(-1))
        assert torch.equal(clip.flow(0, -1)[:, 1], raw.flow(0, -1)[:, 1].flip(-1))
    assert torch.equal(source.labels, data["source"].labels.flip(-1))


def test_each_clip_is_flipped_or_not(make_method, data):
    flips = []
    for seed in range(8):
        for clip, raw in zip(prepared(make_method, data, seed), (data["source"], data["target"]), strict=True):
            same = [torch.equal(a, b) for a, b in zip(clip.frames, raw.frames.float() / 255, strict=True)]
            flips += [not kept for kept in same]
    assert 16 < sum(flips) < 48  # of 64


def test_source_clips_take_the_colours_of_their_target_frame(make_method, data):
    data["target"].frames[:, 1] = 0  # only frame t lends its colours
    source, target = prepared(make_method, data, flip=0.0, match_histogram=True)
    assert_close(source.frames.mean((1, 3, 4)), target.frame(0).mean((2, 3)), 0.01, scale=1)
    assert torch.equal(target.frames, data["target"].frames.float() / 255)
    del data["target"]
    alone, nothing = prepared(make_method, data, flip=0.0, match_histogram=True)
    assert nothing is None
    assert torch.equal(alone.frames, data["source"].frames.float() / 255)


@pytest.mark.parametrize("match", [False, True])
def test_source_clips_take_the_low_frequencies_of_their_target_frame_last(make_method, data, match):
    data["target"].frames[:, 1] = 0
    before, target = prepared(make_method, data, flip=0.0, match_histogram=match)
    source, _ = prepared(make_method, data, flip=0.0, match_histogram=match, fourier_beta=0.1)
    assert torch.equal(source.frames, swap_amplitude(before.frames, target.frames[:, :1], 0.1))
    assert not torch.equal(source.frames, before.frames)


def test_a_method_asks_for_target_frames_where_they_lend_their_look(make_method):
    specs = [
        make_method("source_only", preparation=Preparation(**looks)).target_spec
        for looks in ({}, {"match_histogram": True}, {"fourier_beta": 0.1})
    ]
    assert specs == [None, ClipSpec(frames=(0,)), ClipSpec(frames=(0,))]


def test_only_the_source_is_augmented_beforehand(make_method, data):
    plain, _ = prepared(make_method, data)
    source, target = prepared(make_method, data, augment_source=True)
    assert (source.frames - plain.frames).abs().max() > 0.05
    assert source.frames.min() >= 0 and source.frames.max() <= 1
    assert torch.equal(target.frames, prepared(make_method, data)[1].frames)


def test_augmentation_is_as_strong_as_it_is_set(make_method, data):
    nothing = StrongAugmentation(jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0)
    plain, _ = prepared(make_method, data, flip=0.0)
    source, _ = prepared(make_method, data, flip=0.0, augment_source=True, strong=nothing)
    assert torch.equal(source.frames, plain.frames)
    grey, _ = prepared(make_method, data, augment_source=True, strong=replace(nothing, grey_probability=1.0))
    assert torch.equal(grey.frames, grey.frames[:, :, :1].expand_as(grey.frames))


def test_a_larger_scale_is_cropped_and_a_smaller_one_stays(make_method, data):
    for factor, size in ((2.0, (40, 72)), (0.6, (24, 40))):  # whole cells of 8 px, about so much
        source, target = prepared(make_method, data, flip=0.0, rescale=(factor, factor))
        assert source.size == size and torch.equal(target.frames, data["target"].frames.float() / 255)
    scales = {prepared(make_method, data, seed, rescale=(0.5, 1.0))[0].size for seed in range(6)}
    assert len(scales) > 1


def test_flow_of_a_rescaled_clip_is_in_its_own_pixels(make_method, data):
    data["source"].flows[0, -1] = torch.tensor((6.0, 4.0)).view(1, 2, 1, 1).expand(4, 2, 40, 72).clone()
    source, _ = prepared(make_method, data, flip=0.0, rescale=(0.5, 0.5))
    height, width = source.size
    assert_close(source.flow(0, -1)[:, 0], torch.full((4, height, width), 6.0 * width / 72))
    assert_close(source.flow(0, -1)[:, 1], torch.full((4, height, width), 4.0 * height / 40))


def test_a_crop_cuts_frames_labels_and_flow_at_one_place(make_method, data):
    for clip in data.values():  # every pixel of every tensor says where it lies
        place = torch.arange(clip.size[0] * clip.size[1], dtype=torch.float).view(clip.size)
        clip.flows[0, -1][:] = place
        clip.frames[:] = (place % 251).to(torch.uint8)
        if clip.labels is not None:
            clip.labels[:] = (place % 12).to(torch.uint8)
    tops = set()
    for seed in range(4):
        for raw, clip in zip(data.values(), prepared(make_method, data, seed, flip=0.0, crop=(48, 32)), strict=True):
            assert clip.size == (32, 48) and clip.frames.shape == (4, 2, 3, 32, 48)
            first = int(clip.flow(0, -1)[0, 0, 0, 0])
            top, left = divmod(first, raw.size[1])
            tops.add((raw.size, top, left))
            cut = (..., slice(top, top + 32), slice(left, left + 48))
            assert torch.equal(clip.flow(0, -1), raw.flow(0, -1)[cut])
            assert torch.equal(clip.frames, raw.frames[cut].float() / 255)
            assert clip.labels is None or torch.equal(clip.labels, raw.labels[cut])
    assert len(tops) > 4  # drawn anew for every seed


def test_a_crop_lies_at_the_same_relative_place_in_source_and_target(make_method, make_run, make_clip):
    data = {"source": make_clip(PAIR, 2, (64, 128), 0)}
    data["target"] = data["source"].restrict(PAIR.without_labels())
    method = make_method("source_only", preparation=Preparation(flip=0.0, crop=(64, 32)))
    run, seen = make_run(method), []
    for step in (0, 1, 0):
        run.method.step = step
        source, target = method.prepare_batch(data, method.step_generator())
        assert torch.equal(source.frames, target.frames)
        seen.append(source.frames)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_a_crop_comes_after_the_rescaling_and_must_fit(make_method, data):
    assert prepared(make_method, data, rescale=(0.8, 2.0), crop=(48, 32))[0].size == (32, 48)
    with pytest.raises(SettingError, match=r"method\.preparation\.crop is 64x40 px, but clips have 64x32 px .*smaller"):
        prepared(make_method, data, crop=(64, 40))
    with pytest.raises(SettingError, match=r"crop is 72x40 px, but clips have 40x24 px .*rescale"):
        prepared(make_method, data, rescale=(0.6, 0.6), crop=(72, 40))


@pytest.mark.parametrize("name", ["source_only", "stcl"])
def test_a_method_trains_on_windows(make_method, make_batch, make_run, name):
    method = make_method(name, preparation=Preparation(crop=(64, 32)))
    run = make_run(method)
    for seed in range(2):
        assert run.step(make_batch(method, seed=seed, size=(48, 96), source_size=(56, 128)))["loss/total"] > 0


@pytest.mark.parametrize("name", ["source_only", "stcl"])
def test_augmentation_does_not_repeat_the_numbers_of_the_flip(make_method, make_batch, make_run, monkeypatch, name):
    """All draws of a step come from one generator, one after the other: a flip says nothing about a colour."""
    method = make_method(name, preparation=Preparation(augment_source=True))
    run = make_run(method)
    states, original = [method.step_generator().get_state()], base.strong_augment

    def look(frames, settings, generator):
        states.append(generator.get_state())
        return original(frames, settings, generator)

    monkeypatch.setattr(base, "strong_augment", look)
    run.step(make_batch(method))
    assert len(states) == (3 if name == "stcl" else 2)
    assert all(not torch.equal(a, b) for i, a in enumerate(states) for b in states[:i])


def test_streams_of_a_step_differ(make_method, make_run):
    method = make_method("source_only")
    run = make_run(method)
    seeds = set()
    for step in range(50):
        run.method.step = step
        for rank in range(2):
            run.method.rank = rank
            seeds |= {method.step_seed(stream) for stream in ("draws", "dropout", "scale", "window")}
    assert len(seeds) == 50 * 2 * 4
    large = make_method("source_only", seed=2**62)
    assert 0 <= large.step_seed("dropout") < 2**63


def test_layers_draw_from_a_stream_of_their_own(make_method, make_batch, make_run, monkeypatch):
    """What dropout leaves out says nothing about flips and colours, nor about what was drawn outside."""
    method = make_method("source_only")
    run, seeds = make_run(method), []
    losses = method.losses
    monkeypatch.setattr(method, "losses", lambda *given: seeds.append(torch.initial_seed()) or losses(*given))
    for outside in (0, 1):
        torch.manual_seed(outside)
        run.step(make_batch(method))
        run.method.step = 0
    assert seeds == [method.step_seed("dropout")] * 2
    assert seeds[0] != method.step_generator().initial_seed()


# ---- joint passes ----


def pairs_of(make_clip, count=3, size=(32, 64)):
    clips = [make_clip(PAIR, seed + 1, size, seed) for seed in range(count)]
    return [FramePair(clip.frame(0) / 255, clip.frame(-1) / 255, clip.flow(0, -1)) for clip in clips]


def test_a_joint_pass_gives_what_single_passes_give(make_method, make_clip):
    network = make_method("source_only").network.eval()
    torch.nn.init.normal_(network.fusion.conv.weight)
    pairs = pairs_of(make_clip)
    still = torch.zeros(3, 32, 64, dtype=torch.bool)
    still[:, :16] = True
    pairs[2] = pairs[2]._replace(still=still)
    for joint, pair in zip(segment_together(network, pairs), pairs, strict=True):
        alone = network(pair)
        assert len(joint.logits) == len(pair.current)
        assert_close(joint.logits, alone.logits, NETWORK)
        assert_close(joint.aux, alone.aux, NETWORK)
        assert_close(joint.previous_logits, alone.previous_logits, NETWORK)
        for stage, features in alone.features.items():
            assert_close(joint.features[stage], features, NETWORK)


def test_a_domain_passes_the_network_once(make_method, make_clip):
    """One pass means one set of batch statistics, and running statistics that move once."""
    network, calls = make_method("source_only").network.train(), []
    network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0].current)))
    segment_together(network, pairs_of(make_clip))
    assert calls == [1 + 2 + 3]
    assert segment_together(network, []) == []
    assert len(calls) == 1


def test_pairs_that_share_their_current_frame_encode_it_once(make_method, make_clip):
    network, seen = make_method("source_only").network.eval(), []
    torch.nn.init.normal_(network.fusion.conv.weight)
    first, _, last = pairs_of(make_clip)
    earlier = first._replace(previous=first.previous.flip(-1), flow=-first.flow)  # the very same current tensor
    pairs = [first, earlier, last]
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    joint = segment_together(network, pairs, tap=lambda stage, features: features)
    assert seen == [1 + 3, 1 + 1 + 3]  # current frames, previous ones
    for output, pair in zip(joint, pairs, strict=True):
        alone = network(pair)
        assert_close(output.logits, alone.logits, NETWORK)
        assert_close(output.aux, alone.aux, NETWORK)
        assert_close(output.features, alone.features, NETWORK)
    parameters = list(network.parameters())

    def gradients(outputs):
        return torch.autograd.grad(
            sum((output.logits**2).mean() + (output.aux**2).mean() for output in outputs), parameters
        )

    # the shared encoding gathers the gradients of its pairs
    expected = gradients([network(pair) for pair in pairs])
    assert_close(gradients(joint), expected, GRADIENT)


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        (Optimization, {"learning_rate": -1.0}, "learning_rate must be at least 0, found -1"),
        (Optimization, {"warmup_steps": -1}, "warmup_steps must be at least 0, found -1"),
        (Optimization, {"head_factor": 0.0}, "head_factor must be above 0"),
        (Optimization, {"momentum": 1.0}, "momentum must be below 1, found 1"),
        (Optimization, {"schedule_steps": 0}, "schedule_steps must be at least 1, found 0"),
        (Preparation, {"rescale": [2.0, 1.0]}, r"rescale is a range above 0, the smaller number first, not \[2"),
        (Preparation, {"rescale": [0.0, 1.0]}, r"rescale is a range above 0, the smaller number first, not \[0"),
        (Preparation, {"crop": [100, 64]}, r"crop is \[100, 64\], but .* at least 32 and divisible by 8"),
        (Preparation, {"fourier_beta": 0.5}, r"fourier_beta must be below 0\.5, found 0\.5"),
        (Preparation, {"flip": 1.5}, "flip must be at most 1, found 1.5. Is it a percentage"),
    ],
)
def test_numbers_that_make_no_sense(settings, words, message):
    with pytest.raises(SettingError, match=message):
        read(settings, words, lambda _: "own.yaml")
    with pytest.raises(ValueError, match=next(iter(words))):
        settings(**words)


def test_still_images_may_share_a_pass_too(make_method, make_clip):
    network = make_method("source_only").network.eval()
    image = FramePair(pairs_of(make_clip)[1].current)
    once, again = segment_together(network, [image, image])
    assert_close(once.logits, network(image).logits, NETWORK)
    assert torch.equal(once.logits, again.logits)


def test_frames_of_different_sizes_pass_one_after_the_other(make_method, make_clip):
    network = make_method("source_only").network.eval()
    pairs = [*pairs_of(make_clip, 1), *pairs_of(make_clip, 1, (48, 64))]
    for joint, pair in zip(segment_together(network, pairs), pairs, strict=True):
        assert_close(joint.logits, network(pair).logits, NETWORK)
    with pytest.raises(SettingError, match="cannot share one forward pass"):
        segment_together(network, pairs, tap=lambda stage, features: features)
