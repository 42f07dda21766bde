"""Videos from files, folders and the net: frames in order, with their times, upright, and what wrong input gets."""

import socket
import struct
import threading
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from stcl.data.frames import follows
from stcl.data.io import write_image
from stcl.data.video import name_of, open_source
from stcl.data.video_index import index_video
from stcl.errors import DataError, SettingError
from stcl.pages.film import VideoWriter


def served(source, first: int = 0) -> tuple[list, str]:
    """All frames, and the message of the error that ended them."""
    frames = []
    try:
        for frame in source.frames(first):
            frames.append(frame)
    except DataError as error:
        return frames, str(error)
    return frames, ""


def test_a_file_gives_its_frames_and_times(tmp_path, moving_frames, write_video) -> None:
    frames = moving_frames(5)
    path = write_video(tmp_path / "a.mkv", frames, "ffv1", "bgr0", Fraction(30000, 1001))
    source = open_source(path)
    found, problem = served(source)
    assert problem == "" and source.size == (48, 64) and source.fps == Fraction(30000, 1001) and not source.live
    assert [frame.index for frame in found] == [*range(5)] and found[3].name == "000003"
    assert [frame.follows for frame in found] == [False, True, True, True, True]
    times = [float(frame.ticks * source.time_base_s) for frame in found]
    assert times == pytest.approx([number * 1001 / 30000 for number in range(5)], abs=1e-3)
    for frame, expected in zip(found, frames, strict=True):
        assert np.array_equal(frame.image, expected)
    again, _ = served(source, first=3)
    assert [frame.index for frame in again] == [3, 4] and again[0].ticks == found[3].ticks and again[0].follows


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "tolerance"),
    [
        ("grey.mkv", "ffv1", "gray", None),
        ("alpha.mov", "png", "rgba", 0),
        ("ten.mp4", "libx265", "yuv420p10le", 20),
        ("web.webm", "libvpx-vp9", "yuv420p", 20),
    ],
)
def test_kinds_of_pixels(tmp_path, moving_frames, write_video, name, codec, pixels, tolerance) -> None:
    frames = moving_frames(3, (64, 64))
    found, problem = served(open_source(write_video(tmp_path / name, frames, codec, pixels)))
    assert problem == "" and len(found) == 3 and found[0].image.shape == (64, 64, 3)
    if tolerance is None:
        assert np.ptp(found[0].image, axis=2).max() == 0
    else:
        assert np.abs(found[0].image.astype(int) - frames[0]).mean() <= tolerance


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_video_that_was_filmed_sideways_is_upright(tmp_path, moving_frames, write_video, rotation) -> None:
    path = write_video(tmp_path / "phone.mp4", moving_frames(2), rotation=rotation)
    picture = next(open_source(path).frames()).image
    expected = cv2.cvtColor(cv2.VideoCapture(str(path)).read()[1], cv2.COLOR_BGR2RGB)  # turns by itself
    assert picture.shape == ((48, 64, 3) if rotation == 180 else (64, 48, 3))
    assert np.abs(picture.astype(int) - expected).mean() < 2


def test_gaps_in_time_are_seen(tmp_path, moving_frames, write_video) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(6), ticks=[0, 1, 2, 12, 13, 15])
    found, problem = served(open_source(path))
    assert problem == "" and [frame.follows for frame in found] == [False, True, True, False, True, True]


@pytest.mark.parametrize("seconds", [60, 86_400, 100_000])
def test_a_frame_a_day_is_neither_damaged_nor_a_gap(tmp_path, moving_frames, write_video, seconds) -> None:
    path = write_video(tmp_path / "a.mkv", moving_frames(4), "ffv1", "bgr0", Fraction(1, seconds))
    source = open_source(path)
    frames, problem = served(source)
    assert [frame.ticks * source.time_base_s for frame in frames] == [number * seconds for number in range(4)]
    assert problem == "" and [frame.follows for frame in frames] == [False, True, True, True]


def test_portrait_and_odd_sizes(tmp_path, moving_frames, write_video) -> None:
    path = write_video(tmp_path / "odd.mkv", moving_frames(2, (59, 33)), "ffv1", "bgr0")
    assert open_source(path).size == (59, 33)


