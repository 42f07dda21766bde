"""Compare runs: one data structure, and its table in the terminal, in Markdown, in CSV and in HTML."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from stcl.errors import DataError, SettingError
from stcl.files.plain import csv_text
from stcl.pages.markdown import plain
from stcl.pages.results import Protocol, Result, read_result

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"
FLOOR_PERCENT = 0.01
"""Where the logarithmic bars begin."""

BOLD = "[bold]{}[/bold]"
"""Mark of numbers for :func:`bold`."""

ORACLE_NOTE = "oracle: trained with target labels, an upper reference and not a competitor"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs measured by one protocol on the same frames; the first one is what the others are compared with.

    Attributes:
        results: the runs, R of them, in the order given.
        labels: one unique name a run; an oracle is marked as such.
    """

    results: tuple[Result, ...]
    labels: tuple[str, ...]

    @property
    def protocol(self) -> Protocol:
        """The protocol that all runs share."""
        return self.results[0].protocol

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K reported classes."""
        return tuple(self.protocol.classes[index] for index in self.protocol.reported)

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU ``(R, K)`` in percent; NaN where a class is absent."""
        return np.stack([result.iou[list(self.protocol.reported)] for result in self.results])

    @property
    def miou(self) -> NDArray[np.float64]:
        """Mean IoU ``(R,)`` in percent."""
        return np.array([result.miou for result in self.results])

    @property
    def means(self) -> dict[str, NDArray[np.float64]]:
        """The protocol's further means ``(R,)`` in percent, by title."""
        means = self.protocol.means.items()
        return {title: np.array([result.mean(ids) for result in self.results]) for title, ids in means}

    @property
    def deltas(self) -> NDArray[np.float64]:
        """Mean IoU minus that of the first run ``(R,)`` in points."""
        miou = self.miou
        return np.subtract(miou, miou[0])

    def best(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where a non-oracle run shows the highest of ``scores (R,)``, rounded as printed ``(R,)``."""
        rounded = np.round(scores, 1)
        competes = np.array([not result.oracle for result in self.results]) & ~np.isnan(rounded)
        if competes.sum() < 2:
            return np.zeros(len(scores), bool)
        return competes & (rounded == rounded[competes].max())


def compare(runs: Sequence[Path]) -> Comparison:
    """Read run folders and put them side by side; results of different protocols or frames are refused."""
    if not runs:
        raise SettingError("Nothing to compare: name at least one run folder.")
    results = tuple(read_result(Path(run)) for run in runs)
    first = _identity(results[0])
    for result in results[1:]:
        for key, value in _identity(result).items():
            if value != first[key]:
                raise DataError(
                    f"'{results[0].folder}' and '{result.folder}' cannot be compared: {key} is {first[key]!r} in the "
                    f"first and {value!r} in the second. Evaluate both with one protocol on the same frames."
                )
    titles = Counter(result.title for result in results)
    labels = [result.title if titles[result.title] == 1 else f"{result.title}, {result.name}" for result in results]
    repeated = Counter(labels)  # the same run name twice, as with one run for each seed
    labels = [
        label if repeated[label] == 1 else f"{label}, {result.folder.name}"
        for label, result in zip(labels, results, strict=True)
    ]
    marked = [
        f"{label} (oracle)" if result.oracle and "oracle" not in label.lower() else label
        for label, result in zip(labels, results, strict=True)
    ]
    return Comparison(results, tuple(marked))


def _identity(result: Result) -> dict[str, object]:
    """Everything that two results must share before their numbers mean the same."""
    protocol, data = result.protocol, result.details["data"]
    return {
        "the protocol": protocol.name,
        "the protocol version": protocol.version,
        "the list of classes": protocol.classes,
        "the list of reported classes": protocol.reported,
        "the list of ignored classes": protocol.ignored,
        "the averaging": protocol.averaging,
        "the resolution": protocol.resolution,
        "the target data set": data.get("target"),
        "the split": data.get("split"),
        "the number of frames": data.get("frames"),
    }


def percent_text(value: float) -> str:
    """``41.2``; a dash if there is no value."""
    return ABSENT if math.isnan(value) else f"{value:.1f}"


def delta_text(value: float) -> str:
    """``+5.1`` or a true minus sign; a dash if there is no value."""
    if math.isnan(value):
        return ABSENT
    rounded = round(value, 1) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def bar_length(share: float) -> float:
    """Length in percent of the track of a share in percent: logarithmic, 0 up to :data:`FLOOR_PERCENT`."""
    return 100 * math.log(max(share / FLOOR_PERCENT, 1)) / math.log(100 / FLOOR_PERCENT)


def share_text(share: float) -> str:
    """A share in percent, readable over four powers of ten."""
    if share < FLOOR_PERCENT:
        return f"<{FLOOR_PERCENT:g}" if share else "0"
    return f"{share:.1f}" if share >= 10 else f"{share:.2f}"


def rich_table(comparison: Comparison) -> Table:
    """Table for the terminal: classes down, methods across; the best method that is no oracle is bold."""
    protocol, data = comparison.protocol, comparison.results[0].details["data"]
    table = Table(
        title=Text(f"IoU in percent, {protocol.title}, {data.get('split')}, {data.get('frames')} frames"),
        caption=ORACLE_NOTE if any(result.oracle for result in comparison.results) else None,
    )
    table.add_column("class")
    for label, result in zip(comparison.labels, comparison.results, strict=True):
        table.add_column(Text(label), justify="right", style="dim" if result.oracle else None)
    for name, scores in zip(comparison.classes, comparison.iou.T, strict=True):
        table.add_row(Text(name), *bold(_marked(comparison, scores, BOLD)))
    table.add_section()
    for title, scores in {"mIoU": comparison.miou, **comparison.means}.items():
        table.add_row(Text(title), *bold(_marked(comparison, scores, BOLD)))
    table.add_row("difference to first", *[delta_text(value) for value in comparison.deltas])
    return table


def bold(numbers: Iterable[str]) -> list[Text]:
    """Cells of numbers for the terminal, those marked by :data:`BOLD` in bold."""
    return [Text.from_markup(number) for number in numbers]


def markdown_table(comparison: Comparison) -> str:
    """Table in the layout of papers: a method a row, a class a column."""
    header = ["Method", "mIoU", "Δ", *map(plain, (*comparison.means, *comparison.classes))]
    lines = [header, [":---", *["---:"] * (len(header) - 1)]]
    all_scores = (comparison.miou, *comparison.means.values(), *comparison.iou.T)
    columns = [_marked(comparison, scores, "**{}**") for scores in all_scores]
    for row, label in enumerate(comparison.labels):
        delta = delta_text(comparison.deltas[row])
        lines.append([plain(label), columns[0][row], delta, *[column[row] for column in columns[1:]]])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(comparison: Comparison) -> str:
    """Table for other programs: a method a row, four decimals, an absent class is an empty cell."""
    scores = [*comparison.means, *comparison.classes]
    rows = [["name", "title", "method", "oracle", "seed", "steps", "miou", "delta", *scores]]
    columns = np.stack((comparison.miou, comparison.deltas, *comparison.means.values(), *comparison.iou.T), axis=1)
    for result, row in zip(comparison.results, columns, strict=True):
        numbers = ["" if math.isnan(value) else f"{value:.4f}" for value in row]
        details = result.details
        who = [result.name, result.title, result.method, str(result.oracle).lower()]
        rows.append([*who, details["seed"], details["steps"], *numbers])
    return csv_text(rows)


def html_table(comparison: Comparison) -> str:
    """Table for the page: classes down, methods across, header cells with a scope."""
    head = "".join(
        f'<th scope="col"{" class=oracle" if result.oracle else ""}>{escape(label)}</th>'
        for label, result in zip(comparison.labels, comparison.results, strict=True)
    )
    best = "<strong>{}</strong>"
    columns = zip(comparison.classes, comparison.iou.T, strict=True)
    rows = [(name, _marked(comparison, scores, best)) for name, scores in columns]
    means = {"mIoU": comparison.miou, **comparison.means}
    summary = [
        *((title, _marked(comparison, scores, best)) for title, scores in means.items()),
        (f"difference to {comparison.labels[0]}", [delta_text(value) for value in comparison.deltas]),
    ]
    return (
        "<table><caption>IoU in percent; the best method that is no oracle is bold.</caption>"
        f'<thead><tr><th scope="col">class</th>{head}</tr></thead>'
        f"<tbody>{_html_rows(rows)}</tbody><tfoot>{_html_rows(summary)}</tfoot></table>"
    )


def _html_rows(rows: list[tuple[str, list[str]]]) -> str:
    return "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )


def _marked(comparison: Comparison, scores: NDArray[np.float64], mark: str) -> list[str]:
    """The scores ``(R,)`` as text, the best put into ``mark``."""
    texts = [percent_text(score) for score in scores]
    return [mark.format(text) if best else text for text, best in zip(texts, comparison.best(scores), strict=True)]
