import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from closeness import assert_close
from stcl.data import (
    ClipDataset,
    ClipSampler,
    RareClassSampler,
    class_pixels,
    get_dataset,
    make_eval_loader,
    make_loader,
)
from stcl.data.io import write_image
from stcl.errors import DataError, SettingError
from stcl.labels import get_space
from stcl.types import ClipSpec, VideoClip

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


def test_shares_of_all_processes_are_the_batch_of_one():
    whole = ClipSampler(10, 12, seed=5)  # longer than the data set: shares cross from one epoch to the next
    for world in (1, 2, 3, 4, 12):
        shares = [ClipSampler(10, 12, seed=5, rank=rank, world=world) for rank in range(world)]
        for step in (0, 1, 2, 17):
            parts = [share.batch(step) for share in shares]
            assert {len(part) for part in parts} == {12 // world}
            assert list(itertools.chain(*parts)) == whole.batch(step)


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(SettingError, match=r"batch_size 3 cannot be split over 2 devices: .* a multiple of 2\."):
        ClipSampler(10, 3, seed=0, rank=0, world=2)


@pytest.mark.parametrize("wrong", [{"length": 0}, {"batch_size": 0}, {"seed": -1}, {"start_step": -1}])
def test_wrong_settings(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        ClipSampler(**{"length": 4, "batch_size": 2, "seed": 0, **wrong})


# ---- rare-class sampling ----

PIXELS = np.array([[900, 0, 0], [900, 0, 0], [800, 100, 0], [895, 0, 20], [899, 0, 9], [900, 0, 0]])
"""Of three classes in six clips; the fifth shows too little of the last class."""


def drawn(temperature, count=3000):
    sampler = RareClassSampler(PIXELS, temperature, 4, seed=1)
    return np.bincount(list(itertools.chain(*first(sampler, count // 4))), minlength=6) / count


def test_rare_classes_are_drawn_as_often_as_published():
    sampler = RareClassSampler(PIXELS, 0.5, 4, seed=0)
    share = PIXELS.sum(0) / PIXELS.sum()
    expected = np.exp((1 - share) / 0.5)
    assert_close(sampler.chance, expected / expected.sum())


def test_a_small_temperature_leaves_only_clips_of_the_rarest_class():
    assert drawn(1e-3).tolist() == [0, 0, 0, 1, 0, 0]


def test_with_a_high_temperature_every_class_comes_as_often():
    chance = np.array([1 / 18, 1 / 18, 1 / 18 + 1 / 3, 1 / 18 + 1 / 3, 1 / 18, 1 / 18])
    assert_close(drawn(1e6), chance, 0.03, scale=1)


def test_rare_class_batches_depend_on_seed_and_step_and_are_shared():
    whole = first(RareClassSampler(PIXELS, 0.5, 4, seed=5), 20)
    assert first(RareClassSampler(PIXELS, 0.5, 4, seed=5, start_step=9), 1) == [whole[9]]
    assert first(RareClassSampler(PIXELS, 0.5, 4, seed=6), 20) != whole
    shares = [RareClassSampler(PIXELS, 0.5, 4, seed=5, rank=rank, world=2) for rank in range(2)]
    assert [[*one, *two] for one, two in zip(*(first(share, 20) for share in shares), strict=True)] == whole


def test_rare_class_sampling_needs_a_temperature_and_a_class():
    with pytest.raises(SettingError, match=r"temperature .* above 0"):
        RareClassSampler(PIXELS, 0.0, 4, seed=0)
    with pytest.raises(SettingError, match="no class of at least 16 pixels"):
        RareClassSampler(np.zeros((3, 2), np.int64), 0.1, 4, seed=0)


def test_pixels_of_the_classes_are_those_of_the_labels(clips):
    expected = [np.bincount(clip.labels[0].numpy().ravel(), minlength=256)[: len(SPACE)] for clip in clips]
    pixels = class_pixels(clips)
    assert pixels.shape == (6, len(SPACE)) and pixels.any()
    assert np.array_equal(pixels, expected)
    small = ClipDataset(clips.dataset, clips.spec, SPACE, size=(16, 16))
    assert class_pixels(small).sum() <= 6 * 16 * 16


def test_the_loader_draws_what_the_sampler_says(clips):
    rare = (class_pixels(clips), 0.1)
    loader = make_loader(clips, 4, seed=2, start_step=3, rare=rare)
    expected = [clips[item].names[0] for item in RareClassSampler(*rare, 4, seed=2).batch(3)]
    assert next(iter(loader)).names == expected


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


def test_eval_loader_of_a_share(clips):
    for share in ([1, 2, 5], []):
        batches = list(make_eval_loader(clips, batch_size=2, share=share))
        assert [name for batch in batches for name in batch.names] == [clips[i].names[0] for i in share]


def test_workers_go_on_when_the_run_is_asked_to_stop(clips):
    """The main process finishes its step and then ends them."""
    batches = iter(make_loader(clips, 2, seed=0, workers=1))
    expected = [batch.names for batch in itertools.islice(make_loader(clips, 2, seed=0), 12)]
    names = [next(batches).names]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    names += [next(batches).names for _ in range(11)]
    assert worker.is_alive() and names == expected
    del batches
    assert worker.exitcode == 0  # it ended by itself: else it is ended by force, after five seconds


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_clear_sentence(clips, workers):
    path = clips.refs(0)[0].image
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError) as caught:
        list(make_eval_loader(clips, workers=workers))
    assert str(caught.value).startswith(f"PNG file {path} is cut off")
    assert "Traceback" not in str(caught.value)


def test_the_host_waits_for_a_copy_only_where_it_reads_it():
    clip = VideoClip(Mock(), Mock(), {(0, -1): Mock()}, (0, -1))
    for device, onwards in (("cuda", True), ("cuda:1", True), ("cpu", False)):
        move_data_to_device({"source": clip}, torch.device(device))  # as Lightning does with a batch
        for tensor in (clip.frames, clip.labels, clip.flows[0, -1]):
            tensor.to.assert_called_with(torch.device(device), non_blocking=onwards)


def test_sizes_of_one_batch_must_agree(clips):
    for ref in clips.dataset.index(with_labels=False)[:4]:
        write_image(ref.image, np.zeros((64, 96, 3), np.uint8))
    unlabelled = ClipDataset(clips.dataset, ClipSpec((0, -1)), SPACE)
    with pytest.raises(DataError, match=r"96x64.* is 48x32. Give a size"):
        list(make_eval_loader(unlabelled, batch_size=6))
    resized = ClipDataset(clips.dataset, ClipSpec((0, -1)), SPACE, size=(16, 16))
    assert next(iter(make_eval_loader(resized, batch_size=6))).frames.shape == (6, 2, 3, 16, 16)


def test_a_program_that_fails_does_not_wait_for_its_workers():
    code = (
        "import sys; from torch.utils.data import DataLoader; from stcl.data.loading import start_worker\n"
        "sys.kept = iter(DataLoader([1, 2, 3], num_workers=1, worker_init_fn=start_worker, persistent_workers=True))\n"
        "next(sys.kept); sys.exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 2
