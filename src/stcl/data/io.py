"""Reading, writing and resizing images and label maps.

A damaged file is an error that names it: some decoders return a half-read picture with grey rows instead.
"""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stcl.errors import DataError
from stcl.files.pictures import PNG, UNDECODABLE, decode_image, encode_image, read_picture
from stcl.files.writing import open_file, write_atomic

Label = NDArray[np.uint8] | NDArray[np.uint16]

_PNG_COLOR_TYPE = 25  # position of the byte in the file; 3 means that pixels index a palette

_PNG_KINDS = {0: "grey", 3: "palette", 4: "grey with transparency", 6: "RGB with transparency"}


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as ``(H, W, 3)`` uint8 RGB."""
    pixels = decode_image(path, read_picture(path), cv2.IMREAD_COLOR)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def unusual_format(path: Path) -> str:
    """How an image file differs from 8-bit RGB, which :func:`read_image` makes of it: ``16-bit grey``; mostly empty."""
    with open_file(path) as file:
        head = file.read(_PNG_COLOR_TYPE + 1)
        if not head.startswith(PNG):
            file.seek(0)
            try:
                mode = Image.open(file, formats=("JPEG",)).mode
            except UNDECODABLE:  # OpenCV is less strict
                return ""
            return {"RGB": "", "L": "grey"}.get(mode, mode)
    depth, kind = head[_PNG_COLOR_TYPE - 1], _PNG_KINDS.get(head[_PNG_COLOR_TYPE], "RGB")
    return kind if depth <= 8 and kind != "RGB" else f"{depth}-bit {kind}" if depth > 8 else ""


def read_label(path: Path, channel: int | None = None) -> Label:
    """A label PNG as raw ids ``(H, W)``, uint8 or uint16 as stored.

    Args:
        path: grey PNG, palette PNG (the palette's index is the id), or one with several channels.
        channel: which channel holds the ids, counted as in the file (0 = red); needed for files with several.
    """
    content = read_picture(path)
    if content.startswith(PNG) and content[_PNG_COLOR_TYPE] == 3:
        return _read_indices(path, content)
    pixels = decode_image(path, content, cv2.IMREAD_UNCHANGED)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"Label file {path} holds {pixels.dtype} values; ids are 8 or 16-bit integers.")
    if pixels.ndim == 2:
        return pixels
    if channel is None:
        raise DataError(
            f"Label file {path} has {pixels.shape[2]} channels; expected one channel of class ids. "
            "Is it a coloured picture of the labels? Use the files with ids instead."
        )
    return np.ascontiguousarray(pixels[..., (2, 1, 0)[channel]])  # OpenCV gives blue, green, red


def read_colors(path: Path) -> NDArray[np.uint8]:
    """A coloured label PNG (RGB, RGBA or palette) as its colours ``(H, W, 3)`` uint8 RGB; transparency is left out."""
    pixels = decode_image(path, read_picture(path), cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2 or pixels.dtype != np.uint8:
        kind = "one channel" if pixels.ndim == 2 else f"{pixels.dtype} values"
        raise DataError(f"Label file {path} has {kind}; expected colours of 8 bits. Does it hold ids?")
    return np.ascontiguousarray(pixels[..., 2::-1]).astype(np.uint8, copy=False)  # OpenCV gives blue, green, red


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write ``(H, W, 3)`` uint8 RGB as PNG or JPEG (by suffix), whole or not at all."""
    write_atomic(path, encode_image(image, path.suffix.lower()))


def write_label(path: Path, label: Label) -> None:
    """Write ids ``(H, W)`` or ``(H, W, 3)``, uint8 or uint16, as PNG, whole or not at all."""
    write_atomic(path, encode_image(label, ".png"))


def write_palette(path: Path, label: NDArray[np.uint8], palette: NDArray[np.uint8]) -> None:
    """Write ids ``(H, W)`` as a PNG that viewers show in the colours of ``palette (256, 3)``; the index is the id."""
    image, content = Image.fromarray(label), BytesIO()
    image.putpalette(palette.tobytes())
    image.save(content, "PNG", compress_level=1)
    write_atomic(path, content.getvalue())


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize ``(H, W, 3)`` to ``size = (width, height)``: area average when shrinking, else bilinear."""
    height, width = image.shape[:2]
    if (width, height) == tuple(size):
        return image
    shrinks = size[0] <= width and size[1] <= height
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR).astype(
        np.uint8, copy=False
    )


def resize_label(label: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize ids ``(H, W)`` to ``size = (width, height)`` by the nearest pixel centre.

    ``INTER_NEAREST`` would take the top left pixel and move the labels half a pixel against the image.
    """
    if (label.shape[1], label.shape[0]) == tuple(size):
        return label
    return cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)


def _read_indices(path: Path, content: bytes) -> NDArray[np.uint8]:
    """The indices ``(H, W)`` of a palette PNG, which OpenCV would turn into colours."""
    try:
        return np.array(Image.open(BytesIO(content), formats=("PNG",)))
    except UNDECODABLE as error:
        raise DataError(f"Label file {path} is no palette PNG that can be decoded ({error}). Write it again.") from None
