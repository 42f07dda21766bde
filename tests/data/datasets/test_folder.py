"""Own data: which frames a root has, how they are called, where clips end, and what wrong trees get."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stcl.data import ClipDataset, get_dataset
from stcl.data.base import split_runs
from stcl.data.datasets.folder import Folder
from stcl.data.io import write_image, write_label
from stcl.data.video import open_source
from stcl.errors import DataError, SettingError
from stcl.labels import get_space
from stcl.types import ClipSpec

SPACE = get_space("twinstreets-camvid")
PAIR = ClipSpec(frames=(0, -1))


@pytest.fixture
def pictures(moving_frames):
    """``pictures(folder, "001", ...)``: pictures of these names; a name without an ending gets ``.png``."""

    def write(folder: Path, *names: str, size: tuple[int, int] = (48, 64)) -> Path:
        for name, frame in zip(names, moving_frames(len(names), size), strict=True):
            write_image(folder / (name if Path(name).suffix in (".png", ".jpg") else f"{name}.png"), frame)
        return folder

    return write


@pytest.fixture
def labelled(pictures):
    """``labelled(root)``: three images with masks of ids and their map."""

    def write(root: Path) -> Path:
        pictures(root / "images/drive", "1", "2", "3")
        for name in "123":
            write_label(root / f"masks/drive/{name}.png", np.full((48, 64), int(name), np.uint8))
        (root / "classes.yaml").write_text("1: road\n2: sky\n3: ignore\n")
        return root

    return write


def names_of(root: Path, split: str = "train") -> dict[str, int]:
    """Sequences and how many frames each has."""
    index = Folder(root, split).index(with_labels=False)
    return {name: sum(ref.sequence == name for ref in index) for name in dict.fromkeys(ref.sequence for ref in index)}


# ---- what a root may be ----


def test_a_folder_of_frames_or_of_folders(tmp_path, pictures) -> None:
    pictures(tmp_path / "own drive", "a 1", "a 2")
    assert names_of(tmp_path / "own drive") == {"own drive": 2}
    pictures(tmp_path / "own drive/tag/früh", "x.v2.0001", "x.v2.0002", "x.v2.0003")
    assert names_of(tmp_path / "own drive") == {"own drive": 2, "tag-früh": 3}
    assert len({ref.name for ref in Folder(tmp_path / "own drive").index(False)}) == 5
    assert Folder(tmp_path / "own drive/tag").index(False)[0].image.stem == "x.v2.0001"


def test_one_video_or_many(tmp_path, moving_frames, write_video) -> None:
    for name in ("one.mp4", "b/two.MKV", "b/c/one.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / name, moving_frames(4), "mpeg4" if name.endswith("avi") else "libx264")
    assert names_of(tmp_path) == {"b-c-one": 4, "b-two": 4, "one": 4}
    assert names_of(tmp_path / "one.mp4", "val") == {"one": 4}
    dataset = Folder(tmp_path / "one.mp4")
    index = dataset.index(with_labels=False)
    assert [ref.name for ref in index] == [f"one_{number:06d}" for number in range(4)]
    for ref, frame in zip(index, open_source(tmp_path / "one.mp4").frames(), strict=True):
        assert np.array_equal(dataset.read_frame(ref), frame.image)


def test_clips_of_a_video_end_at_gaps_in_time(tmp_path, moving_frames, write_video) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(7), ticks=[0, 1, 2, 12, 13, 14, 15])
    clips = ClipDataset(Folder(path), PAIR, SPACE, size=(32, 32))
    assert [len(run) for run in clips.runs] == [3, 4]
    assert [clips.refs(item)[0].frame for item in range(len(clips))] == [1, 2, 4, 5, 6]
    assert clips[0].frames.shape == (2, 3, 32, 32) and not torch.equal(clips[0].frame(0), clips[0].frame(-1))


def test_clips_of_pictures_end_at_gaps_in_numbering(tmp_path, pictures) -> None:
    root = pictures(tmp_path / "a", "f_10", "f_20", "f_30", "f_50", "f_60", "g_70")
    index = Folder(root).index(with_labels=False)
    assert [len(run) for run in split_runs(index, Folder.step)] == [3, 2, 1]
    assert [ref.image.stem for ref in index] == ["f_10", "f_20", "f_30", "f_50", "f_60", "g_70"]
    root = pictures(tmp_path / "counted", "9", "10", "11")
    assert [ref.image.stem for ref in Folder(root).index(False)] == ["9", "10", "11"]


def test_splits_are_folders_where_there_are_such(tmp_path, pictures, labelled) -> None:
    pictures(tmp_path / "whole", "1", "2")
    assert names_of(tmp_path / "whole", "train") == names_of(tmp_path / "whole", "test") == {"whole": 2}
    pictures(tmp_path / "cut/train/day", "1", "2")
    pictures(tmp_path / "cut/val", "1")
    assert names_of(tmp_path / "cut") == {"day": 2} and names_of(tmp_path / "cut", "val") == {"val": 1}
    with pytest.raises(DataError, match=r"folder .*cut/test does not exist; in .*cut there is: train, val"):
        names_of(tmp_path / "cut", "test")
    pictures(tmp_path / "cut", "3")
    with pytest.raises(DataError, match=r"cut/3\.png lies beside the folders of splits, where it is not read. Move it"):
        names_of(tmp_path / "cut")
    for split in ("train", "val"):  # both ways of nesting
        labelled(tmp_path / "outer" / split)
        shutil.copytree(tmp_path / f"outer/{split}/images", tmp_path / f"inner/images/{split}")
        shutil.copytree(tmp_path / f"outer/{split}/masks", tmp_path / f"inner/masks/{split}")
    for place in ("outer", "inner"):
        shutil.copy(tmp_path / "outer/train/classes.yaml", tmp_path / place)
        index = Folder(tmp_path / place, "val").index(with_labels=True)
        assert [ref.name for ref in index] == ["drive_1", "drive_2", "drive_3"]
        assert all("val" in ref.image.parts and "val" in ref.label.parts for ref in index)


def test_sequences_of_different_sizes(tmp_path, pictures) -> None:
    pictures(tmp_path / "a", "1", "2")
    pictures(tmp_path / "b", "1", "2", size=(32, 40))
    clips = ClipDataset(Folder(tmp_path), PAIR, SPACE, size=(48, 32))
    assert [clips[item].size for item in range(len(clips))] == [(32, 48), (32, 48)]
    pictures(tmp_path / "b", "3")
    with pytest.raises(DataError, match=r"3\.png is 64x48, but its neighbour|is 40x32, but its neighbour"):
        ClipDataset(Folder(tmp_path), PAIR, SPACE, size=(48, 32))[2]


def test_long_names_still_make_file_names(tmp_path, pictures) -> None:
    deep = tmp_path / "/".join(["длинное имя папки"] * 4)
    pictures(deep / "a", "1")
    pictures(deep / "b", "1")
    names = list(names_of(tmp_path))
    assert len({*names}) == 2 and all(len(name.encode()) <= 80 for name in names)
    assert names == list(names_of(tmp_path))


# ---- labels ----


def test_labels_by_the_class_map(tmp_path, labelled) -> None:
    dataset = Folder(labelled(tmp_path / "sim"))
    ids = [int(dataset.read_label(ref, SPACE)[0, 0]) for ref in dataset.index(with_labels=True)]
    assert ids == [SPACE.index("road"), SPACE.index("sky"), 255]
    other = tmp_path / "other.yaml"
    other.write_text("1-3: car")
    dataset = Folder(tmp_path / "sim", classes=other)
    assert int(dataset.read_label(dataset.index(True)[2], SPACE)[0, 0]) == SPACE.index("car")


def test_what_is_missing_for_labels_is_said(tmp_path, labelled, pictures, moving_frames, write_video) -> None:
    spec = ClipSpec(labels=(0,))
    for root in (write_video(tmp_path / "a.mp4", moving_frames(3)), pictures(tmp_path / "frames", "1")):
        with pytest.raises(DataError, match="has no labels: there are no folders 'images' and 'masks' in"):
            ClipDataset(Folder(root), spec, SPACE)
    root = labelled(tmp_path / "sim")
    (root / "classes.yaml").rename(root / "labels.yaml")
    with pytest.raises(SettingError, match=r"has masks, but no class map: there is no .*classes\.yaml"):
        ClipDataset(Folder(root), spec, SPACE)
    (root / "classes.yaml").write_text("1: raod")
    with pytest.raises(SettingError, match=r"classes\.yaml, line 1: Unknown class .* 'raod'. Did you mean 'road'"):
        ClipDataset(Folder(root), spec, SPACE)
    assert len(ClipDataset(Folder(root), ClipSpec(), SPACE)) == 3  # without labels nobody asks for the map


def test_masks_that_do_not_fit(tmp_path, labelled) -> None:
    dataset = Folder(labelled(tmp_path / "sim"))
    mask = tmp_path / "sim/masks/drive/2.png"
    write_label(mask, np.full((48, 60), 1, np.uint8))
    with pytest.raises(DataError, match=r"masks/drive/2\.png is 60x48, but its frame .* is 64x48"):
        ClipDataset(dataset, ClipSpec(labels=(0,)), SPACE)[1]
    mask.rename(mask.with_name("2_mask.png"))
    with pytest.raises(DataError, match=r"label file .*2_mask\.png has no frame of its name in"):
        dataset.index(with_labels=True)
    mask.with_name("2_mask.png").rename(mask.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"mask .*2\.jpg is no PNG"):
        dataset.index(with_labels=True)
    shutil.rmtree(tmp_path / "sim/images")
    with pytest.raises(DataError, match="has masks, but no folder 'images'"):
        dataset.index(with_labels=False)


# ---- wrong trees ----


def test_links_are_refused(tmp_path, pictures) -> None:
    pictures(tmp_path / "elsewhere", "1", "2")
    pictures(tmp_path / "root/a", "1")
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"root/b is a link to .*elsewhere. Links below the root are refused"):
        names_of(tmp_path / "root")
    (tmp_path / "root/b").unlink()
    (tmp_path / "root/a/2.png").symlink_to("../../elsewhere/2.png")
    with pytest.raises(DataError, match=r"2\.png is a link"):
        names_of(tmp_path / "root")
    (tmp_path / "split").mkdir()
    (tmp_path / "split/train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="split/train is a link"):
        names_of(tmp_path / "split")
    assert names_of(tmp_path / "root/../elsewhere") == {"elsewhere": 2}  # the root itself may be anywhere


def test_mixed_content(tmp_path, pictures, moving_frames, write_video) -> None:
    pictures(tmp_path / "a", "1", "2")
    write_video(tmp_path / "a/film.mp4", moving_frames(2))
    with pytest.raises(DataError, match=r"a holds pictures \(1\.png\) and videos \(film\.mp4\)"):
        names_of(tmp_path)
    (tmp_path / "a/film.mp4").rename(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"a\.mp4 and .*a would both be sequence 'a'. Rename one"):
        names_of(tmp_path)
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "a/3.tiff").write_bytes(b"II")
    with pytest.raises(DataError, match=r"3\.tiff is a picture of another kind. Make \.png or \.jpg"):
        names_of(tmp_path)
    (tmp_path / "a/3.tiff").unlink()
    pictures(tmp_path / "a-b", "1")
    pictures(tmp_path / "a/b", "1")
    with pytest.raises(DataError, match="would both be sequence 'a-b'"):
        names_of(tmp_path)
    shutil.rmtree(tmp_path / "a/b")
    pictures(tmp_path / "a", "b_1")
    pictures(tmp_path / "a_b", "1")
    with pytest.raises(DataError, match="would both be frame 'a_b_1'"):
        names_of(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("a.mp4", "is no video that can be read"), ("a.txt", "is not a folder")])
def test_a_root_that_is_no_video(tmp_path, name, message) -> None:
    (tmp_path / name).write_text("some text")
    with pytest.raises(DataError, match=message):
        get_dataset("folder")(tmp_path / name).index(with_labels=False)
