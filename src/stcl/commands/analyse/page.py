"""The page about an analysis: reads ``analysis.json``, the sheets beside it and ``results.json``, never a model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stcl.errors import DataError
from stcl.files.paths import real_path
from stcl.files.plain import read_json
from stcl.files.writing import write_atomic
from stcl.labels import PALETTE
from stcl.pages.figures import MARGIN_PX, PANEL_PX, confusion_changes, short, ticks, value_range
from stcl.pages.pictures import frame_uri
from stcl.pages.skeleton import template
from stcl.pages.tables import compare, delta_text

SCHEMA = 1
"""Version of `analysis.json` that this module reads."""

SHEET_PX = 1600
"""Widest sheet of frames in the page."""

MEANS = {
    "iou": "mIoU",
    "coverage": "Coverage",
    "precision": "Precision",
    "sure_precision": "Precision of sure labels",
    "distance": "Distance of the domains",
}
"""What is drawn over training, as means over the reported classes."""

Line = tuple[str, list[tuple[float, float]]]
"""CSS classes and the points ``(x, y)`` of a line in a panel."""


def changed_mistakes(against: Path, runs: Sequence[Path], count: int = 15) -> list[dict[str, Any]]:
    """What each run takes for what, compared with the run ``against``; all of them must have been evaluated alike.

    The run itself may be among them and is left out.

    Returns:
        For each other run: the ``count`` mistakes that change most, and ``matrix (K, C)``: change of the share of each
        reported class's pixels that is taken for each class, in points.
    """
    others = [run for run in runs if real_path(run) != real_path(against)]
    comparison = compare([against, *others])
    reported, classes = list(comparison.protocol.reported), comparison.protocol.classes
    shares = []
    for result in comparison.results:
        rows = result.confusion[reported].astype(np.float64)
        shares.append(100 * rows / np.maximum(rows.sum(axis=1, keepdims=True), 1))
    return [
        {
            "run": str(run),
            "against": comparison.labels[0],
            "classes": list(classes),
            "rows": [classes[index] for index in reported],
            "mistakes": [
                {
                    "truth": change.truth,
                    "taken_for": change.taken_for,
                    "before": round(change.shares[0], 2),
                    "after": round(change.shares[row], 2),
                }
                for change in confusion_changes(comparison, 0, row, count)
            ],
            "matrix": (shares[row] - shares[0]).round(2).tolist(),
        }
        for row, run in enumerate(others, start=1)
    ]


def write_analysis(folder: Path) -> Path:
    """Write ``folder/analysis.html`` from ``folder/analysis.json`` and the sheets beside it; returns its path."""
    path = folder / "analysis.json"
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read the analysis '{path}' ({error}). Run 'stcl analyse' again.") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise DataError(f"'{path}' is no analysis of schema {SCHEMA}, which this version of stcl reads. Make it anew.")
    runs = [
        {**run, "label": label, "series": f"series-{row % 6}", "end": _end(run), "both": _last_pair(run)}
        | {"changes": _changes(document, run)}
        for row, (run, label) in enumerate(zip(document["runs"], run_labels(document["runs"]), strict=True))
    ]
    reported = [document["classes"][index] for index in document["reported"]]
    text = template(Path(__file__).with_name("page.html.j2")).render(
        document=document,
        runs=runs,
        reported=reported,
        colours={name: "#{:02x}{:02x}{:02x}".format(*PALETTE[name]) for name in document["classes"]},
        over_time=over_time(runs) if any(len(run["points"]) > 1 for run in runs) else {},
        by_class={name: class_panel(runs, name) for name in reported},
        reliability={
            "Right labels by confidence": reliability_panel(runs, "precision"),
            "Share of the pixels by confidence": reliability_panel(runs, "share"),
        },
        reliability_by_class={name: reliability_panel(runs, "precision", name) for name in reported},
        sheets=[frame_uri(folder / f"worst_{row}.png", SHEET_PX) for row in range(len(runs))],
    )
    out = folder / "analysis.html"
    write_atomic(out, text.encode())
    return out


def run_labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One name a run: its title, with its folder where several have the same; an oracle is marked as such."""
    titles = Counter(run["title"] for run in runs)
    labels = [
        run["title"] if titles[run["title"]] == 1 else f"{run['title']}, {Path(run['folder']).name}" for run in runs
    ]
    return [
        f"{label} (oracle)" if run["oracle"] and "oracle" not in label.lower() else label
        for run, label in zip(runs, labels, strict=True)
    ]


def over_time(runs: Sequence[Mapping[str, Any]]) -> dict[str, Markup]:
    """A panel for each of :data:`MEANS`, a line a run; of the mIoU a dashed one for the student."""
    panels = {}
    for key, title in MEANS.items():
        lines: list[Line] = []
        for row, run in enumerate(runs):
            lines.append((f"series-{row % 6}", _curve(run, "mean", key)))
            if key == "iou" and run["labeller"] == "teacher":
                lines.append((f"series-{row % 6} dashed", _curve(run, "mean", key, role="student")))
        panels[title] = line_panel(f"{title} over training", lines, zero=key == "distance")
    return panels


def class_panel(runs: Sequence[Mapping[str, Any]], name: str) -> Markup:
    """Precision of one class over training, and its coverage as dashed lines."""
    lines: list[Line] = []
    for row, run in enumerate(runs):
        lines.append((f"series-{row % 6}", _curve(run, "precision", name)))
        lines.append((f"series-{row % 6} dashed", _curve(run, "coverage", name)))
    return line_panel(f"{name}: precision and coverage over training", lines, (0, 100))


