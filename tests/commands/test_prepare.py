"""Prepared data give the bits that decoding gives; what is missing, damaged or out of date is never used."""

import json
import multiprocessing
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from stcl.cli import main
from stcl.commands.prepare import run as module
from stcl.commands.prepare.run import prepare, prepare_clips
from stcl.data import class_pixels
from stcl.data.io import read_image, write_image
from stcl.data.prepared import list_records, prepared_folder, segment_folders, use_prepared
from stcl.data.segments import Entry, Segment, write_segment
from stcl.errors import DataError, SettingError
from stcl.labels import get_space
from stcl.training.domains import DomainData, evaluation_clips, training_clips
from stcl.training.model_folder import digest
from stcl.training.train import resume, train
from stcl.types import ClipSpec

SOURCE = ClipSpec(frames=(0, -1), flows=((0, -1),), labels=(0, -1))
TARGET = ClipSpec(frames=(0, -1, -2), flows=((0, -1), (-1, -2), (0, -2)))


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch):
    monkeypatch.setattr("stcl.commands.prepare.run.SEGMENT_FRAMES", 3)


@pytest.fixture
def world(streets, tmp_path):
    """A copy of the streets that a test may change."""
    return Path(shutil.copytree(streets, tmp_path / "streets"))


@pytest.fixture(scope="module")
def base(make_settings):
    return make_settings()


@pytest.fixture
def settings(base, world, place):
    source, target = (replace(getattr(base, name), root=str(world / name)) for name in ("source", "target"))
    return replace(base, source=source, target=target, prepared=str(place))


@pytest.fixture
def clips(settings):
    """``clips()``: target clips of three frames, each time anew."""
    return lambda: training_clips(settings, settings.target, TARGET)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "prepared"


def assert_equal(one, two):
    """Every clip of two data sets has the same bits."""
    assert len(one) == len(two) > 0
    for item in range(len(one)):
        a, b = one[item], two[item]
        assert torch.equal(a.frames, b.frames) and a.frames.dtype == b.frames.dtype == torch.uint8
        assert (a.labels is None) == (b.labels is None)
        assert a.labels is None or torch.equal(a.labels, b.labels)
        assert a.flows.keys() == b.flows.keys()
        assert all(torch.equal(a.flows[key], b.flows[key]) for key in a.flows)
        assert (a.names, a.offsets) == (b.names, b.offsets)


def segments(clips, place):
    return segment_folders(prepared_folder(clips, place))


# ---- the same bits ----


@pytest.mark.parametrize("cache", [None, "flow"])
@pytest.mark.parametrize("domain", ["source", "target"])
def test_the_same_clips(make_settings, tmp_path, place, domain, cache):
    settings = make_settings(flow={"cache": cache and str(tmp_path / cache)}, target={"size": [48, 32]})
    spec = SOURCE if domain == "source" else TARGET
    decoded, prepared = (training_clips(settings, getattr(settings, domain), spec) for _ in range(2))
    done = prepare_clips(prepared, place, workers=2 if cache else 0)
    assert done.made == done.records == len(list_records(decoded)) and not done.fault
    assert use_prepared(prepared, place) == f"prepared data in {done.folder} are used."
    assert_equal(decoded, prepared)
    flow = np.load(next(done.folder.glob("*/flow.npy")))
    assert flow.dtype == (np.float16 if cache else np.float32)
    written = sum(path.stat().st_size for path in done.folder.glob("*/*.npy"))
    assert done.size_bytes < written < 1.1 * done.size_bytes


def test_prepared_clips_open_no_picture(clips, place, monkeypatch):
    prepare_clips(clips(), place)
    prepared = clips()
    use_prepared(prepared, place)
    monkeypatch.setattr("stcl.data.base.read_image", lambda path: pytest.fail(f"{path} was opened"))
    assert prepared[0].frames.shape == (3, 3, 32, 64)


