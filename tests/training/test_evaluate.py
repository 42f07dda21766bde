"""Evaluation: one confusion matrix over every labelled frame, at the label's size, and a result that says all of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

import stcl
from stcl.commands.report.samples import choose_samples
from stcl.data import get_dataset
from stcl.data.io import read_label, write_image, write_label
from stcl.errors import CheckpointError, DataError, SettingError
from stcl.labels import IGNORE, get_space
from stcl.pages.results import read_result
from stcl.pages.tables import compare
from stcl.protocols import PROTOCOLS
from stcl.training import evaluate as evaluation
from stcl.training.evaluate import evaluate
from stcl.training.train import train
from stcl.twinstreets.export import ExportRequest, export

SPACE = get_space("synthia_seq-cityscapes_seq")
PARTS = ("frame", "truth", "prediction")


def measure(run, out=None, **options):
    return evaluate(run, out=out, quiet=True, **options)


def stacked(out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of all kept predictions and truths, as vectors."""
    names = sorted(path.name for path in (out / "samples" / "prediction").iterdir())
    prediction, truth = (
        np.concatenate([read_label(out / "samples" / part / name).ravel() for name in names])
        for part in ("prediction", "truth")
    )
    return torch.from_numpy(prediction).long(), torch.from_numpy(truth).long()


@pytest.fixture
def own_run(trained, tmp_path) -> Path:
    """A finished run that a test may change."""
    return shutil.copytree(trained, tmp_path / "own")


@pytest.fixture
def own_target(streets, tmp_path) -> Path:
    """Target frames that a test may damage."""
    return shutil.copytree(streets / "target", tmp_path / "target")


def label_files(target: Path, split: str = "val") -> list[Path]:
    return sorted((target / "gtFine" / split).rglob("*_gtFine_labelIds.png"))


# what is measured


@pytest.mark.parametrize("split", ["val", "test"])
def test_miou_equals_torchmetrics_on_the_stacked_predictions(split, trained, tmp_path):
    results = measure(trained, tmp_path, split=split, samples=1000)
    prediction, truth = stacked(tmp_path)
    counts = MulticlassConfusionMatrix(len(SPACE), ignore_index=IGNORE)(prediction, truth)
    assert results["confusion"] == counts.tolist()
    jaccard = MulticlassJaccardIndex(len(SPACE), average="none", ignore_index=IGNORE, zero_division=float("nan"))
    iou = 100 * jaccard(prediction, truth).double()
    for index, name in enumerate(SPACE.names):
        stored = results["iou"][name]
        assert (stored is None) == bool(iou[index].isnan())
        assert stored is None or stored == pytest.approx(float(iou[index]), abs=2e-3)
    assert results["miou"] == pytest.approx(float(iou[list(SPACE.reported)].nanmean()), abs=2e-3)


def test_every_labelled_frame_counts_also_the_first_of_a_run(trained, streets, tmp_path):
    results = measure(trained, tmp_path, split="test", samples=0)
    paths = label_files(streets / "target", "test")
    assert results["data"]["frames"] == len(paths) == 6
    table = SPACE.lookup_table(get_dataset("cityscapes_seq")(streets / "target", "test").raw_names)
    labelled = sum(int((table[read_label(path)] != IGNORE).sum()) for path in paths)
    assert np.sum(results["confusion"]) == labelled
    assert not (tmp_path / "samples").exists()


def test_the_batch_size_changes_nothing(make_settings, trained, own_run, tmp_path):
    settings = make_settings("source_only", evaluation={"batch_size": 1})
    (own_run / "config.yaml").write_text(settings.dump())
    one, four = measure(own_run, split="test"), measure(trained, tmp_path / "four", split="test")
    assert one["confusion"] == four["confusion"]


def test_scores_are_taken_at_the_size_of_the_label(trained, tmp_path):
    request = ExportRequest("cityscapes-seq", "camera", clips=1, frames=2, size=(96, 48), split="val")
    export(tmp_path / "large", request, progress=False)
    results = measure(trained, tmp_path / "out", root=tmp_path / "large", samples=5)
    (name,) = (path.name for path in (tmp_path / "out" / "samples" / "prediction").iterdir())
    assert read_label(tmp_path / "out" / "samples" / "prediction" / name).shape == (48, 96)
    truth = read_label(tmp_path / "out" / "samples" / "truth" / name)
    assert truth.shape == (48, 96)
    assert np.sum(results["confusion"]) == (truth != IGNORE).sum()


