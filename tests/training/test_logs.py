"""``metrics.csv``: rows, further columns, going on."""

import csv

import pytest

from stcl.training.logs import MetricsFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_and_further_columns(path):
    log = MetricsFile(path)
    log.log_metrics({"loss/source": 1.25, "epoch": 0}, 0)
    log.log_metrics({"loss/source": 1.0, "loss/target": 0.5, "epoch": 0}, 10)
    log.log_metrics({"loss/source": 0.5}, 20)
    assert read(path) == [
        {"step": "0", "loss/source": "1.25", "loss/target": ""},
        {"step": "10", "loss/source": "1", "loss/target": "0.5"},
        {"step": "20", "loss/source": "0.5", "loss/target": ""},
    ]


def test_it_goes_on_where_the_run_does(path):
    """Rows of steps that are done again are dropped, also half a row that a kill has left."""
    log = MetricsFile(path)
    for step in range(5):
        log.log_metrics({"b": step, "a": 1.0}, step)
    path.write_text(path.read_text() + "5,0.")
    again = MetricsFile(path, start_step=3)
    again.log_metrics({"a": 2.0, "b": 3.0}, 3)
    assert [row["step"] for row in read(path)] == ["0", "1", "2", "3"]
    assert list(read(path)[0]) == ["step", "a", "b"]


def test_a_run_from_its_first_step_starts_the_file_anew(path):
    path.write_text("step,a\n7,1\n")
    MetricsFile(path).log_metrics({"a": 2.0}, 0)
    assert read(path) == [{"step": "0", "a": "2"}]


def test_numbers_that_are_none_are_kept(path):
    MetricsFile(path).log_metrics({"a": float("nan"), "b": float("inf")}, 0)
    assert read(path) == [{"step": "0", "a": "nan", "b": "inf"}]
