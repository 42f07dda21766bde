"""What methods remember: prototypes, confidences, the long-tail bank, the last step's clips."""

import io

import pytest
import torch

from stcl.labels import IGNORE
from stcl.methods.memory import ClipMemory, ConfidenceMemory, PatchMemory, PrototypeBank
from stcl.ops.align import Centroids
from stcl.ops.pseudo_labels import PseudoLabels, class_thresholds, confidence_histogram
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


def round_trip(module, fresh):
    """``fresh`` with the state of ``module``, through a file that is read as data."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


# ---- prototypes ----


def centroids(value, present):
    present = torch.tensor(present, dtype=torch.bool)
    return Centroids(torch.full((len(present), 2), float(value)) * present.unsqueeze(1), present)


def test_a_prototype_starts_at_its_first_centroid_and_then_moves_slowly():
    bank = PrototypeBank(3, 2, momentum=0.9)
    bank.update(centroids(4, [1, 0, 0]))
    mean, present = bank.update(centroids(8, [1, 1, 0]))
    torch.testing.assert_close(mean, torch.tensor([[4.4, 4.4], [8, 8], [0, 0]]))
    assert present.tolist() == [True, True, False]


def test_an_absent_class_keeps_its_prototype():
    bank = PrototypeBank(3, 2)
    bank.update(centroids(4, [1, 1, 0]))
    mean, present = bank.update(centroids(8, [0, 0, 1]))
    assert mean.tolist() == [[4, 4], [4, 4], [8, 8]]
    assert present.all()


def test_prototypes_carry_no_gradient_and_are_copies():
    bank = PrototypeBank(3, 2)
    fresh = Centroids(torch.ones(3, 2, requires_grad=True), torch.ones(3, dtype=torch.bool))
    mean, present = bank.update(fresh)
    bank.update(centroids(8, [1, 1, 1]))
    assert not mean.requires_grad
    assert (mean == 1).all() and present.all()


def test_prototypes_are_saved():
    bank = PrototypeBank(3, 2)
    bank.update(centroids(4, [1, 0, 1]))
    other = round_trip(bank, PrototypeBank(3, 2))
    torch.testing.assert_close(other.update(centroids(6, [1, 1, 0])), bank.update(centroids(6, [1, 1, 0])))


# ---- confidences ----


def labelled(*confidences):
    """One row of pixels for each class, so confident; None: the class is absent."""
    rows = [torch.full((1, 1, 10), IGNORE if value is None else label) for label, value in enumerate(confidences)]
    values = [torch.full((1, 1, 10), value or 0.0) for value in confidences]
    return PseudoLabels(torch.cat(rows, 1), torch.cat(values, 1))


def test_the_first_confidences_count_alone():
    memory, pseudo = ConfidenceMemory(3), labelled(0.805, 0.505, None)
    assert memory.thresholds(0.5, 0.9).tolist() == pytest.approx([0.9] * 3)  # nothing is known yet
    memory.update(pseudo)
    expected = class_thresholds(confidence_histogram(pseudo, 3), 0.5, 0.9)
    torch.testing.assert_close(memory.thresholds(0.5, 0.9), expected)
    torch.testing.assert_close(expected, torch.tensor([0.8, 0.5, 0.9]))


def test_confidences_follow_slowly_and_absent_classes_keep_theirs():
    memory = ConfidenceMemory(2, momentum=0.9)
    for _ in range(20):
        memory.update(labelled(0.305, 0.305))
    for _ in range(5):  # of 1 - 0.9^20 = 0.88 before, 0.9^5 = 0.59 is left: more than the new 0.41
        memory.update(labelled(0.705, None))
    torch.testing.assert_close(memory.thresholds(0.5, 0.9), torch.tensor([0.3, 0.3]))
    for _ in range(2):
        memory.update(labelled(0.705, None))
    torch.testing.assert_close(memory.thresholds(0.5, 0.9), torch.tensor([0.7, 0.3]))


def test_confidences_are_saved():
    memory = ConfidenceMemory(2)
    memory.update(labelled(0.6, 0.4))
    other = round_trip(memory, ConfidenceMemory(2))
    assert memory.histogram.any() and torch.equal(other.histogram, memory.histogram)


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


def test_frames_of_another_size_begin_a_new_bank():
    bank = PatchMemory(CLASSES, rare=[POLE])
    bank.add(street(pole=20))
    pixels = bank.pixels.clone()
    bank.add(street(size=(4, 6)))
    assert not bank.written.any()
    assert bank.pixels.sum() == pixels.sum() + 24  # frequencies do not depend on the size
    assert bank.draw(street(size=(4, 6)), 1, generator())[0].clip.size == (4, 6)


@pytest.mark.parametrize("rare", [None, [POLE]])
def test_the_bank_is_saved(rare):
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


def test_a_loaded_bank_may_have_another_size_than_the_present_one():
    bank, other = PatchMemory(CLASSES, rare=[POLE]), PatchMemory(CLASSES, rare=[POLE])
    bank.add(street(pole=20))
    other.add(street(size=(4, 6)))
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


def test_the_last_clips_are_saved():
    memory, clip = ClipMemory(), street(0)
    memory.exchange(clip)
    assert same(round_trip(memory, ClipMemory()).exchange(street(1)), clip)