def test_frames_without_a_label_are_ignored_pixels(settings, place):
    domain, spec = settings.target, ClipSpec(frames=(0, -1), labels=(0, -1))
    decoded, prepared = (training_clips(settings, domain, spec) for _ in range(2))
    prepare_clips(prepared, place)
    use_prepared(prepared, place)
    assert_equal(decoded, prepared)
    assert (prepared[0].label(-1) == 255).all()
    assert np.array_equal(class_pixels(decoded), class_pixels(prepared))


def test_an_array_file_is_one_that_numpy_reads(clips, place):
    done = prepare_clips(clips(), place)
    segment = Segment(segment_folders(done.folder)[0])
    frames = np.load(segment.folder / "frames.npy")
    assert len(frames) == len(segment.names["frames"]) == 3
    for position, ref in enumerate(clips().runs[0][:3]):
        assert segment.names["frames"][position] == ref.name
        assert np.array_equal(frames[position], read_image(ref.image).transpose(2, 0, 1))


def test_target_labels_are_never_looked_at(settings, world):
    shutil.rmtree(world / "target/gtFine")
    done = {one.domain: one for one in prepare(settings, workers=0, quiet=True)}
    assert set(done) == {"source", "target"} and not any(one.fault for one in done.values())
    assert next(done["source"].folder.glob("*/labels.npy"))
    assert not [*done["target"].folder.glob("*/labels.npy")]


def test_nothing_is_written_into_the_data(settings, world):
    before = sorted(path for path in world.rglob("*"))
    assert len([*prepare(settings, workers=0, quiet=True)]) == 2
    assert sorted(path for path in world.rglob("*")) == before


# ---- whole or not there ----


def test_a_second_call_keeps_what_is_whole(clips, place):
    first = prepare_clips(clips(), place)
    times = {path: path.stat().st_mtime_ns for path in first.folder.glob("*/*")}
    second = prepare_clips(clips(), place)
    assert second.made == second.removed == 0 and not second.fault
    assert {path: path.stat().st_mtime_ns for path in first.folder.glob("*/*")} == times


def test_a_killed_call_goes_on(clips, place):
    whole = prepare_clips(clips(), place)
    lost, kept = segments(clips(), place)[:2]
    rest = lost.with_name(f".{lost.name}.4711.abcd.tmp")
    lost.rename(rest)  # as a kill leaves it: written in part, not yet named
    (rest / "segment.json").unlink()
    stamp = (kept / "frames.npy").stat().st_mtime_ns
    assert "are not used" in use_prepared(clips(), place)
    again = prepare_clips(clips(), place)
    assert 0 < again.made < whole.made and again.removed == 0 and not again.fault
    assert not rest.exists() and (kept / "frames.npy").stat().st_mtime_ns == stamp
    prepared = clips()
    assert use_prepared(prepared, place).endswith("are used.")
    assert_equal(clips(), prepared)


@pytest.mark.parametrize("file", ["frames.npy", "flow.npy", "segment.json"])
@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_damage_is_found_and_mended(clips, place, file, harm):
    prepare_clips(clips(), place)
    path = segments(clips(), place)[0] / file
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content if harm == "flip" else content[:-100])
    prepared = clips()

    def read_all():
        use_prepared(prepared, place)
        return [prepared[item] for item in range(len(prepared))]

    with pytest.raises(DataError, match=f"{path}.* is damaged.*stcl data prepare CONFIG"):
        read_all()
    again = prepare_clips(clips(), place)
    assert again.removed == 1 and again.made > 0 and not again.fault
    use_prepared(prepared, place)
    assert_equal(clips(), prepared)


def test_two_processes_at_once(clips, place):
    context = multiprocessing.get_context("fork")
    other = context.Process(target=prepare_clips, args=(clips(), place))
    other.start()
    prepare_clips(clips(), place)
    other.join()
    assert other.exitcode == 0
    prepared = clips()
    assert use_prepared(prepared, place).endswith("are used.")
    assert_equal(clips(), prepared)
    assert not [path for path in prepared_folder(prepared, place).iterdir() if path.name.startswith(".")]


