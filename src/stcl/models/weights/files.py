"""Tensors by name from files of any origin: safetensors, torch.save of any age, wrapped or not; read as data.

Nothing in a file is ever run, and what a file holds is never larger than the file.
"""

import mmap
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stcl.errors import CheckpointError
from stcl.files.writing import open_file
from stcl.models.weights.own import check_tensors, read_weights

WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "net", "network"),
    *("state_dict_ema", "model_ema", "ema_model", "ema"),
)
"""Keys below which training programs keep the tensors, in the order of preference: the network before its average."""

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""What the weights are called in a folder or a repository of a model hub; the first one that is there is taken."""

OURS = "stcl"
"""Where a checkpoint of 'stcl train' keeps what it says about itself; its network is the weight average."""

AVERAGE = "average.copy."

UNREADABLE = (
    *(EOFError, pickle.UnpicklingError, struct.error, AssertionError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError),
)
"""What torch.load raises at files that are damaged or hold more than data."""

LARGEST_RATIO = 4
"""How many times a file's size its parts may have: torch packs nothing, and weights that others pack shrink little."""

_ROOM = b"\nbytearray\n"
"""Name in a pickle of the one thing that torch.load makes of any length which is not in the file."""


class TensorFile(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name, on the CPU.
        metadata: of a file that this package wrote: ``config`` (YAML) and, in safetensors, ``classes``; else empty.
        wrapper: key that the tensors stood under, e.g. ``state_dict``; empty where they stood alone.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    wrapper: str = ""


def read_tensor_file(path: Path) -> TensorFile:
    """Read a file, or the folder of a model hub with one of :data:`FOLDER_FILES`.

    Raises:
        CheckpointError: says what is there instead of tensors: nothing, a web page, code, half a file.
    """
    if path.is_dir():
        inside = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not inside:
            raise CheckpointError(
                f"{path} is no run folder: it holds no config.yaml; nor does it hold weights "
                f"({' or '.join(FOLDER_FILES)}). Name a folder that 'stcl train' wrote, or a file."
            )
        path = inside[0]
    try:
        with open_file(path) as file:
            start = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"There is no weights file '{path}'. Check the path.") from None
    except OSError as error:
        raise CheckpointError(f"Weights file '{path}' cannot be read: {error.strerror}. Check the path.") from None
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return TensorFile(*read_weights(path))
    content = _load_foreign(path, start)
    about = content.get(OURS)
    if isinstance(about, dict) and isinstance(about.get("config"), str):  # a checkpoint of 'stcl train'
        state = content.get("state_dict")
        named = _named(state) if isinstance(state, Mapping) else {}
        average = {name.removeprefix(AVERAGE): tensor for name, tensor in named.items() if name.startswith(AVERAGE)}
        if not average:
            raise CheckpointError(
                f"'{path}' is a checkpoint of 'stcl train' without its weight average ('{AVERAGE}...')."
            )
        opened = TensorFile(average, {"config": about["config"]}, OURS)
    else:
        inner, wrappers = content, list[str]()
        while not (tensors := _named(inner)) and len(wrappers) < len(WRAPPERS):  # a table may hold itself
            wrapper = next((name for name in WRAPPERS if isinstance(inner.get(name), Mapping)), None)
            if wrapper is None:
                break
            wrappers.append(wrapper)
            inner = inner[wrapper]
        if not tensors:
            keys = ", ".join(map(str, [*content][:8])) or "nothing"
            raise CheckpointError(
                f"'{path}' holds no tensors by name (found: {keys}). Tensors may stand alone or below one of the keys "
                f"{', '.join(WRAPPERS)}. Save the network's state_dict() by itself."
            )
        opened = TensorFile(tensors, {}, ".".join(wrappers))
    check_tensors(opened.tensors, path)
    return opened


def _named(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in content.items() if isinstance(name, str) and isinstance(t, Tensor)}


