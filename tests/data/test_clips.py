import shutil

import numpy as np
import pytest
import torch

from stcl.data import ClipDataset, get_dataset
from stcl.data.base import split_runs
from stcl.data.io import read_image, resize_label, write_image, write_label
from stcl.errors import DataError, SettingError
from stcl.labels import IGNORE, get_space
from stcl.types import ClipSpec, FrameRef

SPACE = get_space("synthia_seq-cityscapes_seq")
PAIR = ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0,))


class Recorder:
    """A flow provider that answers with the frame numbers it was asked for."""

    def __init__(self):
        self.asked: list[tuple[FrameRef, FrameRef]] = []

    def __call__(self, a, b, image_a, image_b):
        self.asked.append((a, b))
        assert image_a.dtype == np.uint8
        flow = np.zeros((2, *image_a.shape[:2]), np.float32)
        flow[0], flow[1] = a.number, b.number
        return flow


@pytest.fixture
def synthia(write_tree):
    return get_dataset("synthia_seq")(write_tree("synthia_seq"))


@pytest.fixture
def cityscapes(write_tree):
    return get_dataset("cityscapes_seq")(write_tree("cityscapes_seq", frames=24, size=(16, 8)))


def test_a_clip(synthia):
    spec = ClipSpec(frames=(0, -1, -2), flows=((0, -1), (-1, -2)), labels=(0, -2))
    clips = ClipDataset(synthia, spec, SPACE, size=(24, 20), flow=Recorder())
    assert len(clips) == 4  # frames 2 and 3 of two sequences of four
    clip = clips[1]
    assert clip.frames.shape == (3, 3, 20, 24)
    assert clip.frames.dtype == torch.uint8
    assert clip.labels.shape == (3, 20, 24)
    assert clip.labels.dtype == torch.uint8
    assert clip.names == ["SEQS-00_000003"]
    assert clip.flow(0, -1)[:, 0, 0].tolist() == [3, 2]
    assert clip.flow(-1, -2)[:, 0, 0].tolist() == [2, 1]
    assert clip.flow(0, -1).dtype == torch.float32
    assert (clip.label(-1) == IGNORE).all()
    assert (clip.label(0) != IGNORE).any()
    assert (clip.label(-2) == clip.label(0)).all()


def test_frames_stand_at_their_offsets(synthia):
    clips = ClipDataset(synthia, ClipSpec(frames=(-1, 0, 1)), SPACE)
    refs = clips.refs(0)
    assert {offset: ref.number for offset, ref in refs.items()} == {-1: 0, 0: 1, 1: 2}
    for offset, ref in refs.items():
        assert torch.equal(clips[0].frame(offset), torch.from_numpy(read_image(ref.image)).permute(2, 0, 1))


@pytest.mark.parametrize("offsets", [(0,), (0, -1), (0, 1), (-1, 0, 1), (2, 0), (0, 1, -2)])
def test_every_frame_with_all_its_neighbours_is_a_clip_and_no_other(synthia, offsets):
    clips = ClipDataset(synthia, ClipSpec(frames=offsets), SPACE)
    found = [{offset: ref.number for offset, ref in clips.refs(item).items()} for item in range(len(clips))]
    fitting = [t for t in range(4) if all(0 <= t + offset < 4 for offset in offsets)]
    assert found == [{offset: t + offset for offset in offsets} for _ in range(2) for t in fitting]


def test_at_both_ends_the_last_frame_stands_in_where_every_frame_counts(synthia):
    spec = ClipSpec(frames=(0, -2, 1), flows=((0, -2), (0, 1)))
    clips = ClipDataset(synthia, spec, SPACE, every_frame=True, flow=Recorder())
    found = [[ref.number for ref in clips.refs(item).values()] for item in range(len(clips))]
    assert found == [[0, 0, 1], [1, 0, 2], [2, 0, 3], [3, 1, 3]] * 2
    first, last = clips[0], clips[3]
    assert not first.flow(0, -2).any() and first.flow(0, 1)[:, 0, 0].tolist() == [0, 1]
    assert not last.flow(0, 1).any() and last.flow(0, -2)[:, 0, 0].tolist() == [3, 1]


def test_clips_never_cross_a_sequence_or_a_gap(synthia):
    index = synthia.index(with_labels=True)
    index[2].image.unlink()
    index[2].label.unlink()
    clips = ClipDataset(synthia, ClipSpec(frames=(0, -1)), SPACE)
    pairs = [[ref.name for ref in clips.refs(i).values()] for i in range(len(clips))]
    assert pairs[0] == ["SEQS-00_000001", "SEQS-00_000000"]
    assert len(pairs) == 1 + 3
    assert all(a.split("_")[0] == b.split("_")[0] for a, b in pairs)


def test_runs():
    refs = [FrameRef(s, n, None) for s, n in [("a", 0), ("a", 30), ("a", 61), ("a", 93), ("b", 94), ("b", 95)]]
    assert [[r.number for r in run] for run in split_runs(refs, 31)] == [[0, 30, 61], [93], [94, 95]]
    assert [len(run) for run in split_runs(refs, 1)] == [1, 1, 1, 1, 2]


