from dataclasses import replace

import pytest
import torch

from closeness import assert_close
from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.ops.mixing import (
    PatchSequence,
    choose_classes,
    class_mask,
    classes_present,
    cut,
    fuse,
    paste,
    random_pixel,
)
from stcl.types import VideoClip

CLASSES, SIZE = 5, (6, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_clip(seed, batch=2, size=SIZE, dtype=torch.uint8, offsets=(0, -1)):
    draws = generator(seed)
    labels = torch.randint(0, CLASSES, (batch, len(offsets), *size), generator=draws)
    return VideoClip(
        frames=torch.rand(batch, len(offsets), 3, *size, generator=draws),
        labels=labels.masked_fill(torch.rand(labels.shape, generator=draws) < 0.1, IGNORE).to(dtype),
        flows={(0, -1): torch.randn(batch, 2, *size, generator=draws)},
        offsets=offsets,
        names=[f"{seed}-{i}" for i in range(batch)],
    )


def random_mask(seed, batch=2, frames=2, share=0.4):
    return torch.rand(batch, frames, *SIZE, generator=generator(seed)) < share


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


# ---- pasting ----


def test_frames_labels_and_flow_move_together():
    background, patch, mask = random_clip(0), random_clip(1), random_mask(2)
    pasted = paste(background, patch, mask)
    for t in (0, 1):
        inside = mask[:, t]
        for channel in range(3):
            there = torch.where(inside, patch.frames[:, t, channel], background.frames[:, t, channel])
            assert torch.equal(pasted.frames[:, t, channel], there)
        assert torch.equal(pasted.labels[:, t], torch.where(inside, patch.labels[:, t], background.labels[:, t]))
    assert pasted.names == background.names


def test_flow_is_pasted_with_the_current_frames_mask():
    """Flow is indexed by the pixels of its current frame, so frame t-1's mask must not touch it."""
    background, patch = random_clip(0), random_clip(1)
    mask = torch.zeros(2, 2, *SIZE, dtype=torch.bool)
    mask[:, 0, :3], mask[:, 1, 3:] = True, True  # the object moved: the masks do not even overlap
    flow = paste(background, patch, mask).flow(0, -1)
    assert torch.equal(flow[:, :, :3], patch.flow(0, -1)[:, :, :3])
    assert torch.equal(flow[:, :, 3:], background.flow(0, -1)[:, :, 3:])


def test_each_flow_follows_the_frame_that_indexes_it():
    background, patch, mask = random_clip(0), random_clip(1), random_mask(2)
    for clip in (background, patch):
        clip.flows[-1, 0] = -clip.flow(0, -1)
    pasted = paste(background, patch, mask)
    for t, key in ((0, (0, -1)), (1, (-1, 0))):
        expected = torch.where(mask[:, t].unsqueeze(1), patch.flows[key], background.flows[key])
        assert torch.equal(pasted.flows[key], expected)


def test_each_frame_has_its_own_mask():
    clip = random_clip(0)
    sequence = cut(clip, bools([0, 1, 0, 0, 0], [0, 0, 0, 1, 0]))
    assert torch.equal(sequence.mask, clip.labels == torch.tensor([1, 3]).view(2, 1, 1, 1))
    assert (sequence.mask[:, 0] != sequence.mask[:, 1]).any()
    assert not sequence.still


def test_frames_are_matched_by_offset_not_by_position():
    background, mask = random_clip(0), random_mask(2)
    patch = random_clip(1, offsets=(-1, 0))
    pasted = paste(background, patch, mask)
    expected = torch.where(mask[:, 0].unsqueeze(1), patch.frame(0), background.frame(0))
    assert torch.equal(pasted.frame(0), expected)
    assert_close(pasted.label(-1), torch.where(mask[:, 1], patch.label(-1), background.label(-1)))


def test_the_originals_are_not_changed():
    background, patch = random_clip(0), random_clip(1)
    paste(background, patch, torch.ones(2, 2, *SIZE, dtype=torch.bool))
    for clip, seed in ((background, 0), (patch, 1)):
        assert torch.equal(clip.frames, random_clip(seed).frames)
        assert torch.equal(clip.labels, random_clip(seed).labels)
        assert torch.equal(clip.flow(0, -1), random_clip(seed).flow(0, -1))


def test_nothing_and_everything():
    background, patch = random_clip(0), random_clip(1)
    nothing = paste(background, patch, torch.zeros(2, 2, *SIZE, dtype=torch.bool))
    everything = paste(background, patch, torch.ones(2, 2, *SIZE, dtype=torch.bool))
    for result, clip in ((nothing, background), (everything, patch)):
        assert torch.equal(result.frames, clip.frames)
        assert torch.equal(result.labels, clip.labels)
        assert torch.equal(result.flow(0, -1), clip.flow(0, -1))


def test_ignore_survives_a_change_of_label_type():
    background, patch = random_clip(0, dtype=torch.uint8), random_clip(1, dtype=torch.int64)
    pasted = paste(background, patch, torch.ones(2, 2, *SIZE, dtype=torch.bool))
    assert pasted.labels.dtype == torch.uint8
    assert torch.equal(pasted.labels.long(), patch.labels)
    assert (pasted.labels == IGNORE).any()


def test_pixels_of_an_unlabelled_patch_lose_their_label():
    background, mask = random_clip(0), random_mask(2)
    pasted = paste(background, replace(random_clip(1), labels=None), mask)
    assert torch.equal(pasted.labels, background.labels.masked_fill(mask, IGNORE))
    unlabelled = paste(replace(background, labels=None), random_clip(1), mask)
    assert unlabelled.labels is None


def test_sizes_must_agree():
    with pytest.raises(SettingError, match=r"8x5 px cannot be pasted into a clip of 8x6 px.*Crop"):
        paste(random_clip(0), random_clip(1, size=(5, 8)), random_mask(2))


# ---- several patches ----


def test_a_shared_patch_is_the_same_pixels_in_both_domains():
    source, target = random_clip(0), random_clip(1, dtype=torch.int64)
    patches = [PatchSequence(random_clip(2), random_mask(3)), PatchSequence(random_clip(4), random_mask(5), still=True)]
    fused_s, fused_t = fuse(source, patches), fuse(target, patches)
    assert torch.equal(fused_s.mask, fused_t.mask)
    assert torch.equal(fused_s.still, fused_t.still)
    any_frame = patches[0].mask | patches[1].mask
    for fused, background in ((fused_s, source), (fused_t, target)):
        outside = ~any_frame.unsqueeze(2).expand_as(background.frames)
        assert torch.equal(fused.clip.frames[outside], background.frames[outside])
    inside = any_frame.unsqueeze(2).expand_as(source.frames)
    assert torch.equal(fused_s.clip.frames[inside], fused_t.clip.frames[inside])
    assert torch.equal(fused_s.clip.labels[any_frame].long(), fused_t.clip.labels[any_frame])
    flow = fused_s.mask.unsqueeze(1).expand(-1, 2, -1, -1)
    assert torch.equal(fused_s.clip.flow(0, -1)[flow], fused_t.clip.flow(0, -1)[flow])


def test_a_later_patch_covers_an_earlier_one():
    first, second = random_clip(1), random_clip(2)
    everywhere = torch.ones(2, 2, *SIZE, dtype=torch.bool)
    fused = fuse(random_clip(0), [PatchSequence(first, everywhere), PatchSequence(second, random_mask(3))])
    own = random_mask(3).unsqueeze(2)
    assert torch.equal(fused.clip.frames, torch.where(own, second.frames, first.frames))
    assert fused.mask.all()


def test_still_is_what_a_still_patch_shows_last():
    left, right = torch.zeros(1, 2, *SIZE, dtype=torch.bool), torch.zeros(1, 2, *SIZE, dtype=torch.bool)
    left[..., :5], right[..., 3:] = True, True
    background, a, b = (random_clip(seed, batch=1) for seed in range(3))
    columns = {
        (False, False): [0] * 8,
        (True, False): [1, 1, 1, 0, 0, 0, 0, 0],  # the moving one covers columns 3 and 4
        (False, True): [0, 0, 0, 1, 1, 1, 1, 1],
        (True, True): [1] * 8,
    }
    for (first, second), expected in columns.items():
        fused = fuse(background, [PatchSequence(a, left, still=first), PatchSequence(b, right, still=second)])
        assert fused.still[0, 0].int().tolist() == expected
        assert fused.mask.all()


def test_masks_of_a_fused_clip_are_those_of_frame_t():
    mask = torch.zeros(2, 2, *SIZE, dtype=torch.bool)
    mask[:, 1] = True  # the object has left the view at t
    fused = fuse(random_clip(0), [PatchSequence(random_clip(1), mask, still=True)])
    assert not fused.mask.any()
    assert not fused.still.any()


def test_without_patches_the_clip_stays():
    clip = random_clip(0)
    fused = fuse(clip, [])
    assert fused.clip is clip
    assert fused.mask.shape == fused.still.shape == (2, *SIZE)
    assert not fused.mask.any() and not fused.still.any()


# ---- choosing classes ----


def test_present_classes():
    labels = torch.tensor([[[0, 0, 3]], [[IGNORE, 4, 4]], [[IGNORE, IGNORE, IGNORE]]])
    assert classes_present(labels, CLASSES).tolist() == [
        [True, False, False, True, False],
        [False, False, False, False, True],
        [False] * 5,
    ]
    assert torch.equal(classes_present(labels.to(torch.uint8), CLASSES), classes_present(labels, CLASSES))


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_chosen_classes_are_present_ones(count):
    present = bools([1, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0])
    for seed in range(10):
        chosen = choose_classes(present, count, generator(seed))
        assert not (chosen & ~present).any()
        assert torch.equal(chosen.sum(1), present.sum(1).clamp(max=count))


def test_excluded_classes_are_not_chosen():
    present = torch.ones(2, CLASSES, dtype=torch.bool)
    exclude = bools([1, 1, 1, 1, 0], [1, 0, 1, 0, 1])
    for seed in range(10):
        chosen = choose_classes(present, 2, generator(seed), exclude=exclude)
        assert not (chosen & exclude).any()
        assert chosen.sum(1).tolist() == [1, 2]
        assert not choose_classes(present, 2, generator(seed), exclude[0], always=exclude[1])[:, :4].any()


def test_rare_classes_come_beside_the_random_ones():
    present = bools([1, 1, 1, 1, 0], [0, 1, 0, 0, 0])
    always = bools(0, 0, 0, 1, 1)
    for seed in range(10):
        chosen = choose_classes(present, 2, generator(seed), always=always)
        assert chosen[:, 3:].tolist() == [[True, False], [False, False]]
        assert chosen[:, :3].sum(1).tolist() == [2, 1]


def test_every_present_class_has_its_turn():
    present = bools([1, 1, 0, 1, 1])
    draws = torch.cat([choose_classes(present, 2, generator(seed)) for seed in range(400)])
    share = draws.float().mean(0)
    assert share[2] == 0
    assert_close(share[present[0]], torch.full((4,), 0.5), 0.08, scale=1)


def test_the_generator_decides():
    present = torch.ones(4, 12, dtype=torch.bool)
    assert torch.equal(choose_classes(present, 3, generator(1)), choose_classes(present, 3, generator(1)))
    assert not torch.equal(choose_classes(present, 3, generator(1)), choose_classes(present, 3, generator(2)))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    choose_classes(present, 3, generator(1))
    assert torch.equal(state, torch.get_rng_state())


def test_ignored_pixels_are_never_cut_out():
    labels = random_clip(0).labels
    everything = class_mask(labels, torch.ones(2, CLASSES, dtype=torch.bool))
    assert torch.equal(everything, labels != IGNORE)
    assert not class_mask(labels, torch.ones(2, 256, dtype=torch.bool))[labels == IGNORE].any()
    assert not class_mask(labels, torch.zeros(2, CLASSES, dtype=torch.bool)).any()


def test_a_clip_without_labels_cannot_be_cut_by_class():
    with pytest.raises(SettingError, match="without labels"):
        cut(replace(random_clip(0), labels=None), torch.ones(2, CLASSES, dtype=torch.bool))


def test_nothing_is_read_back_to_the_host():
    # tensors on the meta device have no values to read
    clip = random_clip(0).to("meta")
    present = classes_present(clip.label(0), CLASSES)
    sequence = cut(clip, present)
    fused = fuse(random_clip(1).to("meta"), [sequence, sequence._replace(still=True)])
    assert fused.mask.shape == (2, *SIZE)


# ---- choosing pixels ----


def test_each_pixel_of_a_mask_is_as_likely_as_the_others():
    mask = torch.zeros(*SIZE, dtype=torch.bool)
    wanted = [(0, 0), (5, 1), (7, 3), (2, 5)]
    for x, y in wanted:
        mask[y, x] = True
    drawn = random_pixel(mask.expand(4000, -1, -1), generator()).tolist()
    counts = [drawn.count([x, y]) for x, y in wanted]
    assert sum(counts) == 4000 and min(counts) > 850


def test_an_empty_mask_has_some_pixel():
    (x, y), height, width = random_pixel(bools([0] * 8).expand(1, 6, 8), generator())[0].tolist(), *SIZE
    assert 0 <= x < width and 0 <= y < height