def _load_foreign(path: Path, start: bytes) -> Mapping[Any, Any]:
    """The contents of a file of torch.save that begins with ``start``, or what it is instead."""
    if not start:
        raise CheckpointError(f"'{path}' is empty. Copy or download it again.")
    if start.lstrip().startswith(b"<"):
        raise CheckpointError(
            f"'{path}' is a web page, not a checkpoint: the download gave the page around the file (a warning, a "
            "login). Download it again with a browser, or with a program that follows the page."
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"'{path}' is a pointer of git-lfs, not the file. Fetch the file with: git lfs pull")
    if start[:2] == b"PK":
        if not zipfile.is_zipfile(path):  # torch leaves this to the operating system
            raise CheckpointError(_explain(path, start, "the archive has no end"))
        try:
            with zipfile.ZipFile(path) as archive:
                inside = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError):  # damaged: torch.load says how
            inside = []
        if inside and not any(name.endswith("/data.pkl") for name in inside):
            raise CheckpointError(
                f"'{path}' is a zip archive, but none of torch.save (it holds: {', '.join(inside[:5])}). Unpack it, "
                "and give the checkpoint in it."
            )
    try:
        content = load_saved(path)
    except (zipfile.BadZipFile, *UNREADABLE) as error:
        raise CheckpointError(_explain(path, start, str(error))) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"'{path}' holds a {type(content).__name__}, not tensors by name. Save the network's state_dict() instead."
        )
    return content


def _explain(path: Path, start: bytes, text: str) -> str:
    """One sentence on what torch.load says in many, ``text``."""
    again = "Where you trust it, let torch load it elsewhere and save its state_dict() with torch.save."
    if "legacy .tar format" in text:
        return f"'{path}' is of torch's oldest format, a tar file, and cannot be read without running code. {again}"
    if start[:2] != b"PK" and start[:1] != b"\x80":
        return (
            f"'{path}' is neither a safetensors file nor one of torch.save (it begins with {start[:8]!r}). Give a "
            ".safetensors, .pth, .pt, .bin or .ckpt file."
        )
    if blocked := re.search(r"GLOBAL (\S+)", text):
        return (
            f"'{path}' holds more than tensors and plain data ({blocked[1]}), which could run code, so it was not "
            f"opened. Ask for a file with the state_dict() alone. {again}"
        )
    if "Unsupported operand" in text:
        return f"'{path}' was pickled by a newer protocol than torch.load reads as data. {again}"
    reason = "it ends too early" if not text or "Weights only load failed" in text else text.splitlines()[0][:160]
    size = path.stat().st_size
    return f"'{path}' is not a whole checkpoint ({size} bytes; {reason}). Copy or download it again."


def load_saved(path: Path, checksums: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU; nothing but tensors and plain data is read.

    Args:
        path: in the zip format, or the one before it.
        checksums: compare those of a zip file first.

    Raises:
        CheckpointError: a few bytes of it would take gigabytes, or a checksum is wrong.
        Exception: of :data:`UNREADABLE`, and zipfile.BadZipFile.
        OSError: it cannot be opened.
    """
    with open_file(path) as file:
        if checksums or file.read(2) == b"PK":
            size = os.fstat(file.fileno()).st_size
            try:
                with zipfile.ZipFile(file) as archive:
                    _check_archive(path, archive, size, checksums)
            except (zlib.error, OSError, NotImplementedError) as error:  # what damage leads to
                raise zipfile.BadZipFile(str(error)) from None
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_pickle(path, content)
    with warnings.catch_warnings():  # about the age of the format
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path, archive: zipfile.ZipFile, size: int, checksums: bool) -> None:
    parts = archive.infolist()
    unpacked = sum(part.file_size for part in parts)
    if unpacked > LARGEST_RATIO * size:
        raise CheckpointError(
            f"'{path}' has {size} bytes, but its parts say that they have {unpacked}: no checkpoint shrinks so "
            "much. Ask whoever gave it to you for the file that torch.save wrote."
        )
    for part in parts:
        if part.filename.endswith(".pkl"):
            _check_pickle(path, archive.read(part))
    if checksums and (damaged := archive.testzip()) is not None:
        raise CheckpointError(f"{path} is damaged: its part '{damaged}' does not have the right checksum.")


def _check_pickle(path: Path, content: bytes | mmap.mmap) -> None:
    if content.find(_ROOM) >= 0:
        raise CheckpointError(
            f"'{path}' holds a bytearray, which could take any memory, so it was not opened. Ask for a file with the "
            "state_dict() alone."
        )