def test_the_evaluated_weights_are_those_of_the_file(trained, own_run):
    """An evaluation of other weights under the same configuration measures those."""
    before = measure(own_run)["confusion"]
    weights = load_file(own_run / "model.safetensors")
    mixed = {name: tensor.flip(0) if name.startswith("head.") else tensor for name, tensor in weights.items()}
    save_file({name: tensor.contiguous() for name, tensor in mixed.items()}, own_run / "model.safetensors")
    assert measure(own_run)["confusion"] != before


# what is written


def test_results_say_everything(trained, streets, tmp_path):
    results = measure(trained, tmp_path / "deep" / "out")
    assert json.loads((tmp_path / "deep" / "out" / "results.json").read_text()) == results
    assert list(results) == [
        *("schema", "name", "title", "method", "oracle", "protocol", "data", "miou", "means", "iou", "confusion"),
        *("selection", "statistics", "seed", "steps", "config", "code", "environment", "seconds", "date"),
    ]
    protocol = results["protocol"]
    assert (protocol["name"], protocol["version"]) == (SPACE.name, 1)
    assert protocol["classes"] == list(SPACE.names)
    assert protocol["reported"] == list(SPACE.reported)
    assert protocol == PROTOCOLS[SPACE.name].describe()
    assert "one confusion matrix" in protocol["averaging"]
    assert results["means"] == {}
    names = {"source": "synthia_seq/train", "target": "cityscapes_seq/train"}
    assert results["data"] == {**names, "split": "val", "frames": 2}
    assert results["selection"] == "last EMA weights"
    assert results["statistics"] == "source batch-norm statistics"
    assert (results["seed"], results["steps"], results["oracle"]) == (0, 2, False)
    assert results["config"]["target"]["root"] == str(streets / "target")
    assert results["code"]["version"] == stcl.__version__
    assert results["code"]["revision"]
    assert results["seconds"]["train"] > 0
    assert results["seconds"]["evaluate"] >= 0
    assert not (trained / "results.json").exists()  # an --out of its own leaves the run as it was


def test_the_report_reads_and_recomputes_it(own_run):
    results = measure(own_run)
    assert read_result(own_run).miou == pytest.approx(results["miou"], abs=1e-3)
    assert compare([own_run]).miou == pytest.approx([results["miou"]], abs=1e-3)


def test_samples_are_spread_and_complete(own_run):
    measure(own_run, split="test", samples=3)
    names = [sorted(path.name for path in (own_run / "samples" / part).iterdir()) for part in PARTS]
    assert names[0] == names[1] == names[2]
    assert [name[-22:-16] for name in names[0]] == ["000017", "000019", "000019"]


def test_a_second_evaluation_leaves_nothing_of_the_first(own_run):
    measure(own_run, split="test", samples=6)
    measure(own_run, samples=1)
    assert [len(list((own_run / "samples" / part).iterdir())) for part in PARTS] == [1, 1, 1]


def test_an_evaluation_that_breaks_off_leaves_no_result(own_run, own_target):
    measure(own_run)
    path = label_files(own_target)[-1]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"PNG file {path} is cut off after 60 bytes"):
        measure(own_run, root=own_target)
    assert not (own_run / "results.json").exists()
    with pytest.raises(DataError, match=r"No results\.json"):
        read_result(own_run)


def test_a_mistake_before_the_first_frame_keeps_the_result(own_run):
    measure(own_run)
    with pytest.raises(DataError, match="Root /nowhere"):
        measure(own_run, root=Path("/nowhere"))
    assert (own_run / "results.json").is_file()


def test_only_pictures_of_an_evaluation_are_removed(own_run):
    measure(own_run, split="test", samples=3)
    own = [own_run / "samples" / "truth" / "own.png", own_run / "samples" / "notes.txt"]
    for path in own:
        path.write_text("mine")
    measure(own_run, samples=1)
    assert [path.read_text() for path in own] == ["mine"] * 2
    assert [len(list((own_run / "samples" / part).iterdir())) for part in PARTS] == [1, 2, 1]
    assert len(choose_samples(compare([own_run]), 0, 0)) == 1
    (own_run / "samples" / "samples.json").unlink()  # as an earlier version left it: it kept no list
    measure(own_run, samples=1)
    assert own[0].read_text() == "mine"


