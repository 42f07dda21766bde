"""The contract of every registered data set, and what is particular to each."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stcl.data import DATASETS, ClipDataset, get_dataset
from stcl.data.base import VideoDataset, split_runs
from stcl.data.io import read_image, read_label, write_image, write_label
from stcl.errors import DataError, SettingError
from stcl.flow import get_flow
from stcl.labels import IGNORE, PALETTE, RAW_IDS, SPACES, VOID, get_space, raw_ids_of
from stcl.types import ClipSpec, FrameRef

SPACE = get_space("synthia_seq-cityscapes_seq")
CAMVID = Path(__file__).parents[4] / "shared" / "camvid"

every_dataset = pytest.mark.parametrize("name", DATASETS)


def label_folders(root: Path) -> list[Path]:
    names = ("label", "labels", "gtFine", "trainannot", "LABELS", "cls", "masks")
    return [p for p in root.rglob("*") if p.is_dir() and p.name in names]


@every_dataset
def test_facts_are_declared(name, write_tree, raw_names):
    kind = get_dataset(name)
    assert kind.name == name
    assert kind.citation
    assert "<root>" in kind.layout
    assert kind.splits
    assert kind.own_classes == (name not in RAW_IDS)
    assert kind(write_tree(name)).raw_names == raw_names[name]
    assert set(raw_names[name].values()) <= {*PALETTE, VOID}
    assert kind.find_frames is not VideoDataset.find_frames


@every_dataset
def test_index_is_sorted_and_complete(name, write_tree):
    index = get_dataset(name)(write_tree(name)).index(with_labels=True)
    assert len(index) == 8
    assert [(r.sequence, r.number) for r in index] == sorted((r.sequence, r.number) for r in index)
    assert len({ref.name for ref in index}) == 8
    assert all(ref.image.is_file() for ref in index)
    stills = DATASETS[name].step == 0
    assert [len(run) for run in split_runs(index, DATASETS[name].step)] == ([1] * 8 if stills else [4, 4])
    labelled = [ref for ref in index if ref.label is not None]
    assert len(labelled) == (2 if DATASETS[name].sparse else 8)


@every_dataset
def test_labels_become_train_ids_by_name(name, write_tree, raw_names):
    dataset = get_dataset(name)(write_tree(name, size=(64, 32)))
    ref = next(ref for ref in dataset.index(with_labels=True) if ref.label)
    for space in SPACES.values():
        ids = dataset.read_label(ref, space)
        assert ids.dtype == np.uint8
        for column, raw in enumerate(sorted(raw_names[name])):
            wanted = space.merges.get(raw_names[name][raw], raw_names[name][raw])
            assert (ids[:, column] == (space.index(wanted) if wanted in space.names else IGNORE)).all()


@every_dataset
def test_without_labels_the_label_tree_is_not_needed(name, write_tree):
    root = write_tree(name)
    for folder in label_folders(root):
        shutil.rmtree(folder)
    dataset = get_dataset(name)(root)
    assert all(ref.label is None for ref in dataset.index(with_labels=False))
    clips = ClipDataset(dataset, ClipSpec(frames=(0, -1)), SPACE)
    assert clips[0].labels is None
    with pytest.raises(DataError):
        dataset.index(with_labels=True)


@every_dataset
def test_a_training_clip_of_the_target_opens_no_label(name, write_tree, monkeypatch):
    """The label tree is gone, and looking for a label or reading one fails: an index and a clip still come."""
    dataset = get_dataset(name)(write_tree(name))
    for folder in label_folders(dataset.root):
        shutil.rmtree(folder)
    monkeypatch.setattr(type(dataset), "find_labels", lambda self: pytest.fail("looked for labels"))
    monkeypatch.setattr("stcl.data.base.read_label", lambda *a: pytest.fail("opened a label"))
    spec = ClipSpec((0, -1, -2), ((0, -1), (-1, -2)), (0, -1)).without_labels()
    every = 8 if dataset.stills else 4
    published = {ref.name for ref in dataset.benchmark_frames(dataset.index(with_labels=False))}
    for frames in ("all", "labelled", "published"):
        clips = ClipDataset(dataset, spec, SPACE, frames=frames, flow=get_flow("dis", preset="ultrafast"))
        taken = {clips.refs(item)[0].name for item in range(len(clips))}
        if frames == "published" or (frames == "labelled" and dataset.sparse):
            assert taken
            assert taken <= published
        else:
            assert len(taken) == every
        clip = clips[len(clips) - 1]
        assert clip.labels is None
        assert clip.frames.shape == (3, 3, 32, 48)
        assert dataset.stills == (not clip.flow(0, -1).any())


@every_dataset
def test_missing_root(name, tmp_path):
    with pytest.raises(DataError, match="does not exist") as caught:
        get_dataset(name)(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "<root>" in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        get_dataset(name)(tmp_path / "file")


@every_dataset
def test_unknown_split(name, tmp_path):
    with pytest.raises(SettingError, match=f"Unknown split of data set '{name}' 'trian'. Did you mean 'train'"):
        get_dataset(name)(tmp_path, "trian")


@every_dataset
def test_empty_root_says_what_is_expected(name, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="other") as caught:
        get_dataset(name)(tmp_path).index(with_labels=False)
    assert DATASETS[name].layout in str(caught.value)


@every_dataset
def test_folders_without_a_frame(name, write_tree):
    root = write_tree(name, sequences=1)
    dataset = get_dataset(name)(root)
    for ref in dataset.index(with_labels=False):
        ref.image.unlink()
    with pytest.raises(DataError, match="holds no frame"):
        dataset.index(with_labels=False)


@every_dataset
def test_frame_without_its_label(name, write_tree):
    dataset = get_dataset(name)(write_tree(name, sequences=1))
    refs = [ref for ref in dataset.index(with_labels=True) if ref.label]
    refs[0].label.unlink()
    with pytest.raises(DataError, match="has no label file; ") as caught:
        dataset.index(with_labels=True)
    if not dataset.sparse:
        assert str(refs[0].image) in str(caught.value)
        assert "1 of 4 frames" in str(caught.value)


@every_dataset
def test_label_without_its_frame(name, write_tree):
    dataset = get_dataset(name)(write_tree(name))
    ref = next(ref for ref in dataset.index(with_labels=True) if ref.label)
    ref.image.unlink()
    with pytest.raises(DataError, match="has no frame") as caught:
        dataset.index(with_labels=True)
    assert str(ref.label) in str(caught.value)


@every_dataset
def test_file_name_outside_the_layout(name, write_tree):
    dataset = get_dataset(name)(write_tree(name))
    ref = dataset.index(with_labels=False)[0]
    ending = ref.image.name[ref.image.name.rfind("_") :] if name.startswith("cityscapes") else ref.image.suffix
    stray = ref.image.with_name(f"preview{ending}")
    ref.image.rename(stray)
    with pytest.raises(DataError, match="does not follow the layout") as caught:
        dataset.index(with_labels=False)
    assert str(stray) in str(caught.value)


@every_dataset
def test_hidden_and_other_files_do_not_matter(name, write_tree):
    dataset = get_dataset(name)(write_tree(name))
    folder = dataset.index(with_labels=False)[0].image.parent
    (folder / "._ulm.png").write_bytes(b"")
    (folder / "readme.txt").write_text("")
    if not dataset.own_classes:  # there all names are the user's
        label = next(ref.label for ref in dataset.index(with_labels=True) if ref.label)
        label.with_name(f"{label.stem}_labelTrainIds.png").write_bytes(b"written by other code")
    assert len(dataset.index(with_labels=True)) == 8


@every_dataset
def test_unknown_raw_id_is_named(name, write_tree):
    dataset = get_dataset(name)(write_tree(name))
    ref = next(ref for ref in dataset.index(with_labels=True) if ref.label)
    raw = read_label(ref.label, dataset.label_channel).copy()
    raw[:2, :3] = 200
    write_label(ref.label, np.stack([raw] * 3, -1) if dataset.label_channel is not None else raw)
    with pytest.raises(DataError, match=r"does not have: 200 \(6 px\).*Known ids: 0-") as caught:
        dataset.read_label(ref, SPACE)
    assert str(ref.label) in str(caught.value)
    assert dataset.ids_place in str(caught.value)


@every_dataset
def test_second_file_for_a_frame(name, write_tree):
    suffix = ".jpg" if name.startswith("cityscapes") else ".jpeg"
    dataset = get_dataset(name)(write_tree(name))
    image = dataset.index(with_labels=False)[0].image
    shutil.copy(image, image.with_suffix(suffix))
    with pytest.raises(DataError, match="a second file for sequence"):
        dataset.index(with_labels=False)


@every_dataset
def test_a_class_map_goes_to_own_data_only(name, write_tree, tmp_path):
    kind, root = get_dataset(name), write_tree(name)
    if not kind.own_classes:
        with pytest.raises(SettingError, match=f"'{name}' has classes of its own and takes no class map"):
            kind(root, "train", tmp_path / "classes.yaml")


def test_unknown_data_set_lists_the_right_ones():
    with pytest.raises(SettingError, match="Did you mean 'camvid'"):
        get_dataset("camvit")


def test_reading_a_label_that_is_not_there(write_tree):
    dataset = get_dataset("cityscapes_seq")(write_tree("cityscapes_seq"))
    with pytest.raises(DataError, match="has no label"):
        dataset.read_label(dataset.index(with_labels=True)[0], SPACE)


# raw id tables as docs/data.md has them, train id -> raw id


def test_synthia_and_cityscapes_tables():
    assert raw_ids_of("synthia_seq", SPACE)[:12].tolist() == [3, 4, 2, 5, 7, 15, 9, 6, 1, 10, 11, 8]
    assert raw_ids_of("cityscapes_seq", SPACE)[:12].tolist() == [7, 8, 11, 13, 17, 19, 20, 21, 23, 24, 25, 26]


def test_viper_tables():
    space = get_space("viper-cityscapes_seq")
    assert raw_ids_of("viper", space)[:15].tolist() == [3, 4, 9, 11, 13, 14, 7, 6, 2, 20, 24, 27, 26, 23, 22]
    table = space.lookup_table(RAW_IDS["viper"])
    assert table[7] == table[8] == space.index("vegetation")
    assert len(RAW_IDS["viper"]) == 32
    wanted = [
        3,
        4,
        9,
        0,
        11,
        0,
        13,
        14,
        7,
        6,
        2,
        20,
        20,
        24,
        27,
        26,
        29,
        23,
        22,
    ]  # no wall, no pole; riders are persons
    assert raw_ids_of("viper", get_space("viper-cityscapes_seq-uvda"))[:19].tolist() == wanted
    cityscapes = space.lookup_table(RAW_IDS["cityscapes_seq"])
    assert cityscapes[24] == cityscapes[25] == space.index("person")
    assert raw_ids_of("viper", SPACE)[SPACE.index("rider")] == 20
    assert raw_ids_of("viper", SPACE)[SPACE.index("pole")] == 0


def test_image_domain_tables():
    space = get_space("synthia_rand-cityscapes")
    assert raw_ids_of("synthia_rand", space)[:16].tolist() == [3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11]
    space = get_space("gta5-cityscapes")
    published = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert raw_ids_of("gta5", space)[:19].tolist() == raw_ids_of("cityscapes", space)[:19].tolist() == published
    assert raw_ids_of("bdd", get_space("viper-bdd"))[:19].tolist() == list(range(19))


@pytest.mark.parametrize("dataset", ["synthia_seq", "cityscapes_seq"])
def test_raw_ids_round_trip(dataset):
    there = raw_ids_of(dataset, SPACE)
    assert SPACE.lookup_table(RAW_IDS[dataset])[there[: len(SPACE)]].tolist() == list(range(len(SPACE)))
    assert SPACE.lookup_table(RAW_IDS[dataset])[there[IGNORE]] == IGNORE


# SYNTHIA-Seq


def test_synthia_crops_its_published_size_only(write_tree):
    root = write_tree("synthia_seq", sequences=1, frames=1, size=(1280, 760))
    dataset = get_dataset("synthia_seq")(root)
    (ref,) = dataset.index(with_labels=True)
    assert dataset.read_frame(ref).shape == (640, 1280, 3)
    assert dataset.read_label(ref, SPACE).shape == (640, 1280)
    assert dataset.crop(np.zeros((380, 640))).shape == (380, 640)


def test_synthia_root_is_one_sequence(write_tree):
    root = write_tree("synthia_seq")
    index = get_dataset("synthia_seq")(root / "SEQS-01").index(with_labels=True)
    assert {ref.sequence for ref in index} == {"SEQS-01"}
    assert index[0].name == "SEQS-01_000000"


def test_synthia_root_given_as_dot(write_tree, monkeypatch):
    monkeypatch.chdir(write_tree("synthia_seq") / "SEQS-01")
    index = get_dataset("synthia_seq")(".").index(with_labels=True)
    assert {ref.sequence for ref in index} == {"SEQS-01"}


def test_synthia_second_layout(write_tree):
    root = write_tree("synthia_seq", sequences=1)
    for old, new in (("rgb", "RGB/Stereo_Left/Omni_F"), ("label", "GT/LABELS/Stereo_Left/Omni_F")):
        (root / "SEQS-00" / new).parent.mkdir(parents=True)
        (root / "SEQS-00" / old).rename(root / "SEQS-00" / new)
    assert len(get_dataset("synthia_seq")(root).index(with_labels=True)) == 4


def test_synthia_missing_label_folder_is_named(write_tree):
    root = write_tree("synthia_seq")
    shutil.rmtree(root / "SEQS-01" / "label")
    with pytest.raises(DataError, match=r"SEQS-01/label does not exist; in .*SEQS-01 there is: rgb"):
        get_dataset("synthia_seq")(root).index(with_labels=True)


# VIPER


def test_viper_takes_every_tenth_frame(write_tree):
    dataset = get_dataset("viper")(write_tree("viper", frames=14, size=(16, 8)))
    index = dataset.index(with_labels=True)
    assert [(ref.sequence, ref.number) for ref in dataset.benchmark_frames(index)] == [
        *(("001", number) for number in (10, 20)),
        *(("002", number) for number in (10, 20)),
    ]


def test_viper_ignores_the_car_that_films(tmp_path):
    space = get_space("viper-cityscapes_seq")
    raw = np.full((12, 20), 3, np.uint8)
    raw[8:, 6:14] = raw[7, 5] = raw[6, 4] = 24  # the bonnet, and what touches it at a corner
    raw[2:4, 9:12] = 24  # another car
    dataset = get_dataset("viper")(tmp_path)
    bonnet = np.zeros_like(raw, bool)
    bonnet[8:, 6:14] = bonnet[7, 5] = bonnet[6, 4] = True
    cleaned = dataset.clean_label(raw)
    assert (cleaned[bonnet] == 0).all()
    assert np.array_equal(cleaned[~bonnet], raw[~bonnet])
    assert cleaned.dtype == raw.dtype
    raw[-1, 10] = 3  # the car at the bottom is not in the middle
    assert np.array_equal(dataset.clean_label(raw), raw)
    write_image(tmp_path / "train/img/001/001_00010.jpg", np.zeros((12, 20, 3), np.uint8))
    raw[-1, 10] = 24
    write_label(tmp_path / "train/cls/001/001_00010.png", raw)
    (ref,) = dataset.index(with_labels=True)
    label = dataset.read_label(ref, space)
    assert (label[bonnet] == IGNORE).all()
    assert (label[2:4, 9:12] == space.index("car")).all()


def test_viper_with_only_some_packages_of_the_download(write_tree):
    root = write_tree("viper")
    for path in [*root.rglob("*_00008.*"), *root.rglob("*_00011.*")]:
        path.unlink()
    clips = ClipDataset(get_dataset("viper")(root), ClipSpec((0, -1), labels=(0, -1)), SPACE, frames="published")
    assert [ref.number for ref in clips.refs(0).values()] == [10, 9]
    assert len(clips) == 2


# stills


@pytest.mark.parametrize("name", ["gta5", "synthia_rand", "cityscapes"])
def test_a_still_is_its_own_neighbour(name, write_tree, monkeypatch):
    dataset = get_dataset(name)(write_tree(name))
    opened = []
    monkeypatch.setattr("stcl.data.base.read_image", lambda path: opened.append(path) or read_image(path))
    spec = ClipSpec((0, -1, 1), ((0, -1), (0, 1)), (0, -1))
    clips = ClipDataset(dataset, spec, SPACE, flow=lambda *a: pytest.fail("asked for flow"))
    assert len(clips) == 8
    clip = clips[3]
    assert len(opened) == 1
    assert torch.equal(clip.frame(0), clip.frame(-1)) and torch.equal(clip.frame(0), clip.frame(1))
    assert torch.equal(clip.label(0), clip.label(-1)) and (clip.label(1) == IGNORE).all()
    assert not clip.flow(0, -1).any() and not clip.flow(0, 1).any()


def test_gta5_leaves_out_the_pictures_whose_label_does_not_fit(tmp_path):
    index = [FrameRef("gta5", number, Path("any.png")) for number in range(1, 24967)]
    kept = get_dataset("gta5")(tmp_path).benchmark_frames(index)
    assert len(kept) == 24966 - 62
    assert not {15188, 17705, 20801, 20860} & {ref.number for ref in kept}


# Cityscapes-Seq


def refs(*numbers: int, sequence: str = "ulm_000000") -> list[FrameRef]:
    return [FrameRef(sequence, n, Path(f"{sequence}_{n:06d}_leftImg8bit.png")) for n in numbers]


@pytest.mark.parametrize(
    ("numbers", "labelled"),
    [
        (range(30), [19]),
        (range(100, 160), [119, 149]),
        (range(25), [19]),
        (range(14, 20), [19]),
        (range(20), [19]),
        ([*range(30), *range(50, 80)], [19, 69]),
    ],
)
def test_cityscapes_labelled_frames_by_number(tmp_path, numbers, labelled):
    dataset = get_dataset("cityscapes_seq")(tmp_path)
    assert [ref.number for ref in dataset.benchmark_frames(refs(*numbers))] == labelled


def test_cityscapes_missing_split_lists_what_is_there(write_tree):
    with pytest.raises(DataError, match=r"leftImg8bit_sequence/val does not exist; in .* there is: train"):
        get_dataset("cityscapes_seq")(write_tree("cityscapes_seq"), "val").index(with_labels=False)


# CamVid


@pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid at ../shared/camvid")
@pytest.mark.parametrize(("split", "frames", "clips"), [("train", 367, 362), ("test", 233, 231)])
def test_camvid_for_real(split, frames, clips):
    dataset: VideoDataset = get_dataset("camvid")(CAMVID, split)
    index = dataset.index(with_labels=True)
    assert len(index) == frames
    space = get_space("twinstreets-camvid")
    found = ClipDataset(dataset, ClipSpec(frames=(0, -1), labels=(0,)), space, size=(240, 180))
    assert len(found) == clips
    seen = np.unique(np.concatenate([np.unique(dataset.read_label(ref, space)) for ref in index[::40]]))
    assert set(seen) <= {*range(len(space)), IGNORE}
    assert len(seen) > 8
    clip = found[len(found) // 2]
    assert clip.frames.shape == (2, 3, 180, 240)
    sky, road = (clip.label(0) == space.index(name) for name in ("sky", "road"))
    row = torch.arange(180.0)[:, None].expand(180, 240)
    assert row[sky].mean() < row[road].mean()
    assert clip.frame(0).float().mean(0)[sky].mean() > clip.frame(0).float().mean(0)[road].mean()


def test_camvid_frame_sizes_must_agree(write_tree):
    root = write_tree("camvid")
    dataset = get_dataset("camvid")(root)
    ref = dataset.index(with_labels=False)[1]
    write_image(ref.image, np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(DataError, match=r"is 16x16, but its neighbour .* is 48x32"):
        ClipDataset(dataset, ClipSpec(frames=(0, -1)), SPACE)[0]