# ---- what is damaged, and what is no video ----


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_broken_tail_ends_with_what_was_good(tmp_path, moving_frames, write_video, name) -> None:
    path = write_video(tmp_path / name, moving_frames(60), options={"movflags": "+faststart"})
    content = path.read_bytes()
    assert served(open_source(path))[1] == ""
    path.write_bytes(content[: len(content) * 2 // 3])
    found, problem = served(open_source(path))
    assert 5 < len(found) < 60
    assert f"{path} is damaged: it says that it " in problem and "but ends after" in problem


def no_video(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    if name == "audio.mkv":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    elif name == "zero.mkv":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width = stream.height = 32
            stream.pix_fmt = "bgr0"
            container.start_encoding()
    elif name != "absent.mp4":
        path.write_bytes(b"" if name == "empty.mp4" else b"some text, no video")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("audio.mkv", "has no video track, only audio"),
        ("zero.mkv", r"is no video that can be read|holds no frame"),
        ("empty.mp4", "is no video that can be read"),
        ("text.mp4", "is no video that can be read: invalid data"),
        ("absent.mp4", "There is no video or folder"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, name, message) -> None:
    with pytest.raises(DataError, match=message):
        open_source(no_video(tmp_path, name))


LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile real.mkv\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nreal.mp4\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", ["list.mp4", "list.mkv", "list.m3u8"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_no_video(tmp_path, moving_frames, write_video, kind, name) -> None:
    write_video(tmp_path / "real.mkv", moving_frames(2), "ffv1", "bgr0")
    write_video(tmp_path / "real.mp4", moving_frames(2))
    path = tmp_path / name
    path.write_text(LISTS[kind])
    for read in (open_source, index_video):
        with pytest.raises(DataError, match=rf"{path} is no video that can be read: "):
            read(path)


def test_a_pattern_of_pictures_is_no_video(tmp_path, moving_frames) -> None:
    for name in ("a1.png", "a2.png", "a%d.png"):
        write_image(tmp_path / name, moving_frames(1)[0])
    assert len(served(open_source(tmp_path / "a1.png"))[0]) == 1
    with pytest.raises(DataError, match="is neither MP4, Matroska, AVI nor another kind of file that holds its frames"):
        open_source(tmp_path / "a%d.png")


@pytest.mark.parametrize("side", [10_000, 65_535])
def test_a_header_that_claims_giant_frames(tmp_path, moving_frames, write_video, side) -> None:
    path = write_video(tmp_path / "a.mov", moving_frames(2), "rawvideo", "rgb24")
    content = path.read_bytes()
    place = content.index(b"raw ", content.index(b"stsd")) + 28
    assert struct.unpack_from(">HH", content, place) == (64, 48)
    path.write_bytes(content[:place] + struct.pack(">HH", side, side) + content[place + 4 :])
    with pytest.raises(DataError, match=rf"{path} holds no frame of at most \d+ pixels that can be decoded"):
        open_source(path)


def test_a_colon_in_a_path_is_no_address(tmp_path, moving_frames, write_video, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("12:30").mkdir()
    with VideoWriter(Path("12:30/http:a.mp4")) as writer:
        writer.write(moving_frames(1)[0])
    for place in ("12:30/http:a.mp4", (tmp_path / "12:30" / "http:a.mp4").as_uri()):
        source = open_source(place)
        assert not source.live and source.name.startswith("http_a") and len(served(source)[0]) == 1


def test_an_absent_camera_is_refused() -> None:
    with pytest.raises(DataError, match="/dev/video63 cannot be opened: no such file"):
        open_source("camera:63")


# ---- the net ----


def test_a_video_from_the_net_is_live(tmp_path, moving_frames, write_video, address) -> None:
    write_video(tmp_path / "a.mp4", moving_frames(4))
    source = open_source(f"{address}/a.mp4")
    assert source.live and len(served(source)[0]) == 4


def test_addresses_that_do_not_answer(address) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        open_source(f"{address}/nothing.mp4")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DataError, match=r"did not answer within 0\.5 seconds"):
            open_source(f"http://127.0.0.1:{silent.getsockname()[1]}/a.mp4", timeout_s=0.5)


def test_a_stream_that_falls_silent_says_so_without_its_password(tmp_path, moving_frames, write_video) -> None:
    content = write_video(tmp_path / "a.ts", moving_frames(40, (96, 160))).read_bytes()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        connections = []

        def answer() -> None:
            connections.append(server.accept()[0])
            connections[0].sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n" + content)

        threading.Thread(target=answer, daemon=True).start()
        source = open_source(f"http://me:se@cret@127.0.0.1:{server.getsockname()[1]}/a.ts", timeout_s=0.5)
        frames, problem = served(source)
        connections[0].close()
    assert frames and "went away: nothing came for 0.5 seconds after" in problem
    assert problem.startswith("http://127.0.0.1:")


def test_an_address_leads_to_no_file_of_this_machine(tmp_path, moving_frames, write_video, address) -> None:
    path = write_video(tmp_path / "a.ts", moving_frames(4), "mpeg2video")
    entries = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    (tmp_path / "net.m3u8").write_text(entries.format(f"{address}/a.ts"))
    (tmp_path / "disk.m3u8").write_text(entries.format(path.as_uri()))
    (tmp_path / "disk.ffconcat").write_text(f"ffconcat version 1.0\nfile file:{path}\n")
    assert len(served(open_source(f"{address}/net.m3u8"))[0]) == 4
    for name in ("disk.m3u8", "disk.ffconcat"):
        with pytest.raises(DataError, match=r"cannot be opened|holds no frame|no video track"):
            open_source(f"{address}/{name}")
    for place in (f"subfile://,,start,0,end,0,,:{path}", f"concat://{path}", f"cache://{path}"):
        with pytest.raises(DataError, match="cannot be opened"):
            open_source(place)


def test_names_of_folders() -> None:
    assert name_of("some/where/street.mp4") == "street"
    assert name_of("camera:0") == name_of("/dev/video0") == "camera_0"
    assert name_of("rtsp://user:secret@10.0.0.7:554/live/1?x=2") == "10.0.0.7_554_live_1"
    assert name_of("rtsp://...") == name_of("http://u:p?w@h") == "stream"


# ---- folders of frames ----


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a_1", "a_2", "a_3"], [0, 1, 1]),
        (["10", "20", "30", "50"], [0, 1, 1, 0]),
        (["c_000001_000019_leftImg8bit", "c_000001_000020_leftImg8bit", "c_000002_000021_leftImg8bit"], [0, 1, 0]),
        (["0001TP_006690", "0001TP_006720", "0006R0_006750"], [0, 1, 0]),
        (["road", "street"], [0, 1]),
        (["only7"], [0]),
    ],
)
def test_gaps_in_numbering(names, expected) -> None:
    assert follows(names) == [bool(each) for each in expected]


def test_a_folder_is_a_video_in_counting_order(tmp_path, moving_frames) -> None:
    frames = moving_frames(3)
    for number, frame in zip((2, 10, 9), frames, strict=True):
        write_image(tmp_path / "clip" / f"f{number}.png", frame)
    (tmp_path / "clip" / "notes.txt").write_text("no picture")
    source = open_source(tmp_path / "clip", fps=Fraction(5))
    found, problem = served(source)
    assert problem == "" and source.name == "clip" and source.count == 3
    assert [frame.name for frame in found] == ["f2", "f9", "f10"]
    assert [frame.ticks * source.time_base_s for frame in found] == [0, Fraction(1, 5), Fraction(2, 5)]
    assert np.array_equal(found[1].image, frames[2])


def test_wrong_folders(tmp_path, moving_frames) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no frame .* it is empty"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "film.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"there is: film\.mp4"):
        open_source(tmp_path / "empty")
    with pytest.raises(SettingError, match="positive"):
        open_source(tmp_path / "empty", fps=Fraction(0))
    for name, size in (("1.png", (48, 64)), ("2.png", (48, 64)), ("3.png", (48, 32))):
        write_image(tmp_path / "mixed" / name, moving_frames(1, size)[0])
    found, problem = served(open_source(tmp_path / "mixed"))
    assert len(found) == 2 and "3.png is 32x48, but the first one, 1.png, is 64x48" in problem
    write_image(tmp_path / "mixed" / "2.jpg", moving_frames(1)[0])
    with pytest.raises(DataError, match="two pictures named '2'"):
        open_source(tmp_path / "mixed")