@pytest.mark.parametrize("own", ["results.json", "samples/frame/a.png", "samples/samples.json"])
def test_files_of_other_people_are_refused(trained, tmp_path, own):
    (tmp_path / own).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / own).write_text('{"mine": 1}')
    with pytest.raises(SettingError, match=r"not written by 'stcl evaluate': it stays as it is.*--out"):
        measure(trained, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / own]


def test_of_two_evaluations_into_one_folder_one_is_told(trained, tmp_path, monkeypatch):
    look = evaluation._begin

    def meanwhile(out, names):
        with pytest.raises(SettingError, match=rf"Another process is measuring into {tmp_path} right now"):
            measure(trained, tmp_path)
        look(out, names)

    monkeypatch.setattr(evaluation, "_begin", meanwhile)
    measure(trained, tmp_path)


# what is refused


def test_no_run_folder(tmp_path, streets):
    for folder in (tmp_path, tmp_path / "nowhere", streets / "source"):
        with pytest.raises(SettingError, match=rf"{folder} is no run folder: it holds no config\.yaml"):
            measure(folder)


def test_an_unfinished_run(own_run):
    (own_run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"own holds no model\.safetensors: its training was interrupted"):
        measure(own_run)


def test_damaged_weights(own_run):
    path = own_run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=rf"{path}' is not a whole safetensors file \(5000 bytes"):
        measure(own_run)


def test_weights_of_another_network(own_run, make_settings):
    settings = make_settings("source_only", network={"backbone_settings": {"width": 16}})
    (own_run / "config.yaml").write_text(settings.dump())
    with pytest.raises(CheckpointError, match=r"belongs to another network.*of another shape") as caught:
        measure(own_run)
    assert "\n" not in str(caught.value)


def test_damaged_status(own_run):
    (own_run / "status.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"status\.json is damaged"):
        measure(own_run)


def test_an_unknown_and_an_absent_split(trained, own_run, own_target):
    with pytest.raises(SettingError, match=r"'vla'\. Did you mean 'val'"):
        measure(own_run, split="vla")
    shutil.rmtree(own_target / "leftImg8bit_sequence" / "val")
    with pytest.raises(DataError, match=r"leftImg8bit_sequence/val does not exist; in .* there is: test, train"):
        measure(own_run, root=own_target)


def test_labels_that_cannot_be_used(own_run, own_target):
    path = label_files(own_target)[0]
    write_label(path, np.full((32, 64), 99, np.uint8))
    with pytest.raises(DataError, match=rf"{path} holds ids that .* does not have: 99 \(2048 px\)"):
        measure(own_run, root=own_target)
    write_label(path, np.full((16, 64), 7, np.uint8))
    with pytest.raises(DataError, match=rf"{path} is 64x16, but its frame .* is 64x32"):
        measure(own_run, root=own_target)
    write_image(path.with_name(path.name.replace("000000_000019", "000009_000019")), np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(DataError, match="has no frame"):
        measure(own_run, root=own_target)


def test_labels_of_several_sizes(make_settings, own_run, own_target):
    for path in (own_target / "leftImg8bit_sequence" / "val").rglob("*_000001_*.png"):
        write_image(path, np.zeros((48, 96, 3), np.uint8))
    write_label(label_files(own_target)[1], np.full((48, 96), 7, np.uint8))
    message = r"Labels of one batch have different sizes: .* has 64x32, .* has 96x48\. With a batch size of 1"
    with pytest.raises(DataError, match=message):
        measure(own_run, root=own_target)
    settings = make_settings("source_only", evaluation={"batch_size": 1})
    (own_run / "config.yaml").write_text(settings.dump())
    assert np.sum(measure(own_run, root=own_target)["confusion"]) > 48 * 96


def test_nothing_but_ignored_pixels(own_run, own_target):
    for path in label_files(own_target):
        write_label(path, np.zeros((32, 64), np.uint8))
    with pytest.raises(
        DataError, match=r"split 'val', in .*: no labelled pixel in 2 frames has a class of 'synthia_seq-"
    ):
        measure(own_run, root=own_target)
    assert not (own_run / "results.json").exists()


def test_an_oracle_is_marked(make_settings, streets, tmp_path):
    source = {"name": "cityscapes_seq", "root": str(streets / "target"), "frames": "labelled"}
    run = train(make_settings("source_only", source=source, oracle=True), tmp_path / "run", quiet=True)
    assert measure(run)["oracle"] is True
    assert read_result(run).oracle
