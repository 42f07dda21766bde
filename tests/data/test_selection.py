"""Which frames may be the frame t: what a list of frames says, and what is refused."""

import pytest

from stcl.data import ClipDataset, get_dataset
from stcl.data.selection import select_frames
from stcl.errors import DataError, SettingError
from stcl.labels import get_space
from stcl.types import ClipSpec

SPACE = get_space("viper-cityscapes_seq")


@pytest.fixture
def viper(write_tree):
    return get_dataset("viper")(write_tree("viper", size=(16, 8)))


@pytest.fixture
def take(tmp_path):
    """``take(dataset, text)``: the frames that a list file of this text chooses."""

    def take(dataset, text):
        path = tmp_path / "frames.txt"
        path.write_text(text, encoding="utf-8")
        return select_frames(dataset, dataset.index(with_labels=False), f"list:{path}", with_labels=False)

    return take


@pytest.mark.parametrize(
    "line",
    ["001_00010", "train/img/001/001_00010.jpg", "train/img/001/001_00010", "001/001_00010.jpg", "./001/001_00010"],
)
def test_a_frame_by_its_name_or_by_its_path(viper, take, line):
    assert take(viper, f"# published\n\n  {line}  # a comment\n002_00009\n") == {"001_00010", "002_00009"}


def test_clips_of_a_list(viper, tmp_path):
    (tmp_path / "own.txt").write_text("002/002_00011.jpg\n001/001_00008.jpg\n")
    clips = ClipDataset(viper, ClipSpec((0, -1), labels=(0,)), SPACE, frames=f"list:{tmp_path / 'own.txt'}")
    assert [clips.refs(item)[0].name for item in range(len(clips))] == ["002_00011"]  # 8 has no frame before it


def test_published_lists_are_read_as_they_are(write_tree, take):
    cityscapes = get_dataset("cityscapes_seq")(write_tree("cityscapes_seq"))
    assert take(cityscapes, "ulm/ulm_000001_000003_leftImg8bit.png") == {"ulm_000001_000003_leftImg8bit"}
    bdd = get_dataset("bdd")(write_tree("bdd"))
    assert take(bdd, "0000f77c-6257be51_307") == {"0000f77c-6257be51_307"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "001_00010\n001/001_00012.jpg",
            r"frames.txt, line 2: .* '001/001_00012.jpg' in split 'train' of data set 'viper'",
        ),
        ("001/001_00010_leftImg8bit.png", r"line 1: .*; the nearest name is '001_00010'"),
        ("001_00010\n#\n001/001_00010.jpg", r"line 3: '001/001_00010.jpg' stands in line 1 already"),
        ("# nothing\n", r"take none of the 8 frames"),
    ],
)
def test_a_wrong_list_is_refused(viper, take, text, message):
    with pytest.raises((SettingError, DataError), match=message):
        take(viper, text)


def test_a_name_that_means_several_frames_is_refused(write_tree, take):
    synthia = get_dataset("synthia_seq")(write_tree("synthia_seq"))
    with pytest.raises(SettingError, match=r"'000001.png' may be any of SEQS-00_000001, SEQS-01_000001 in .*more of"):
        take(synthia, "000001.png")
    assert take(synthia, "SEQS-01/rgb/000001.png") == {"SEQS-01_000001"}


def test_a_list_that_cannot_be_read(viper, tmp_path):
    index = viper.index(with_labels=False)
    with pytest.raises(SettingError, match=r"nowhere.txt cannot be read: No such file"):
        select_frames(viper, index, f"list:{tmp_path / 'nowhere.txt'}", with_labels=False)
    (tmp_path / "picture.png").write_bytes(bytes([137, 80, 255]))
    with pytest.raises(SettingError, match="it is not a text file"):
        select_frames(viper, index, f"list:{tmp_path / 'picture.png'}", with_labels=False)


@pytest.mark.parametrize("step", ["0", "-1", "x", "", "1.5", "9" * 5000])
def test_a_step_that_is_none(viper, step):
    with pytest.raises(SettingError, match=r"Unknown choice of frames 'every:") as refused:
        select_frames(viper, viper.index(with_labels=False), f"every:{step}", with_labels=False)
    assert len(str(refused.value)) < 300


def test_published_frames_that_are_not_there(write_tree):
    dataset = get_dataset("viper")(write_tree("viper", frames=2, size=(16, 8)))  # 8 and 9
    with pytest.raises(DataError, match="frames 'published' take none of the 4 frames"):
        ClipDataset(dataset, ClipSpec(), SPACE, frames="published")
