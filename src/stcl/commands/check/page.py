"""What a check of the data found, for the terminal and as one self-contained page, made from plain data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from stcl.errors import SettingError
from stcl.files.pictures import encode_image
from stcl.files.writing import write_atomic
from stcl.labels import LabelSpace
from stcl.ops.colors import overlay
from stcl.pages.pictures import data_uri
from stcl.pages.skeleton import duration_text, refuse_other_page, template
from stcl.pages.tables import bar_length, share_text

GROUPS = {
    "problem": ("Stops training", "red"),
    "evaluation": ("Stops evaluation", "yellow"),
    "remark": ("Remarks", "cyan"),
}
"""What findings of each severity are called, and their colour on the terminal."""

PICTURE_PX = 520  # width of a picture in the page
FULL_SCALE = 0.25  # difference of a frame and its warped neighbour that is shown brightest
BAR_LETTERS = 14  # length of a full bar on the terminal
LISTED_PLACES = 200  # so many paths of a finding stand in the page


def verdict(record: dict[str, Any]) -> str:
    """One or two sentences: can training start, can its result be measured, and how sure is that."""
    severities = [finding["severity"] for finding in record["findings"]]
    if not record["ready"]:
        return f"Training cannot go through: {_many(severities.count('problem'), 'thing')} to mend."
    text = "Training can start."
    if not record["measurable"]:
        text += f" Evaluation cannot: {_many(severities.count('evaluation'), 'thing')} to mend."
    if any(domain["sampled"] for domain in record["domains"]):
        text += " A sample was read; --full reads every file."
    return text


def fact_rows(record: dict[str, Any]) -> dict[str, list[str]]:
    """What is in the domains: by the name of each fact, its text for every domain."""
    domains = [_domain_facts(domain) for domain in record["domains"]]
    names = dict.fromkeys(name for facts in domains for name in facts)
    return {name: [facts.get(name, "–") for facts in domains] for name in names}


def _domain_facts(domain: dict[str, Any]) -> dict[str, str]:
    sizes, labelled = domain["sizes"], domain["labelled"]
    facts = {
        "data set": f"{domain['name']}, split {domain['split']}",
        "root": _short_paths(domain["root"]),
        "sequences": f"{domain['sequences']:,}",
        "frames": f"{domain['frames']:,}",
        "with a label": "not looked at" if labelled is None else f"{labelled:,}",
        "clips": f"{domain['clips']:,}",
        "size on disk": ", ".join(f"{size} ({n})" if len(sizes) > 1 else size for size, n in sizes.items()) or "–",
        "size in training": "as on disk" if domain["size"] is None else "{}x{}".format(*domain["size"]),
        "read": f"{_many(domain['read_frames'], 'frame')}, {_many(domain['read_labels'], 'label')}",
    }
    if domain["brightness"] is not None:
        facts["mean brightness"] = f"{domain['brightness']:.0f} of 255"
    if domain["flow_difference"] is not None:
        stored = f" ({domain['stored_flows']} from files)" if domain["stored_flows"] else ""
        facts["flows looked at"] = f"{domain['flows']}{stored}"
        facts["neighbours differ"] = f"{domain['still_difference']:.1%}, warped {domain['flow_difference']:.1%}"
    return facts


def class_shares(domain: dict[str, Any]) -> dict[str, float]:
    """Percent of the pixels of each class, and of those that are ignored."""
    pixels = {**domain["pixels"], "ignored": domain["ignored"]}
    total = max(1, sum(pixels.values()))
    return {name: 100 * count / total for name, count in pixels.items()}


def rich_check(record: dict[str, Any]) -> Iterator[RenderableType]:
    """Tables for the terminal: what there is, its classes, what is wrong, and the verdict."""
    table = Table(title=Text(f"Data of {record['title']}"), title_justify="left")
    table.add_column("")
    for domain in record["domains"]:
        table.add_column(domain["role"], overflow="fold")
    for name, texts in fact_rows(record).items():
        table.add_row(name, *map(Text, texts))
    yield table
    if any(domain["pixels"] for domain in record["domains"]):
        yield _classes_table(record)
    for _, title, colour, findings in _groups(record):
        yield Text(f"\n{title}", style=f"bold {colour}")
        yield _findings_table(findings, colour)
    yield Text(f"\n{verdict(record)}", style="bold green" if record["ready"] else "bold red")


def _groups(record: dict[str, Any]) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
    """Each severity that occurs, what its findings are called, their colour on the terminal, and the findings."""
    for severity, (title, colour) in GROUPS.items():
        findings = [finding for finding in record["findings"] if finding["severity"] == severity]
        if findings:
            yield severity, title, colour, findings


def _classes_table(record: dict[str, Any]) -> Table:
    """Logarithmic bars, as in the page of an inspection."""
    counted = [domain for domain in record["domains"] if domain["pixels"]]
    title = "Percent of the pixels that were read (logarithmic bars from 0.01)"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("class")
    for domain in counted:
        table.add_column(domain["role"], no_wrap=True, min_width=BAR_LETTERS)
        table.add_column("%", justify="right")
        table.add_column("labels", justify="right")
    colours = ["#" + bytes(np.maximum(colour, 60)).hex() for colour in _palette(record)]
    for index, name in enumerate([*record["classes"], "ignored"]):
        cells: list[Text] = []
        for domain in counted:
            share = class_shares(domain)[name]
            length = bar_length(share) * BAR_LETTERS / 100
            bar = "█" * int(length) + ("▌" if length % 1 >= 0.5 else "")
            cells.append(Text(bar, style="bright_black" if name == "ignored" else colours[index]))
            cells.append(Text(share_text(share)))
            cells.append(Text(str(domain["shown_in"].get(name, "")), style="dim"))
        table.add_row(Text(name), *cells)
    return table


def _findings_table(findings: list[dict[str, Any]], colour: str) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style=colour, no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(_short_paths(finding["what"]))
        if finding["places"] and finding["places"][0] not in finding["what"]:
            more = f" and {finding['count'] - 1} more" if finding["count"] > 1 else ""
            text.append(f" {_short_paths(finding['places'][0])}{more}", style="dim")
        text.append(f"\n→ {finding['advice']}", style="italic")
        table.add_row(finding["domain"], text)
    return table


def check_page(out: Path) -> None:
    """Refuse what cannot be the page of a check, or is somebody else's file."""
    if out.suffix != ".html":
        raise SettingError(f"--out is the page to write, such as check.html, not '{out}'.")
    refuse_other_page(out)


