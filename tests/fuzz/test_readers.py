"""Damaged files of every kind: a reader gives a valid sample or one clear error that names the file, whatever it meets.

A new kind of file is one line in ``FORMATS``. The suite runs about two thousand cases, the same ones each time;
``make fuzz`` runs thousands of each kind, others each time.
"""

import io
import json
import os
import re
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from stcl.commands.arena.plan import Arena
from stcl.data import DATASETS
from stcl.data.datasets.class_map import read_class_map
from stcl.data.io import read_image, write_image, write_label, write_palette
from stcl.data.segments import Entry, Segment, write_segment
from stcl.data.video import open_source
from stcl.data.video_index import VideoReader
from stcl.errors import StclError
from stcl.files.pictures import encode_flow, read_flow_png
from stcl.flow import CachedFlow
from stcl.flow.formats import read_flow
from stcl.labels import RAW_IDS, get_space
from stcl.models.weights.files import read_tensor_file
from stcl.pages.pictures import open_picture
from stcl.pages.results import iou_percent, mean_percent, read_metrics, read_result
from stcl.training.checkpoint import read_checkpoint
from stcl.training.config import load_settings
from stcl.training.model_folder import read_about
from stcl.types import FrameRef

LONG = int(os.environ.get("FUZZ_CASES", "0"))
"""How many cases each kind gets; 0: as many as fit into the suite."""

ROOM_MIB, SECONDS = 300, 20
"""What a reader may take for a file of a few kilobytes: memory of all cases together, processor time of one."""

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8).repeat(4, 0).repeat(4, 1)  # (24, 36, 3)
SPACE = get_space("synthia_seq-cityscapes_seq")
FLOW = np.random.default_rng(0).normal(0, 9, (24, 36, 2)).astype(np.float32)
IDS = np.resize(np.arange(12, dtype=np.uint8), PICTURE.shape[:2])


# ---- damage ----


def flip(content: bytes, at: int, count: int, filling: bytes) -> bytes:
    return content[:at] + bytes(byte ^ (filling[0] or 1) for byte in content[at : at + 1]) + content[at + 1 :]


def truncate(content: bytes, at: int, count: int, filling: bytes) -> bytes:
    return content[:at]


def insert(content: bytes, at: int, count: int, filling: bytes) -> bytes:
    return content[:at] + filling + content[at:]


def overwrite(content: bytes, at: int, count: int, filling: bytes) -> bytes:
    return content[:at] + filling[: len(content) - at] + content[at + count :]


def duplicate(content: bytes, at: int, count: int, filling: bytes) -> bytes:
    return content[: at + count] + content[at:]


def remove(content: bytes, at: int, count: int, filling: bytes) -> bytes:
    return content[:at] + content[at + count :]


def swap(content: bytes, at: int, count: int, filling: bytes) -> bytes:
    return content[:at] + content[at + count : at + 2 * count] + content[at : at + count] + content[at + 2 * count :]


def extend(content: bytes, at: int, count: int, filling: bytes) -> bytes:
    return content + content[at : at + count] + filling


KINDS = (flip, truncate, insert, overwrite, duplicate, remove, swap, extend)


def damage(content: bytes, values: tuple[int, int] = (0, 255)) -> st.SearchStrategy[bytes]:
    """``content`` with one to four kinds of damage; new bytes have ``values`` from ... to."""

    def apply(damaged: bytes, step: tuple[Callable[..., bytes], int, int, int]) -> bytes:
        kind, at, count, value = step
        return kind(damaged, min(at, len(damaged)), count, bytes([value]) * count)

    places, counts = st.integers(0, len(content)), st.sampled_from((1, 2, 4, 8, 50))
    steps = st.tuples(st.sampled_from(KINDS), places, counts, st.integers(*values))
    return st.lists(steps, min_size=1, max_size=4).map(lambda chosen: reduce(apply, chosen, content))


def damaged_text(content: bytes) -> st.SearchStrategy[bytes]:
    """Damage that leaves text, so that it is parsed."""
    return damage(content, (32, 126))


def damaged_png(content: bytes) -> st.SearchStrategy[bytes]:
    """Damage that gets past the checksums."""
    return damage(content).map(mend_png)


