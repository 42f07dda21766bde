"""What methods remember of clips: the long-tail bank, the last step's clips."""

import pytest
import torch

from stcl.labels import IGNORE
from stcl.methods.patches import ClipMemory, PatchMemory
from stcl.types import VideoClip

CLASSES, SIZE = 5, (8, 8)
POLE, SIGN = 3, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def street(seed=0, batch=1, size=SIZE, **pixels):
    """Clips of class 0 and 1 whose first ``pixels`` pixels at t are ``pole`` or ``sign``; values of bytes."""
    draws = generator(seed)
    labels = torch.randint(0, 2, (batch, 2, size[0] * size[1]), generator=draws)
    start = 0
    for name, count in pixels.items():
        labels[:, 0, start : start + count] = {"pole": POLE, "sign": SIGN}[name]
        start += count
    return VideoClip(
        frames=torch.randint(0, 256, (batch, 2, 3, *size), generator=draws) / 255,
        labels=labels.view(batch, 2, *size).to(torch.uint8),
        flows={(0, -1): torch.randn(batch, 2, *size, generator=draws)},
        offsets=(0, -1),
        names=[f"{seed}-{i}" for i in range(batch)],
    )


# ---- the long-tail bank ----


def test_rare_classes_follow_from_pixel_frequencies():
    bank = PatchMemory(CLASSES, rare_share=0.1)
    assert not bank.rare.any()
    bank.add(street(pole=4))
    assert bank.rare.tolist() == [False, False, False, True, False]  # class 2 and SIGN have not been seen
    assert bank.pixels.sum() == 64
    for seed in range(3):
        bank.add(street(seed, pole=30))
    assert not bank.rare.any()  # now poles are frequent


def test_rare_classes_can_be_named():
    bank = PatchMemory(CLASSES, rare=[1, SIGN])
    bank.add(street(pole=4))
    assert bank.rare.tolist() == [False, True, False, False, True]
    assert not PatchMemory(CLASSES, rare=[]).rare.any()


def test_ignored_pixels_are_not_counted():
    bank, clip = PatchMemory(CLASSES), street()
    clip.labels[:, 0] = IGNORE
    bank.add(clip)
    assert bank.pixels.sum() == 0
    assert bank.draw(clip, 1, generator())[0].mask.sum() == 0


def test_an_empty_bank_gives_no_pixels():
    bank = PatchMemory(CLASSES, rare=[POLE])
    assert bank.draw(street(), 2, generator()) == []
    bank.add(street(pole=3))  # below the minimum of 16 pixels
    patches = bank.draw(street(), 2, generator())
    assert len(patches) == 2
    assert not any(patch.mask.any() for patch in patches)


def test_a_patch_is_the_class_of_a_stored_frame():
    bank, clip = PatchMemory(CLASSES, rare=[POLE]), street(pole=20)
    bank.add(clip)
    like = street(seed=9, batch=3)
    patch = bank.draw(like, 1, generator())[0]
    assert patch.clip.frames.shape == like.frames.shape
    assert torch.equal(patch.mask, (clip.labels[:, :1] == POLE).expand(3, 2, -1, -1))
    assert torch.equal(patch.clip.frames, clip.frames[:, :1].expand(3, 2, -1, -1, -1))  # bytes and back: exact
    assert (patch.clip.labels[patch.mask] == POLE).all()


def test_a_patch_of_the_bank_does_not_move():
    bank = PatchMemory(CLASSES, rare=[POLE])
    bank.add(street(pole=20))
    patch = bank.draw(street(seed=9), 1, generator())[0]
    assert patch.still
    assert not patch.clip.flow(0, -1).any()
    assert torch.equal(patch.clip.frame(0), patch.clip.frame(-1))
    assert torch.equal(patch.mask[:, 0], patch.mask[:, 1])


def test_the_bank_keeps_the_latest_frames_of_a_class():
    bank = PatchMemory(CLASSES, slots=2, rare=[POLE])
    clips = [street(seed, pole=20) for seed in range(3)]
    for clip in clips:
        bank.add(clip)
        bank.add(street(seed=50))  # a frame without rare classes takes no slot
    drawn = [bank.draw(clips[0], 1, generator(seed))[0].clip.frame(0) for seed in range(30)]
    seen = [any(torch.equal(frame, clip.frame(0)) for frame in drawn) for clip in clips]
    assert seen == [False, True, True]
    assert len(bank.frames) == len(bank.labels) == CLASSES * 2 + 1  # and no more: one slot takes what is not kept


def test_two_frames_of_one_batch_take_two_slots():
    bank, clips = PatchMemory(CLASSES, slots=4, rare=[POLE]), street(batch=2, pole=20)
    bank.add(clips)
    assert bank.written[POLE] == 2
    drawn = [bank.draw(street(), 1, generator(seed))[0].clip.frame(0) for seed in range(30)]
    assert all(any(torch.equal(frame[0], clip) for frame in drawn) for clip in clips.frame(0))


