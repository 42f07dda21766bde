"""One self-contained HTML page about a comparison: no script, no network, everything inlined.

A page can be mailed as one file; only a video above :data:`EMBED_BYTES` stays beside it as a relative link.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml
from markupsafe import Markup

from stcl.commands.report.samples import Sample, choose_samples
from stcl.commands.report.story import explain, find_roles, role_text
from stcl.errors import DataError
from stcl.files.folders import hold_lock, refuse_others
from stcl.files.paths import real_path
from stcl.files.writing import write_atomic
from stcl.pages.figures import confusion_changes, loss_panels, series_class
from stcl.pages.pictures import MIME, data_uri, frame_uri, label_uri, read_label
from stcl.pages.results import read_metrics
from stcl.pages.skeleton import duration_text, refuse_other_page, template
from stcl.pages.tables import (
    Comparison,
    compare,
    csv_table,
    delta_text,
    html_table,
    markdown_table,
    percent_text,
)

EMBED_BYTES = 8_000_000
"""A larger video is linked, not embedded."""

PICTURE_PX = 640
"""Widest picture in the page."""

REPORT = ("report.html", "results.md", "results.csv")
"""What a report is: the page, and the tables beside it."""


@dataclass(frozen=True)
class Picture:
    """A picture of a strip as the template shows it."""

    caption: str
    alt: str
    uri: str
    label: bool


def write_page(
    out: Path,
    runs: Sequence[Path],
    title: str = "Domain-adaptive video segmentation",
    summary: str = "",
    video: Path | None = None,
    commands: Sequence[str] = (),
    seconds: Mapping[str, float] | None = None,
) -> Path:
    """Write the page ``out`` about ``runs`` and return its path.

    Args:
        out: the HTML file; a folder gets a `report.html`.
        runs: run folders; the first one is what the others are compared with.
        title: heading of the page.
        summary: a few sentences under the heading; blank lines separate paragraphs.
        video: an MP4 to show, embedded up to 8 MB and linked relatively above.
        commands: the commands that made the runs.
        seconds: wall-clock time by what took it.
    """
    out = out / "report.html" if out.suffix != ".html" else out
    refuse_other_page(out)
    comparison = compare(runs)
    roles = find_roles(comparison)
    subject = roles.baseline if roles.adapted is None else roles.adapted
    metrics = [read_metrics(result.folder) for result in comparison.results]
    text = template(Path(__file__).with_name("page.html.j2")).render(
        title=title,
        summary=[part.strip() for part in summary.split("\n\n") if part.strip()],
        comparison=comparison,
        data=comparison.results[0].details["data"],
        headline=_headline(comparison),
        story=explain(comparison),
        bars=_bars(comparison),
        legend=[(label, series_class(comparison, row)) for row, label in enumerate(comparison.labels)],
        table=Markup(html_table(comparison)),
        confusions=confusion_changes(comparison, roles.baseline, subject) if subject != roles.baseline else [],
        strips=[_strip(comparison, sample) for sample in choose_samples(comparison, roles.baseline, subject)],
        classes=_class_legend(comparison),
        panels=[(panel.title, Markup(panel.svg)) for panel in loss_panels(comparison, metrics)],
        video=None if video is None else _video_source(video, out.parent),
        runs=_run_rows(comparison),
        commands=list(commands),
        seconds={name: duration_text(value) for name, value in (seconds or {}).items()},
    )
    write_atomic(out, text.encode())
    return out


def write_report(
    runs: Sequence[Path],
    out: Path,
    title: str = "Domain-adaptive video segmentation",
    summary: str = "",
    video: Path | None = None,
    commands: Sequence[str] = (),
    seconds: Mapping[str, float] | None = None,
) -> Comparison:
    """Write `report.html`, `results.md` and `results.csv` into the folder ``out``; arguments as :func:`write_page`."""
    comparison, verb = compare(runs), "stcl report"
    with hold_lock(out / ".report.lock", f"Another '{verb}' is writing into {out} right now. Wait for it."):
        page, *tables = (out / name for name in REPORT)
        if not page.exists():
            refuse_others(out, REPORT[1:], (), verb)  # a page of ours vouches for the tables beside it
        write_page(page, runs, title, summary, video, commands, seconds)
        for path, table in zip(tables, (markdown_table, csv_table), strict=True):
            write_atomic(path, table(comparison).encode())
    return comparison


def _headline(comparison: Comparison) -> list[dict[str, str]]:
    """One card a run."""
    return [
        {
            "label": label,
            "miou": percent_text(comparison.miou[row]),
            "delta": "" if row == 0 else delta_text(comparison.deltas[row]),
            "series": series_class(comparison, row),
            "role": role_text(comparison, row),
        }
        for row, label in enumerate(comparison.labels)
    ]


def _bars(comparison: Comparison) -> list[dict[str, Any]]:
    """One group of bars a class: ``(run label, CSS class, IoU in percent or None)``."""
    iou = comparison.iou
    groups = []
    for column, name in enumerate(comparison.classes):
        bars = [
            (label, series_class(comparison, row), None if np.isnan(iou[row, column]) else float(iou[row, column]))
            for row, label in enumerate(comparison.labels)
        ]
        groups.append({"name": name, "colour": _hex(comparison, comparison.protocol.reported[column]), "bars": bars})
    return groups


def _class_legend(comparison: Comparison) -> list[tuple[str, str]]:
    legend = [(name, _hex(comparison, index)) for index, name in enumerate(comparison.protocol.classes)]
    return [*legend, ("no label", "#000000")]


def _hex(comparison: Comparison, index: int) -> str:
    red, green, blue = comparison.protocol.palette[index]
    return f"#{red:02x}{green:02x}{blue:02x}"


def _strip(comparison: Comparison, sample: Sample) -> dict[str, Any]:
    """A sample frame with embedded pictures."""
    palette = comparison.protocol.palette

    def label_picture(caption: str, path: Path) -> Picture:
        uri = label_uri(read_label(path), palette, PICTURE_PX)
        return Picture(caption, f"{caption}: class colours of frame {sample.name}", uri, label=True)

    pictures = [
        Picture("Frame", f"Video frame {sample.name}", frame_uri(sample.frame, PICTURE_PX), label=False),
        label_picture("Truth", sample.truth),
    ]
    for row, path in sample.predictions:
        pictures.append(label_picture(f"{comparison.labels[row]} · {percent_text(sample.scores[row])} %", path))
    return {"name": sample.name, "reason": sample.reason, "pictures": pictures}


def _video_source(video: Path, folder: Path) -> dict[str, str | bool]:
    """Where the page finds the video: in itself, or beside itself if it is large."""
    if not video.is_file():
        raise DataError(f"No video '{video}' to show in the page.")
    suffix = video.suffix.lower()
    if suffix not in MIME:
        raise DataError(f"'{video}' is no video that browsers play; write an .mp4 (H.264) with stcl.pages.film.")
    if video.stat().st_size <= EMBED_BYTES:
        return {"source": data_uri(video.read_bytes(), suffix), "embedded": True, "name": video.name}
    relative = Path(os.path.relpath(real_path(video), real_path(folder))).as_posix()
    return {"source": quote(relative), "embedded": False, "name": video.name}


def _run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """What was run, a run a row; missing details are dashes."""
    rows = []
    for label, result in zip(comparison.labels, comparison.results, strict=True):
        details = result.details
        environment, code, seconds = details["environment"], details["code"], details["seconds"]
        versions = [f"{key} {value}" for key, value in environment.items()]
        facts = {
            "method": result.method,
            "source": details["data"].get("source"),
            "steps": details["steps"],
            "seed": details["seed"],
            "which weights": details["selection"],
            "statistics": details["statistics"],
            "training": _duration(seconds.get("train")),
            "evaluation": _duration(seconds.get("evaluate")),
            "code": f"stcl {code.get('version', '?')} ({code.get('revision') or 'no revision'})",
            "environment": ", ".join(versions),
            "date": details["date"],
        }
        config = yaml.safe_dump(details["config"], sort_keys=False, allow_unicode=True)
        rows.append({"label": label, "facts": facts, "config": config})
    return rows


def _duration(value: object) -> str | None:
    return duration_text(float(value)) if isinstance(value, (int, float)) else None