@st.composite
def damaged_part(draw: st.DrawFn, content: bytes) -> bytes:
    """Damage to a part of a zip archive, which has its right checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(parts)))
    parts[name] = draw(damage(parts[name]))
    with zipfile.ZipFile(changed := io.BytesIO(), "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return changed.getvalue()


ODD_VALUES = (
    *(
        None,
        True,
        0,
        -1,
        2**31,
        10**400,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "a",
        "\0",
        "..",
        "~no_such_user/a",
        "1e3",
    ),
    *([], {}, [1, 2], [[]], {"a": {}}, {"name": "a"}, {"": 0}, "every:0", [1e400, -5], [None] * 12, 2**62),
)


@st.composite
def damaged_structure(draw: st.DrawFn, content: bytes) -> bytes:
    """A YAML or JSON file in which values are odd, elsewhere or missing."""
    document = yaml.safe_load(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_in(document))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(("replace", "replace", "remove", "rename", "copy")))
        value = holder.pop(key) if change != "copy" else deepcopy(holder[key])
        if change == "replace":
            value = deepcopy(draw(st.sampled_from(ODD_VALUES)))
        if change != "remove" and isinstance(holder, dict):
            holder[draw(st.sampled_from(("name", "split", "x", ""))) if change in ("rename", "copy") else key] = value
        elif change != "remove":
            holder.insert(key, value)
    return json.dumps(document).encode()  # which is YAML, too


def places_in(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every key of nested tables and lists."""
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield document, key
        if isinstance(value, dict | list):
            yield from places_in(value)


# ---- valid files and their readers ----


