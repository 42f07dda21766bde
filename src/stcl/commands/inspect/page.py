"""The page about what enters a training step, made from the files that an inspection wrote."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stcl.errors import DataError
from stcl.files.pictures import encode_image
from stcl.files.plain import read_json
from stcl.files.writing import write_atomic
from stcl.labels import IGNORE, LabelSpace
from stcl.ops.colors import colourise
from stcl.pages.pictures import data_uri, open_picture, read_label
from stcl.pages.skeleton import template
from stcl.pages.tables import bar_length, share_text

RECORD, PAGE = "inspect.json", "inspect.html"

SCHEMA = 1  # version of the record
PICTURE_PX = 512  # small pictures are shown about this wide, enlarged by a whole number; larger ones exactly so
OUTLINE = (0, 255, 255)

PARTS = {"loaded": "as loaded", "frame": "frame t", "previous": "frame t-1", "label": "label at t", "weight": "weight"}
"""The pictures of a clip in their order, with their captions."""

VIEWS = {
    "source": "Labelled source clips as the student sees them.",
    "target": "Target clips as the student sees them. Their labels are the teacher's: no label file is read.",
    "fused_source": "Source clips with patches pasted in.",
    "fused_target": "Target clips with patches pasted in: the same ones as in fused source clips, if there are any.",
    "mixed": "Target clips with source patches pasted in.",
}
"""The views in their order and what is said about them; others come last."""

ROWS = {"source": "source labels", "target": "pseudo labels", "patches": "pasted patches"}
"""The first rows of the chart; the others are called like their views."""


def write_inspection(folder: Path) -> Path:
    """Write ``folder/inspect.html`` about ``folder/inspect.json`` and return its path."""
    record = read_inspection(folder)
    names = tuple(record["classes"])
    palette = LabelSpace("inspected", names).palette
    rows = sorted(record["shares"], key=lambda name: [*ROWS, name].index(name))
    page = template(Path(__file__).with_name("page.html.j2"), share=share_text, bar=bar_length)
    text = page.render(
        record=record,
        last=record["first_step"] + record["steps"],
        classes=[(name, "#" + bytes(colour).hex()) for name, colour in zip(names, palette, strict=False)],
        rows=[(name, ROWS.get(name, name.replace("_", " ")), f"series-{i % 6}") for i, name in enumerate(rows)],
        views=[
            (name, VIEWS.get(name, ""), _strips(folder, record["views"][name], palette))
            for name in sorted(record["views"], key=lambda name: [*VIEWS, name].index(name))
        ],
    )
    write_atomic(folder / PAGE, text.encode())
    return folder / PAGE


def read_inspection(folder: Path) -> dict[str, Any]:
    """What ``folder/inspect.json`` holds."""
    path = folder / RECORD
    try:
        record = read_json(path)
    except OSError as error:
        raise DataError(f"Cannot read '{path}' ({error.strerror}). 'stcl inspect' writes it.") from None
    except ValueError as error:
        raise DataError(f"'{path}' is not valid JSON ({error}). Run 'stcl inspect' again.") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise DataError(f"'{path}' has schema {schema!r}; this version of stcl reads schema {SCHEMA}.")
    return dict(record)


def outlined(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``pixels (H, W, 3)`` with the edge of ``mask (H, W)`` drawn over them in a colour that no class has."""
    contours = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    drawn = pixels.copy()
    cv2.drawContours(drawn, contours, -1, OUTLINE, 1)
    return drawn


def label_colours(label: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours ``(H, W, 3)`` of train ids ``(H, W)``; ignored pixels are hatched in grey."""
    hatch = np.where(np.indices(label.shape).sum(0) % 10 < 5, 58, 96).astype(np.uint8)
    return np.where((label == IGNORE)[..., None], hatch[..., None], colourise(label, palette))


def _strips(folder: Path, clips: list[dict[str, Any]], palette: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Clips of a view with embedded pictures."""
    strips = []
    for clip in clips:
        mask = read_label(folder / clip["outline"]) if "outline" in clip else None
        pictures = [(PARTS[part], _picture(folder / clip[part], part, mask, palette)) for part in PARTS if part in clip]
        strips.append({**clip, "pictures": pictures})
    return strips


def _picture(path: Path, part: str, mask: NDArray[np.uint8] | None, palette: NDArray[np.uint8]) -> str:
    """Data URI of a picture at the size that it is shown in."""
    image = open_picture(path)
    width = PICTURE_PX if image.width > PICTURE_PX else image.width * round(PICTURE_PX / image.width)
    size = (width, round(image.height * width / image.width))
    smooth = image.mode == "RGB"
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST))
    if part == "label":
        pixels = label_colours(pixels, palette)
    elif part == "weight":
        pixels = cv2.cvtColor(cv2.applyColorMap(pixels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB).astype(np.uint8)
    if mask is not None and part in ("frame", "label"):
        pixels = outlined(pixels, np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)))
    suffix = ".png" if part == "label" else ".jpg"
    return data_uri(encode_image(pixels, suffix, quality=90), suffix)