def test_a_segment_that_another_process_has_mended_stays(clips, place, monkeypatch):
    """Both find it damaged; the other one is quicker."""
    prepare_clips(clips(), place)
    path = segments(clips(), place)[0] / "frames.npy"
    path.write_bytes(path.read_bytes()[:-100])
    remove, mended = module._Preparation._remove, list[int]()

    def late(self, folder):
        if not mended:
            monkeypatch.undo()
            prepare_clips(clips(), place)
            mended.append(path.stat().st_mtime_ns)
        remove(self, folder)

    monkeypatch.setattr(module._Preparation, "_remove", late)
    done = prepare_clips(clips(), place)
    assert (done.removed, done.made, done.fault) == (0, 0, "") and path.stat().st_mtime_ns == mended[0]


def test_other_folders_beside_the_segments_stay(clips, place):
    whole = prepare_clips(clips(), place)
    notes = whole.folder / "notes" / "own.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    damaged, without_index = segments(clips(), place)[:2]
    (damaged / "own.txt").write_text("mine")
    (damaged / "frames.npy").write_bytes(b"")
    (without_index / "segment.json").unlink()
    with pytest.raises(SettingError, match=rf"{damaged} is there already and stays as it is"):
        prepare_clips(clips(), place)
    assert notes.read_text() == (damaged / "own.txt").read_text() == "mine"
    (damaged / "own.txt").unlink()
    again = prepare_clips(clips(), place)
    assert 0 < again.made < whole.made and not again.fault and notes.read_text() == "mine"


def test_what_another_process_is_making_is_left_to_it(clips, place, locked_elsewhere):
    whole = prepare_clips(clips(), place)
    busy = segments(clips(), place)[0]
    shutil.rmtree(busy)
    with locked_elsewhere(busy.with_name(f".{busy.name}.lock")):
        done = prepare_clips(clips(), place)
    assert done.made == 0 and not busy.exists()
    assert "are missing. Prepare the rest: stcl data prepare CONFIG" in done.fault
    assert 0 < prepare_clips(clips(), place).made < whole.made


def test_shards_complete_each_other(clips, place):
    first = prepare_clips(clips(), place, shard=(1, 2))
    assert "are missing" in first.fault
    second = prepare_clips(clips(), place, shard=(2, 2))
    assert not second.fault
    assert first.made + second.made == first.records and min(first.made, second.made) > 0


def test_a_longer_clip_adds_what_it_lacks(settings, clips, place):
    pairs = training_clips(settings, settings.target, ClipSpec(frames=(0, -1), flows=((0, -1),)))
    first = prepare_clips(pairs, place)
    second = prepare_clips(clips(), place)
    assert first.folder == second.folder
    assert first.made < second.records == first.made + second.made
    prepared = clips()
    use_prepared(prepared, place)
    assert_equal(clips(), prepared)
    assert use_prepared(pairs, place).endswith("are used.")


# ---- never what is out of date, or of something else ----


def test_a_changed_file(clips, place):
    prepare_clips(clips(), place)
    path = clips().runs[0][1].image
    write_image(path, 255 - read_image(path))
    prepared = clips()
    note = use_prepared(prepared, place)
    assert "are not used" in note and f"changed since, the first of {path}. Prepare again: stcl data prepare" in note
    assert prepared.prepared is None
    again = prepare_clips(clips(), place)
    assert again.removed > 0 and 0 < again.made < again.records and not again.fault
    use_prepared(prepared, place)
    assert_equal(clips(), prepared)


def test_a_changed_label_and_a_newer_copy_of_it(settings, place):
    prepare_clips(training_clips(settings, settings.source, SOURCE), place)
    clips = training_clips(settings, settings.source, SOURCE)
    os.utime(clips.runs[0][1].label, ns=(1, 1))
    assert "1 of " in use_prepared(clips, place) and clips.prepared is None


@pytest.mark.parametrize(
    ("group", "changes"),
    [
        ("target", {"size": (128, 64)}),
        ("target", {"split": "test"}),
        ("flow", {"quality": "medium"}),
        ("flow", {"cache": "flow"}),
    ],
)
def test_other_settings_are_another_folder(base, monkeypatch, tmp_path, place, group, changes):
    monkeypatch.chdir(tmp_path)
    other = replace(base, **{group: replace(getattr(base, group), **changes)})
    one, two = (training_clips(settings, settings.target, TARGET) for settings in (base, other))
    assert prepared_folder(one, place) != prepared_folder(two, place)


