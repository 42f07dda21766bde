"""The table of an arena: methods x seeds x pairs, as means and spreads over seeds and paired differences.

Made from result files alone, like every other table; each pair's results are compared by :func:`compare` first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from stcl.files.plain import json_number
from stcl.pages.markdown import plain
from stcl.pages.results import Result, mean_percent
from stcl.pages.tables import ABSENT, BOLD, ORACLE_NOTE, Comparison, bold, compare, delta_text, percent_text

RARE = ("pole", "light", "sign", "person", "rider")
"""Small and seldom things: the classes that a mean over all classes hides."""

NOTE = (
    "IoU in percent: mean over seeds ± sample standard deviation. Δ is the mean of the differences to {reference} with "
    "the same seed. The best method that is no oracle is bold; a difference smaller than its spread says little."
)


@dataclass(frozen=True)
class RowPlan:
    """A row of one pair: its title, and where its runs lie or will lie, by seed."""

    label: str
    oracle: bool
    folders: dict[int, Path]


class Spread(NamedTuple):
    """Mean and sample standard deviation; NaN where there are too few values (one, and two)."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of values without NaN."""
        mean = float(np.mean(values)) if values else math.nan
        return cls(mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, len(values))


@dataclass(frozen=True, eq=False)
class ArenaRow:
    """One method on one pair.

    Attributes:
        name, label: in the arena's file, and in the table.
        planned: the seeds it is to be run with.
        results: what is there, by seed.
        miou, difference, rare: mean IoU over all reported classes, that minus the reference's of the same seed, and
            mean IoU over :data:`RARE`, in percent.
        iou: mean over seeds by reported class; NaN where it is absent.
        seconds: of training, mean over seeds.
    """

    name: str
    label: str
    oracle: bool
    planned: tuple[int, ...]
    results: dict[int, Result]
    miou: Spread
    difference: Spread
    rare: Spread
    iou: dict[str, float]
    seconds: float


@dataclass(frozen=True, eq=False)
class Block:
    """All rows of one pair; ``comparison`` holds the single runs, None as long as there are none."""

    pair: str
    rows: tuple[ArenaRow, ...]
    comparison: Comparison | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the reported classes."""
        return () if self.comparison is None else self.comparison.classes

    @property
    def about(self) -> str:
        """What was measured, in one line."""
        if self.comparison is None:
            return "no run is done yet"
        protocol, data = self.comparison.protocol, self.comparison.results[0].details["data"]
        frames = f"{data.get('target')}, measured on {data.get('split')}, {data.get('frames')} frames"
        return f"{frames}; protocol {protocol.title}"


@dataclass(frozen=True, eq=False)
class ArenaTable:
    """Everything that an arena's pages show; ``reference`` is the label of the row that differences refer to."""

    title: str
    reference: str
    blocks: tuple[Block, ...]
    failed: dict[str, str]


def read_table(
    title: str, reference: str, plans: Mapping[str, Mapping[str, RowPlan]], failed: Mapping[str, str] | None = None
) -> ArenaTable:
    """Read what is there of an arena.

    Args:
        title: heading.
        reference: name of a row.
        plans: by pair and row.
        failed: why runs failed, by the name of the run.

    Raises:
        DataError: results of one pair were measured by different protocols or on different frames.
    """
    blocks = tuple(_read_block(pair, rows, reference) for pair, rows in plans.items())
    label = next((rows[reference].label for rows in plans.values()), reference)
    return ArenaTable(title, label, blocks, dict(failed or {}))


def _read_block(pair: str, plan: Mapping[str, RowPlan], reference: str) -> Block:
    done = {
        (name, seed): folder
        for name, row in plan.items()
        for seed, folder in row.folders.items()
        if (folder / "results.json").is_file()
    }
    comparison = compare([*done.values()]) if done else None
    results = dict(zip(done, comparison.results, strict=True)) if comparison else {}
    yardstick = {seed: result.miou for (name, seed), result in results.items() if name == reference}
    rows = []
    for name, row in plan.items():
        own = {seed: results[name, seed] for seed in row.folders if (name, seed) in results}
        rows.append(_row(name, row, own, {} if name == reference else yardstick))
    return Block(pair, tuple(rows), comparison)


def _row(name: str, plan: RowPlan, results: dict[int, Result], yardstick: Mapping[int, float]) -> ArenaRow:
    scores = [
        dict(zip(_reported(result), result.iou[list(result.protocol.reported)], strict=True))
        for result in results.values()
    ]
    rare = [mean_percent(np.array([score[c] for c in RARE if c in score])) for score in scores]
    seconds = [result.details["seconds"].get("train") for result in results.values()]
    return ArenaRow(
        name=name,
        label=f"{plan.label} (oracle)" if plan.oracle and "oracle" not in plan.label.lower() else plan.label,
        oracle=plan.oracle,
        planned=tuple(plan.folders),
        results=results,
        miou=Spread.of([result.miou for result in results.values()]),
        difference=Spread.of([result.miou - yardstick[seed] for seed, result in results.items() if seed in yardstick]),
        rare=Spread.of([value for value in rare if not math.isnan(value)]),
        iou={c: mean_percent(np.array([score[c] for score in scores])) for c in (scores[0] if scores else ())},
        seconds=mean_percent(np.array([second for second in seconds if second is not None], float)),
    )


