"""Concrete files that once ended in a traceback, in a wrong sample or in gigabytes of memory."""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stcl.data.datasets.class_map import read_class_map
from stcl.data.io import read_colors, read_image, read_label, write_image
from stcl.data.video import open_source
from stcl.errors import CheckpointError, DataError, SettingError
from stcl.files import plain as plain_data
from stcl.files.pictures import read_flow_png
from stcl.files.plain import load_yaml
from stcl.flow import CachedFlow
from stcl.labels import get_space
from stcl.models import build_segmenter
from stcl.models.weights.files import read_tensor_file
from stcl.models.weights.start import transfer_weights
from stcl.pages.pictures import open_picture
from stcl.pages.results import read_metrics, read_result
from stcl.resources import config_path
from stcl.training.checkpoint import read_checkpoint
from stcl.training.config import load_settings, parse_overrides
from stcl.training.model_folder import read_about
from stcl.training.networks import open_checkpoint
from stcl.types import FrameRef

PNG = b"\x89PNG\r\n\x1a\n"


# ---- pictures ----


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claimed_png(path: Path, width: int, height: int, bits: int = 8, kind: int = 2, data: bytes = b"") -> Path:
    """A PNG whose header says what it likes."""
    palette = chunk(b"PLTE", bytes(768)) if kind == 3 else b""
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    path.write_bytes(PNG + chunk(b"IHDR", head) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("read", [read_image, read_label, partial(read_label, channel=0), read_flow_png])
@pytest.mark.parametrize(("bits", "kind"), [(8, 2), (16, 2), (8, 3), (8, 0)])
@pytest.mark.parametrize("size", [(100_000, 100_000), (20_000, 20_000)])
def test_png_that_claims_to_be_a_giant(tmp_path, read, bits, kind, size):
    path = claimed_png(tmp_path / "a.png", *size, bits, kind, zlib.compress(bytes(1000)))
    with pytest.raises(DataError, match=rf"{path} .*says that it is {size[0]}x{size[1]} px; at most 67108864 pixels"):
        read(path)


@pytest.mark.parametrize("before", [b"", b"\xff", b"garbage\xff\x00", b"\xff\xd0\xff\xff"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_that_claims_to_be_a_giant(tmp_path, progressive, before):
    """Decoders step over what is no marker, and so must whoever looks for the size."""
    path = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path, progressive=progressive)
    content = path.read_bytes()
    frame = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    size = content[frame + 5 : frame + 9]
    path.write_bytes(content[:frame] + before + content[frame:].replace(size, struct.pack(">HH", 30_000, 30_001), 1))
    with pytest.raises(DataError, match=rf"{path} .*says that it is 30001x30000 px"):
        read_image(path)
    path.write_bytes(content[:frame] + before + content[frame:])
    assert read_image(path).shape == (16, 16, 3)


READERS = (read_image, read_label, read_colors, read_flow_png, open_picture)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "DDS", "JPEG2000"])
def test_a_picture_of_another_kind_than_its_name_says(tmp_path, kind):
    """OpenCV and Pillow would decode it, and its size is checked for PNG and JPEG alone."""
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path, kind)
    for read in READERS:
        with pytest.raises(DataError, match=rf"{path} is neither a PNG nor a JPEG picture"):
            read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 64, 0, 54, 40, 24_000, 24_000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(10),
        b"GIF89a" + struct.pack("<HH", 30_000, 30_000) + bytes(9) + b"," + struct.pack("<HHHH", 0, 0, 30_000, 30_000),
        b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(9),
        b"II*\0\x08\0\0\0" + bytes(20),
        b"P6 30000 30000 255\n" + bytes(20),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30000 30000\n",
    ],
    ids=["bmp", "gif", "webp", "tiff", "ppm", "eps"],
)
def test_a_few_bytes_that_claim_gigabytes(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in READERS:
        with pytest.raises(DataError, match=rf"{path} is neither a PNG nor a JPEG picture: it begins with"):
            read(path)


def test_jpeg_that_does_not_say_how_large_it_is(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff\xdb\x00\x04\x00\x00" + bytes(20) + b"\xff\xd9")
    with pytest.raises(DataError, match=rf"{path} is damaged: it does not say how large it is"):
        read_image(path)


@pytest.mark.parametrize("chunks", [(b"IEND",), (b"IDAT", b"IEND")])
def test_png_without_a_header(tmp_path, chunks):
    path = tmp_path / "a.png"
    path.write_bytes(PNG + b"".join(chunk(kind, b"") for kind in chunks))
    for read in (read_image, read_label, read_flow_png):
        with pytest.raises(DataError, match=rf"{path} is damaged: it does not begin with its header"):
            read(path)


@pytest.mark.parametrize("data", [b"", b"no deflated data", zlib.compress(bytes(3))])
def test_palette_png_whose_pixels_cannot_be_unpacked(tmp_path, data):
    with pytest.raises(DataError, match=rf"{tmp_path}/a.png"):
        read_label(claimed_png(tmp_path / "a.png", 8, 8, 8, 3, data))


def test_flow_png_with_a_wrong_checksum(tmp_path):
    path = claimed_png(tmp_path / "a.png", 1, 1, 16, 2, zlib.compress(bytes(7)))
    assert read_flow_png(path)[0].shape == (2, 1, 1)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path} is damaged near byte \d+ \(wrong checksum\)"):
        read_flow_png(path)


# ---- flow cache ----


class Constant:
    signature = "constant"

    def __call__(self, a, b, image_a, image_b):
        return np.ones((2, *image_a.shape[:2]), np.float32)


Reread = Callable[[dict[str, bytes]], np.ndarray]


@pytest.fixture
def reread(tmp_path: Path) -> Reread:
    """``reread({"flow": bytes})``: what the cache makes of a file of which a part was replaced."""

    def run(parts: dict[str, bytes]) -> np.ndarray:
        a, b = FrameRef("a", 0, Path("a_0.png")), FrameRef("b", 0, Path("b_0.png"))
        cache, image = CachedFlow(Constant(), tmp_path), np.zeros((16, 24, 3), np.uint8)
        path = cache.path(a, b)
        cache(a, b, image, image)
        with zipfile.ZipFile(path) as archive:
            whole = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, part in {**whole, **{f"{key}.npy": part for key, part in parts.items()}}.items():
                archive.writestr(name, part)
        return cache(a, b, image, image)

    return run


def npy(kind: str, shape: tuple[int, ...], data: bytes = b"") -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    return header.getvalue() + data


PLENTY = 2 * 16 * 24


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"flow": npy("<f2", (2, 10**9, 10**9))}, "Unable to allocate"),
        ({"flow": npy("<f2", (2, 4000, 4000), bytes(64_000_000))}, "its part 'flow' has 64000128 bytes"),
        ({"version": npy("<f8", (1000, 1000), bytes(8_000_000))}, "its part 'version' has 8000128 bytes"),
        ({"flow": npy("<f8", (2, 16, 24), bytes(8 * PLENTY))}, r"its part 'flow' has|type float64"),
        ({"flow": npy("<i2", (2, 16, 24), bytes(2 * PLENTY))}, "type int16"),
        ({"flow": npy("<f2", (2, 24, 16), bytes(2 * PLENTY))}, r"flow of shape \(2, 24, 16\)"),
        ({"flow": npy("<f2", (2, 8, 24), bytes(2 * PLENTY))}, "goes on after its end"),
        ({"flow": b"\x93NUMPY\x01\x00\x10\x00" + b"[" * 16}, "EOF in multi-line statement"),
        ({"flow": b""}, "EOF: reading magic string"),
        ({"flow": npy("|O", (2, 16, 24))}, "Object arrays cannot be loaded"),
        ({"version": npy("<U1", (), b"1\0\x11\0")}, "invalid maximum character"),
    ],
)
def test_parts_of_a_flow_cache_file(reread, part, message):
    assert np.array_equal(reread({}), np.ones((2, 16, 24), np.float32))
    with pytest.raises(
        DataError, match=rf"a_0_to_b_0.npz .* is damaged or no flow cache file: .*({message}).*Delete it"
    ):
        reread(part)


