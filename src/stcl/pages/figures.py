"""Figures of the page as data and as inline SVG: bars a class, training curves, changed confusions.

Colours are CSS classes (`series-0` ...), so that one figure serves light and dark pages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from stcl.pages.results import Curve
from stcl.pages.tables import Comparison

PANEL_PX = (340, 210)  # width, height of the view box of one panel
MARGIN_PX = (44, 12, 10, 26)  # left, right, top, bottom
POINTS = 240
"""A curve is averaged down to at most this many points."""


@dataclass(frozen=True)
class Panel:
    """One small multiple: a metric, all runs that have it, as inline SVG."""

    title: str
    svg: str


@dataclass(frozen=True)
class ConfusionChange:
    """Share of the pixels of class ``truth`` that are taken for class ``taken_for``, percent by run position."""

    truth: str
    taken_for: str
    shares: tuple[float, ...]


def series_class(comparison: Comparison, row: int) -> str:
    """CSS class of a run: colours in the order of the runs, grey for an oracle."""
    if comparison.results[row].oracle:
        return "series-oracle"
    earlier = sum(not result.oracle for result in comparison.results[:row])
    return f"series-{earlier % 6}"


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred moving mean of ``values (N,)``; the window shrinks towards the ends."""
    if window <= 1:
        return values
    kernel = np.ones(window)
    inside = np.convolve(np.ones_like(values), kernel, "same")
    return np.convolve(values, kernel, "same")[: len(values)] / inside[: len(values)]


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """A curve with at most ``points`` points: means of neighbouring ones."""
    steps, values = curve
    if len(steps) <= points:
        return curve
    groups = np.array_split(np.arange(len(steps)), points)
    return np.array([steps[g].mean() for g in groups]), np.array([values[g].mean() for g in groups])


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten) inside ``low..high``."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - raw))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def loss_panels(comparison: Comparison, metrics: Sequence[Mapping[str, Curve]]) -> list[Panel]:
    """One panel for each ``loss/...`` column that any run has.

    Args:
        comparison: the runs.
        metrics: columns of `metrics.csv` of each run, by name.
    """
    names = dict.fromkeys(name for columns in metrics for name in columns if name.startswith("loss/"))
    panels = []
    for name in names:
        curves = {row: thin(columns[name]) for row, columns in enumerate(metrics) if name in columns}
        panels.append(Panel(name.removeprefix("loss/").replace("_", " "), _panel_svg(comparison, name, curves)))
    return panels


def confusion_changes(comparison: Comparison, reference: int, subject: int, count: int = 6) -> list[ConfusionChange]:
    """The mistakes whose share of their true class changes most from ``reference`` to ``subject``."""
    reported = list(comparison.protocol.reported)
    shares = []
    for result in comparison.results:
        counts = result.confusion.astype(np.float64)
        shares.append((100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))[reported])  # (K, C)
    change = np.abs(shares[subject] - shares[reference])
    change[np.arange(len(reported)), reported] = 0.0  # the diagonal is no mistake
    classes = comparison.protocol.classes
    found = []
    for flat in np.argsort(change, axis=None)[::-1][:count]:
        row, column = np.unravel_index(flat, change.shape)
        if change[row, column] < 0.5:  # under half a point of the class: nothing to tell
            break
        values = tuple(float(share[row, column]) for share in shares)
        found.append(ConfusionChange(classes[reported[row]], classes[column], values))
    return found


def _panel_svg(comparison: Comparison, name: str, curves: Mapping[int, Curve]) -> str:
    width, height = PANEL_PX
    left, right, top, bottom = MARGIN_PX
    smoothed = {row: smooth(values, max(1, len(values) // 15)) for row, (_, values) in curves.items()}
    last_step = max(max(steps[-1] for steps, _ in curves.values()), 1.0)
    low, high = value_range(np.concatenate(list(smoothed.values())))

    def place(curve: Curve) -> str:
        steps, values = curve
        x = left + steps / last_step * (width - left - right)
        y = height - bottom - (values - low) / (high - low) * (height - top - bottom)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    parts = []
    for value in ticks(low, high):
        y = height - bottom - (value - low) / (high - low) * (height - top - bottom)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for step in ticks(0, last_step):
        x = left + step / last_step * (width - left - right)
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{short(step)}</text>')
    clip = f"clip-{name.replace('/', '-').replace('_', '-')}"
    box = f'x="{left}" y="{top}" width="{width - left - right}" height="{height - top - bottom}"'
    parts.append(f'<clipPath id="{escape(clip)}"><rect {box}/></clipPath><g clip-path="url(#{escape(clip)})">')
    for row, (steps, values) in curves.items():
        style = series_class(comparison, row)
        parts.append(f'<polyline class="raw {style}" points="{place((steps, values))}"/>')
    for row, (steps, _) in curves.items():
        style = series_class(comparison, row)
        parts.append(f'<polyline class="curve {style}" points="{place((steps, smoothed[row]))}"/>')
    parts.append("</g>")
    ends = [
        f"{comparison.labels[row]} goes from {values[0]:.2f} to {values[-1]:.2f}" for row, values in smoothed.items()
    ]
    told = escape(f"{name} over training steps 0 to {last_step:g}: {'; '.join(ends)}.", quote=True)
    return f'<svg role="img" viewBox="0 0 {width} {height}" aria-label="{told}">{"".join(parts)}</svg>'


def value_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Range of the vertical axis: from zero unless all values are far from it, never empty."""
    low, high = float(values.min()), float(values.max())
    if 0.0 <= low < 0.6 * high:
        low = 0.0
    margin = 0.06 * (high - low) or 0.5 * max(abs(high), 1e-6)
    return (low if low == 0.0 else low - margin), high + margin


def short(step: float) -> str:
    """A step on an axis."""
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