def test_of_more_frames_than_slots_in_one_batch_the_last_ones_are_kept():
    bank, clips = PatchMemory(CLASSES, slots=2, rare=[POLE]), street(batch=5, pole=20)
    clips.labels[3, 0] = 0  # holds nothing rare
    bank.add(clips)
    assert bank.written[POLE] == 4
    stored = bank.frames[POLE * 2 : POLE * 2 + 2].float() / 255
    assert torch.equal(stored, clips.frame(0)[[2, 4]])


def test_a_batch_is_remembered_as_its_clips_one_after_the_other():
    together, alone = (PatchMemory(CLASSES, slots=3, rare=[POLE, SIGN]) for _ in range(2))
    for seed, pixels in enumerate(({"pole": 20}, {"sign": 20}, {"pole": 17, "sign": 16}, {}, {"pole": 30})):
        clips = street(seed, batch=2, **pixels)
        together.add(clips)
        for i in range(2):
            alone.add(clips.select(torch.tensor([i])))
    assert torch.equal(together.written, alone.written)
    assert torch.equal(together.frames[:-1], alone.frames[:-1])  # the last one takes what is not kept
    assert torch.equal(together.labels[:-1], alone.labels[:-1])


def test_a_frame_is_kept_for_its_rarest_class():
    bank = PatchMemory(CLASSES, rare=[POLE, SIGN])
    bank.add(street(pole=30))
    bank.add(street(seed=1, pole=20, sign=18))
    assert bank.written.tolist() == [0, 0, 0, 1, 1]


def test_every_rare_class_has_its_turn():
    bank = PatchMemory(CLASSES, rare=[POLE, SIGN])
    bank.add(street(pole=30))
    for seed in range(1, 4):
        bank.add(street(seed=seed, sign=30))
    patch = bank.draw(street(batch=400), 1, generator())[0]
    poles = (patch.mask[:, 0] & (patch.clip.label(0) == POLE)).flatten(1).any(1)
    assert 0.4 < poles.float().mean() < 0.6  # by class, not by the number of frames


def test_a_class_that_is_no_longer_rare_is_not_drawn():
    bank = PatchMemory(CLASSES, rare_share=0.4)
    for poles in (20, 60, 60, 60):
        clip = street(pole=poles)
        clip.labels[clip.labels == 1] = 0
        bank.add(clip)
        rare = poles == 20
        assert bank.rare[POLE] == rare
        assert bank.draw(street(), 1, generator())[0].mask.any() == rare


def test_the_generator_decides():
    bank = PatchMemory(CLASSES, rare=[POLE])
    for seed in range(4):
        bank.add(street(seed, pole=20))

    def frames(seed):
        return torch.cat([patch.clip.frames for patch in bank.draw(street(batch=3), 2, generator(seed))])

    assert torch.equal(frames(1), frames(1))
    assert any(not torch.equal(frames(1), frames(seed)) for seed in range(2, 6))


def test_a_close_up_is_enlarged_about_one_of_its_pixels():
    bank, like = PatchMemory(CLASSES, slots=1, rare=[POLE]), street(seed=9, batch=40)
    clip = street(pole=18)
    bank.add(street(1, pole=64))  # so large can it be
    bank.add(clip)
    near = bank.close_ups(like, 1, (2.0, 2.0), generator())[0]
    before, after = (clip.label(0) == POLE).sum(), near.mask[:, 0].flatten(1).sum(1)
    assert (after > before).any() and (after > 0).all()  # it never leaves the frame as a whole
    assert (near.clip.labels[near.mask] == POLE).all() and (near.clip.labels[~near.mask] == IGNORE).all()
    assert (near.mask[:, 0] & (clip.label(0) == POLE)).flatten(1).any(1).all()  # the pixel that stays
    assert near.still and torch.equal(near.clip.frame(0), near.clip.frame(-1)) and not near.clip.flow(0, -1).any()


def test_no_close_up_is_larger_than_its_class_has_been_seen():
    like = street(seed=9, batch=40)
    for largest, factor in ((16, 1.0), (36, 1.5), (64, 2.0)):
        bank = PatchMemory(CLASSES, slots=1, rare=[POLE])
        bank.add(street(1, pole=largest))
        bank.add(street(pole=16))
        seen, wanted = (bank.close_ups(like, 1, (zoom, zoom), generator())[0] for zoom in (3.0, factor))
        assert torch.equal(seen.mask, wanted.mask)


def test_close_ups_show_a_class_as_often_as_its_pixels_occur():
    bank = PatchMemory(CLASSES, rare=[POLE, SIGN])
    for seed in range(3):
        bank.add(street(seed, pole=24))
    bank.add(street(5, sign=24))
    patch = bank.close_ups(street(batch=400), 1, (1.0, 1.0), generator())[0]
    poles = (patch.clip.label(0) == POLE).flatten(1).any(1)
    assert 0.68 < poles.float().mean() < 0.82  # three in four