def reliability_panel(runs: Sequence[Mapping[str, Any]], key: str, name: str | None = None) -> Markup:
    """``precision`` or ``share`` by confidence at the end of each run, of one class or of all (None)."""
    groups = [run["end"]["labels"]["groups"]["confidence"] for run in runs]
    lines: list[Line] = []
    for row, found in enumerate(groups):
        values = [group[key] if name is None else group["classes"][name][key] for group in found]
        lines.append((f"series-{row % 6}", [(float(x), value) for x, value in enumerate(values) if value is not None]))
    ends = [f"≤ {group['group'].rpartition(' ')[2]}" for group in groups[0]]
    return line_panel(f"{key} by confidence, {name or 'all classes'}", lines, (0, 100), ends)


def line_panel(
    told: str,
    lines: Sequence[Line],
    limits: tuple[float, float] | None = None,
    names: Sequence[str] = (),
    zero: bool = False,
) -> Markup:
    """Lines with a mark at each point, as inline SVG.

    Args:
        told: what it shows, for those who do not see it.
        lines: see :data:`Line`.
        limits: of the vertical axis; None takes what the values need.
        names: of the positions 0, 1, ... of the horizontal axis; without names it is numbers from 0 up.
        zero: the vertical axis begins there.
    """
    width, height = PANEL_PX
    left, right, top, bottom = MARGIN_PX
    every = np.array([point for _, points in lines for point in points], np.float64).reshape(-1, 2)
    if not len(every):
        return Markup("")
    low, high = limits or value_range(np.append(every[:, 1], [0.0] if zero else []))
    first, last = (-0.4, len(names) - 0.6) if names else (0.0, max(every[:, 0].max(), 1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - first) / (last - first), (y - low) / (high - low)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    parts = []
    for value in ticks(low, high):
        y = place(first, value)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    across = [*enumerate(names)] if names else [(step, short(step)) for step in ticks(first, last)]
    for position, text in across:
        x = place(position, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{escape(text)}</text>')
    for style, points in lines:
        placed = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="curve {style}" points="{path}"/>')
        parts += [f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in placed]
    return Markup(f'<svg role="img" viewBox="0 0 {width} {height}" aria-label="{escape(told)}">{"".join(parts)}</svg>')


def heat_map(change: Mapping[str, Any], cell: int = 34, margin: int = 92) -> Markup:
    """Change of what is taken for what, in points of the class in the row; the diagonal is what is right."""
    matrix: NDArray[np.float64] = np.array(change["matrix"])
    rows, columns = matrix.shape
    most, parts = max(float(np.abs(matrix).max()), 1.0), []
    for row, name in enumerate(change["rows"]):
        y = margin + row * cell
        parts.append(f'<text x="{margin - 8}" y="{y + cell / 2 + 4}" text-anchor="end">{escape(name)}</text>')
        for column, taken_for in enumerate(change["classes"]):
            value, x = float(matrix[row, column]), margin + column * cell
            good = (value > 0) == (name == taken_for)
            text = delta_text(value) if abs(value) >= 0.5 else ""
            parts.append(
                f'<rect class="{"better" if good else "worse"}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{min(1.0, abs(value) / most) ** 0.5:.2f}"/>'
                f'<text class="cell" x="{x + cell / 2}" y="{y + cell / 2 + 3.5}" text-anchor="middle">{text}</text>'
            )
    for column, name in enumerate(change["classes"]):
        place = f"translate({margin + column * cell + cell / 2 + 4} {margin - 8}) rotate(-55)"
        parts.append(f'<text transform="{place}">{escape(name)}</text>')
    size = f"0 0 {margin + columns * cell + 40} {margin + rows * cell}"
    told = "Change of the confusion matrix in percent points of the true class"
    return Markup(f'<svg role="img" class="heat" viewBox="{size}" aria-label="{told}">{"".join(parts)}</svg>')


def _labels_at(run: Mapping[str, Any], point: Mapping[str, Any]) -> Any:
    """What the network that labels the target did at a point; at the end of a run it may be the average alone."""
    return point.get(run["labeller"], point["teacher"])


def _last_pair(run: Mapping[str, Any]) -> Any:
    """The last point that has a student, or the last one."""
    return next((point for point in reversed(run["points"]) if "student" in point), run["points"][-1])


def _curve(run: Mapping[str, Any], *keys: str, role: str | None = None) -> list[tuple[float, float]]:
    """``(step, value)`` where there is one, of the network that labels the target or of another ``role``."""
    curve = []
    for point in run["points"]:
        value = point.get(role) if role else _labels_at(run, point)
        for key in keys if value else ():
            value = value[key]
        if value is not None:
            curve.append((float(point["step"]), value))
    return curve


def _end(run: Mapping[str, Any]) -> dict[str, Any]:
    """The last point of a run, with ``labels`` of the network that labels the target."""
    return {**run["points"][-1], "labels": _labels_at(run, run["points"][-1])}


def _changes(document: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is known of a run's mistakes, with their map."""
    found = next((change for change in document["changes"] if change["run"] == run["folder"]), None)
    if found is None:
        return None
    mistakes = [{**item, "change": delta_text(item["after"] - item["before"])} for item in found["mistakes"]]
    return {**found, "mistakes": mistakes, "map": heat_map(found)}
