"""What lies in place of a file and is none: pipes, sockets, devices, folders, links. Every reader says so at once."""

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from stcl.cli import main
from stcl.commands.analyse.page import write_analysis
from stcl.commands.arena.plan import Arena
from stcl.commands.flow.page import write_flow_page
from stcl.commands.inspect.page import write_inspection
from stcl.data.datasets.class_map import read_class_map
from stcl.data.io import read_colors, read_image, read_label, unusual_format
from stcl.data.segments import Entry, Segment, write_segment
from stcl.data.selection import read_list
from stcl.data.video import open_source
from stcl.data.video_index import index_video
from stcl.errors import StclError
from stcl.files.pictures import read_flow_png
from stcl.flow import CachedFlow
from stcl.flow.formats import read_flow
from stcl.flow.zero import ZeroFlow
from stcl.models import load_weights
from stcl.pages.pictures import open_picture
from stcl.pages.results import read_metrics, read_result
from stcl.resources import arena_path, config_path, weights_path
from stcl.training.checkpoint import read_checkpoint
from stcl.training.config import load_settings
from stcl.training.model_folder import read_about
from stcl.training.networks import open_checkpoint
from stcl.training.run_folder import RunFolder
from stcl.types import FrameRef

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes and sockets of POSIX"),
    pytest.mark.timeout(30),
]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # a whole path may be too long for it


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "it is a named pipe and not a file"),
    "socket": (bind, "it is a socket and not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device and not a file"),
    "folder": (Path.mkdir, "it is a folder and not a file"),
}
"""How each is made, and what is said about it."""


def cached(path: Path) -> np.ndarray:
    a, b = (FrameRef(name, 0, path.with_name(f"{name}_0.png")) for name in ("x", "y"))
    image = np.zeros((16, 24, 3), np.uint8)
    return CachedFlow(ZeroFlow(), path.parent)(a, b, image, image)


def based(path: Path) -> object:
    own = path.with_name("own.yaml")
    own.write_text(yaml.safe_dump({"base": path.name}))
    return load_settings(own)


def arrays(path: Path) -> np.ndarray:
    """The array file of a segment whose index is as it was written."""
    whole = path.with_name("whole")
    write_segment(whole, {"frames": (np.uint8, [Entry("s_0", "1-1", np.zeros((3, 4, 6), np.uint8))])})
    (whole / "frames.npy").unlink()
    path.rename(whole / "frames.npy")
    return Segment(whole).read("frames", 0)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    **{
        read.__name__: ("a.png", read)
        for read in (read_image, read_label, read_colors, read_flow_png, open_picture, unusual_format)
    },
    "configuration": ("a.yaml", lambda path: load_settings(config_path(path))),
    "base of a configuration": ("a.yaml", based),
    "preset of a run": ("config.yaml", lambda path: RunFolder(path.parent).settings()),
    "record of a run": ("run.json", lambda path: RunFolder(path.parent).read_record()),
    "arena": ("a.yaml", lambda path: Arena(arena_path(path), path.parent)),
    "class map": ("classes.yaml", read_class_map),
    "list of frames": ("a.txt", lambda path: read_list(path, None, [])),
    "flo": ("a.flo", read_flow),
    "npy": ("a.npy", read_flow),
    "flow png": ("a.png", read_flow),
    "flow cache": ("x_0_to_y_0.npz", cached),
    "segment": ("segment.json", lambda path: Segment(path.parent)),
    "arrays of a segment": ("frames.npy", arrays),
    "checkpoint of a run": ("last.ckpt", read_checkpoint),
    "checkpoint": ("a.pth", open_checkpoint),
    "safetensors": ("a.safetensors", lambda path: load_weights(torch.nn.Linear(1, 1), weights_path(path))),
    "results": ("results.json", lambda path: read_result(path.parent)),
    "metrics": ("metrics.csv", lambda path: read_metrics(path.parent)),
    "model": ("model.json", lambda path: read_about(path.parent)),
    "inspection": ("inspect.json", lambda path: write_inspection(path.parent)),
    "flow page": ("flow.json", lambda path: write_flow_page(path.parent)),
    "analysis": ("analysis.json", lambda path: write_analysis(path.parent)),
    "video": ("a.mp4", open_source),
    "video by number": ("a.mp4", index_video),
}
OTHERWISE = {("checkpoint", "folder"), ("video", "folder"), ("arena", "folder"), ("model", "device")}
"""What has another message: folders of weights, of frames, of a shipped arena's name; links in a model folder."""


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it_at_once(tmp_path, monkeypatch, reader, kind):
    name, read = READERS[reader]
    make, message = ODD[kind]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    with pytest.raises((StclError, OSError)) as caught:
        read(tmp_path / name)
    if (reader, kind) not in OTHERWISE:
        assert message in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "odd.yaml", "--out", "run"),
        ("data", "check", "odd.yaml"),
        ("arena", "odd.yaml", "--out", "arena"),
        ("predict", "odd.mp4", "--checkpoint", "builtin:small", "--out", "out"),
        ("predict", "real", "--checkpoint", "odd.pth", "--out", "out"),
        ("evaluate", "run"),
        ("report", "run", "--out", "page"),
        ("train", "--resume", "run"),
        ("push", "model", "./copy"),
        ("pull", "./model", "--out", "copy"),
    ],
)
def test_every_command_says_so(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "model"):
        Path(folder).mkdir()
    for name in ("odd.yaml", "odd.mp4", "odd.pth", "run/config.yaml", "run/results.json", "model/model.json"):
        os.mkfifo(name)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("stcl: error: ") and said.count("\n") == 1 and "it is a named pipe and not a file" in said


def test_a_link_that_somebody_gives_is_followed(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link.yaml"
    real.write_text("road: 1")
    link.symlink_to(real)
    assert config_path(link) == link
    with pytest.raises(StclError, match="neither an id nor a colour"):
        read_class_map(link)


@pytest.mark.parametrize(
    "read", [read_class_map, load_settings, partial(read_list, dataset=None, index=[]), read_image, read_flow]
)
def test_a_file_without_end(tmp_path, read):
    """A sparse file takes no room on the disk, and all memory to be read."""
    path = tmp_path / ("a.npy" if read is read_flow else "a.png")
    with path.open("wb") as file:
        file.truncate(2**41)
    with pytest.raises(StclError, match=r"it has 2199023255552 bytes, and at most \d+ are read"):
        read(path)