@pytest.mark.parametrize("shares", [(0.001, 0.001, 0.002, 0.003, 0.006), (1e-5, 2e-5, 1e-5, 4e-5, 2e-5), (0.3, 0.1)])
def test_close_ups_of_small_shares_do_not_tie(shares):
    """Thousandths of the pixels, as rare classes have them: the first one is not drawn instead of the others."""
    rare, draws = len(shares), 4000
    bank = PatchMemory(rare + 1, slots=1, rare=[*range(rare)], minimum_pixels=1)
    for label in range(rare):
        clip = street(label, size=(2, 2))
        clip.labels[:] = label
        bank.add(clip)
    bank.pixels = torch.tensor([*shares, 1 - sum(shares)]) * 1e9
    patch = bank.close_ups(street(batch=draws, size=(2, 2)), 1, (1.0, 1.0), generator())[0]
    drawn = torch.bincount(patch.clip.label(0)[:, 0, 0].long(), minlength=rare)
    expected = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    spread = (draws * expected * (1 - expected)).sqrt()
    assert ((drawn - draws * expected).abs() < 5 * spread).all(), drawn / draws


def test_an_empty_bank_has_no_close_ups():
    bank = PatchMemory(CLASSES, rare=[POLE])
    assert bank.close_ups(street(), 2, (0.5, 4.0), generator()) == []
    bank.add(street(pole=3))
    assert not any(patch.mask.any() for patch in bank.close_ups(street(), 2, (0.5, 4.0), generator()))


def test_frames_of_another_size_begin_a_new_bank():
    bank = PatchMemory(CLASSES, rare=[POLE])
    bank.add(street(pole=20))
    pixels = bank.pixels.clone()
    bank.add(street(size=(4, 6)))
    assert not bank.written.any()
    assert bank.pixels.sum() == pixels.sum() + 24  # frequencies do not depend on the size
    assert bank.draw(street(size=(4, 6)), 1, generator())[0].clip.size == (4, 6)


@pytest.mark.parametrize("rare", [None, [POLE]])
def test_the_bank_is_saved(rare, round_trip):
    bank = PatchMemory(CLASSES, rare=rare, rare_share=0.4)
    for seed in range(3):
        bank.add(street(seed, pole=16))
    other = round_trip(bank, PatchMemory(CLASSES, rare=rare, rare_share=0.4))
    bank.add(street(7, pole=18))
    other.add(street(7, pole=18))
    for mine, theirs in zip(bank.draw(street(), 3, generator()), other.draw(street(), 3, generator()), strict=True):
        assert mine.mask.any()
        assert torch.equal(mine.mask, theirs.mask)
        assert torch.equal(mine.clip.frames, theirs.clip.frames)
    assert torch.equal(bank.rare, other.rare)


@pytest.mark.parametrize("size", [(4, 6), (12, 10)])
def test_a_loaded_bank_may_have_another_size_than_the_present_one(round_trip, size):
    bank, other = PatchMemory(CLASSES, rare=[POLE]), PatchMemory(CLASSES, rare=[POLE])
    bank.add(street(pole=20))
    other.add(street(size=size))
    assert torch.equal(round_trip(bank, other).frames, bank.frames)


# ---- the last step's clips ----


def same(a, b):
    return (
        torch.equal(a.frames, b.frames)
        and torch.equal(a.labels.long(), b.labels.long())
        and torch.equal(a.flow(0, -1), b.flow(0, -1))
    )


def test_in_a_batch_the_other_clip_is_the_neighbour():
    clip = street(batch=3, pole=5)
    other = ClipMemory().exchange(clip)
    for i in range(3):
        assert same(other.select(torch.tensor([i])), clip.select(torch.tensor([i - 1 if i else 2])))


def test_alone_the_other_clip_is_the_last_steps():
    memory, clips = ClipMemory(), [street(seed) for seed in range(3)]
    assert same(memory.exchange(clips[0]), clips[0])  # there is no other one yet
    assert same(memory.exchange(clips[1]), clips[0])
    assert same(memory.exchange(clips[2]), clips[1])


def test_what_is_remembered_cannot_be_changed_from_outside():
    memory, clip, later = ClipMemory(), street(0), street(1)
    before = clip.map(torch.clone)
    memory.exchange(clip)
    clip.frames.zero_()
    clip.labels.zero_()
    assert same(memory.exchange(later), before)


def test_a_clip_of_another_size_is_not_given():
    memory, small = ClipMemory(), street(size=(4, 6))
    memory.exchange(street())
    assert same(memory.exchange(small), small)
    assert memory.exchange(street(1, size=(4, 6))).size == (4, 6)


def test_the_last_clips_are_saved(round_trip):
    memory, clip = ClipMemory(), street(0)
    memory.exchange(clip)
    assert same(round_trip(memory, ClipMemory()).exchange(street(1)), clip)
