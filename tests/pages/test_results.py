import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from stcl.commands.report.samples import frame_confusion
from stcl.errors import DataError
from stcl.pages.results import iou_percent, mean_percent, read_metrics, read_result

HAND = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])  # IoU: 6 / 9, 3 / 6, absent


def test_iou_by_hand() -> None:
    iou = iou_percent(HAND)
    assert iou[:2] == pytest.approx([100 * 6 / 9, 50.0])
    assert math.isnan(iou[2])
    assert mean_percent(iou) == pytest.approx((100 * 6 / 9 + 50.0) / 2)
    assert math.isnan(mean_percent(np.array([np.nan])))


def test_class_only_in_prediction_counts_as_zero() -> None:
    assert iou_percent(np.array([[3, 1], [0, 0]])).tolist() == [75.0, 0.0]


def test_iou_agrees_with_torchmetrics() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 5, (4, 30, 40)).astype(np.uint8)
    prediction = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, 5, truth.shape)).astype(np.uint8)
    truth[:, :3] = 255
    counts = sum(frame_confusion(t, p, 5) for t, p in zip(truth, prediction, strict=True))
    metric = MulticlassJaccardIndex(num_classes=5, average="none", ignore_index=255)
    expected = metric(torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)))
    assert iou_percent(counts) == pytest.approx(100 * expected.numpy(), abs=1e-4)


def test_prediction_outside_the_classes_is_a_miss() -> None:
    counts = frame_confusion(np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 255, 1, 0]], np.uint8), 2)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert iou_percent(counts).tolist() == [50.0, 100.0]


def test_a_run_reads_back(make_run: Callable[..., Path]) -> None:
    run = make_run(method="stcl", title="STCL")
    result = read_result(run)
    stored = json.loads((run / "results.json").read_text())
    assert (result.title, result.method, result.oracle, result.folder) == ("STCL", "stcl", False, run)
    assert result.miou == pytest.approx(stored["miou"], abs=0.01)
    assert result.protocol.palette.shape == (256, 3)
    assert read_result(run / "results.json").miou == result.miou
    curves = read_metrics(run)
    assert set(curves) == {"lr", "time", "loss/source"}
    assert [column.tolist() for column in curves["lr"]] == [[300.0], [0.0001]]
    assert len(curves["loss/source"][0]) == 151


def test_further_means_and_what_a_title_says(make_run: Callable[..., Path]) -> None:
    """Results without these keys, as older ones are, read as before."""
    old = read_result(make_run("old"))
    assert (old.protocol.title, old.protocol.means) == ("synthia_seq-cityscapes_seq v1", {})
    more = {"means": {"mIoU of 2": [0, 2]}, "merges": {"truck": "car"}, "ignored": ["fence", "pole"]}
    new = read_result(make_run("new", change=lambda d: d["protocol"].update(more)))
    assert new.mean(new.protocol.means["mIoU of 2"]) == pytest.approx(np.mean(new.iou[[0, 2]]))
    assert new.protocol.title == "synthia_seq-cityscapes_seq v1 (truck as car; without fence, pole)"
    assert new.miou == old.miou


def _confusion(document: dict[str, Any]) -> list[list[int]]:
    rows: list[list[int]] = document["confusion"]
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "schema 2"),
        (lambda d: d.pop("title"), "no key 'title'"),
        (lambda d: d.update(oracle="no"), "'oracle' must be bool, found str"),
        (lambda d: d.update(miou=d["miou"] + 1), "does not agree with itself.*miou"),
        (lambda d: d.update(miou=None), "does not agree with itself"),
        (lambda d: d["iou"].update(road=1.0), "does not agree with itself.*'road'"),
        (lambda d: d["iou"].pop("road"), "does not agree with itself.*'road' None"),
        (lambda d: _confusion(d).pop(), r"12 x 12 pixel counts.*found shape \(11, 12\)"),
        (lambda d: _confusion(d)[0].pop(), "rows differ in length"),
        (lambda d: _confusion(d)[0].__setitem__(0, -1), "negative or fractional"),
        (lambda d: d.update(confusion=[[0] * 12] * 12), "all counts are zero"),
        (lambda d: d["protocol"].update(reported=[0, 12]), "train ids 0..11"),
        (lambda d: d["protocol"].update(means={"mIoU of 2": [0, 0]}), "'mIoU of 2' must be different train ids"),
        (lambda d: d["protocol"]["classes"].__setitem__(0, "raod"), "Did you mean 'road'"),
    ],
)
def test_a_damaged_result_is_explained(
    make_run: Callable[..., Path], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_result(make_run(frames=2, change=change))


def test_missing_or_broken_files_are_explained(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Evaluate the run first"):
        read_result(tmp_path)
    run = make_run(frames=1)
    (run / "results.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_result(run)
    (run / "metrics.csv").write_text("step,loss/source\n1,much\n")
    with pytest.raises(DataError, match=r"line 2, column 'loss/source'"):
        read_metrics(run)
    (run / "metrics.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(DataError, match="no column 'step'"):
        read_metrics(run)
    (run / "metrics.csv").unlink()
    assert read_metrics(run) == {}


def test_importing_the_report_does_not_import_torch() -> None:
    code = "import sys, stcl.pages.results, stcl.commands.report.page, stcl.pages.film; print('torch' in sys.modules)"
    paths = [path for path in sys.path if path]
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "False"
