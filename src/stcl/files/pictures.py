"""Pictures: the kinds of files that are read and written, and how: whole or not at all, and never a giant.

The kind is told by the content, whatever the name says: decoders know dozens of kinds, some of which take gigabytes for
a few bytes or run other programs.
"""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stcl.errors import DataError
from stcl.files.writing import read_file

PNG = b"\x89PNG\r\n\x1a\n"
"""What a PNG file begins with."""

JPEG = b"\xff\xd8\xff"
"""What a JPEG file begins with."""

LARGEST_PX = 2**26
"""Pixels of the largest picture that is read, twice as many as 8K has: a few bytes may claim gigabytes."""

UNDECODABLE = (OSError, SyntaxError, ValueError, LookupError, EOFError, struct.error, zlib.error)
"""What Pillow may raise of a picture that is damaged inside."""

_LARGEST_BYTES = 9 * LARGEST_PX  # four channels of 16 bits that could not be compressed, and what is said about them
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; the others are tables
_BARE_MARKERS = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8)})  # without a length: filling, TEM, restart
_FLOW_SCALE = 64.0  # KITTI: value = flow * 64 + 2^15
_FLOW_OFFSET = 2**15


def encode_image(image: NDArray[np.uint8] | NDArray[np.uint16], suffix: str = ".png", quality: int = 95) -> bytes:
    """Bytes of an image file.

    Args:
        image: ``(H, W)``, or ``(H, W, 3)`` in the file's order (RGB), uint8 or uint16.
        suffix: ``.png`` (lossless, lowest compression: several times faster and a little larger) or ``.jpg``.
        quality: of a JPEG, 0..100.
    """
    pixels = image[..., ::-1] if image.ndim == 3 else image  # OpenCV stores BGR
    setting = [cv2.IMWRITE_PNG_COMPRESSION, 1] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(suffix, np.ascontiguousarray(pixels), setting)[1].tobytes()


def read_picture(path: Path) -> bytes:
    """The bytes of a PNG or JPEG file, checked as far as its kind allows: whole, checksums right, no giant.

    Some decoders return a half-read picture with grey rows instead, or take gigabytes for a few bytes.
    """
    try:
        content = read_file(path, _LARGEST_BYTES)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not content:
        raise DataError(f"File {path} is empty. Copy or download it again.")
    if content.startswith(PNG):
        _check_png(path, content)
        width, height = struct.unpack_from(">II", content, 16)
    elif content.startswith(JPEG):
        # inside the picture's data 0xff is always followed by 0x00 or a restart mark, so the search cannot be fooled
        if content.find(b"\xff\xd9", max(content.rfind(b"\xff\xda"), 0)) < 0:
            raise DataError(f"JPEG file {path} is cut off after {len(content)} bytes. Copy or download it again.")
        width, height = _jpeg_size(path, content)
    else:
        raise DataError(
            f"File {path} is neither a PNG nor a JPEG picture: it begins with {content[:8]!r}. Make one of it, or copy "
            "it again."
        )
    if width * height > LARGEST_PX:
        raise DataError(
            f"File {path} ({len(content)} bytes) says that it is {width}x{height} px; at most {LARGEST_PX} pixels are "
            "read. Is it damaged? If not, make the picture smaller."
        )
    return content


def decode_image(path: Path, content: bytes, flags: int) -> NDArray[np.uint8]:
    """Pixels of what :func:`read_picture` gave, as OpenCV gives them for ``flags``; ``path`` is for the message."""
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:  # it has limits of its own
        pixels = None
    if pixels is None:
        raise DataError(f"File {path} ({len(content)} bytes) is not an image that can be decoded. Is it really one?")
    return pixels  # type: ignore[return-value]


def encode_flow(flow: NDArray[np.float32], valid: NDArray[np.bool_]) -> bytes:
    """A flow as the KITTI benchmark stores it: 16-bit RGB PNG of ``(64 u + 2^15, 64 v + 2^15, valid)``.

    Steps of 1/64 pixel, up to 511 pixels; longer vectors are cut to that and marked invalid.

    Args:
        flow: ``(2, H, W)`` pixels.
        valid: ``(H, W)``, False where the pixel is not seen in the other frame.
    """
    limit = 511.0
    fits = (np.abs(flow) <= limit).all(axis=0)
    stored = np.rint(np.clip(np.nan_to_num(flow), -limit, limit) * _FLOW_SCALE + _FLOW_OFFSET)
    return encode_image(np.stack((stored[0], stored[1], valid & fits), axis=-1).astype(np.uint16))


def read_flow_png(path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The flow ``(2, H, W)`` float32 pixels and the valid pixels ``(H, W)`` of a KITTI flow PNG."""
    stored = decode_image(path, read_picture(path), cv2.IMREAD_UNCHANGED)
    if stored.dtype != np.uint16 or stored.ndim != 3 or stored.shape[2] != 3:
        raise DataError(
            f"Flow file {path}: expected a 16-bit PNG with 3 channels, found {stored.dtype} of shape {stored.shape}. "
            "Write it again."
        )
    flow = (stored[..., 2:0:-1].astype(np.float32) - _FLOW_OFFSET) / _FLOW_SCALE  # (H, W, 2): u is the file's red
    return np.ascontiguousarray(flow.transpose(2, 0, 1)), stored[..., 0] > 0


def _jpeg_size(path: Path, content: bytes) -> tuple[int, int]:
    """Width and height in the header of the frame, found as decoders find it: they step over what is no marker."""
    place = 2
    while (place := content.find(b"\xff", place)) >= 0 and len(content) >= place + 9:
        marker, length, _, height, width = struct.unpack_from(">BHBHH", content, place + 1)
        if marker in _FRAME_HEADERS:
            return width, height
        place += 1 if marker in _BARE_MARKERS else 2 + length
    raise DataError(f"JPEG file {path} is damaged: it does not say how large it is. Copy or download it again.")


def _check_png(path: Path, content: bytes) -> None:
    """Walk the chunks (length, type, data, CRC) up to IEND."""
    position, kind = len(PNG), b""
    while kind != b"IEND":
        head = content[position : position + 8]
        if len(head) < 8:
            raise DataError(f"PNG file {path} is cut off after {len(content)} bytes. Copy or download it again.")
        length, kind = struct.unpack(">I4s", head)
        if position == len(PNG) and (length, kind) != (13, b"IHDR"):
            raise DataError(f"PNG file {path} is damaged: it does not begin with its header. Copy it again.")
        end = position + 8 + length
        if len(content) < end + 4:
            raise DataError(f"PNG file {path} is cut off after {len(content)} bytes. Copy or download it again.")
        if zlib.crc32(memoryview(content)[position + 4 : end]) != struct.unpack(">I", content[end : end + 4])[0]:
            raise DataError(f"PNG file {path} is damaged near byte {position} (wrong checksum). Copy it again.")
        position = end + 4