# ---- videos ----


def test_video_with_a_title_in_another_alphabet(tmp_path, moving_frames, write_video):
    path = write_video(tmp_path / "a.mkv", moving_frames(2))
    content = path.read_bytes()
    assert content.count(b"Lavf") >= 1
    path.write_bytes(content.replace(b"Lavf", b"L\xe4vf"))  # Latin-1
    assert len(list(open_source(path).frames())) == 2


def test_video_whose_length_is_no_number(tmp_path, moving_frames, write_video):
    path = write_video(tmp_path / "a.mkv", moving_frames(5))
    content = path.read_bytes()
    tag = re.search(rb"00:00:00\.(\d+)", content)
    assert tag is not None
    path.write_bytes(content.replace(tag[0], b"00:00:00.2.2" + tag[0][12:]))
    assert len(list(open_source(path).frames())) == 5


def test_video_of_an_unknown_coding(tmp_path, moving_frames, write_video):
    path = write_video(tmp_path / "a.avi", moving_frames(2), "mjpeg", "yuvj420p")
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"QQQQ"))
    with pytest.raises(DataError, match=rf"{path} has a video track, but in a coding that cannot be decoded"):
        open_source(path)


def test_video_that_claims_to_be_a_giant(tmp_path):
    """A few bytes of VP8 may claim 16383x16383 px, each of which would be filled."""
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    size = struct.pack("<HH", 64, 48)
    content = path.read_bytes()
    assert content.count(b"\x9d\x01\x2a" + size) == 1  # VP8's start code
    path.write_bytes(content.replace(b"\x9d\x01\x2a" + size, b"\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)))
    with pytest.raises(DataError, match=rf"{path} holds no frame of at most 67108864 pixels that can be decoded"):
        open_source(path)


# ---- settings ----

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases unfold to more than 100000 values"),
        ("a: &a [*a]", "aliases unfold to more than 100000 values"),
        ("a: " + "[" * 600 + "]" * 600, "nested too deeply"),
        ("a: 2001-99-99", "line 2, column 4: '2001-99-99' cannot be read as timestamp (month"),
        ("a: 0b_", "line 2, column 4: '0b_' cannot be read as int"),
        ("a: !!bool x", "'x' cannot be read as bool"),
        ("a: !!float x", "'x' cannot be read as float"),
        ("a: !!timestamp x", "'x' cannot be read as timestamp"),
        ("a: " + "9" * 5000, "cannot be read as int (Exceeds the limit"),
        ("training: {rare_class_sampling: " + "9" * 400 + "}", "training.rare_class_sampling must be a number or null"),
        (
            "source: {root: ~no_such_user/a}",
            "source.root '~no_such_user/a' is no path (Could not determine home directory.)",
        ),
        ('evaluation: {root: "\\0"}', r"evaluation.root holds a text that has a zero byte"),
        ("base: " + "a" * 5000, "base: there is no file"),
    ],
)
def test_configurations(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text if text.startswith("base") else f"base: twinstreets/source_only\n{text}")
    with pytest.raises(SettingError, match=rf"{path}.*{re.escape(message)}"):
        load_settings(path)


