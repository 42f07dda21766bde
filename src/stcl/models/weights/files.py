"""Tensors by name from files of any origin: safetensors, torch.save of any age, wrapped or not; read as data.

Nothing in a file is ever run, and what a file holds is never larger than the file.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from stcl.errors import CheckpointError
from stcl.files.writing import open_file
from stcl.models.weights.own import check_tensors, read_weights
from stcl.models.weights.saved import UNREADABLE, load_saved

WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "network",
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema",
)
"""Keys below which training programs keep the tensors, in the order of preference: the network before its average."""

FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""What the weights are called in a folder that a model hub serves."""

OURS = "stcl"
"""Where a checkpoint of 'stcl train' keeps what it says about itself; its network is the weight average."""

AVERAGE = "average.copy."


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
    path = _in_folder(path)
    try:
        with open_file(path) as file:
            start = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"There is no weights file '{path}'. Check the path.") from None
    except OSError as error:
        raise CheckpointError(f"Weights file '{path}' cannot be read: {error.strerror}. Check the path.") from None
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return TensorFile(*read_weights(path))
    content = _load(path, start)
    about = content.get(OURS)
    if isinstance(about, dict) and isinstance(about.get("config"), str):
        return _average(content, about["config"], path)
    tensors, wrapper = _unwrap(content)
    if not tensors:
        found = ", ".join(map(str, [*content][:8])) or "nothing"
        raise CheckpointError(
            f"'{path}' holds no tensors by name (found: {found}). Tensors may stand alone or below one of the keys "
            f"{', '.join(WRAPPERS)}. Save the network's state_dict() by itself."
        )
    check_tensors(tensors, path)
    return TensorFile(tensors, {}, wrapper)


def _in_folder(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} is no run folder: it holds no config.yaml; nor does it hold weights ({' or '.join(FOLDER_FILES)}). "
        "Name a folder that 'stcl train' wrote, or a file."
    )


def _load(path: Path, start: bytes) -> Mapping[Any, Any]:
    """The contents of a file of torch.save."""
    size = path.stat().st_size
    if not start:
        raise CheckpointError(f"'{path}' is empty. Copy or download it again.")
    if start.lstrip().startswith(b"<"):
        raise CheckpointError(
            f"'{path}' is a web page, not a checkpoint: the download gave the page around the file (a warning, a "
            "login). Download it again with a browser, or with a program that follows the page."
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"'{path}' is a pointer of git-lfs, not the file. Fetch the file with: git lfs pull")
    if start[:2] == b"PK" and not zipfile.is_zipfile(path):  # torch leaves this to the operating system
        raise CheckpointError(_why_not(path, start, size, "the archive has no end"))
    if start[:2] == b"PK" and (inside := _foreign_archive(path)):
        raise CheckpointError(
            f"'{path}' is a zip archive, but none of torch.save (it holds: {', '.join(inside[:5])}). Unpack it, and "
            "give the checkpoint in it."
        )
    try:
        content = load_saved(path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(_why_not(path, start, size, str(error))) from None
    except UNREADABLE as error:
        raise CheckpointError(_why_not(path, start, size, str(error))) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"'{path}' holds a {type(content).__name__}, not tensors by name. Save the network's state_dict() instead."
        )
    return content


def _foreign_archive(path: Path) -> list[str]:
    """Names in a zip archive that torch did not write; empty for torch's own and for damaged ones."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []
    return [] if any(name.endswith("/data.pkl") for name in names) else names


def _why_not(path: Path, start: bytes, size: int, text: str) -> str:
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
    return f"'{path}' is not a whole checkpoint ({size} bytes; {reason}). Copy or download it again."


def _average(content: Mapping[Any, Any], config: str, path: Path) -> TensorFile:
    """The evaluated network of a checkpoint of 'stcl train'."""
    state = content.get("state_dict")
    state = state if isinstance(state, Mapping) else {}
    tensors = {name.removeprefix(AVERAGE): t for name, t in _named(state).items() if name.startswith(AVERAGE)}
    if not tensors:
        raise CheckpointError(f"'{path}' is a checkpoint of 'stcl train' without its weight average ('{AVERAGE}...').")
    check_tensors(tensors, path)
    return TensorFile(tensors, {"config": config}, OURS)


def _unwrap(content: Mapping[Any, Any]) -> tuple[dict[str, Tensor], str]:
    """Tensors by name and the key below which they stood."""
    names: list[str] = []
    while True:
        tensors = _named(content)
        inner = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if tensors or not inner or len(names) == len(WRAPPERS):  # a table may hold itself
            return tensors, ".".join(names)
        names.append(inner[0])
        content = content[inner[0]]


def _named(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in content.items() if isinstance(name, str) and isinstance(t, Tensor)}
