"""The model folder: a trained network to hand on, with what it is (``model.json``, ``README.md``) beside its files.

Nothing in it names a place on the machine that it was made on.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from stcl.errors import CheckpointError, SettingError, StclError, lookup
from stcl.files.folders import hold_lock, new_folder
from stcl.files.names import file_name
from stcl.files.paths import real_path
from stcl.files.plain import read_json
from stcl.files.writing import open_file
from stcl.labels import LabelSpace, get_space
from stcl.models import VideoSegmenter, build_segmenter, load_weights

ABOUT = "model.json"
CARD = "README.md"
WEIGHTS = "model.safetensors"
SCHEMA = 1
"""Version of ``model.json`` that is written and read."""

FORMAT_FILES: dict[str, tuple[str, ...]] = {
    "safetensors": (WEIGHTS,),
    "onnx": ("frame.onnx", "fusion.onnx"),
    "torch-export": ("frame.pt2", "fusion.pt2"),
}
"""Format -> files that may hold a network; a folder has no others, so that nothing else is ever opened."""

UNSPECIFIED = "unspecified"
"""Licence of weights about which nothing was said."""

_EXPECTED = {"format": str, "classes": list, "network": dict, "files": dict, "license": str, "input": dict}


def is_model_folder(path: Path) -> bool:
    """Whether a folder says of itself that it holds a model."""
    return (path / ABOUT).is_file()


def read_about(path: Path) -> dict[str, Any]:
    """What ``model.json`` of a model folder says, checked as far as this package relies on it."""
    file = own_file(path, ABOUT)
    try:
        about = read_json(file)
    except FileNotFoundError:
        raise SettingError(
            f"{path} is no model folder: it holds no {ABOUT}. Name a folder that 'stcl export' wrote."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}. Export the model again.") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}). Export the model again.") from None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        schema = about.get("schema") if isinstance(about, dict) else type(about).__name__
        raise CheckpointError(f"{file} has schema {schema!r}; this version of stcl reads schema {SCHEMA}.")
    for key, kind in _EXPECTED.items():
        if not isinstance(about.get(key), kind):
            raise CheckpointError(
                f"{file} is damaged: '{key}' is missing or no {kind.__name__}. Export the model again."
            )
    known = lookup(FORMAT_FILES, about["format"], f"format in {file}:")
    foreign = sorted(set(about["files"]) - set(known))
    listed = listed_files(about).values()
    entries = [value for value in listed if not isinstance(value, dict) or "sha256" not in value]
    if foreign or entries or known[0] not in about["files"]:
        raise CheckpointError(
            f"{file} lists files {sorted(about['files'])} with their sha256; a model of format '{about['format']}' has "
            f"{', '.join(known)}. Do not open it."
        )
    return about


def check_files(path: Path, about: dict[str, Any]) -> None:
    """Refuse a folder whose files are not those that ``about`` lists, or that holds others.

    What is hidden is left alone: git and the hub's downloader keep their notes there.
    """
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    refuse_unknown(path, about, [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries])
    for entry in entries:
        own_file(path, entry.name)
    for name, entry in listed_files(about).items():
        try:
            sha256 = digest(path / name)
        except FileNotFoundError:
            raise CheckpointError(f"{path} holds no {name}, which {ABOUT} lists. Get the model again.") from None
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read: {error.strerror}. Get the model again.") from None
        if sha256 != entry["sha256"]:
            own = f" If it was you who changed it, write {sha256} there." if name == CARD else ""
            raise CheckpointError(
                f"{path / name} is damaged: its sha256 is not the one in {ABOUT} ({(path / name).stat().st_size} "
                f"bytes, listed: {entry.get('bytes')}). Get the model again.{own}"
            )


def listed_files(about: dict[str, Any]) -> dict[str, Any]:
    """Name -> size and digest of everything beside ``model.json``; older ones do not list the card."""
    return {**about["files"], CARD: about["card"]} if "card" in about else about["files"]


def own_file(folder: Path, name: str) -> Path:
    """A file of a model folder; a link is refused, as whatever it leads to would be handed on.

    The links that the hub's cache is made of are no others: they lead into the folder ``blobs`` of the same model.
    """
    file = folder / name
    if file.is_symlink():
        real, cache = Path(os.path.realpath(file)), Path(os.path.realpath(folder)).parent
        if not (cache.name == "snapshots" and real.parent == cache.parent / "blobs"):
            raise CheckpointError(
                f"{file} is a link to {file.readlink()}. A model is handed on as its files, and no link in it is "
                "followed: put the file itself there."
            )
    return file


def refuse_unknown(owner: object, about: dict[str, Any], names: Iterable[str]) -> None:
    """Refuse files that a model does not have: they could be code."""
    unknown = sorted(set(names) - {*about["files"], ABOUT, CARD, ".gitattributes"})
    if unknown:
        raise CheckpointError(
            f"{owner} holds files that a model of stcl does not have: {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''}. Nothing was copied. Take them out, or do not use it."
        )


def refuse_taken(path: Path, force: bool) -> None:
    """Nothing is overwritten unless it is a model and the user says so."""
    path = real_path(path)  # a link to itself leads to itself
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path.is_dir() and is_model_folder(path)):
        raise SettingError(f"{path} exists and is no model folder: it stays as it is. Choose another with --out.")
    if not force:
        raise SettingError(f"{path} holds a model. Choose another folder, or replace it with --force.")
    known = {ABOUT, CARD, ".gitattributes", *(name for names in FORMAT_FILES.values() for name in names)}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in known)
    if others:
        raise SettingError(
            f"{path} holds more than a model, which --force would remove: {', '.join(others[:5])}. Move that away, or "
            "choose another folder."
        )


@contextmanager
def new_model_folder(path: Path, force: bool) -> Iterator[Path]:
    """A folder to fill, which becomes the model folder ``path`` at the end, unless something else lies there by then.

    Args:
        path: as the user gave it.
        force: replace a model folder.
    """
    path = real_path(path)
    busy = f"Another process is writing the model {path} right now. Wait for it, or choose another folder."
    with hold_lock(path.with_name(f".{file_name(path.name)}.lock"), busy):
        refuse_taken(path, force)
        with new_folder(path, partial(refuse_taken, path, force)) as folder:
            yield folder


def open_model_folder(path: Path) -> tuple[VideoSegmenter, LabelSpace, tuple[int, int] | None]:
    """Network of a model folder of format ``safetensors``, on the CPU; its classes, and size of its frames if known."""
    about = read_about(path)
    if about["format"] != "safetensors":
        raise SettingError(
            f"{path} holds graphs ({about['format']}), which run without stcl. A network that stcl opens is exported "
            "with --format safetensors."
        )
    check_files(path, about)
    try:
        network = build_segmenter(len(about["classes"]), **about["network"])
    except StclError as error:
        raise CheckpointError(f"{path / ABOUT}: network: {error}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / ABOUT}: network {about['network']} cannot be built: {error}.") from error
    load_weights(network, path / WEIGHTS)
    protocol, size = about.get("protocol"), about["input"].get("size")
    name = protocol.get("name") if isinstance(protocol, dict) else None
    space = get_space(str(name))
    if list(space.names) != about["classes"]:  # this version of the package means something else by the name
        raise CheckpointError(
            f"{path / ABOUT} says '{name}' of the classes {', '.join(map(str, about['classes']))}, but here that name "
            f"means {', '.join(space.names)}. Open it with the version of stcl that wrote it ({about.get('version')})."
        )
    return network.eval(), space, None if size is None else (int(size[0]), int(size[1]))


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_places(value: Any) -> Any:
    """Plain data in which paths from the root or from a home are only their last part."""
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    if isinstance(value, str) and (value.startswith(("~", "..")) or PurePath(value).is_absolute()):
        return PurePath(value).name
    return value