def test_no_clip_fits(synthia):
    with pytest.raises(DataError, match=r"no clip fits.* need 6 neighbouring frames; .* the longest of 4"):
        ClipDataset(synthia, ClipSpec(frames=(0, -5)), SPACE)


def test_every_image_is_decoded_once(synthia, monkeypatch):
    opened = []
    monkeypatch.setattr("stcl.data.base.read_image", lambda path: opened.append(path) or read_image(path))
    spec = ClipSpec(frames=(0, -1, -2), flows=((0, -1), (-1, -2), (-1, 0)), labels=(0,))
    ClipDataset(synthia, spec, SPACE, flow=Recorder())[0]
    assert len(opened) == len(set(opened)) == 3


def test_labels_are_resized_by_nearest_or_kept(synthia):
    small = ClipDataset(synthia, ClipSpec(labels=(0,)), SPACE, size=(24, 16))
    native = ClipDataset(synthia, ClipSpec(labels=(0,)), SPACE, size=(24, 16), native_labels=True)
    whole = native[0].label(0).numpy()
    assert whole.shape == (32, 48)
    assert np.array_equal(small[0].label(0).numpy(), resize_label(whole, (24, 16)))
    assert native[0].frames.shape[-2:] == (16, 24)


def test_label_of_another_size_names_both_files(synthia):
    ref = synthia.index(with_labels=True)[1]
    write_label(ref.label, np.zeros((10, 12, 3), np.uint16))
    with pytest.raises(DataError, match=r"is 12x10, but its frame .* is 48x32") as caught:
        ClipDataset(synthia, PAIR, SPACE, flow=Recorder())[0]
    assert str(ref.label) in str(caught.value)
    assert str(ref.image) in str(caught.value)


def test_damaged_label_is_named(synthia):
    ref = synthia.index(with_labels=True)[1]
    ref.label.write_bytes(ref.label.read_bytes()[:50])
    with pytest.raises(DataError, match=f"{ref.label}.*cut off"):
        ClipDataset(synthia, PAIR, SPACE, flow=Recorder())[0]


def test_flow_needs_a_provider(synthia):
    with pytest.raises(SettingError, match="no flow provider"):
        ClipDataset(synthia, PAIR, SPACE)


@pytest.mark.parametrize("size", [(0, 5), (5,)])
def test_wrong_size(synthia, size):
    with pytest.raises(SettingError, match="width, height"):
        ClipDataset(synthia, ClipSpec(), SPACE, size=size)


@pytest.mark.parametrize("frames", ["labeled", "every", "every:0", "every:-2", "every:x", "list:", "published:2"])
def test_unknown_choice_of_frames(synthia, frames):
    with pytest.raises(SettingError, match=f"'{frames}'. Known: all, labelled, published, every:N .*list:FILE"):
        ClipDataset(synthia, ClipSpec(), SPACE, frames=frames)


def test_every_nth_frame(cityscapes):
    clips = ClipDataset(cityscapes, ClipSpec(frames=(0, -1)), SPACE, frames="every:10")
    assert [clips.refs(i)[0].number for i in range(len(clips))] == [10, 20, 10, 20]  # 0 has no frame before it


def test_sparse_labels_choose_the_frame_t(cityscapes):
    for frames in ("all", "labelled"):
        clips = ClipDataset(cityscapes, PAIR, SPACE, frames=frames, flow=Recorder())
        assert [clips.refs(i)[0].number for i in range(len(clips))] == [19, 19]
    clip = clips[0]
    assert (clip.label(0) != IGNORE).any()
    assert (clip.label(-1) == IGNORE).all()


def test_sparse_labels_at_other_offsets_are_ignore(cityscapes):
    clips = ClipDataset(cityscapes, ClipSpec(frames=(0, -1), labels=(-1,)), SPACE)
    assert len(clips) == 46
    assert (clips[0].label(-1) == IGNORE).all()
    assert (clips[19].label(-1) != IGNORE).any()


def test_labelled_frames_without_labels(cityscapes):
    shutil.rmtree(cityscapes.root / "gtFine")
    clips = ClipDataset(cityscapes, PAIR.without_labels(), SPACE, frames="labelled", flow=Recorder())
    assert [clips.refs(i)[0].number for i in range(len(clips))] == [19, 19]


def test_flow_sees_the_training_size(synthia):
    clips = ClipDataset(synthia, PAIR, SPACE, size=(20, 10), flow=Recorder())
    assert clips[0].flow(0, -1).shape == (2, 10, 20)


def test_frame_that_grew(synthia):
    write_image(synthia.index(with_labels=False)[0].image, np.zeros((64, 48, 3), np.uint8))
    with pytest.raises(DataError, match="Frames of one sequence must have one size"):
        ClipDataset(synthia, ClipSpec(frames=(0, -1)), SPACE)[0]