def test_more_values_than_anybody_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_data, "LARGEST_NODES", 100)
    path = tmp_path / "own.yaml"
    path.write_text("a: [" + "x, " * 100 + "]")
    for read in (load_settings, read_class_map):
        with pytest.raises(
            SettingError, match=rf"{path} is not valid YAML: line 1, column \d+: it holds more than 100"
        ):
            read(path)


@pytest.mark.parametrize("config", [BOMB, "[" * 3000, "space: [1, 2", "name: x"])
def test_configurations_in_weights(tmp_path, config):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(2)}, path, {"config": config})
    with pytest.raises(CheckpointError, match=rf"'{path}' has a configuration in its metadata that is not one of"):
        open_checkpoint(path)
    network = build_segmenter(12, "small", "stcl", backbone_settings={"width": 8})
    with pytest.raises(CheckpointError, match=rf"'{path}' does not say which classes it was trained on"):
        transfer_weights(network, path, get_space("synthia_seq-cityscapes_seq").names, {})


def test_aliases_that_stay_small_are_used(tmp_path):
    assert load_yaml("a: &a [1, 2]\nb: *a\nc: {<<: &d {x: 1}, y: *d}") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"x": 1, "y": {"x": 1}},
    }
    assert load_settings(config_path("twinstreets/stcl"), ["--seed", "3"]).seed == 3


