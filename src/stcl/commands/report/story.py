"""The comparison in plain words for a newcomer: every sentence is derived from the numbers, good or bad."""

import math
from dataclasses import dataclass

import numpy as np

from stcl.pages.tables import Comparison, delta_text, percent_text

NO_BREAK = "\N{NO-BREAK SPACE}"

SOURCE_ONLY = ("source_only", "strong_source_only")
"""Methods without an adaptation loss: the first such run is the plain reference, one of another title is the strong
one, which is augmented and takes the target's statistics."""


@dataclass(frozen=True)
class Roles:
    """Positions of the runs in the comparison; None where no run plays the role."""

    baseline: int
    strong: int | None
    adapted: int | None
    oracle: int | None


def find_roles(comparison: Comparison) -> Roles:
    """Who is who; the adapted run is the one of method `stcl`, or else the last adapting one."""
    runs = list(enumerate(comparison.results))
    source_only = [row for row, result in runs if result.method in SOURCE_ONLY and not result.oracle]
    adapting = [row for row, result in runs if result.method not in SOURCE_ONLY and not result.oracle]
    ours = [row for row in adapting if comparison.results[row].method == "stcl"]
    oracles = [row for row, result in runs if result.oracle]
    baseline = source_only[0] if source_only else 0
    adapted = next(iter(ours[-1:] or adapting[-1:]), None)
    title = comparison.results[baseline].title  # other seeds of one run share its title
    strong = [row for row in source_only if comparison.results[row].title != title]
    return Roles(
        baseline=baseline,
        strong=strong[0] if strong else None,
        adapted=None if adapted == baseline else adapted,
        oracle=oracles[0] if oracles else None,
    )


def role_text(comparison: Comparison, row: int) -> str:
    """What a run was trained on, in a few words."""
    result, roles = comparison.results[row], find_roles(comparison)
    if result.oracle:
        return "uses target labels; an upper reference, not a competitor"
    if row == roles.strong:
        return "source labels only; strongly augmented, target statistics"
    if result.method in SOURCE_ONLY:
        return "source labels only, no adaptation"
    return "source labels and target video without labels"


def explain(comparison: Comparison) -> list[str]:
    """Paragraphs: what domain shift is, what the gain is, where it comes from, how far to trust it."""
    data = comparison.results[0].details["data"]
    shift = (
        "A segmentation network names the class of every pixel of a video frame. Trained on one kind of pictures "
        f"(the source, here {data.get('source')}) it does worse on another kind (the target, here "
        f"{data.get('target')}), because colours, light, textures and the camera differ: this is domain shift. "
        "Domain adaptation also trains on target video, but without its labels. The score is the intersection over "
        "union (IoU): of all pixels that have a class in the truth or in the prediction, the percentage where both "
        "agree; mIoU is its mean over the reported classes."
    )
    facts = [part(comparison) for part in (_gain, _classes, _oracle, _trust)]
    return [text.replace(" %", NO_BREAK + "%") for text in (shift, *facts) if text]


def _points(value: float) -> str:
    return f"{abs(round(value, 1)):.1f} points"


def _gain(comparison: Comparison) -> str:
    """How much is gained, and how much of it a run without adaptation losses gains as well."""
    roles, miou, labels = find_roles(comparison), comparison.miou, comparison.labels
    if roles.adapted is None:
        return ""
    name, base = labels[roles.adapted], labels[roles.baseline]
    gain = miou[roles.adapted] - miou[roles.baseline]
    before, after = percent_text(miou[roles.baseline]), percent_text(miou[roles.adapted])
    reached = f"{name} reaches {after} % mIoU, {base} {before} %"
    if gain <= 0:
        return f"{reached}. In this comparison adaptation did not help ({delta_text(gain)} points)."
    total = f"{reached}: a gain of {_points(gain)}."
    if roles.strong is None:
        return (
            f"{total} How much of it comes from colours and augmentation alone is not known, because no source-only "
            "run with the same ones was compared."
        )
    strong, photometric = labels[roles.strong], miou[roles.strong] - miou[roles.baseline]
    rest = gain - photometric
    never = f"{strong}, which is augmented and takes its statistics from the target but has no adaptation loss,"
    if photometric <= 0:
        return f"{total} None of it is photometric: {never} gains nothing ({delta_text(photometric)} points)."
    if rest <= 0:
        return (
            f"{total} But {never} gains {_points(photometric)} by itself, so all of the gain can be photometric: "
            f"the adaptation losses add nothing here ({delta_text(rest)} points)."
        )
    return (
        f"{total} Of these, {_points(photometric)} ({100 * photometric / gain:.0f} %) can be photometric: {never} "
        f"gains as much. The remaining {_points(rest)} ({100 * rest / gain:.0f} %) are what the adaptation losses "
        "add."
    )


def _classes(comparison: Comparison) -> str:
    """The classes that change most."""
    roles = find_roles(comparison)
    if roles.adapted is None:
        return ""
    change = comparison.iou[roles.adapted] - comparison.iou[roles.baseline]  # (K,)
    if np.isnan(change).all():
        return ""
    top, bottom = int(np.nanargmax(change)), int(np.nanargmin(change))
    fewer = int((change < -0.05).sum())
    largest = f"The largest change for the better is {comparison.classes[top]} ({delta_text(change[top])} points)"
    if change[top] <= 0:
        largest = "No class got better"
    if fewer == 0:
        return f"{largest}; no class got worse."
    many = "one class" if fewer == 1 else f"{fewer} classes"
    worst = f"{comparison.classes[bottom]} ({delta_text(change[bottom])} points)"
    return f"{largest}; {many} got worse, most of all {worst}."


def _oracle(comparison: Comparison) -> str:
    roles, miou, labels = find_roles(comparison), comparison.miou, comparison.labels
    if roles.oracle is None:
        return ""
    gap = miou[roles.oracle] - miou[roles.baseline]
    text = f"{labels[roles.oracle]}, trained with target labels, reaches {percent_text(miou[roles.oracle])} %"
    if roles.adapted is None or math.isnan(gap) or gap <= 0:
        return f"{text}."
    closed = (miou[roles.adapted] - miou[roles.baseline]) / gap
    moved = f"{100 * closed:.0f} % of the gap is closed" if closed >= 0 else "none of the gap is closed"
    return f"{text}; from {labels[roles.baseline]} to it, {moved} by {labels[roles.adapted]}."


def _trust(comparison: Comparison) -> str:
    seeds = sorted({str(result.details["seed"]) for result in comparison.results})
    frames = comparison.results[0].details["data"].get("frames")
    return (
        f"Every number is one training run ({'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}) measured on "
        f"{frames} frames. Small differences can come from the seed alone: repeat a run with other seeds before "
        "reading much into them."
    )
