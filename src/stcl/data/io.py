"""Reading, writing and resizing images and label maps.

A damaged file is an error that names it: some decoders return a half-read picture with grey rows instead.
"""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stcl.errors import DataError
from stcl.files import encode_image, write_atomic

Label = NDArray[np.uint8] | NDArray[np.uint16]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_PNG_COLOR_TYPE = 25  # position of the byte in the file; 3 means that pixels index a palette


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as ``(H, W, 3)`` uint8 RGB."""
    pixels = _decode(path, _whole_file(path), cv2.IMREAD_COLOR)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def read_label(path: Path, channel: int | None = None) -> Label:
    """A label PNG as raw ids ``(H, W)``, uint8 or uint16 as stored.

    Args:
        path: grey PNG, palette PNG (the palette's index is the id), or one with several channels.
        channel: which channel holds the ids, counted as in the file (0 = red); needed for files with several.
    """
    content = _whole_file(path)
    if content.startswith(_PNG) and content[_PNG_COLOR_TYPE] == 3:
        return np.array(Image.open(BytesIO(content)))  # OpenCV would turn the indices into colours
    pixels = _decode(path, content, cv2.IMREAD_UNCHANGED)
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


def _whole_file(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not content:
        raise DataError(f"File {path} is empty. Copy or download it again.")
    if content.startswith(_PNG):
        _check_png(path, content)
    elif content.startswith(_JPEG) and content.find(b"\xff\xd9", max(content.rfind(b"\xff\xda"), 0)) < 0:
        # inside the picture's data 0xff is always followed by 0x00 or a restart mark, so the search cannot be fooled
        raise DataError(f"JPEG file {path} is cut off after {len(content)} bytes. Copy or download it again.")
    return content


def _check_png(path: Path, content: bytes) -> None:
    """Walk the chunks (length, type, data, CRC) up to IEND."""
    position, kind = len(_PNG), b""
    while kind != b"IEND":
        head = content[position : position + 8]
        if len(head) < 8:
            raise DataError(f"PNG file {path} is cut off after {len(content)} bytes. Copy or download it again.")
        length, kind = struct.unpack(">I4s", head)
        end = position + 8 + length
        if len(content) < end + 4:
            raise DataError(f"PNG file {path} is cut off after {len(content)} bytes. Copy or download it again.")
        if zlib.crc32(memoryview(content)[position + 4 : end]) != struct.unpack(">I", content[end : end + 4])[0]:
            raise DataError(f"PNG file {path} is damaged near byte {position} (wrong checksum). Copy it again.")
        position = end + 4


def _decode(path: Path, content: bytes, flags: int) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if pixels is None:
        raise DataError(f"File {path} ({len(content)} bytes) is not an image that can be decoded. Is it really one?")
    return pixels  # type: ignore[return-value]