def write_check(record: dict[str, Any], out: Path) -> Path:
    """Write the page ``out`` about a check, whole or not at all, and return its path."""
    check_page(out)
    palette = _palette(record)
    page = template(Path(__file__).with_name("page.html.j2"), share=share_text, bar=bar_length)
    text = page.render(
        record=record,
        verdict=verdict(record),
        duration=duration_text(record["seconds"]),
        groups=[*_groups(record)],
        listed=LISTED_PLACES,
        facts=fact_rows(record),
        classes=[(name, "#" + bytes(palette[index]).hex()) for index, name in enumerate(record["classes"])],
        shares=[(domain["role"], class_shares(domain)) for domain in record["domains"] if domain["pixels"]],
        labels=[(exhibit, _label_pictures(exhibit, palette)) for exhibit in record["labels"]],
        flows=[(exhibit, _flow_pictures(exhibit)) for exhibit in record["flows"]],
        full_scale=FULL_SCALE,
    )
    write_atomic(out, text.encode())
    return out


def _label_pictures(exhibit: dict[str, Any], palette: NDArray[np.uint8]) -> dict[str, str]:
    frame, label = _resized(exhibit["frame"]), _resized(exhibit["label"], smooth=False)
    return {"frame": _uri(frame), "label over the frame": _uri(overlay(frame, label, palette, alpha=0.6))}


def _flow_pictures(exhibit: dict[str, Any]) -> dict[str, str]:
    scaled = np.clip(exhibit["difference"] / FULL_SCALE * 255, 0, 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(np.uint8)
    pictures = {"frame t": exhibit["frame"], "frame before, warped to t": exhibit["warped"], "difference": heat}
    return {caption: _uri(_resized(pixels)) for caption, pixels in pictures.items()}


def _resized(pixels: NDArray[np.uint8], smooth: bool = True) -> NDArray[np.uint8]:
    """At the width of the page's pictures; small ones are enlarged by a whole number."""
    height, width = pixels.shape[:2]
    wide = PICTURE_PX if width > PICTURE_PX else width * round(PICTURE_PX / width)
    way = cv2.INTER_NEAREST_EXACT if not smooth else cv2.INTER_AREA if wide < width else cv2.INTER_LINEAR
    resized = cv2.resize(pixels, (wide, max(1, round(height * wide / width))), interpolation=way)
    return resized.astype(np.uint8, copy=False)


def _uri(pixels: NDArray[np.uint8]) -> str:
    return data_uri(encode_image(pixels, ".jpg", quality=88), ".jpg")


def _palette(record: dict[str, Any]) -> NDArray[np.uint8]:
    return LabelSpace("checked", tuple(record["classes"])).palette


def _short_paths(text: str) -> str:
    """Text whose paths below the working directory begin there."""
    return text.replace(f"{Path.cwd()}/", "")


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
