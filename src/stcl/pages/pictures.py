"""Read the pictures of a run folder and turn pictures into data URIs."""

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stcl.errors import DataError
from stcl.files.pictures import UNDECODABLE, read_picture

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4", ".webm": "video/webm"}


def open_picture(path: Path) -> Image.Image:
    """A picture in mode RGB, or in mode L / P if it is a label map (8 bits, one channel)."""
    content = read_picture(path)
    try:
        picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        picture.load()
    except UNDECODABLE as error:
        raise DataError(f"Cannot decode the picture '{path}' ({error}). Write it again.") from None
    return picture if picture.mode in ("L", "P") else picture.convert("RGB")


def read_label(path: Path) -> NDArray[np.uint8]:
    """A label map ``(H, W)`` uint8 train ids, 255 = ignore."""
    image = open_picture(path)
    if image.mode == "RGB":
        raise DataError(f"'{path}' is a colour picture; a label map has 8 bits and one channel of train ids.")
    return np.asarray(image)


def frame_uri(path: Path, width_px: int) -> str:
    """Data URI (JPEG) of an RGB picture, made smaller if it is wider than ``width_px``."""
    image = open_picture(path).convert("RGB")
    stream = io.BytesIO()
    _narrow(image, width_px, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=90)
    return data_uri(stream.getvalue(), ".jpg")


def label_uri(label: NDArray[np.uint8], palette: NDArray[np.uint8], width_px: int) -> str:
    """Data URI (PNG with ``palette (256, 3)``) of a label map ``(H, W)``, made smaller without mixing classes."""
    image = _narrow(Image.fromarray(label), width_px, Image.Resampling.NEAREST)
    image.putpalette(palette.tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return data_uri(stream.getvalue(), ".png")


def data_uri(content: bytes, suffix: str) -> str:
    """``content`` as a data URI of the type that ``suffix`` (".png") stands for."""
    return f"data:{MIME[suffix]};base64,{base64.b64encode(content).decode('ascii')}"


def _narrow(image: Image.Image, width_px: int, filter_: Image.Resampling) -> Image.Image:
    if image.width <= width_px:
        return image
    return image.resize((width_px, max(1, round(image.height * width_px / image.width))), filter_)
