from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stcl.errors import DataError, SettingError
from stcl.labels import get_space
from stcl.report import video
from stcl.report.video import VideoWriter, matching_names, write_panes

CLASSES = get_space("synthia_seq-cityscapes_seq").names


def decode(path: Path) -> tuple[list[np.ndarray], av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], stream


def test_a_film_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "film.mp4"
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 64, 128), (250, 250, 250)]
    with VideoWriter(out, fps=12.5) as writer:
        for colour in colours:
            writer.write(np.full((48, 64, 3), colour, np.uint8))
        assert not out.exists()
    assert writer.frames == 5
    assert [path.name for path in out.parent.iterdir()] == ["film.mp4"]
    frames, stream = decode(out)
    assert len(frames) == 5
    assert (stream.width, stream.height, stream.pix_fmt, stream.codec_context.name) == (64, 48, "yuv420p", "h264")
    assert stream.average_rate == Fraction(25, 2)
    assert stream.duration is not None
    assert stream.time_base is not None
    assert float(stream.duration * stream.time_base) == pytest.approx(5 / 12.5)
    content = out.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # fast start


def test_colours_survive(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "film.mp4") as writer:
        writer.write(np.full((32, 32, 3), (244, 35, 232), np.uint8))
    with av.open(str(tmp_path / "film.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
        seen = frame.to_ndarray(format="yuv420p")[16, 16]
    # luma of BT.709: 16 + 219 / 255 (0.2126 R + 0.7152 G + 0.0722 B)
    assert abs(int(seen) - (16 + 219 / 255 * (0.2126 * 244 + 0.7152 * 35 + 0.0722 * 232))) < 3


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "odd.mp4") as writer:
        writer.write(np.zeros((33, 47, 3), np.uint8))
    frames, _ = decode(tmp_path / "odd.mp4")
    assert frames[0].shape == (34, 48, 3)


def test_an_interrupted_film_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with VideoWriter(tmp_path / "film.mp4") as writer:
            writer.write(np.zeros((32, 32, 3), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_older_film_survives_an_interruption(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"old")

    def changing() -> None:
        with VideoWriter(tmp_path / "film.mp4") as writer:
            writer.write(np.zeros((32, 32, 3), np.uint8))
            writer.write(np.zeros((32, 34, 3), np.uint8))

    with pytest.raises(DataError, match="the first one"):
        changing()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_wrong_use_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="No frame"), VideoWriter(tmp_path / "film.mp4"):
        pass
    with pytest.raises(SettingError, match="fps"):
        VideoWriter(tmp_path / "film.mp4", fps=0)
    with pytest.raises(SettingError, match=r"\(H, W, 3\) uint8"), VideoWriter(tmp_path / "film.mp4") as writer:
        writer.write(np.zeros((32, 32), np.uint8))
    monkeypatch.setattr(video, "ENCODERS", ("no_such_encoder",))
    with pytest.raises(DataError, match=r"no H\.264 encoder"), VideoWriter(tmp_path / "film.mp4") as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))


def test_the_next_encoder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "ENCODERS", ("no_such_encoder", "libopenh264", "h264"))
    with VideoWriter(tmp_path / "film.mp4") as writer:
        for _ in range(3):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    assert len(decode(tmp_path / "film.mp4")[0]) == 3


def test_panes(four_runs: list[Path], tmp_path: Path) -> None:
    samples = four_runs[0] / "samples"
    panes = {
        "Frame": samples / "frame",
        "Truth": samples / "truth",
        "Source only": samples / "prediction",
        "STCL": four_runs[2] / "samples" / "prediction",
    }
    out = write_panes(tmp_path / "panes.mp4", panes, CLASSES, fps=8, scale=2)
    frames, stream = decode(out)
    assert len(frames) == 6
    assert stream.average_rate == 8
    rows, columns = 2 * (96 * 2 + video.TITLE_PX), 2 * 192 * 2 + 3 * video.GAP_PX
    assert stream.width == columns
    assert stream.height > rows + video.LEGEND_LINE_PX  # and the legend
    left, top = video.GAP_PX + 384 + video.GAP_PX, video.TITLE_PX
    sky = frames[0][top + 6, left + 200].astype(int)
    assert np.abs(sky - np.array((70, 130, 180))).max() < 8  # the truth pane shows sky in its colour


def test_default_scale_is_whole_numbered(four_runs: list[Path], tmp_path: Path) -> None:
    out = write_panes(tmp_path / "one.mp4", {"Truth": four_runs[0] / "samples" / "truth"}, CLASSES)
    _, stream = decode(out)
    assert stream.width == 192 * 3 + 2 * video.GAP_PX


def test_panes_must_match(four_runs: list[Path], tmp_path: Path, make_run: Callable[..., Path]) -> None:
    truth = four_runs[0] / "samples" / "truth"
    other = make_run(frames=5) / "samples" / "prediction"
    with pytest.raises(DataError, match=r"\(6 files.*\(5 files.*'street_005.png'"):
        write_panes(tmp_path / "film.mp4", {"Truth": truth, "Other": other}, CLASSES)
    with pytest.raises(DataError, match="no PNG file"):
        write_panes(tmp_path / "film.mp4", {"Truth": tmp_path / "nowhere"}, CLASSES)
    with pytest.raises(SettingError, match="at least one pane"):
        write_panes(tmp_path / "film.mp4", {}, CLASSES)
    Image.new("L", (50, 50)).save(other / "street_001.png")
    with pytest.raises(DataError, match="another aspect ratio"):
        write_panes(tmp_path / "film.mp4", {"Other": other}, CLASSES)
    (other / "street_001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="Cannot read the picture"):
        write_panes(tmp_path / "film.mp4", {"Other": other}, CLASSES)
    assert not (tmp_path / "film.mp4").exists()


def test_names_are_in_counting_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("L", (4, 4)).save(tmp_path / f"frame_{number}.png")
    assert matching_names({"Pane": tmp_path}) == ["frame_1.png", "frame_9.png", "frame_10.png"]
