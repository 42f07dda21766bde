"""Random access to videos: every frame, in any order, is what decoding from the start gives."""

import gc
import pickle
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from torch.utils.data import DataLoader

from stcl.data import video_index
from stcl.data.containers import upright
from stcl.data.video import open_source
from stcl.data.video_index import VideoPool, VideoReader, index_video
from stcl.errors import DataError

FRAMES = 40

X264 = {"g": "12", "bf": "3", "sc_threshold": "0"}
KINDS = {
    "b_frames.mp4": ("libx264", X264),
    "open_gops.mkv": ("libx264", {**X264, "x264-params": "open-gop=1:b-adapt=0"}),
    "open_gops.mp4": ("libx264", {**X264, "x264-params": "open-gop=1:b-adapt=0"}),
    "open_gops.ts": ("libx264", {**X264, "x264-params": "open-gop=1:b-adapt=0"}),
    "intra_refresh.mkv": ("libx264", {"g": "12", "x264-params": "intra-refresh=1:bframes=0:scenecut=0"}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=3:open-gop=1"}),
    "mpeg4.mp4": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
    "vp8.webm": ("libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "deadline": "realtime"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "lag-in-frames": "8", "deadline": "realtime", "cpu-used": "8"}),
    "mjpeg.avi": ("mjpeg", {}),
}


@pytest.fixture(scope="session")
def encoded(tmp_path_factory, moving_frames) -> Callable[..., Path]:
    """``encoded(kind, ...)``: a video of 40 frames, which noise makes hard to predict from the one before."""

    def write(kind: str, ticks: list[int] | None = None, rotation: int = 0, skip: int = 0, count: int = FRAMES) -> Path:
        codec, options = KINDS[kind]
        path = tmp_path_factory.mktemp("video") / kind
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(25), options=options)
            stream.height, stream.width = 48, 64
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            generator, packets = np.random.default_rng(0), []
            for number, rgb in enumerate(moving_frames(count)):
                noisy = (rgb // 2 + generator.integers(0, 100, rgb.shape)).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(noisy, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = ticks[number] if ticks else number, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
            for packet in packets[skip:]:
                container.mux(packet)
        return path

    return write


def sequential(path: Path) -> list[np.ndarray]:
    """All pictures, decoded from the start."""
    with av.open(str(path)) as container:
        return [upright(picture) for picture in container.decode(video=0)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_equals_sequential_decoding(encoded, kind) -> None:
    path = encoded(kind)
    expected = sequential(path)
    assert len(expected) == FRAMES
    reader = VideoReader(path)
    assert len(reader.index.times) == FRAMES and reader.index.follows.tolist() == [False] + [True] * (FRAMES - 1)
    order = np.random.default_rng(0).permutation(FRAMES)
    for number in [*order, *range(FRAMES), *reversed(range(FRAMES))]:
        assert np.array_equal(reader.read(int(number)), expected[number]), number


@pytest.mark.parametrize("kind", ["b_frames.mp4", "open_gops.mkv", "hevc.mp4", "mpeg4.mp4"])
def test_frames_before_the_first_key_frame_are_left_out(encoded, kind) -> None:
    path = encoded(kind, skip=5)  # the first key frame is the 13th
    reader, expected = VideoReader(path), sequential(path)
    count = len(reader.index.times)
    assert count == FRAMES - 12 and reader.index.times[0] == reader.index.keys[0]
    for number in (0, count - 1, 11, 12, 13):
        assert np.array_equal(reader.read(number), expected[number - count])  # some decoders show grey ones before


def test_a_rotated_video_with_frames_at_any_time(encoded) -> None:
    ticks = [3 * number + number % 2 for number in range(20)] + [100 + number for number in range(20)]
    path = encoded("b_frames.mp4", ticks=ticks, rotation=90)
    reader, expected = VideoReader(path), sequential(path)
    assert expected[0].shape == (64, 48, 3)
    assert all(np.array_equal(reader.read(number), expected[number]) for number in (39, 0, 20, 19, 21))
    assert [*np.flatnonzero(~reader.index.follows)] == [0, 20]
    streamed = [frame.follows for frame in open_source(path).frames()]
    assert reader.index.follows.tolist() == streamed


def test_frames_that_only_help_to_decode_others(encoded, tmp_path) -> None:
    path = tmp_path / "hidden.webm"
    with av.open(str(encoded("vp8.webm"))) as whole, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.size:
                data = bytearray(bytes(packet))
                data[0] &= 0xFF if packet.pts != 200 else ~0x10  # the bit show_frame of the sixth
                copy = av.Packet(bytes(data))
                copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, stream
                copy.is_keyframe = packet.is_keyframe
                container.mux(copy)
    reader, expected = VideoReader(path), sequential(path)
    assert len(expected) == len(reader.index.times) == FRAMES - 1
    assert all(np.array_equal(reader.read(number), expected[number]) for number in (38, 4, 5, 6))


def test_a_trimmed_video_has_what_players_show(encoded, tmp_path) -> None:
    content = bytearray(encoded("b_frames.mp4").read_bytes())
    place = content.index(b"elst") + 12  # duration in milliseconds, first time in ticks of 1/12800 s
    content[place : place + 8] = (600).to_bytes(4) + (1024 + 18 * 512).to_bytes(4)
    path = tmp_path / "trimmed.mp4"
    path.write_bytes(content)
    reader, expected = VideoReader(path), sequential(path)
    assert 14 < len(expected) == len(reader.index.times) < 17
    assert len([*open_source(path).frames()]) == len(expected)
    for number in (len(expected) - 1, 0, 5, 6):  # frame 18 builds on the key frame 12, which is not shown
        assert np.array_equal(reader.read(number), expected[number])


# ---- how much is decoded ----


def test_nothing_is_decoded_twice_nor_from_the_start(encoded) -> None:
    reader = VideoReader(encoded("b_frames.mp4"))  # a key frame every 12
    reader.read(30)
    from_key = reader.decoded
    assert from_key <= 30 - 24 + 1
    for number in (29, 28, 30):  # the clip, whose frames are kept
        reader.read(number)
    assert reader.decoded == from_key
    reader.read(31)  # and its neighbour
    assert reader.decoded == from_key + 1
    reader.read(35)
    assert reader.decoded == from_key + 5
    for number in range(FRAMES):
        reader.read(number)
    assert reader.decoded <= from_key + 5 + FRAMES


def test_few_files_are_open_and_few_pictures_kept(encoded, monkeypatch) -> None:
    monkeypatch.setattr(video_index, "OPEN_FILES", 2)
    paths = [encoded("mjpeg.avi") for _ in range(4)]
    pool = VideoPool()
    for number in (3, 20, 39):
        for path in paths:
            pool.read(path, number)
    readers = [pool._readers[path] for path in paths]
    assert [reader._container is not None for reader in readers] == [False, False, True, True]
    for number in range(FRAMES):
        pool.read(paths[3], number)
    assert len(readers[3]._kept) == video_index.KEPT_PICTURES


class Numbered:
    """A data set of the frames of six equal files."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.paths = [Path(shutil.copy(path, folder / f"{number}.mp4")) for number in range(6)]
        self.pool = VideoPool()

    def __len__(self) -> int:
        return FRAMES

    def __getitem__(self, number: int) -> np.ndarray:
        return self.pool.read(self.paths[number % 6], number)


def test_forked_workers_open_files_of_their_own(encoded, tmp_path) -> None:
    path = encoded("b_frames.mp4")
    expected, frames = sequential(path), Numbered(path, tmp_path)
    for number in range(12):  # open files, which a fork must neither share nor close
        frames[number]
    gc.collect()  # decoders of other tests, for whose threads a worker would wait if it freed them
    loader = DataLoader(frames, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=300)
    for number, picture in enumerate(loader):
        assert np.array_equal(picture, expected[number])
        if number % 5 == 0:
            assert np.array_equal(frames[39 - number], expected[39 - number])


def test_a_pickled_copy_opens_files_of_its_own(encoded, tmp_path) -> None:
    frames = Numbered(encoded("b_frames.mp4"), tmp_path)
    frames[18]
    copy = pickle.loads(pickle.dumps(frames))  # as a spawned worker gets it
    reader = copy.pool._readers[copy.paths[0]]
    assert reader._container is None and reader.decoded == 0
    assert np.array_equal(copy[18], frames[18]) and reader._container is not None


# ---- wrong input ----


@pytest.mark.parametrize("kind", ["b_frames.mp4", "b_frames.mkv", "mpeg4.avi", "mjpeg.avi"])
def test_a_broken_tail_is_refused_with_the_way_to_cut_it(encoded, tmp_path, moving_frames, write_video, kind) -> None:
    options = {"movflags": "+faststart"} if kind.endswith("mp4") else {}
    codec = "libx264" if kind.startswith("b_") else kind.split(".")[0]
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / kind, moving_frames(60), codec, pixels, options=options)
    assert len(index_video(path).times) == 60
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=r"is damaged: .* cut off the broken end: ffmpeg -i .* -t [01]\.\d\d -c copy "):
        index_video(path)


def test_damage_in_the_middle_is_named_when_it_is_met(encoded) -> None:
    path = encoded("mjpeg.avi")
    content = bytearray(path.read_bytes())
    start = [place for place in range(len(content)) if content[place : place + 3] == b"\xff\xd8\xff"][20]
    content[start : start + 900] = bytes(900)
    path.write_bytes(content)
    reader = VideoReader(path)
    reader.read(19)
    with pytest.raises(DataError, match=r"mjpeg\.avi: frame 20, 0\.80 seconds from the start, cannot be decoded"):
        reader.read(20)
    assert reader.read(21).shape == (48, 64, 3)


def test_a_file_without_a_key_frame(encoded) -> None:
    with pytest.raises(DataError, match=r"holds no frame that can be decoded: 9 frames, 0 key frames"):
        index_video(encoded("open_gops.mkv", skip=1, count=10))


def test_a_stream_without_times(encoded, tmp_path) -> None:
    path = encoded("open_gops.mp4", count=10)
    with av.open(str(path)) as whole, av.open(str(tmp_path / "raw.h264"), "w") as raw:
        stream = raw.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.size:
                packet.stream = stream
                raw.mux(packet)
    with pytest.raises(DataError, match=r"does not say when its frames are shown .* ffmpeg -fflags .genpts -i"):
        index_video(tmp_path / "raw.h264")


def test_a_number_that_the_file_does_not_have(encoded) -> None:
    with pytest.raises(DataError, match=r"has 40 frames; there is no frame 40"):
        VideoReader(encoded("mjpeg.avi")).read(FRAMES)
