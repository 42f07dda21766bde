"""An arena's table against numbers computed by hand, and what its pages show."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from stcl.commands.arena.page import write_table
from stcl.commands.arena.table import RowPlan, markdown, read_table, rich_tables
from stcl.errors import DataError
from stcl.labels import get_space

SPACE = get_space("synthia_seq-cityscapes_seq")
REPORTED = 11


@pytest.fixture
def plans(make_run) -> dict[str, dict[str, RowPlan]]:
    """Two pairs; ``wrong`` of 100 pixels of person are taken for road, of whose 100 none is missed."""

    def run(name: str, wrong: int, seconds: float = 60.0, **more: Any) -> Path:
        counts = 100 * np.eye(len(SPACE), dtype=np.int64)
        person, road = SPACE.index("person"), SPACE.index("road")
        counts[person, person], counts[person, road] = 100 - wrong, wrong

        def timed(document: dict[str, Any]) -> None:
            document["seconds"]["train"] = seconds

        return make_run(name, confusion=counts, frames=1, change=timed, **more)

    def row(label: str, oracle: bool = False, **wrong: int) -> RowPlan:
        names = {int(key[1:]): f"{label}-{key}" for key in wrong}
        return RowPlan(label, oracle, {seed: run(names[seed], wrong[f"s{seed}"], oracle=oracle) for seed in names})

    better = row("Better", s0=20, s1=0)
    better.folders[2] = Path("not-yet")
    v1 = {
        "base": row("Base | plain", s0=50, s1=40, s3=10),
        "better": better,
        "best": row("Best possible", oracle=True, s0=0),
        "none": RowPlan("Not run", False, {0: Path("nowhere")}),
    }
    return {"v1": v1, "other": {name: RowPlan(plan.label, plan.oracle, {0: Path("no")}) for name, plan in v1.items()}}


def miou(wrong: int) -> float:
    """Person: ``100 - wrong`` of 100; road: 100 of ``100 + wrong``; the others perfect."""
    return ((100 - wrong) + 100 * 100 / (100 + wrong) + (REPORTED - 2) * 100) / REPORTED


def test_means_spreads_and_paired_differences(plans):
    block, other = read_table("Title", "base", plans).blocks
    base, better, best, none = block.rows
    assert base.miou.mean == pytest.approx(np.mean([miou(50), miou(40), miou(10)]))
    assert base.miou.deviation == pytest.approx(np.std([miou(50), miou(40), miou(10)], ddof=1))
    assert (base.difference.seeds, better.planned, tuple(better.results)) == (0, (0, 1, 2), (0, 1))
    # the difference is taken seed by seed: seed 3 of the reference has no partner
    one, two = miou(20) - miou(50), miou(0) - miou(40)
    assert better.difference.mean == pytest.approx((one + two) / 2)
    assert better.difference.deviation == pytest.approx(abs(one - two) / math.sqrt(2))
    assert better.rare.mean == pytest.approx((480 / 5 + 100) / 2)  # pole, light, sign and rider are perfect
    assert better.iou["person"] == pytest.approx((80 + 100) / 2)
    assert better.iou["road"] == pytest.approx((100 / 1.2 + 100) / 2)
    assert better.seconds == 60.0
    assert math.isnan(best.miou.deviation) and best.miou.mean == 100
    assert math.isnan(none.miou.mean) and none.results == {}
    assert other.comparison is None and "no run" in other.about


def test_the_table_marks_the_best_that_is_no_oracle(plans):
    text = markdown(read_table("Title", "base", plans)).partition("## other")[0]
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    rows = {name: cells for name, *cells in table}
    assert list(rows)[2:] == ["Base \\| plain", "Better", "Best possible (oracle)", "Not run"]
    assert len({len(cells) for name, cells in rows.items() if name in ("Method", "Better", "Not run")}) == 1
    scores = [miou(20), miou(0)]
    assert rows["Better"][:2] == [f"**{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}**", "2 of 3"]
    assert rows["Better"][2].startswith("+")
    assert rows["Better"][rows["Method"].index("person")] == "**90.0**"
    assert rows["Best possible (oracle)"][:2] == ["100.0", "1"]
    assert rows["Base \\| plain"][2] == "–"
    assert set(rows["Not run"]) == {"–", "0 of 1"}


def test_the_files_say_the_same(plans, tmp_path):
    table = read_table("Looks & pairs", "base", plans, {"v1, none, seed 0": "No data (exit status 2)"})
    write_table(table, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"arena.json", "arena.md", "arena.html"}
    document = json.loads((tmp_path / "out" / "arena.json").read_text())
    row = document["pairs"]["v1"]["rows"]["better"]
    assert row["miou"]["mean"] == pytest.approx(table.blocks[0].rows[1].miou.mean, abs=1e-3)
    assert [run["miou"] for run in row["runs"].values()] == pytest.approx([miou(20), miou(0)], abs=1e-3)
    assert document["pairs"]["v1"]["rows"]["none"]["miou"] == {"mean": None, "deviation": None}
    assert document["failed"] == {"v1, none, seed 0": "No data (exit status 2)"}
    page = (tmp_path / "out" / "arena.html").read_text()
    assert "Looks &amp; pairs" in page and "<script" not in page and "http" not in page
    assert page.count("<circle") == 6  # a dot a run
    assert page.count('class="reference"') == 1
    assert "exit status 2" in page
    console = Console(width=200, record=True, quiet=True)
    console.print(*rich_tables(table))
    assert len(rich_tables(table)) == 2


def test_results_that_cannot_be_compared_are_refused(plans):
    path = plans["v1"]["better"].folders[1] / "results.json"
    document = json.loads(path.read_text())
    document["data"]["frames"] = 7
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"cannot be compared: the number of frames is 1 in the first and 7"):
        read_table("Title", "base", plans)
