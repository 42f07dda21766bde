import itertools

import numpy as np
import pytest
import torch

from stcl.data import ClipDataset, ClipSampler, get_dataset, make_eval_loader, make_loader
from stcl.data.io import write_image
from stcl.errors import DataError, SettingError
from stcl.labels import get_space
from stcl.types import ClipSpec

SPACE = get_space("synthia_seq-cityscapes_seq")


@pytest.fixture
def clips(write_tree):
    return ClipDataset(get_dataset("synthia_seq")(write_tree("synthia_seq")), ClipSpec((0, -1), labels=(0,)), SPACE)


def first(sampler, count):
    return list(itertools.islice(sampler, count))


def test_batches_depend_on_seed_and_step_only():
    whole = first(ClipSampler(10, 3, seed=5), 40)
    assert first(ClipSampler(10, 3, seed=5), 40) == whole
    for step in (0, 1, 3, 17, 39):
        assert first(ClipSampler(10, 3, seed=5, start_step=step), 1) == [whole[step]]
        assert ClipSampler(10, 3, seed=5).batch(step) == whole[step]
    assert first(ClipSampler(10, 3, seed=6), 40) != whole


def test_every_epoch_is_a_permutation_of_its_own():
    stream = list(itertools.chain(*first(ClipSampler(10, 3, seed=0), 30)))
    epochs = [stream[i : i + 10] for i in range(0, 90, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 9


def test_fewer_clips_than_the_batch():
    batches = first(ClipSampler(3, 8, seed=0), 6)
    assert all(len(batch) == 8 for batch in batches)
    assert np.bincount(np.concatenate(batches)).tolist() == [16, 16, 16]


@pytest.mark.parametrize("wrong", [{"length": 0}, {"batch_size": 0}, {"seed": -1}, {"start_step": -1}])
def test_wrong_settings(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        ClipSampler(**{"length": 4, "batch_size": 2, "seed": 0, **wrong})


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_resumes_where_it_was(clips, workers):
    straight = [batch.names for batch in itertools.islice(make_loader(clips, 4, seed=1), 6)]
    resumed = itertools.islice(make_loader(clips, 4, seed=1, start_step=4, workers=workers), 2)
    assert [batch.names for batch in resumed] == straight[4:]


def test_batch_shapes(clips):
    batch = next(iter(make_loader(clips, 9, seed=0)))  # six clips
    assert batch.frames.shape == (9, 2, 3, 32, 48)
    assert batch.labels.shape == (9, 2, 32, 48)
    assert batch.frames.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_eval_loader_passes_once_in_order(clips, workers):
    batches = list(make_eval_loader(clips, batch_size=4, workers=workers))
    assert [len(batch.names) for batch in batches] == [4, 2]
    assert [name for batch in batches for name in batch.names] == [clips[i].names[0] for i in range(6)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_clear_sentence(clips, workers):
    path = clips.refs(0)[0].image
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError) as caught:
        list(make_eval_loader(clips, workers=workers))
    assert str(caught.value).startswith(f"PNG file {path} is cut off")
    assert "Traceback" not in str(caught.value)


def test_sizes_of_one_batch_must_agree(clips):
    for ref in clips.dataset.index(with_labels=False)[:4]:
        write_image(ref.image, np.zeros((64, 96, 3), np.uint8))
    unlabelled = ClipDataset(clips.dataset, ClipSpec((0, -1)), SPACE)
    with pytest.raises(DataError, match=r"96x64.* is 48x32. Give a size"):
        list(make_eval_loader(unlabelled, batch_size=6))
    resized = ClipDataset(clips.dataset, ClipSpec((0, -1)), SPACE, size=(16, 16))
    assert next(iter(make_eval_loader(resized, batch_size=6))).frames.shape == (6, 2, 3, 16, 16)
