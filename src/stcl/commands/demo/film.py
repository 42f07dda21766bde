"""The side-by-side film of a comparison."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stcl.errors import DataError, SettingError
from stcl.files.writing import counting_order
from stcl.labels import LabelSpace
from stcl.ops.colors import colourise
from stcl.pages.film import VideoWriter
from stcl.pages.pictures import open_picture

PANE_WIDTH_PX = 640
GAP_PX = 8
TITLE_PX = 36
LEGEND_LINE_PX = 30
BACKGROUND = (20, 22, 26)
TEXT = (236, 238, 242)


def write_panes(
    out: Path,
    panes: Mapping[str, Path],
    classes: Sequence[str],
    fps: float = 10.0,
    scale: float | None = None,
) -> Path:
    """Film of several folders of pictures side by side, two in a row, with titles and a legend of the classes.

    Args:
        out: the MP4 to write.
        panes: ``title -> folder``; all folders hold PNG files of the same names. RGB files are shown as they are,
            8-bit one-channel files are train ids (255 = ignore) and are shown in the colours of their classes.
        classes: class names in train-id order.
        fps: frames a second.
        scale: size of a pane over size of the first picture; by default whole-numbered and about 640 px wide.

    Returns:
        ``out``.
    """
    names = matching_names(panes)
    palette = LabelSpace("legend", tuple(classes)).palette
    source = open_picture(Path(next(iter(panes.values()))) / names[0]).size  # (W, H)
    if scale is None:
        scale = max(1.0, round(PANE_WIDTH_PX / source[0])) if source[0] <= PANE_WIDTH_PX else PANE_WIDTH_PX / source[0]
    size = (max(1, round(source[0] * scale)), max(1, round(source[1] * scale)))
    canvas, corners = _canvas(list(panes), size, classes, palette)
    with VideoWriter(out, fps) as writer:
        for name in names:
            for (left, top), folder in zip(corners, panes.values(), strict=True):
                picture = _pane(Path(folder) / name, size, palette)  # (h, w, 3)
                canvas[top : top + size[1], left : left + size[0]] = picture
            writer.write(canvas)
    return out


def matching_names(panes: Mapping[str, Path]) -> list[str]:
    """PNG names that all folders share, in counting order; folders that differ are an error."""
    if not panes:
        raise SettingError("A film needs at least one pane.")
    found = {title: {path.name for path in Path(folder).glob("*.png")} for title, folder in panes.items()}
    first_title, first = next(iter(found.items()))
    if not first:
        raise DataError(f"Pane '{first_title}': no PNG file in '{panes[first_title]}'.")
    for title, names in found.items():
        if names != first:
            example = sorted(names ^ first)[0]
            raise DataError(
                f"Panes '{first_title}' ({len(first)} files in '{panes[first_title]}') and '{title}' ({len(names)} "
                f"files in '{panes[title]}') do not hold the same names; only one of them has '{example}'."
            )
    return sorted(first, key=counting_order)


def _pane(path: Path, size: tuple[int, int], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One picture as RGB ``(h, w, 3)`` for ``size = (w, h)``; label maps keep hard edges."""
    image = open_picture(path)
    ratio = (image.width * size[1]) / (image.height * size[0])
    if not 0.98 < ratio < 1.02:
        raise DataError(f"'{path}' is {image.width} x {image.height} px; its pane has another aspect ratio.")
    if image.mode == "RGB":
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    return colourise(np.asarray(image.resize(size, Image.Resampling.NEAREST)), palette)


def _canvas(
    titles: list[str], size: tuple[int, int], classes: Sequence[str], palette: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """Titles and legend drawn once ``(H, W, 3)``, and the left top corner (x, y) of each pane."""
    columns = 1 if len(titles) == 1 else 2
    rows = -(-len(titles) // columns)
    width = columns * size[0] + (columns + 1) * GAP_PX
    legend = list(_legend_places(classes, width))
    legend_top = rows * (size[1] + TITLE_PX) + GAP_PX
    height = legend_top + (legend[-1][1] + LEGEND_LINE_PX + GAP_PX if legend else 0)
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    corners = []
    for position, title in enumerate(titles):
        row, column = divmod(position, columns)
        left, top = GAP_PX + column * (size[0] + GAP_PX), row * (size[1] + TITLE_PX) + TITLE_PX
        draw.text((left + 2, top - TITLE_PX // 2), title, font=font(19, bold=True), fill=TEXT, anchor="lm")
        corners.append((left, top))
    for index, (left, line_top) in enumerate(legend):
        middle = legend_top + line_top + LEGEND_LINE_PX // 2
        colour = tuple(int(value) for value in palette[index])
        draw.rounded_rectangle((left, middle - 8, left + 16, middle + 8), 3, fill=colour, outline=(150, 154, 160))
        draw.text((left + 23, middle), classes[index], font=font(16), fill=TEXT, anchor="lm")
    return np.array(image), corners


def _legend_places(classes: Sequence[str], width: int) -> Iterator[tuple[int, int]]:
    """Left and top (px) of each legend entry, wrapped into lines."""
    left, top = GAP_PX + 2, 0
    for name in classes:
        needed = 23 + round(font(16).getlength(name))
        if left + needed > width - GAP_PX and left > GAP_PX + 2:
            left, top = GAP_PX + 2, top + LEGEND_LINE_PX
        yield left, top
        left += needed + 22


@cache
def font(size_px: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size_px)
