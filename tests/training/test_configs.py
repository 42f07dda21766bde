"""The published pairs of data sets end to end on tiny trees: two steps of training, then a measurement."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import stcl.data.base as base
from stcl.data import get_dataset
from stcl.data.io import read_label, write_image, write_label
from stcl.errors import DataError, SettingError
from stcl.labels import get_space, raw_ids_of
from stcl.training.domains import training_clips
from stcl.training.evaluate import evaluate
from stcl.training.provenance import describe_clips
from stcl.training.run_folder import RunFolder
from stcl.training.train import train
from stcl.twinstreets import SPACE_NAME, StreetClip, get_style
from stcl.twinstreets.export import ExportRequest, export
from stcl.types import ClipSpec

SIZE = (64, 32)
RENDERED = get_space(SPACE_NAME)
VIPER = ExportRequest("viper", "clean", clips=2, frames=11, size=SIZE)


@pytest.fixture(scope="module")
def viper(tmp_path_factory) -> Path:
    """Streets in VIPER's layout."""
    root = tmp_path_factory.mktemp("viper") / "VIPER"
    export(root, VIPER, progress=False)
    return root


@pytest.fixture(scope="module")
def stills(streets, tmp_path_factory) -> dict[str, Path]:
    """The streets as GTA5 and as the single pictures of Cityscapes."""
    root = tmp_path_factory.mktemp("stills")
    source = get_dataset("synthia_seq")(streets / "source")
    for number, ref in enumerate(source.index(with_labels=True), 1):
        write_image(root / f"GTA5/images/{number:05d}.png", source.read_frame(ref))
        raw = raw_ids_of("gta5", RENDERED)[source.read_label(ref, RENDERED)]
        write_label(root / f"GTA5/labels/{number:05d}.png", raw.astype(np.uint8))
    for split in ("train", "val"):
        target = get_dataset("cityscapes_seq")(streets / "target", split)
        for ref in target.benchmark_frames(target.index(with_labels=False)):
            path = ref.image.relative_to(streets / "target" / "leftImg8bit_sequence")
            write_image(root / "Cityscapes" / "leftImg8bit" / path, target.read_frame(ref))
        shutil.copytree(streets / "target" / "gtFine" / split, root / "Cityscapes" / "gtFine" / split)
    return {"gta5": root / "GTA5", "cityscapes": root / "Cityscapes"}


@contextmanager
def target_labels_out_of_reach(root: Path) -> Iterator[None]:
    """Labels of the frames that are adapted to are gone, and reading any label below ``root`` fails meanwhile."""
    shutil.rmtree(root / "gtFine" / "train")

    def guarded(path, channel=None):
        assert root not in path.parents, f"training opened {path}"
        return read_label(path, channel)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "read_label", guarded)
        yield


def test_the_viper_layout_goes_round(viper):
    """What TwinStreets writes is what the data set reads: frames, neighbours, labels."""
    space = get_space("viper-cityscapes_seq")
    dataset = get_dataset("viper")(viper)
    index = dataset.index(with_labels=True)
    assert [(ref.sequence, ref.number) for ref in index] == [(f"00{c}", f) for c in range(2) for f in range(11)]
    assert [ref.name for ref in dataset.benchmark_frames(index)] == ["000_00000", "000_00010", "001_00000", "001_00010"]
    to_viper = raw_ids_of("viper", RENDERED)
    for clip in range(2):
        street = StreetClip(get_style("clean"), VIPER.clip_seed(clip), size=SIZE, frames=11)
        raw = to_viper[street.render(10).label]
        wanted = space.lookup_table(dataset.raw_names)[dataset.clean_label(raw)]
        assert np.array_equal(dataset.read_label(index[11 * clip + 10], space), wanted)
        assert len(np.unique(wanted)) > 4


