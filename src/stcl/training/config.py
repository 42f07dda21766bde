"""Configurations as files: one YAML file, short because it states only what differs, plus command-line overrides.

``base: other.yaml`` inherits from a file beside it, or from a shipped configuration by its name.
"""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from stcl.errors import SettingError
from stcl.files.paths import real_path
from stcl.files.plain import load_yaml, read_text
from stcl.resources import config_path, preset_path
from stcl.training.checking import check_settings
from stcl.training.settings import Settings

CROP = "method.preparation.crop"


def load_settings(path: Path, overrides: list[str] | None = None, preset: str | None = None) -> Settings:
    """Read a configuration, lay a preset and then ``--group.key value`` overrides over it, check it.

    Args:
        path: a YAML file.
        overrides: words of the command line.
        preset: a name of :func:`stcl.resources.list_presets`. Its crop is an upper bound: it becomes as small as the
            clips, and null where it would cut nothing off.

    Raises:
        SettingError: names the file, the key, what was found and what is known.
    """
    layers = read_layers(path)
    if preset is not None:
        layers = [*read_layers(preset_path(preset)), *layers]
    data = merge_layers(layers)
    pairs = parse_overrides(overrides or [])
    for key, value in pairs.items():
        set_key(data, key, value)

    def where(key: str) -> str:
        """The command line, or the file that a key stands in."""
        if any(f"{key}.".startswith(f"{set_here}.") or set_here.startswith(f"{key}.") for set_here in pairs):
            return "command line"
        return next((str(file) for file, layer in layers if _holds(layer, key)), str(path))

    settings = check_settings(data, where)
    if preset is not None and CROP not in pairs and (crop := settings.method.preparation.crop) is not None:
        sizes = (settings.source.size, settings.target.size)
        fitted = tuple(min(sides) for sides in zip(crop, *filter(None, sizes), strict=True))
        set_key(data, CROP, None if sizes == (fitted, fitted) else [*fitted])
        settings = check_settings(data, where)
    return settings


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file with what it inherits through ``base``."""
    return merge_layers(read_layers(path))


def read_layers(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A configuration file and those that it inherits from, the nearest first."""
    layers: list[tuple[Path, dict[str, Any]]] = []
    while True:
        data = _read_file(path)
        base = data.pop("base", None)
        layers.append((path, data))
        if base is None:
            return layers
        beside = path.parent / str(base)
        try:
            below = beside if beside.exists() and not beside.is_dir() else config_path(str(base))
        except (SettingError, OSError) as error:  # OSError: a name too long for any file
            raise SettingError(f"{path}: base: there is no file {beside}. {error}") from None
        if real_path(below) in [real_path(file) for file, _ in layers]:
            circle = " -> ".join(str(file) for file in [*(file for file, _ in layers), below])
            raise SettingError(f"{path}: base: configurations inherit in a circle: {circle}. Take one base out.")
        path = below


def merge_layers(layers: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """The layers of :func:`read_layers` laid over each other."""
    merged: dict[str, Any] = {}
    for _, layer in reversed(layers):
        merged = merge(merged, layer)
    return merged


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, group by group."""
    merged = deepcopy(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """``--group.key value`` or ``--group.key=value`` pairs; values are read as YAML."""
    pairs: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or not word.strip("-"):
            raise SettingError(f"'{word}' is not an override. Overrides look like --training.steps 1000.")
        key, equals, value = word[2:].partition("=")
        key = re.sub(r"^trainer\.", "training.", key)  # Lightning's name for the same group
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise SettingError(f"The override --{key} has no value. Overrides look like --training.steps 1000.")
            value = rest.pop(0)
        try:
            pairs[key] = load_yaml(value)
        except ValueError as error:
            raise SettingError(f"The value of --{key}, {value!r}, is not valid YAML: {error}.") from None
    return pairs


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set ``group.key`` in nested data; a group is laid over the one that is there."""
    *groups, last = key.split(".")
    for group in groups:
        if data.get(group) is None:
            data[group] = {}
        below = data[group]
        if not isinstance(below, dict):
            raise SettingError(f"The override --{key} goes into '{group}', which holds {below!r} and no keys.")
        data = below
    data.update(merge(data, {last: value}))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = load_yaml(read_text(path))
    except FileNotFoundError:
        raise SettingError(f"There is no configuration file {path}.") from None
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}. Name a YAML file.") from None
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not a text file ({error.reason} at byte {error.start}).") from None
    except ValueError as error:
        raise SettingError(f"{path} is not valid YAML: {error}.") from None
    if not isinstance(data, dict):
        raise SettingError(f"{path} holds no settings. Expected keys such as source, target, method.")
    return data


def _holds(data: Any, key: str) -> bool:
    """Whether ``group.key`` stands in nested data."""
    for part in key.split("."):
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True
