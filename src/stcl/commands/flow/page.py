"""The page about how well optical flow explains the frames, made from the files that a measurement wrote."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stcl.errors import DataError
from stcl.files.plain import read_json
from stcl.files.writing import write_atomic
from stcl.ops.colors import flow_colours
from stcl.pages.pictures import data_uri, frame_uri
from stcl.pages.skeleton import template

SCHEMA = 1
"""Version of `flow.json` that this module reads."""

PICTURE_PX = 640
"""Widest picture of the page."""

WHEEL_PX = 120

NAMES = {
    "dis": "DIS",
    "raft": "RAFT",
    "files": "flow from files",
    "exact": "exact flow",
    "zero": "no motion",
}
"""How the page calls the flows."""

PARTS = {
    "warped": "frame before, warped",
    "error": "what is left unexplained",
    "flow": "flow",
    "validity": "where it can be trusted",
}
"""The pictures of a flow in their order, with their captions."""


def write_flow_page(folder: Path) -> Path:
    """Write ``folder/flow.html`` about ``folder/flow.json`` and the pictures beside it; returns its path."""
    record = read_flow_record(folder)
    text = template(Path(__file__).with_name("page.html.j2"), number=number_text).render(
        record=record,
        names=[NAMES.get(name, name) for name in record["flows"]],
        domains=[
            {
                **domain,
                "rows": [{**row, "name": NAMES.get(row["flow"], row["flow"])} for row in domain["rows"]],
                "strips": [_strip(folder, pair) for pair in domain["shown"]],
            }
            for domain in record["domains"]
        ],
        wheel=colour_wheel(),
    )
    path = folder / "flow.html"
    write_atomic(path, text.encode())
    return path


def read_flow_record(folder: Path) -> dict[str, Any]:
    """What ``folder/flow.json`` holds."""
    path = folder / "flow.json"
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read '{path}' ({error}). 'stcl flow CONFIG --report DIR' writes it.") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(f"'{path}' is no report of schema {SCHEMA}, which this version of stcl reads. Make it anew.")
    return record


def number_text(value: float | None) -> str:
    """A number with one decimal, or two below 10; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def colour_wheel() -> str:
    """Data URI of the colours of all directions and lengths."""
    axis = np.linspace(-1, 1, WHEEL_PX, dtype=np.float32)
    flow = np.stack(np.meshgrid(axis, axis))  # (2, H, W): u to the right, v down
    picture, content = Image.fromarray(flow_colours(flow, 1.0)), io.BytesIO()
    picture.putalpha(Image.fromarray(np.where(np.hypot(*flow) <= 1, 255, 0).astype(np.uint8)))
    picture.save(content, "PNG")
    return data_uri(content.getvalue(), ".png")


def _strip(folder: Path, pair: dict[str, Any]) -> dict[str, Any]:
    """A pair with embedded pictures, a row of them for each flow."""
    top = [(caption, frame_uri(folder / pair[part], PICTURE_PX)) for part, caption in _TOP.items()]
    rows = [
        (NAMES.get(name, name), [(PARTS[part], frame_uri(folder / views[part], PICTURE_PX)) for part in PARTS])
        for name, views in pair["flows"].items()
    ]
    return {"name": pair["name"], "largest_px": pair["largest_px"], "top": top, "rows": rows}


_TOP = {"frame": "frame t", "previous": "frame before"}
