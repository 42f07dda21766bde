"""Flow that others have computed: which file is taken, what it says, and what is wrong with it."""

import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from closeness import assert_close
from stcl.errors import DataError, SettingError
from stcl.files.pictures import encode_flow
from stcl.files.writing import write_atomic
from stcl.flow.files import FilesFlow, fit, names
from stcl.flow.formats import read_flow
from stcl.ops.augment import flip_clip
from stcl.ops.warp import UNKNOWN_PX, inside, resize_flow, warp
from stcl.types import FrameRef, VideoClip

RANDOM = np.random.default_rng(0)
FLOW = RANDOM.normal(scale=20, size=(2, 12, 16)).astype(np.float32)
IMAGE = np.zeros((12, 16, 3), np.uint8)


def flo(flow: np.ndarray) -> bytes:
    """The format by its description, written with struct alone."""
    _, height, width = flow.shape
    numbers = flow.transpose(1, 2, 0).ravel().tolist()
    return b"PIEH" + struct.pack("<ii", width, height) + struct.pack(f"<{len(numbers)}f", *numbers)


def write(path: Path, flow: np.ndarray = FLOW) -> Path:
    """A flow file of the format that the name promises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".flo":
        path.write_bytes(flo(flow))
    elif path.suffix == ".png":
        write_atomic(path, encode_flow(flow, np.ones(flow.shape[1:], bool)))
    else:
        planes = flow.transpose(1, 2, 0)
        np.save(path, np.rint(planes * 10).astype(np.int16) if "x10" in path.name else planes)
    return path


CITY = Path("data/leftImg8bit_sequence/train/aachen")
PAIRS = {
    "cityscapes": (
        FrameRef("aachen_000000", 19, CITY / "aachen_000000_000019_leftImg8bit.png"),
        FrameRef("aachen_000000", 18, CITY / "aachen_000000_000018_leftImg8bit.png"),
    ),
    "viper": (
        FrameRef("001", 10, Path("data/train/img/001/001_00010.jpg")),
        FrameRef("001", 9, Path("data/train/img/001/001_00009.jpg")),
    ),
    "synthia": (
        FrameRef("DAWN", 5, Path("data/DAWN/rgb/000005.png")),
        FrameRef("DAWN", 4, Path("data/DAWN/rgb/000004.png")),
    ),
    "video": (
        FrameRef("drive", 7, Path("data/drive.mp4"), frame=7),
        FrameRef("drive", 6, Path("data/drive.mp4"), frame=6),
    ),
}


# ---- which file ----


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        ("cityscapes", "aachen_000000_000019_000018_int16_x10.npy"),
        ("viper", "001_00010_00009_int16_x10.npy"),
        ("viper", "001_0001000009_int16_x10.npy"),
        ("synthia", "000005_int16_x10.npy"),
        ("synthia", "000005_to_000004.flo"),
        ("synthia", "DAWN_000005_to_DAWN_000004.png"),
        ("cityscapes", "aachen_000000_000019_to_aachen_000000_000018.npy"),
        ("cityscapes", "aachen_000000_000019_leftImg8bit_to_aachen_000000_000018_leftImg8bit.png"),
        ("video", "drive_000007_to_drive_000006.flo"),
    ],
)
def test_published_and_own_names(tmp_path, pair, name):
    write(tmp_path / name)
    a, b = PAIRS[pair]
    provider = FilesFlow(tmp_path)
    assert provider.source_path(a, b) == tmp_path / name
    assert np.abs(provider(a, b, IMAGE, IMAGE) - FLOW).max() <= (0.05 if "x10" in name else 0.01) + 1e-5
    with pytest.raises(DataError, match="No flow file from frame"):
        provider.source_path(b, a)  # that is another flow


def test_a_name_without_the_other_frame_is_the_way_to_the_one_before(tmp_path):
    write(tmp_path / "000005_int16_x10.npy")
    a, _ = PAIRS["synthia"]
    with pytest.raises(DataError, match="No flow file"):
        FilesFlow(tmp_path).source_path(a, FrameRef("DAWN", 3, Path("data/DAWN/rgb/000003.png")))


@pytest.mark.parametrize("place", [".", "aachen", "train", "train/aachen", "leftImg8bit_sequence/train/aachen"])
def test_the_tree_may_mirror_any_run_of_the_frames_folders(tmp_path, place):
    path = write(tmp_path / place / "aachen_000000_000019_000018_int16_x10.npy")
    assert FilesFlow(tmp_path).source_path(*PAIRS["cityscapes"]) == path


def test_the_deepest_mirror_comes_first(tmp_path):
    for place in ("leftImg8bit_sequence/train/aachen", "train/aachen", "aachen", "."):
        path = write(tmp_path / place / "aachen_000000_000019_000018_int16_x10.npy")
        if place == "leftImg8bit_sequence/train/aachen":
            deepest = path
    assert FilesFlow(tmp_path).source_path(*PAIRS["cityscapes"]) == deepest


def test_a_file_serves_one_sequence(tmp_path):
    write(tmp_path / "000005_int16_x10.npy")
    provider = FilesFlow(tmp_path)
    provider.source_path(*PAIRS["synthia"])
    other = [FrameRef("NIGHT", n, Path(f"data/NIGHT/rgb/00000{n}.png")) for n in (5, 4)]
    with pytest.raises(DataError, match=r"fits two frames, DAWN_000005 and NIGHT_000005.*folder of the sequence"):
        provider.source_path(*other)
    for sequence in ("DAWN", "NIGHT"):
        write(tmp_path / sequence / "000005_int16_x10.npy")
    assert FilesFlow(tmp_path).source_path(*other).parent.name == "NIGHT"


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError) as caught:
        FilesFlow(tmp_path).source_path(*PAIRS["cityscapes"])
    assert f"in {tmp_path / 'train'}, {tmp_path}. Looked for: " in str(caught.value)
    assert all(name in str(caught.value) for name in names(*PAIRS["cityscapes"]))


def test_the_folder_must_be_one(tmp_path):
    with pytest.raises(SettingError, match=r"flow\.folder is not set"):
        FilesFlow()
    with pytest.raises(SettingError, match="nowhere is not a folder"):
        FilesFlow(tmp_path / "nowhere")


# ---- what it says ----


def test_opencv_reads_the_same_flo(tmp_path):
    flow, known = read_flow(write(tmp_path / "a.flo"))
    assert known.all() and np.array_equal(flow, cv2.readOpticalFlow(str(tmp_path / "a.flo")).transpose(2, 0, 1))


def unknown_corner(path: Path) -> Path:
    """A file of the path's format in which the upper left quarter is unknown."""
    flow, known = FLOW.copy(), np.ones((12, 16), bool)
    known[:6, :8] = False
    if path.suffix == ".png":
        write_atomic(path, encode_flow(flow, known))
        return path
    flow[0, :6, :4], flow[1, :6, 4:8] = (1.7e9, -2e9) if path.suffix == ".flo" else (np.nan, np.inf)
    return write(path, flow)


