"""How files are opened for reading, and how they are written: whole or not at all.

``data``, ``flow`` and ``twinstreets`` all write files and may not import each other, so what they share lies here.
"""

import errno
import os
import re
import stat
from io import BufferedReader
from pathlib import Path

from stcl.files.names import neighbour

EXACT_FLOW_FOLDER = "exact_flow"
"""Folder at the root of an exported tree that mirrors the folders of its frames."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What may lie where a file is wanted: some make their reader wait for ever, some never end."""


def open_file(path: Path) -> BufferedReader:
    """Open a file that somebody has given to be read; every reader begins here.

    Raises:
        OSError: there is none, or something else in its place, which is not opened: a folder, a pipe, a device.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')} and not a file", str(path))
    return path.open("rb")


def read_file(path: Path, largest_bytes: int) -> bytes:
    """All bytes of a file, of which there are at most so many.

    Raises:
        OSError: as of :func:`open_file`, or it is larger.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest_bytes:
            what = f"it has {size} bytes, and at most {largest_bytes} are read"
            raise OSError(errno.EFBIG, what, str(path))
        return file.read()


def write_atomic(path: Path, content: bytes | memoryview, durable: bool = False, keep_as: Path | None = None) -> None:
    """Write a file so that other processes see all of it or none: a temporary neighbour, then a rename.

    Args:
        path: its folder is made.
        content: what the file shall hold.
        durable: wait until the disk has it, so that the file is whole after a power cut, too.
        keep_as: name for the file that was there before, moved only once the new one is whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = neighbour(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            path.replace(keep_as)
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # a full disk names no file, other errors the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's renames; systems that cannot open a folder keep them by themselves."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def counting_order(name: str) -> list[tuple[int, str]]:
    """Key for sorting file names that puts frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def exact_flow_path(root: Path, image_a: Path, image_b: Path) -> Path:
    """Where the exact flow from one frame to another lies in an exported tree.

    ``root/clip_0000/rgb/000001.png -> root/exact_flow/clip_0000/rgb/000001_to_000000.png``
    """
    folder = root / EXACT_FLOW_FOLDER / image_a.parent.relative_to(root)
    return folder / f"{image_a.stem}_to_{image_b.stem}.png"
