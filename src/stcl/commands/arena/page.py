"""The files of an arena: ``arena.json``, ``arena.md`` and ``arena.html``, where each seed of a method is a dot."""

import json
import math
from collections.abc import Callable
from html import escape
from pathlib import Path

from markupsafe import Markup

from stcl.commands.arena.table import (
    NOTE,
    RARE,
    ArenaRow,
    ArenaTable,
    Block,
    as_json,
    cells,
    header,
    markdown,
    spread_text,
)
from stcl.files.folders import OwnFiles
from stcl.files.writing import write_atomic
from stcl.pages.figures import ticks
from stcl.pages.skeleton import template
from stcl.pages.tables import percent_text

WIDTH_PX, ROW_PX, AXIS_PX = 960, 34, 30
LETTER_PX = 7.2
"""About the width of a letter of a row's label."""


def check_place(out: Path) -> None:
    """Refuse a folder in which files of an arena's names are somebody else's."""
    OwnFiles(out, "arena.json", "stcl arena").check(("arena.md", "arena.html"))


def write_table(table: ArenaTable, out: Path) -> None:
    """Write ``arena.json``, ``arena.md`` and ``arena.html`` into the folder ``out``, each whole or not at all."""
    check_place(out)
    write_atomic(out / "arena.json", json.dumps(as_json(table), indent=1).encode())
    write_atomic(out / "arena.md", markdown(table).encode())
    write_atomic(out / "arena.html", page(table).encode())


def page(table: ArenaTable) -> str:
    """One HTML page without script or network."""
    blocks = [
        {
            "pair": block.pair,
            "about": block.about,
            "plot": Markup(dot_plot(block, table.reference)),
            "header": header(block),
            "rows": [(row, [Markup(text) for text in texts]) for row, texts in cells(block, "<strong>{}</strong>")],
        }
        for block in table.blocks
    ]
    note = NOTE.format(reference=table.reference)
    text = {"title": table.title, "reference": table.reference, "note": note, "rare": RARE}
    return template(Path(__file__).with_name("page.html.j2")).render(**text, blocks=blocks, failed=table.failed)


def dot_plot(block: Block, reference: str) -> str:
    """Inline SVG: a row a method, a dot a seed, a bar from mean - deviation to mean + deviation; empty without runs."""
    values = [result.miou for row in block.rows for result in row.results.values()]
    values += [row.miou.mean + side * row.miou.deviation for row in block.rows for side in (-1, 1)]
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return ""
    margin = max(0.04 * (max(values) - min(values)), 0.5)
    low, high = min(values) - margin, max(values) + margin
    left = min(0.4 * WIDTH_PX, 16 + LETTER_PX * max(len(row.label) for row in block.rows))
    height = ROW_PX * len(block.rows) + AXIS_PX

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH_PX - left - 16)

    parts = []
    for value in ticks(low, high, 8):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="0" y2="{height - AXIS_PX}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{height - 10}" text-anchor="middle">{value:g}</text>')
    for row in block.rows:
        if row.label == reference and row.results:
            at = f"{x(row.miou.mean):.1f}"
            parts.append(f'<line class="reference" x1="{at}" x2="{at}" y1="0" y2="{height - AXIS_PX}"/>')
    competing = [row for row in block.rows if not row.oracle]
    for index, row in enumerate(block.rows):
        series = "oracle" if row.oracle else competing.index(row) % 6
        parts.append(f'<g class="series-{series}">{_dots(row, ROW_PX * (index + 0.5), left, x)}</g>')
    told = "; ".join(f"{row.label} {spread_text(row.miou)}" for row in block.rows)
    about = escape(f"Mean IoU in percent of every seed on {block.pair}: {told}.", quote=True)
    return f'<svg role="img" viewBox="0 0 {WIDTH_PX} {height}" aria-label="{about}">{"".join(parts)}</svg>'


def _dots(row: ArenaRow, y: float, left: float, x: Callable[[float], float]) -> str:
    parts = [f'<text class="label" x="{left - 12:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{escape(row.label)}</text>']
    mean, deviation, seeds = row.miou
    if seeds:
        parts.append(f'<line class="mean" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{y - 11:.1f}" y2="{y + 11:.1f}"/>')
    if not math.isnan(deviation):
        ends = f'x1="{x(mean - deviation):.1f}" x2="{x(mean + deviation):.1f}"'
        parts.append(f'<line class="spread" {ends} y1="{y:.1f}" y2="{y:.1f}"/>')
    for seed, result in row.results.items():
        told = escape(f"{row.label}, seed {seed}: {percent_text(result.miou)}")
        parts.append(f'<circle cx="{x(result.miou):.1f}" cy="{y:.1f}" r="5.5"><title>{told}</title></circle>')
    return "".join(parts)