def _reported(result: Result) -> list[str]:
    return [result.protocol.classes[index] for index in result.protocol.reported]


# ---- as text ----


def spread_text(spread: Spread, signed: bool = False) -> str:
    """``62.3 ± 0.4``; a single value has no deviation, and a dash stands where there is none."""
    if not spread.seeds:
        return ABSENT
    mean = (delta_text if signed else percent_text)(spread.mean)
    return mean if spread.seeds == 1 else f"{mean} ± {percent_text(spread.deviation)}"


def cells(block: Block, mark: str) -> list[tuple[ArenaRow, list[str]]]:
    """The table of a pair below :func:`header`: the best of each column put into ``mark``, e.g. ``**{}**``."""
    columns = [
        _column(block, [row.miou.mean for row in block.rows], [spread_text(row.miou) for row in block.rows], mark)
    ]
    columns.append(
        [
            str(n) if n == len(row.planned) else f"{n} of {len(row.planned)}"
            for row in block.rows
            for n in [len(row.results)]
        ]
    )
    columns.append([spread_text(row.difference, signed=True) for row in block.rows])
    rare = [row.rare.mean for row in block.rows]
    columns.append(_column(block, rare, [percent_text(value) for value in rare], mark))
    for name in block.classes:
        scores = [row.iou.get(name, math.nan) for row in block.rows]
        columns.append(_column(block, scores, [percent_text(score) for score in scores], mark))
    columns.append([ABSENT if math.isnan(row.seconds) else f"{row.seconds:.0f} s" for row in block.rows])
    return [(row, [column[index] for column in columns]) for index, row in enumerate(block.rows)]


def header(block: Block) -> list[str]:
    """Names of the columns of :func:`cells`."""
    return ["mIoU", "seeds", "Δ", "rare", *block.classes, "training"]


def _column(block: Block, scores: list[float], texts: list[str], mark: str) -> list[str]:
    """``texts`` with the highest of ``scores``, as printed, among rows that are no oracle put into ``mark``."""
    rounded = [math.nan if row.oracle else round(score, 1) for row, score in zip(block.rows, scores, strict=True)]
    there = [score for score in rounded if not math.isnan(score)]
    best = max(there) if len(there) > 1 else None
    return [mark.format(text) if score == best else text for text, score in zip(texts, rounded, strict=True)]


def markdown(table: ArenaTable) -> str:
    """All blocks as Markdown, ready for a document."""
    lines = [f"# {plain(table.title)}", "", NOTE.format(reference=plain(table.reference)), ""]
    for block in table.blocks:
        lines += [f"## {plain(block.pair)}", "", f"{plain(block.about)}.", ""]
        names = ["Method", *map(plain, header(block))]
        lines += [f"| {' | '.join(names)} |", f"| :--- |{' ---: |' * (len(names) - 1)}"]
        for row, texts in cells(block, "**{}**"):
            lines.append(f"| {plain(row.label)} | {' | '.join(texts)} |")
        lines.append("")
    lines += [f"- Failed: {plain(name)}: {plain(reason)}" for name, reason in table.failed.items()]
    return "\n".join(lines).rstrip() + "\n"


def rich_tables(table: ArenaTable) -> list[Table]:
    """One table a pair for the terminal, without the single classes."""
    tables = []
    for block in table.blocks:
        oracle = any(row.oracle for row in block.rows)
        drawn = Table(title=Text(f"{block.pair}: {block.about}"), caption=ORACLE_NOTE if oracle else None)
        shown = [0, 1, 2, 3, len(block.classes) + 4]
        drawn.add_column("method")
        for index in shown:
            drawn.add_column(header(block)[index], justify="right")
        for row, texts in cells(block, BOLD):
            drawn.add_row(Text(row.label), *bold(texts[i] for i in shown), style="dim" if row.oracle else None)
        tables.append(drawn)
    return tables


def as_json(table: ArenaTable) -> dict[str, Any]:
    """Everything for other programs; absent numbers are null."""
    return {
        "schema": 1,
        "title": table.title,
        "reference": table.reference,
        "pairs": {
            block.pair: {"about": block.about, "rows": {row.name: _row_json(row) for row in block.rows}}
            for block in table.blocks
        },
        "failed": table.failed,
    }


def _row_json(row: ArenaRow) -> dict[str, Any]:
    spreads = {"miou": row.miou, "difference": row.difference, "rare": row.rare}
    return {
        "label": row.label,
        "oracle": row.oracle,
        "planned": list(row.planned),
        "runs": {
            str(seed): {"folder": str(result.folder), "miou": json_number(result.miou)}
            for seed, result in row.results.items()
        },
        **{key: {"mean": json_number(s.mean), "deviation": json_number(s.deviation)} for key, s in spreads.items()},
        "iou": {name: json_number(score) for name, score in row.iou.items()},
        "seconds": json_number(row.seconds),
    }
