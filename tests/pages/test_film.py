"""Films are what browsers play, whole or not there, and can be written in parts."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stcl.errors import DataError, SettingError
from stcl.pages import film as films
from stcl.pages.film import VideoWriter, join_films


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
    monkeypatch.setattr(films, "ENCODERS", ("no_such_encoder",))
    with pytest.raises(DataError, match=r"no H\.264 encoder"), VideoWriter(tmp_path / "film.mp4") as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))


def test_the_next_encoder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "ENCODERS", ("no_such_encoder", "libopenh264", "h264"))
    with VideoWriter(tmp_path / "film.mp4") as writer:
        for _ in range(3):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    assert len(decode(tmp_path / "film.mp4")[0]) == 3


@pytest.mark.parametrize("sizes", [(5,), (3, 2), (1, 3, 1)])
def test_joined_parts_are_the_film(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """Frames and times as those of the parts; ticks need not be even."""
    base, ticks = Fraction(1, 600), [0, 20, 41, 60, 100]
    frames = [np.full((32, 48, 3), 40 * number, np.uint8) for number in range(5)]
    parts, first = [], 0
    for number, size in enumerate(sizes):
        path = tmp_path / f"part_{number}.mp4"
        with VideoWriter(path, fps=30, time_base_s=base, joinable=True) as writer:
            for index in range(first, first + size):
                writer.write(frames[index], ticks[index] - ticks[first])
        parts.append((path, ticks[first] * base))
        first += size
    join_films(tmp_path / "film.mp4", parts)
    with av.open(str(tmp_path / "film.mp4")) as container:
        found = [(frame.pts * frame.time_base, frame) for frame in container.decode(video=0)]
    assert [time for time, _ in found] == [tick * base for tick in ticks]
    for (_, frame), expected in zip(found, frames, strict=True):
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - expected).max() < 4
    content = (tmp_path / "film.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("seconds", [86_400, 100_000, 1_000_000])
def test_a_frame_a_day(tmp_path: Path, seconds: int) -> None:
    """In ticks of frames and of milliseconds, in one go and joined from parts."""
    for base in (None, Fraction(1, 1000)):
        step, parts = round(seconds / (base or seconds)), []
        for number in range(2):
            path = tmp_path / f"part_{number}.mp4"
            with VideoWriter(path, fps=1 / seconds, time_base_s=base, joinable=True) as writer:
                for ticks in (0, step):
                    writer.write(np.full((32, 48, 3), 100, np.uint8), ticks)
            parts.append((path, Fraction(2 * number * seconds)))
        join_films(tmp_path / "film.mp4", parts)
        with av.open(str(tmp_path / "film.mp4")) as container:
            times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
        assert times == [0, seconds, 2 * seconds, 3 * seconds]


def test_a_frame_that_lasts_longer_than_the_format_can_say(tmp_path: Path) -> None:
    """Of times as fine as 1/90000 second, seven hours are too many, also between parts."""
    base, frame = Fraction(1, 90_000), np.zeros((32, 32, 3), np.uint8)

    def gap() -> None:
        with VideoWriter(tmp_path / "film.mp4", fps=30, time_base_s=base) as writer:
            writer.write(frame, 0)
            writer.write(frame, 7 * 3600 * 90_000)

    with pytest.raises(DataError, match=r"25200 seconds from the one before, .* it can be 23861\. Do without the film"):
        gap()
    for name in "ab":
        with VideoWriter(tmp_path / f"{name}.mp4", fps=30, time_base_s=base, joinable=True) as writer:
            writer.write(frame, 0)
    with pytest.raises(DataError, match="25200 seconds from the one before"):
        join_films(tmp_path / "film.mp4", [(tmp_path / "a.mp4", Fraction(0)), (tmp_path / "b.mp4", Fraction(7 * 3600))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (29.97, Fraction(2997, 100)),
        (30_000 / 1001, Fraction(30_000, 1001)),
        (25, Fraction(25)),
        (0.5, Fraction(1, 2)),
        (1e-5, Fraction(1, 100_000)),
        (1 / 86_400, Fraction(1, 86_400)),
        (1e300, Fraction(2**31 - 1)),
        (1e-300, Fraction(1, 2**31 - 1)),
    ],
)
def test_rates(fps: float, rate: Fraction) -> None:
    assert films.frame_rate(fps) == rate


def test_parts_of_other_sizes_are_not_joined(tmp_path: Path) -> None:
    for width in (32, 64):
        with VideoWriter(tmp_path / f"{width}.mp4", joinable=True) as writer:
            writer.write(np.zeros((32, width, 3), np.uint8))
    with pytest.raises(DataError, match="encoded in another way"):
        join_films(tmp_path / "film.mp4", [(tmp_path / "32.mp4", Fraction(0)), (tmp_path / "64.mp4", Fraction(1))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["32.mp4", "64.mp4"]
