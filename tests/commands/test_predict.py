"""Prediction frame by frame: equality with pairs of frames, cuts, gaps, sizes, lazy reading."""

import threading
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import stcl
from closeness import NETWORK, assert_close
from stcl.commands.predict.frames import PredictOptions, is_cut, predict_frames
from stcl.data.io import resize_image, write_image
from stcl.data.video import open_source
from stcl.errors import DataError, SettingError
from stcl.flow import get_flow
from stcl.models import VideoSegmenter, build_segmenter
from stcl.ops.losses import upsample
from stcl.types import FramePair, FrameRef


@pytest.fixture(scope="module")
def network() -> VideoSegmenter:
    torch.manual_seed(0)
    network = build_segmenter(5, backbone_settings={"width": 8}, head_settings={"width": 16}).eval()
    torch.nn.init.normal_(network.fusion.conv.weight)  # the previous frame matters
    return network


@pytest.fixture
def folder(tmp_path, moving_frames) -> Path:
    """Six frames of one street, then two of another one."""
    for number, frame in enumerate([*moving_frames(6, (48, 64), 0), *moving_frames(2, (48, 64), 1)]):
        write_image(tmp_path / "clip" / f"{number:03d}.png", frame)
    return tmp_path / "clip"


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def results_of(network, folder, first=0, **options) -> list:
    return list(predict_frames(open_source(folder), network, PredictOptions(**options), first))


def test_frames_equal_pairs_of_neighbours(network, folder) -> None:
    results = results_of(network, folder, cut=100.0)
    flow = get_flow("dis", preset="fast")
    assert len(results) == 8 and [result.restarted for result in results] == [True] + [False] * 7
    for before, result in pairwise(results):
        reference = FrameRef("", 0, Path("x"))
        vectors = torch.from_numpy(flow(reference, reference, result.frame, before.frame))[None]
        scores = network(FramePair(as_tensor(result.frame), as_tensor(before.frame), vectors)).logits
        chances = upsample(scores, (48, 64)).softmax(1)[0].detach().numpy()
        assert_close(result.confidence, chances.max(0), NETWORK)
        assert (result.labels == chances.argmax(0)).mean() > 0.999
        assert_close(result.shares, np.bincount(result.labels.ravel(), minlength=5) / 3072)


def test_a_cut_starts_anew(network, folder) -> None:
    results = results_of(network, folder)
    assert [result.index for result in results if result.restarted] == [0, 6]
    single = results_of(network, folder, flow="none")
    assert all(result.restarted for result in single)
    assert np.array_equal(results[6].labels, single[6].labels)
    assert not np.array_equal(results[5].labels, single[5].labels)


def test_a_gap_starts_anew(network, folder) -> None:
    (folder / "003.png").unlink()
    assert [result.name for result in results_of(network, folder) if result.restarted] == ["000", "004", "006"]


@pytest.mark.parametrize("step", [4, 12, 24])
def test_fast_motion_is_no_cut(step) -> None:
    """A wide picture of coarse and fine detail slides by up to 15 % of the frame's width in a frame."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (6, 16, 3), np.uint8)
    wide = resize_image(coarse, (400, 120)).astype(np.int16) + generator.integers(-20, 20, (120, 400, 3))
    wide = wide.clip(0, 255).astype(np.uint8)
    frame, previous = np.ascontiguousarray(wide[:, step : step + 160]), np.ascontiguousarray(wide[:, :160])
    reference = FrameRef("", 0, Path("x"))
    vectors = get_flow("dis", preset="fast")(reference, reference, frame, previous)
    assert not is_cut(frame, previous, vectors, PredictOptions().cut)
    other = np.ascontiguousarray(wide[::-1, -160:])
    vectors = get_flow("dis", preset="fast")(reference, reference, frame, other)
    assert is_cut(frame, other, vectors, PredictOptions().cut)


@pytest.mark.parametrize("first", [1, 3, 6, 7])
def test_starting_late_changes_nothing(network, folder, first) -> None:
    whole, late = results_of(network, folder), results_of(network, folder, first)
    assert [result.index for result in late] == [*range(first, 8)]
    for result, expected in zip(late, whole[first:], strict=True):
        assert np.array_equal(result.labels, expected.labels) and np.array_equal(result.confidence, expected.confidence)


def test_labels_have_the_frames_size_whatever_the_network_sees(network, folder) -> None:
    sizes = set()
    hook = network.backbone.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[-2:])))
    results = results_of(network, folder, size=(96, 32), confidence=False)
    hook.remove()
    assert sizes == {(32, 96)}
    assert results[0].labels.shape == (48, 64) and results[0].confidence is None


def test_odd_frames_are_brought_onto_the_grid(network, tmp_path, moving_frames) -> None:
    for number, frame in enumerate(moving_frames(2, (37, 51))):
        write_image(tmp_path / f"{number}.png", frame)
    assert results_of(network, tmp_path)[1].labels.shape == (37, 51)


def test_reading_is_lazy_and_ends_when_it_is_left(network, tmp_path, moving_frames) -> None:
    for number, frame in enumerate(moving_frames(60)):
        write_image(tmp_path / f"{number}.png", frame)
    (tmp_path / "59.png").write_bytes(b"damaged")
    before = threading.active_count()
    results = predict_frames(open_source(tmp_path), network)
    assert next(results).index == 0
    results.close()
    assert threading.active_count() == before
    with pytest.raises(DataError, match=r"59\.png"):
        list(predict_frames(open_source(tmp_path), network))


def test_from_python(network, folder) -> None:
    results = list(stcl.predict(folder, network, flip=True, scales=(1.0, 1.5)))
    assert len(results) == 8 and results[3].time_s == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (100, 64)}, r"\[100, 64\], .* divisible by 8. The nearest such size is \[(96|104), 64\]"),
        ({"size": (16, 64)}, "at least 32"),
        ({"flow": "raft"}, "Unknown flow of a prediction 'raft'"),
        ({"cut": 0.0}, "above 0"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"device": "cuda:99"}, "no device 'cuda:99'"),
        ({"scales": (0.0,)}, "positive numbers"),
        ({"tile": (100, 64)}, "found 100x64"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(SettingError, match=message):
        PredictOptions(**options)


def test_frames_of_a_pixel_are_refused(network, tmp_path) -> None:
    write_image(tmp_path / "0.png", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(DataError, match=r"are 1x1 px; at least 16 px each way"):
        list(predict_frames(open_source(tmp_path, Fraction(5)), network))
