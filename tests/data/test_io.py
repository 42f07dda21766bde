import multiprocessing
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from stcl.data.io import read_image, read_label, resize_image, resize_label, write_image, write_label
from stcl.errors import DataError
from stcl.files.writing import write_atomic


@pytest.fixture
def smooth():
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(noise, (120, 90), interpolation=cv2.INTER_CUBIC)


def test_png_round_trip_keeps_channel_order(tmp_path, smooth):
    write_image(tmp_path / "a.png", smooth)
    assert np.array_equal(read_image(tmp_path / "a.png"), smooth)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), smooth)


def test_jpeg_is_close_and_rgb(tmp_path, smooth):
    write_image(tmp_path / "a.jpg", smooth)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.995])
def test_cut_off_file_is_named(tmp_path, smooth, suffix, keep):
    path = tmp_path / f"frame{suffix}"
    write_image(path, smooth)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=rf"frame\{suffix} is cut off after \d+ bytes"):
        read_image(path)


def test_jpeg_with_an_embedded_preview_is_still_seen_as_cut_off(tmp_path, smooth):
    small = cv2.imencode(".jpg", smooth[:16, :16])[1].tobytes()
    content = cv2.imencode(".jpg", smooth)[1].tobytes()
    comment = b"\xff\xfe" + struct.pack(">H", len(small) + 2) + small
    (tmp_path / "whole.jpg").write_bytes(content[:2] + comment + content[2:])
    assert read_image(tmp_path / "whole.jpg").shape == smooth.shape
    (tmp_path / "cut.jpg").write_bytes(content[:2] + comment + content[2:-200])
    with pytest.raises(DataError, match="cut off"):
        read_image(tmp_path / "cut.jpg")


def test_flipped_byte_in_png_is_seen(tmp_path, smooth):
    path = tmp_path / "frame.png"
    write_image(path, smooth)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"frame\.png is damaged near byte \d+"):
        read_image(path)


def test_png_with_right_checksums_and_too_few_rows(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(25 * 3))
    path = tmp_path / "short.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"short\.png"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is neither a PNG nor a JPEG picture"),
        (None, "Cannot read .*No such file"),
    ],
)
def test_what_is_no_image(tmp_path, content, message):
    path = tmp_path / "frame.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_sixteen_bits_survive_in_the_right_channel(tmp_path):
    ids = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2500
    write_label(tmp_path / "l.png", np.stack((ids, ids + 1, ids + 2), -1))
    for channel in range(3):
        assert np.array_equal(read_label(tmp_path / "l.png", channel), ids + channel)
    write_label(tmp_path / "grey.png", ids)
    assert np.array_equal(read_label(tmp_path / "grey.png"), ids)
    assert read_label(tmp_path / "grey.png").dtype == np.uint16


def test_palette_png_gives_indices(tmp_path):
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    image = Image.fromarray(ids, "P")
    image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(tmp_path / "p.png")
    assert np.array_equal(read_label(tmp_path / "p.png"), ids)


def test_coloured_label_is_refused(tmp_path, smooth):
    write_image(tmp_path / "c.png", smooth)
    with pytest.raises(DataError, match=r"c\.png has 3 channels; expected one channel"):
        read_label(tmp_path / "c.png")


def test_shrinking_averages():
    board = np.indices((8, 8)).sum(0) % 2 * 255
    assert (
        np.abs(resize_image(np.repeat(board[..., None], 3, -1).astype(np.uint8), (4, 4)).astype(int) - 127.5).max() < 1
    )


@pytest.mark.parametrize("size", [(5, 4), (3, 7), (20, 21), (9, 7)])
def test_labels_take_the_nearest_centre(size):
    label = np.arange(63, dtype=np.uint8).reshape(7, 9)
    x, y = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, (9, 7), strict=True))
    assert np.array_equal(resize_label(label, size), label[y][:, x])


def test_resized_labels_stay_on_their_pixels():
    """A shape drawn into image and label stays in one place: centres of mass agree."""
    label = np.zeros((40, 60), np.uint8)
    label[9:24, 12:33] = 1
    image = np.repeat(label[..., None] * 255, 3, -1)
    small = resize_image(image, (20, 8))[..., 0].astype(float)
    ids = resize_label(label, (20, 8)).astype(float)
    for axis, width in ((0, 8), (1, 20)):
        position = np.arange(width)
        centres = [(m.sum(1 - axis) * position).sum() / m.sum() for m in (small, ids)]
        assert abs(centres[0] - centres[1]) < 0.26


def test_writing_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.bin"
    write_atomic(path, b"one")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def _write_many(path):
    for i in range(50):
        write_atomic(path, bytes([i]) * 5000)


def test_many_writers_one_file(tmp_path):
    path = tmp_path / "shared.bin"
    path.write_bytes(b"\0" * 5000)
    workers = [multiprocessing.Process(target=_write_many, args=(path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        content = path.read_bytes()
        assert len(content) == 5000
        assert len(set(content)) == 1
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