def test_override_that_is_no_date():
    with pytest.raises(SettingError, match=r"The value of --seed, '2001-99-99', is not valid YAML: line 1, column 1"):
        parse_overrides(["--seed", "2001-99-99"])


# ---- results and models ----


def test_json_without_end(tmp_path):
    for name in ("results.json", "model.json"):
        (tmp_path / name).write_text('{"schema":' * 50_000)
    with pytest.raises(DataError, match=r"results\.json' is not valid JSON \(it is nested too deeply\)"):
        read_result(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.json is damaged \(it is nested too deeply\)"):
        read_about(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [["road"], "sky"]}, r"Unknown class '\['road'\]'"),
        ({"classes": ["road", "road"]}, "'classes' must be different names, found road, road"),
        ({"reported": [True]}, "'reported' must be different train ids 0..1, found"),
        ({"miou": 10**400}, "stores miou 1000"),
    ],
)
def test_results(tmp_path, change, message):
    protocol = {"name": "p", "classes": ["road", "sky"], "reported": [0, 1]}
    tables = {key: {} for key in ("data", "config", "code", "environment", "seconds")}
    about = {"schema": 1, "name": "r", "title": "R", "method": "stcl", "oracle": False}
    scores = {"confusion": [[1, 0], [0, 1]], "miou": 100, "iou": {"road": 100, "sky": 100}}
    document = {**about, **scores, **tables, "protocol": protocol}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    assert read_result(path).miou == 100
    (protocol if next(iter(change)) in protocol else document).update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"{path}.*{message}"):
        read_result(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"step,loss\n1,\xff\n", "is no table of text"),
        (b"step,loss\n1," + b"1" * 200_000, "is no table of text"),
        (b"loss,step\n1\n", "line 2, column 'loss'"),
    ],
)
def test_metrics(tmp_path, content, message):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"{tmp_path}/metrics.csv' {message}"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\n1,2,3\n2\n")  # one value too many, one too few
    assert [column.tolist() for column in read_metrics(tmp_path)["loss"]] == [[1], [2]]


def test_checkpoint_whose_pickle_ends_early(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"stcl": {}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, b"\x80\x02}q\0(X" if name.endswith("data.pkl") else part)
    with pytest.raises(CheckpointError, match=rf"{path} is no checkpoint of a run \(unpack requires"):
        read_checkpoint(path)


def test_tensors_of_the_old_format_with_a_lost_storage(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    key = re.findall(rb"\d{9,}", content)[-1]
    path.write_bytes(content[::-1].replace(key[::-1], key[::-1][:-1] + b"7", 1)[::-1])  # in the list of storages
    with pytest.raises(CheckpointError, match=rf"'{path}' is not a whole checkpoint"):
        read_tensor_file(path)
    path.write_bytes(content[: content.index(key) - 3])
    with pytest.raises(CheckpointError, match=rf"'{path}' is not a whole checkpoint"):
        read_tensor_file(path)
    write_image(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))  # and what is something else
    with pytest.raises(CheckpointError, match=r"is neither a safetensors file nor one of torch\.save"):
        read_tensor_file(tmp_path / "a.png")