def png(mode: str, path: Path) -> None:
    Image.fromarray(PICTURE).convert("RGB").convert(mode).save(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced_png(path: Path) -> None:
    """The seven passes of Adam7, which no library here writes."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = b"".join(b"\0" + row.tobytes() for y, dy, x, dx in passes for row in PICTURE[y::dy, x::dx])
    head = struct.pack(">IIBBBBB", PICTURE.shape[1], PICTURE.shape[0], 8, 2, 0, 0, 1)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def mend_png(content: bytes) -> bytes:
    """What lies between the names of chunks, with right lengths and checksums."""
    names = list(re.finditer(rb"IHDR|PLTE|tRNS|IDAT|IEND", content))
    ends = [*(name.start() - 8 for name in names[1:]), len(content) - 4][: len(names)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name[0], content[name.end() : max(end, name.end())]) for name, end in zip(names, ends, strict=True)
    )


def label(name: str, path: Path) -> None:
    ids = np.resize(np.array(sorted(RAW_IDS[name]), np.uint8), IDS.shape)
    several = DATASETS[name].label_channel is not None
    write_label(path, np.stack([ids, ids + 1, ids], -1).astype(np.uint16) if several else ids)


def read_label(name: str, path: Path) -> np.ndarray:
    dataset = DATASETS[name](path.parent, DATASETS[name].splits[0])
    return dataset.read_label(FrameRef("s", 0, path, path), SPACE)


def write_flow(path: Path) -> None:
    flow = np.random.default_rng(0).normal(0, 9, (2, 24, 36)).astype(np.float32)
    path.write_bytes(encode_flow(flow, flow[0] > -9))


def flo(path: Path) -> None:
    path.write_bytes(struct.pack("<fii", 202021.25, 36, 24) + FLOW.astype("<f4").tobytes())


class Constant:
    signature = "constant"

    def __call__(self, a, b, image_a, image_b):
        return np.full((2, *image_a.shape[:2]), 1.5, np.float32)


def cached_flow(path: Path) -> np.ndarray:
    """Written by the first call, read by the others."""
    a, b = (FrameRef(name, 0, path.with_name(f"{name}_0.png")) for name in ("x", "y"))
    return CachedFlow(Constant(), path.parent)(a, b, PICTURE, PICTURE)


def video(codec: str, pixels: str, path: Path) -> None:
    picture = np.tile(PICTURE, (2, 2, 1))  # (48, 72, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *picture.shape[:2], pixels, 4
        for number in range(6):
            moved = np.ascontiguousarray(np.roll(picture, 2 * number, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))


def read_video(path: Path) -> list[tuple[int, tuple[int, ...], np.dtype]]:
    """Time, shape and type of each frame; what came before an error counts."""
    frames, source = [], open_source(path)
    try:
        for frame in source.frames():
            frames.append((frame.ticks, frame.image.shape, frame.image.dtype))
            assert len(frames) < 500
    except StclError as error:
        if not frames or str(path) not in str(error):
            raise
    return frames


def read_by_number(path: Path) -> list[tuple[int, tuple[int, ...], np.dtype]]:
    """As :func:`read_video`, from the last frame to the first."""
    reader = VideoReader(path)
    ticks = reader.index.times
    try:
        found = [(int(ticks[number]), reader.read(number)) for number in reversed(range(min(len(ticks), 500)))]
    finally:
        reader.close()
    return [(time, image.shape, image.dtype) for time, image in reversed(found)]


def read_report_picture(path: Path) -> np.ndarray:
    return np.asarray(open_picture(path).convert("RGB"))


def segment(path: Path) -> None:
    entries = [Entry(f"s_{number}", "1-1", np.full((3, 4, 6), number, np.uint8)) for number in range(3)]
    write_segment(path.parent / "whole", {"frames": (np.uint8, entries)})
    shutil.copytree(path.parent / "whole", path.parent, dirs_exist_ok=True)


def read_segment(path: Path) -> list[np.ndarray]:
    stored = Segment(path.parent)
    return [stored.read("frames", number) for number in range(len(stored.names["frames"]))]


def configuration(path: Path) -> None:
    sizes = [("source", "synthia_seq"), ("target", "cityscapes_seq")]
    domains = {key: {"name": name, "root": key, "size": [64, 32]} for key, name in sizes}
    groups = {"training": {"steps": 2, "rare_class_sampling": 0.1}, "method": {"name": "source_only"}}
    network = {"backbone": "small", "backbone_settings": {"width": 8}}
    path.write_text(yaml.safe_dump({"name": "tiny", "space": SPACE.name, **domains, "network": network, **groups}))


def plan(path: Path) -> None:
    streets = {"size": [192, 96], "clips": 60, "unseen": 40}
    about = {"name": "demo", "reference": "stcl", "seeds": [0], "settings": {"training": {"steps": 200}}}
    rows = {"methods": {"stcl": {"seeds": [1]}}, "pairs": {"small": {"configs": "demo", "streets": streets}}}
    path.write_text(yaml.safe_dump(about | rows))


def results(path: Path) -> None:
    confusion = 50 * np.eye(len(SPACE), dtype=np.int64) + 1
    iou = iou_percent(confusion)
    scores = {"iou": dict(zip(SPACE.names, iou, strict=True)), "miou": mean_percent(iou[list(SPACE.reported)])}
    protocol = {"name": SPACE.name, "version": 1, "classes": SPACE.names, "reported": SPACE.reported}
    about = {"schema": 1, "name": "r", "title": "R", "method": "stcl", "oracle": False, "protocol": protocol}
    tables = {key: {} for key in ("data", "config", "code", "environment", "seconds")}
    path.write_text(json.dumps(about | scores | {"confusion": confusion.tolist()} | tables))


def model(path: Path) -> None:
    files = {"model.safetensors": {"sha256": "0", "bytes": 1}}
    about = {"schema": 1, "format": "safetensors", "classes": ["road"], "network": {"backbone": "small"}}
    path.write_text(json.dumps(about | {"files": files, "license": "MIT", "input": {"size": [64, 32]}}))


def checkpoint(path: Path) -> None:
    torch.save({"stcl": {"config": "a: 1", "processes": 1}, "global_step": 3, "w": torch.ones(2)}, path)


TENSORS = {"w": torch.ones(2, 3), "b": torch.zeros(3)}


# ---- what a valid sample is ----


def equal(found: Any, whole: Any) -> None:
    """There are checksums: what is read is what was written."""
    assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))


def is_image(found: Any, whole: Any) -> None:
    assert found.ndim == 3 and found.shape[2] == 3 and found.dtype == np.uint8 and found.size


def is_label(found: Any, whole: Any) -> None:
    assert found.ndim == 2 and found.dtype == np.uint8 and {*np.unique(found)} <= {*range(len(SPACE)), 255}


def is_flow(found: Any, whole: Any) -> None:
    flow, valid = found
    assert flow.shape == (2, *valid.shape) and (flow.dtype, valid.dtype) == (np.float32, bool)
    assert np.isfinite(flow).all()


def is_like(found: Any, whole: Any) -> None:
    assert (found.shape, found.dtype) == (whole.shape, whole.dtype)


def is_video(found: Any, whole: Any) -> None:
    ticks, shapes, types = zip(*found, strict=True)
    assert list(ticks) == sorted({*ticks}) and len({*shapes}) == 1 and {*types} == {np.dtype(np.uint8)}


def is_video_by_number(found: Any, whole: Any) -> None:
    assert {kind for _, _, kind in found} == {np.dtype(np.uint8)} and all(len(shape) == 3 for _, shape, _ in found)


def is_same_kind(found: Any, whole: Any) -> None:
    assert type(found) is type(whole)


def is_result(found: Any, whole: Any) -> None:
    assert 0 <= found.miou <= 100 and found.confusion.shape == (len(found.protocol.classes),) * 2


class Format(NamedTuple):
    """A kind of file: its name, how a valid one is written and read, what a valid sample is, how it is damaged."""

    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    check: Callable[[Any, Any], None]
    damage: Callable[[bytes], st.SearchStrategy[bytes]] = damage
    cases: int = 36


MODES = ("L", "RGB", "RGBA", "I;16", "P")


def gif(path: Path) -> None:
    frames = [Image.fromarray(np.roll(PICTURE, 4 * shift, 1)) for shift in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)


def playlist(path: Path) -> None:
    """A file that names others is not read, and neither is what damage makes of it."""
    video("libx264", "yuv420p", path.with_name("real.mp4"))
    path.write_text("ffconcat version 1.0\nfile real.mp4\n")


def read_playlist(path: Path) -> str:
    """What is read from it, which is nothing, or what the message is."""
    try:
        return f"{len(read_video(path))} frames"
    except StclError as error:
        return str(error)


def is_refused(found: Any, whole: Any) -> None:
    assert "is no video that can be read" in found or "holds no frame" in found


LABELS = [name for name in DATASETS if name in RAW_IDS]
PALETTE = ("a.png", lambda path: write_palette(path, IDS, SPACE.palette), partial(read_label, "cityscapes_seq"))
RESULTS = ("results.json", results, read_result)
MODEL = ("model.json", model, lambda path: read_about(path.parent))
CLASS_MAP = (
    "classes.yaml",
    lambda path: path.write_text("1, 4-6: road\n2: sidewalk # kerb\n0, 255: ignore\nchannel: red\n"),
    read_class_map,
)
CONFIGURATION = ("a.yaml", configuration, load_settings)
PLAN = ("a.yaml", plan, lambda path: Arena(path, path.parent).jobs())

FORMATS: dict[str, Format] = {
    **{f"png {mode}": Format("a.png", partial(png, mode), read_image, equal) for mode in MODES},
    **{f"png {mode}, mended": Format("a.png", partial(png, mode), read_image, is_image, damaged_png) for mode in MODES},
    "png interlaced": Format("a.png", interlaced_png, read_image, equal),
    "png interlaced, mended": Format("a.png", interlaced_png, read_image, is_image, damaged_png),
    "jpeg": Format("a.jpg", lambda path: write_image(path, PICTURE), read_image, is_image),
    "jpeg progressive": Format(
        "a.jpg", lambda path: Image.fromarray(PICTURE).save(path, progressive=True), read_image, is_image
    ),
    **{f"label {name}": Format("a.png", partial(label, name), partial(read_label, name), equal) for name in LABELS},
    **{
        f"label {name}, mended": Format("a.png", partial(label, name), partial(read_label, name), is_label, damaged_png)
        for name in LABELS
    },
    "label palette": Format(*PALETTE, equal),
    "label palette, mended": Format(*PALETTE, is_label, damaged_png),
    "flow png": Format("a.png", write_flow, read_flow_png, equal),
    "flow png, mended": Format("a.png", write_flow, read_flow_png, is_flow, damaged_png),
    "flow cache": Format("x_0_to_y_0.npz", cached_flow, cached_flow, equal),
    "flow cache, mended": Format("x_0_to_y_0.npz", cached_flow, cached_flow, is_like, damaged_part),
    "flow flo": Format("a.flo", flo, read_flow, is_flow),
    "flow x10": Format("a_int16_x10.npy", lambda path: np.save(path, (10 * FLOW).astype(np.int16)), read_flow, is_flow),
    "flow npy": Format("a.npy", lambda path: np.save(path, FLOW), read_flow, is_flow),
    "segment": Format("segment.json", segment, read_segment, equal),
    "segment, arrays": Format("frames.npy", segment, read_segment, equal),
    "class map": Format(*CLASS_MAP, is_same_kind, damaged_text),
    "class map, bytes": Format(*CLASS_MAP, is_same_kind),
    "mp4 by number": Format(
        "a.mp4", partial(video, "libx264", "yuv420p"), read_by_number, is_video_by_number, cases=25
    ),
    "avi by number": Format("a.avi", partial(video, "mjpeg", "yuvj420p"), read_by_number, is_video_by_number, cases=25),
    "mp4": Format("a.mp4", partial(video, "libx264", "yuv420p"), read_video, is_video, cases=25),
    "mov": Format("a.mov", partial(video, "mpeg4", "yuv420p"), read_video, is_video, cases=25),
    "mkv": Format("a.mkv", partial(video, "libx264", "yuv420p"), read_video, is_video, cases=25),
    "webm": Format("a.webm", partial(video, "libvpx", "yuv420p"), read_video, is_video, cases=25),
    "avi": Format("a.avi", partial(video, "mjpeg", "yuvj420p"), read_video, is_video, cases=25),
    "ts": Format("a.ts", partial(video, "mpeg2video", "yuv420p"), read_video, is_video, cases=25),
    "gif": Format("a.gif", gif, read_video, is_video, cases=25),
    "playlist": Format("a.mp4", playlist, read_playlist, is_refused, damaged_text, 25),
    "picture of a report": Format("a.png", partial(png, "RGB"), read_report_picture, is_image, damaged_png),
    "configuration": Format(*CONFIGURATION, is_same_kind, cases=20),
    "configuration, text": Format(*CONFIGURATION, is_same_kind, damaged_text, 20),
    "configuration, structure": Format(*CONFIGURATION, is_same_kind, damaged_structure, 20),
    "plan, text": Format(*PLAN, is_same_kind, damaged_text, 10),
    "plan, structure": Format(*PLAN, is_same_kind, damaged_structure, 10),
    "results": Format(*RESULTS, is_result, damaged_text),
    "results, structure": Format(*RESULTS, is_result, damaged_structure),
    "metrics": Format(
        "metrics.csv",
        lambda path: path.write_text("step,lr,loss\n0,,1.5\n2,0.1,1.25\n4,,nan\n"),
        lambda path: read_metrics(path.parent),
        is_same_kind,
    ),
    "model": Format(*MODEL, is_same_kind, damaged_text),
    "model, structure": Format(*MODEL, is_same_kind, damaged_structure),
    "checkpoint": Format("last.ckpt", checkpoint, read_checkpoint, is_same_kind),
    "checkpoint, mended": Format("last.ckpt", checkpoint, read_checkpoint, is_same_kind, damaged_part),
    "tensors": Format("a.pth", partial(torch.save, TENSORS), read_tensor_file, is_same_kind),
    "tensors, mended": Format("a.pth", partial(torch.save, TENSORS), read_tensor_file, is_same_kind, damaged_part),
    "tensors, old": Format(
        "a.pth",
        lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
        read_tensor_file,
        is_same_kind,
    ),
    "safetensors": Format("a.safetensors", partial(save_file, TENSORS), read_tensor_file, is_same_kind),
}


@contextmanager
def limited_memory() -> Iterator[None]:
    """Refuses a block that takes more than ``ROOM_MIB``, where the system can say so (Linux)."""
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        yield
        return
    peak.write_text("5")  # counts the peak anew
    before = peak_mib()
    yield
    assert peak_mib() - before < ROOM_MIB


def peak_mib() -> int:
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path_factory):
    kind = FORMATS[name]
    path = tmp_path_factory.mktemp("fuzz") / kind.file
    kind.write(path)
    content, whole = path.read_bytes(), kind.read(path)
    kind.check(whole, whole)

    @settings(
        max_examples=LONG or kind.cases,
        derandomize=not LONG,
        deadline=None,
        database=None,
        print_blob=bool(LONG),
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.damage(content))
    def every_case(damaged: bytes) -> None:
        path.write_bytes(damaged)
        start = time.process_time()
        try:
            kind.check(kind.read(path), whole)
            message = str(path)
        except StclError as error:
            message = str(error)
        assert str(path) in message
        assert time.process_time() - start < SECONDS

    with limited_memory():
        every_case()