def test_viper_to_cityscapes_seq(viper, streets, make_settings, tmp_path):
    target = shutil.copytree(streets / "target", tmp_path / "target")
    pair = {
        "source": {"name": "viper", "root": str(viper), "frames": "published"},
        "target": {"root": str(target), "frames": "published"},
    }
    settings = make_settings("stcl", space="viper-cityscapes_seq", **pair)
    with target_labels_out_of_reach(target):
        run = train(settings, tmp_path / "run", quiet=True)
    results = evaluate(run, quiet=True)
    assert results["data"]["frames"] == 2
    assert (results["protocol"]["name"], results["protocol"]["version"]) == ("viper-cityscapes_seq", 1)
    assert results["protocol"]["merges"] == {"rider": "person"}
    assert results["iou"].keys() == set(get_space("viper-cityscapes_seq").names)


def test_pixels_of_ignored_classes_do_not_count(viper, make_settings, tmp_path):
    """UnifiedVideoDA leaves out a pixel where the label or the prediction is one of them."""
    source = {"name": "viper", "root": str(viper)}
    space = get_space("viper-cityscapes_seq-uvda")
    run = train(make_settings("source_only", space=space.name, source=source), tmp_path / "run", quiet=True)
    results = evaluate(run, samples=100, quiet=True)
    ignored = [space.index(name) for name in ("wall", "pole", "rider", "train")]
    confusion = np.array(results["confusion"])
    counts = np.zeros_like(confusion)
    for path in sorted((run / "samples/prediction").iterdir()):
        prediction, truth = read_label(path), read_label(run / "samples/truth" / path.name)
        counted = ~np.isin(prediction, ignored) & ~np.isin(truth, [*ignored, 255])
        np.add.at(counts, (truth[counted], prediction[counted]), 1)
        assert np.isin(truth, ignored).any()
    assert np.array_equal(confusion, counts)
    assert confusion.any()


@pytest.mark.parametrize("method", ["dacs", "stcl"])
def test_gta5_to_cityscapes(method, stills, make_settings, tmp_path):
    target = shutil.copytree(stills["cityscapes"], tmp_path / "target")
    settings = make_settings(
        method,
        space="gta5-cityscapes",
        source={"name": "gta5", "root": str(stills["gta5"]), "frames": "published"},
        target={"name": "cityscapes", "root": str(target)},
        network={"fusion": "none"} if method == "dacs" else {},
    )
    with target_labels_out_of_reach(target):
        run = train(settings, tmp_path / "run", quiet=True)
    results = evaluate(run, quiet=True)
    assert results["protocol"]["name"] == "gta5-cityscapes"
    assert results["data"] == {"source": "gta5/train", "target": "cityscapes/train", "split": "val", "frames": 2}
    assert results["miou"] is not None


def test_a_list_chooses_the_frames_of_a_run_and_must_stay_the_same(stills, make_settings, tmp_path):
    (tmp_path / "some.txt").write_text("00002.png\n00005\n")
    source = {"name": "gta5", "root": str(stills["gta5"]), "frames": f"list:{tmp_path / 'some.txt'}"}
    target = {"name": "cityscapes", "root": str(stills["cityscapes"])}
    pair = {"space": "gta5-cityscapes", "source": source, "target": target}
    settings = make_settings("source_only", **pair)
    clips = training_clips(settings, settings.source, ClipSpec(labels=(0,)))
    assert [clips.refs(item)[0].name for item in range(len(clips))] == ["gta5_00002", "gta5_00005"]
    before = {"source": describe_clips(clips)}
    (tmp_path / "some.txt").write_text("00002.png\n00004\n")
    now = {"source": describe_clips(training_clips(settings, settings.source, ClipSpec(labels=(0,))))}
    RunFolder(tmp_path / "run").compare_data(before, before)
    with pytest.raises(DataError, match=r"are not those that run .* began with \(other frames are listed\)"):
        RunFolder(tmp_path / "run").compare_data(before, now)
    source["frames"] = f"list:{tmp_path / 'none.txt'}"
    settings = make_settings("source_only", **pair)
    with pytest.raises(SettingError, match=r"none\.txt cannot be read"):
        training_clips(settings, settings.source, ClipSpec(labels=(0,)))