@pytest.mark.parametrize("name", ["a.flo", "a.png", "a.npy"])
def test_what_is_unknown_leaves_the_frame(tmp_path, name):
    flow, known = read_flow(unknown_corner(tmp_path / name))
    assert not known[:6, :8].any() and known.sum() == 12 * 16 - 48
    assert not flow[:, :6, :8].any() and np.isfinite(flow).all()
    whole = torch.from_numpy(fit(flow, known, (12, 16)))[None]
    assert torch.equal(whole[:, 0, :6, :8], torch.full((1, 6, 8), UNKNOWN_PX))
    for size in ((12, 16), (6, 8), (24, 32)):
        fitted = torch.from_numpy(fit(flow, known, size))[None]
        height, width = size
        corner = np.s_[:, : height // 2 - 1, : width // 2 - 1]
        assert not inside(fitted)[corner].any()
        kept = fitted.half().float()  # as a cache keeps it
        assert torch.equal(kept[:, 0][corner], torch.full_like(kept[:, 0][corner], UNKNOWN_PX))
        clip = VideoClip(torch.zeros(1, 1, 3, *size), None, {(0, -1): fitted}, (0,))
        mirrored = flip_clip(clip, torch.ones(1, dtype=torch.bool)).flow(0, -1)
        assert not inside(mirrored).flip(-1)[corner].any()
        assert not inside(resize_flow(fitted, (2, 2)))[0, 0, 0]
        assert torch.isfinite(warp(torch.rand(1, 3, *size), fitted)).all()


def test_known_vectors_are_not_touched_by_unknown_neighbours(tmp_path):
    """Constant flow with holes stays constant at every size."""
    known = RANDOM.random((40, 60)) < 0.7
    flow = np.where(known, np.array([3, -2], np.float32)[:, None, None], np.float32(0))
    fitted = fit(flow, known, (20, 45))
    there = fitted[0] < UNKNOWN_PX
    assert 0.5 < there.mean() < 1
    assert_close(fitted[0, there], np.full(there.sum(), 3 * 45 / 60))
    assert_close(fitted[1, there], np.full(there.sum(), -1.0))


def test_a_complete_flow_is_resized_as_flow_always_is():
    fitted = fit(FLOW, np.ones((12, 16), bool), (9, 40))
    wanted = resize_flow(torch.from_numpy(FLOW)[None], (9, 40), align_corners=False)[0].numpy()
    assert_close(fitted, wanted)


# ---- what is wrong with it ----


@pytest.mark.parametrize("name", ["000005_to_000004.flo", "000005_to_000004.png", "000005_int16_x10.npy"])
def test_a_cut_file(tmp_path, name):
    path = write(tmp_path / name)
    whole = path.read_bytes()
    for length in (0, 3, 11, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=re.escape(str(path))):
            FilesFlow(tmp_path)(*PAIRS["synthia"], IMAGE, IMAGE)


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        ("a.npy", np.zeros((2, 4, 6), np.float32), r"expected an array \(height, width, 2\).*found \(2, 4, 6\)"),
        ("a.npy", np.zeros((4, 6), np.float32), r"found \(4, 6\)"),
        ("a.npy", np.zeros((0, 6, 2), np.float32), r"found \(0, 6, 2\)"),
        ("a.npy", np.zeros((4, 6, 2), np.int16), r"expected floats in pixels, found int16.*_int16_x10.npy"),
        ("a_int16_x10.npy", np.zeros((4, 6, 2), np.float32), "promises int16, found float32"),
        ("a.npy", np.array([{}]), "damaged or no array"),
        ("a.npy", np.full((4, 6, 2), np.nan), "no known vector"),
    ],
)
def test_wrong_arrays(tmp_path, name, stored, message):
    np.save(tmp_path / name, stored)
    with pytest.raises(DataError, match=message):
        read_flow(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PIEX" + bytes(100), "does not begin as a Middlebury"),
        (b"PIEH" + struct.pack("<ii", 4, 6) + bytes(4 * 6 * 8 + 1), "has 205 bytes, but 4x6 pixels need 204"),
        (b"PIEH" + struct.pack("<ii", -4, 6), "says that it is -4x6 pixels"),
        (b"PIEH" + struct.pack("<ii", 10**9, 10**9), "says that it is 1000000000x1000000000 pixels"),
    ],
)
def test_wrong_flo(tmp_path, content, message):
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_flow(tmp_path / "a.flo")


def test_a_picture_instead_of_flow(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    with pytest.raises(DataError, match="expected a 16-bit PNG with 3 channels, found uint8"):
        read_flow(tmp_path / "a.png")
    (tmp_path / "a.flo").mkdir()
    with pytest.raises(DataError, match="Cannot read flow file"):
        read_flow(tmp_path / "a.flo")


def test_flow_of_uncropped_frames_is_refused(tmp_path):
    """SYNTHIA-Seq: what the frames show is 1280x640, not 1280x760."""
    cropping = FilesFlow(tmp_path, uncropped=(1280, 760))
    for size in ((38, 64), (76, 128)):
        write(tmp_path / "000005_int16_x10.npy", np.zeros((2, *size), np.float32))
        with pytest.raises(DataError, match=rf"is {size[1]}x{size[0]}, the shape of whole frames of 1280x760"):
            cropping(*PAIRS["synthia"], IMAGE, IMAGE)
        assert not FilesFlow(tmp_path)(*PAIRS["synthia"], IMAGE, IMAGE).any()
    write(tmp_path / "000005_int16_x10.npy", np.zeros((2, 32, 64), np.float32))
    assert not cropping(*PAIRS["synthia"], IMAGE, IMAGE).any()
