import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from stcl.errors import DataError, SettingError
from stcl.pages.tables import compare, csv_table, delta_text, html_table, markdown_table, percent_text, rich_table


def diagonal(road: tuple[int, int], car: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Confusion with only road (0) and car (11): (right, taken for the other)."""
    counts = np.zeros((12, 12), np.int64)
    counts[0, 0], counts[0, 11] = road
    counts[11, 11], counts[11, 0] = car
    return counts


@pytest.fixture
def two(make_run: Callable[..., Path]) -> list[Path]:
    # road 60 / (60 + 20 + 20), car 20 / (20 + 20 + 20); then road 80 / 100, car 40 / 60
    return [
        make_run("plain", frames=1, confusion=diagonal((60, 20), (20, 20))),
        make_run("stcl", title="STCL", method="stcl", frames=1, confusion=diagonal((80, 0), (20, 20))),
    ]


def test_numbers_by_hand(two: list[Path]) -> None:
    comparison = compare(two)
    assert comparison.classes[0] == "road"
    assert "fence" not in comparison.classes  # trained, not reported
    assert comparison.iou[:, 0] == pytest.approx([60.0, 80.0])
    assert comparison.iou[:, -1] == pytest.approx([100 / 3, 50.0])
    assert np.isnan(comparison.iou[:, 1:-1]).all()
    assert comparison.miou == pytest.approx([(60 + 100 / 3) / 2, 65.0])
    assert comparison.deltas == pytest.approx([0.0, 65.0 - (60 + 100 / 3) / 2])


def test_all_tables_show_the_same_numbers(two: list[Path]) -> None:
    comparison = compare(two)
    markdown = markdown_table(comparison).splitlines()
    assert markdown[0].startswith("| Method | mIoU | Δ | road | sidewalk |")
    assert markdown[2].startswith("| Source only (plain) | 46.7 | 0.0 | 60.0 | – |")
    assert markdown[3].startswith("| STCL | **65.0** | +18.3 | **80.0** | – |")
    rows = list(csv.DictReader(io.StringIO(csv_table(comparison))))
    assert (rows[1]["name"], rows[1]["miou"], rows[1]["delta"], rows[1]["sidewalk"]) == (
        "stcl",
        "65.0000",
        "18.3333",
        "",
    )
    html = html_table(comparison)
    assert '<th scope="row">road</th><td>60.0</td><td><strong>80.0</strong></td>' in html
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(rich_table(comparison))
    text = console.export_text()
    assert "difference to first" in text
    assert "+18.3" in text


def test_further_means_stand_beside_the_mean(make_run: Callable[..., Path]) -> None:
    def measured(document: dict[str, Any]) -> None:
        document["protocol"]["means"] = {"mIoU of 1": [11]}

    runs = [
        make_run("plain", frames=1, confusion=diagonal((60, 20), (20, 20)), change=measured),
        make_run("stcl", title="STCL", method="stcl", frames=1, confusion=diagonal((80, 0), (20, 20)), change=measured),
    ]
    comparison = compare(runs)
    assert comparison.means["mIoU of 1"] == pytest.approx([100 / 3, 50.0])
    assert "| STCL | **65.0** | +18.3 | **50.0** | **80.0** |" in markdown_table(comparison)
    assert next(csv.DictReader(io.StringIO(csv_table(comparison))))["mIoU of 1"] == "33.3333"
    assert '<th scope="row">mIoU of 1</th><td>33.3</td><td><strong>50.0</strong></td>' in html_table(comparison)
    assert rich_table(comparison).row_count == len(comparison.classes) + 3


def test_an_oracle_is_marked_and_never_the_best(make_run: Callable[..., Path], two: list[Path]) -> None:
    upper = make_run("upper", title="Target labels", oracle=True, frames=1, confusion=diagonal((80, 0), (40, 0)))
    comparison = compare([*two, upper])
    assert comparison.labels[2] == "Target labels (oracle)"
    assert comparison.best(comparison.miou).tolist() == [False, True, False]
    assert "| Target labels (oracle) | 100.0 |" in markdown_table(comparison)


def test_equal_titles_become_distinct(make_run: Callable[..., Path]) -> None:
    runs = [make_run(name, frames=1) for name in ("seed_0", "seed_1")]
    assert compare(runs).labels == ("Source only (plain), seed_0", "Source only (plain), seed_1")
    for run in runs:
        document = json.loads((run / "results.json").read_text()) | {"name": "source_only"}
        (run / "results.json").write_text(json.dumps(document))
    assert compare(runs).labels == tuple(f"Source only (plain), source_only, seed_{seed}" for seed in (0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["protocol"].update(ignored=["pole"]), r"the list of ignored classes is \(\) .* \('pole',\)"),
        (lambda d: d["protocol"].update(name="viper"), "the protocol is 'synthia"),
        (lambda d: d["protocol"].update(version=2), "the protocol version is 1 in the first and 2"),
        (lambda d: d["protocol"].update(resolution="half"), "the resolution"),
        (lambda d: d["data"].update(split="test"), "the split is 'val' in the first and 'test'"),
        (lambda d: d["data"].update(target="elsewhere"), "the target data set"),
        (lambda d: d["data"].update(frames=7), "the number of frames"),
    ],
)
def test_different_measurements_are_refused(
    make_run: Callable[..., Path], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    runs = [make_run("first", frames=1), make_run("second", frames=1, change=change)]
    with pytest.raises(DataError, match=message):
        compare(runs)


def test_nothing_to_compare() -> None:
    with pytest.raises(SettingError, match="at least one run"):
        compare([])


def test_number_texts() -> None:
    assert [delta_text(value) for value in (1.26, -1.26, -0.04, float("nan"))] == ["+1.3", "\u22121.3", "0.0", "–"]
    assert [percent_text(value) for value in (41.25, float("nan"))] == ["41.2", "–"]
