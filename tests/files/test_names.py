"""Names of outputs, whatever they are made of: one part of a path on every system, never another folder."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcl.commands.arena.plan import slug
from stcl.commands.predict.run import check_names
from stcl.data.frames import FrameFolder
from stcl.data.io import write_image
from stcl.data.video import name_of
from stcl.errors import DataError, SettingError
from stcl.files.names import LONGEST_BYTES, NAME_BYTES, file_name, neighbour, neighbour_of
from stcl.files.writing import write_atomic
from stcl.flow import CachedFlow
from stcl.flow.files import names as flow_names
from stcl.flow.zero import ZeroFlow
from stcl.twinstreets.export import ExportRequest
from stcl.types import FrameRef

DEVICES = ["con", "PRN", "Aux", "nul", "COM1", "com9", "lpt1", "LPT0", "com²", "CONIN$", "conout$"]
HOSTILE = ["", ".", "..", "...", "....", " ", "a ", "a.", ". .", "/", "a/b", "../a", "a\\b", "C:", "C:a", "a\0b", "~"]
HOSTILE += [device + end for device in DEVICES for end in ("", ".txt", ".a.b", " ", " .txt", ".")]
HOSTILE += ["a" * length for length in (NAME_BYTES - 1, NAME_BYTES, NAME_BYTES + 1, 255, 256, 5000)]
HOSTILE += ["é" * 100, "é" * 101, "日" * 85, "a" + "\N{GRINNING FACE}" * 63, "e\u0301" * 90]
HOSTILE += ["a\nb", "\x1b[31m", "\udcff", "a\u2028"]

any_letters = st.text(st.characters(exclude_categories=()))
anything = st.one_of(st.sampled_from(HOSTILE), any_letters, st.text("./\\ \0:CONnul1"))
component = anything.map(lambda text: text.replace("/", "").replace("\0", "")).filter(
    lambda text: text not in ("", ".", "..") and len(os.fsencode(_as_linux(text))) <= LONGEST_BYTES
)
"""What Linux takes as the name of a file."""


def _as_linux(text: str) -> str:
    """Letters that no file name of Linux can hold (halves of a pair that stand for no byte) left out."""
    return "".join(letter for letter in text if not "\ud800" <= letter <= "\udfff" or "\udc80" <= letter <= "\udcff")


def check(name: str) -> None:
    """What every name of an output must be."""
    assert name not in ("", ".", "..") and not name.startswith(".") and not name.endswith((".", " "))
    assert len(name.encode()) <= NAME_BYTES
    assert name.isprintable() or not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name)
    assert not set(name) & set('<>:"/\\|?*')
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind("out") / name
        assert path.parts == ("out", name) and path.parent == kind("out")
    windows = PureWindowsPath(name)
    assert not windows.is_reserved() and not windows.drive and not windows.root


@given(anything)
def test_a_name_is_one_part_of_a_path(text):
    name = file_name(text)
    check(name)
    assert file_name(name) == name


@given(anything, st.integers(12, NAME_BYTES))
def test_a_name_is_as_long_as_it_may_be(text, longest):
    assert len(file_name(text, longest).encode()) <= longest


@given(st.text("abcXYZ019_-+=,;äß日 ", min_size=1, max_size=30).map(str.strip).filter(bool))
def test_plain_names_stay_as_they_are(text):
    assert file_name(text) == text


def test_different_texts_have_different_names():
    names = {text: file_name(text) for text in HOSTILE}
    assert len({*names.values()}) == len(names)
    assert len({file_name("x" * length) for length in range(150, 300)}) == 150


@given(component)
def test_every_name_that_is_made_of_others_goes_through_it(text):
    text = _as_linux(text) or "a"
    path = Path("/videos") / text
    check(name_of(path))
    check(name_of(f"rtsp://camera/{text}"))
    for frame in (FrameRef(text, 1, path), FrameRef(text, 1, path, frame=7), FrameRef("a", 1, path)):
        check(frame.name)
        stored = CachedFlow(ZeroFlow(), "cache").path(frame, frame)
        assert stored.parent == Path("cache")
        check(stored.stem)
        assert all(len(os.fsencode(name)) <= LONGEST_BYTES for name in flow_names(frame, frame))
    if slug(text):
        check(slug(text))


@pytest.mark.parametrize("split", ["con", "NUL", "a" * 201, "a/b", "..", ""])
def test_splits_become_names_of_files(split):
    with pytest.raises(SettingError, match="becomes part of file names"):
        ExportRequest("synthia-seq", "clean", split=split, clips=1, frames=1)


@given(st.text("ab\u00e9日\N{GRINNING FACE}", min_size=1, max_size=260), st.sampled_from([".tmp", ".partial.mp4"]))
def test_temporary_files_have_names_that_fit(text, ending):
    place = Path("folder") / text
    beside, other = neighbour(place, ending), neighbour(place, ending)
    assert beside.parent == place.parent and beside != other
    assert beside.name.startswith(".") and beside.name.endswith(ending)
    assert len(os.fsencode(beside.name)) <= LONGEST_BYTES
    if len(text.encode()) <= NAME_BYTES and ending == ".tmp":
        assert neighbour_of(beside.name) == text


@pytest.mark.parametrize("text", ["a" * 255, "a" * 230, "é" * 127, "日" * 85])
def test_files_of_the_longest_names_are_written(text, tmp_path):
    write_atomic(tmp_path / text, b"a")
    write_atomic(tmp_path / text, b"b")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(text, b"b")]


def test_neighbours_are_told_from_others():
    assert not any(
        map(neighbour_of, ["", ".a", "a.1.0123abcd.tmp", ".a.tmp", ".a.x.0123abcd.tmp", ".a.1.0123abcd.old"])
    )
    assert neighbour_of(".a.mp4.1.0123abcd.partial.mp4") == "a.mp4"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.mp4", "b/a.mp4"),
        ("a.mp4", "a.mkv"),
        ("Street.mp4", "street.mp4"),
        ("\u00e9.mp4", "e\u0301.mp4"),
        ("a", "a.mp4"),
    ],
)
def test_two_inputs_never_share_a_folder(one, other, tmp_path):
    with pytest.raises(SettingError, match=r"would both go into the folder .* two calls with another --out each"):
        check_names([str(tmp_path / "c.mp4"), str(tmp_path / one), str(tmp_path / other)])
    check_names([str(tmp_path / one), str(tmp_path / "other.mp4")])


def test_frames_of_one_name_are_refused(tmp_path):
    picture = np.zeros((16, 16, 3), np.uint8)
    for name in ("Frame_1.png", "frame_1.png"):
        write_image(tmp_path / name, picture)
    if len([*tmp_path.iterdir()]) < 2:
        pytest.skip("this file system takes them for one")
    with pytest.raises(DataError, match=r"two pictures named '[Ff]rame_1'"):
        FrameFolder(tmp_path)