def test_other_versions_and_label_spaces_are_another_folder(settings, monkeypatch, place):
    other = replace(settings, space=get_space("cityscapes"))
    assert len({prepared_folder(training_clips(s, settings.source, SOURCE), place) for s in (settings, other)}) == 2
    clips = training_clips(settings, settings.source, SOURCE)
    prepare_clips(clips, place)
    monkeypatch.setattr("stcl.data.prepared.VERSION", "0")
    assert use_prepared(clips, place) == "" and clips.prepared is None


# ---- what it says ----


def test_too_little_room(clips, place, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(SettingError, match=r"takes 0\.\d MB in .*, but that disk has 0.0 MB left. Make room, or"):
        prepare_clips(clips(), place)
    assert not segments(clips(), place)


def test_a_disk_that_fills_up_keeps_what_is_finished(clips, place, monkeypatch):
    def write(path, kinds):
        if segments(clips(), place):
            raise OSError(28, "No space left on device")
        write_segment(path, kinds)

    monkeypatch.setattr("stcl.commands.prepare.run.write_segment", write)
    with pytest.raises(DataError, match=r"No space left.*What is finished is kept"):
        prepare_clips(clips(), place)
    assert len(segments(clips(), place)) == 1
    monkeypatch.undo()
    assert not prepare_clips(clips(), place).fault


def test_wrong_shards_and_no_folder(settings, make_settings):
    with pytest.raises(SettingError, match="1 <= I <= N; found 3/2"):
        next(prepare(settings, (3, 2)))
    with pytest.raises(SettingError, match="prepared: null"):
        next(prepare(make_settings(prepared=None)))


def test_frames_of_two_sizes(tmp_path):
    frames = [Entry(str(width), "", np.zeros((3, 8, width), np.uint8)) for width in (16, 24)]
    with pytest.raises(DataError, match=r"Frame 16 is 16x8, but 24 is 24x8.*source.size and target.size"):
        write_segment(tmp_path / "segment", {"frames": ("u1", frames)})
    assert not [*tmp_path.iterdir()]


def test_training_uses_it_and_resumes(make_settings, tmp_path, place, capsys):
    config, training = tmp_path / "config.yaml", {"checkpoint_every": 1, "workers": 1}
    settings = make_settings("tps", prepared=str(place), training=training)
    config.write_text(yaml.safe_dump(settings.as_dict()))
    plain = train(settings, tmp_path / "plain", quiet=True)
    assert "prepared" not in capsys.readouterr().err
    assert main(["data", "prepare", str(config), "--quiet", "--workers", "0"]) == 0
    assert "frames, labels and flows prepared in" in capsys.readouterr().out
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    said, record = capsys.readouterr().err, json.loads((tmp_path / "run/run.json").read_text())
    for domain in ("source", "target"):
        assert record["prepared"][domain].endswith("are used.")
        assert f"stcl: {domain}: {record['prepared'][domain]}" in said
    weights = digest(plain / "model.safetensors")
    assert digest(tmp_path / "run/model.safetensors") == weights
    cut = Path(shutil.copytree(tmp_path / "run", tmp_path / "cut"))
    (cut / "model.safetensors").unlink()
    (cut / "checkpoints/last.ckpt").unlink()
    assert digest(resume(cut, quiet=True) / "model.safetensors") == weights
    assert json.loads((cut / "run.json").read_text())["resumed"][0]["prepared"] == record["prepared"]


def test_evaluation_and_calibration_read_files(settings):
    assert all(not one.fault for one in prepare(settings, workers=0, quiet=True))
    assert evaluation_clips(settings).prepared is None
    data = DomainData(settings, SOURCE, replace(SOURCE, labels=()))
    assert data.source.prepared is not None and data.target.prepared is not None
    assert data.calibration_loader("source").dataset.dataset.prepared is None
