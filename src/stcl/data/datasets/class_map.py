"""Class maps: a short YAML file of one's own that says which class each value of a mask is.

``1, 2: road`` or ``"#804080": road`` or ``128 64 128: road``, and ``0, 255: ignore``; docs/data.md describes it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from stcl.data.io import Label, read_colors, read_label
from stcl.errors import DataError, SettingError, shortened, unknown_name
from stcl.files.plain import compose_yaml, read_text
from stcl.labels import VOID, LabelSpace

IGNORE_WORD = "ignore"

_CHANNELS = ("red", "green", "blue")
_LARGEST_ID = 65535
_DIGITS = 9  # of a number that is read at all
_EXAMPLE = 'one line a class, such as "1, 2: road" for ids or "128 64 128: road" for colours, and "0: ignore"'


@dataclass(frozen=True)
class ClassMap:
    """Which class each value of a mask is.

    Attributes:
        path: the file.
        names: ``raw id -> class name``, ``void`` where the id is ignored. Colours are numbered in their order.
        lines: of each class name, where it stands first.
        colors: ``(N,)`` uint32, 0xRRGGBB, rising; None where masks hold ids.
        channel: which channel of a mask with several holds the ids, counted from red; None: masks have one.
    """

    path: Path
    names: Mapping[int, str]
    lines: Mapping[str, int]
    colors: NDArray[np.uint32] | None
    channel: int | None

    def check(self, space: LabelSpace) -> None:
        """Refuse a map whose classes are not those of a label space."""
        known = [*space.names, *space.merges]
        for name, line in self.lines.items():
            if name not in known and name != VOID:
                text = unknown_name(f"class of label space '{space.name}'", name, [*known, IGNORE_WORD])
                raise SettingError(f"{self.path}, line {line}: {text}")

    def read(self, mask: Path) -> Label:
        """The raw ids ``(H, W)`` of a mask; the data set refuses those that are not in :attr:`names`."""
        if self.colors is None:
            try:
                return read_label(mask, self.channel)
            except DataError as error:
                if "channels" not in str(error):
                    raise
                raise DataError(f"{error} Or give {self.path} colours, or the line 'channel: red'.") from None
        red, green, blue = np.moveaxis(read_colors(mask).astype(np.uint32), -1, 0)  # (H, W) each
        found = red << 16 | green << 8 | blue
        place = np.searchsorted(self.colors, found).clip(max=len(self.colors) - 1)
        strange = self.colors[place] != found
        if strange.any():
            values, counts = np.unique(found[strange], return_counts=True)
            most = sorted(zip(counts, values, strict=True), reverse=True)[:8]
            listed = ", ".join(f"#{value:06x} ({count} px)" for count, value in most)
            raise DataError(
                f"Mask {mask} holds colours that {self.path} does not have: {listed}. Add them there, or ignore them. "
                "Very many that look alike come from smoothing or JPEG: export masks without either."
            )
        return place.astype(np.uint16)


def read_class_map(path: Path) -> ClassMap:
    """Read a class map; each mistake is named with its line.

    Raises:
        SettingError: the file is missing or no class map.
    """
    names: dict[int, str] = {}
    lines: dict[str, int] = {}
    places: dict[int, int] = {}
    kinds: dict[bool, int] = {}  # whether the value is a colour -> the line of the first one
    channel = None
    for key, word, line in _entries(path):
        if key == "channel":
            if word not in _CHANNELS:
                raise SettingError(f"{path}, line {line}: {unknown_name('channel', word, _CHANNELS)}")
            channel = _CHANNELS.index(word)
            continue
        name = VOID if word == IGNORE_WORD else word
        lines.setdefault(name, line)
        for value, is_color in _values(key, f"{path}, line {line}"):
            if kinds.setdefault(is_color, line) and len(kinds) == 2:
                raise SettingError(f"{path}: line {kinds[False]} has an id, line {kinds[True]} a colour. Use one kind.")
            if value in names:
                shown = f"colour #{value:06x}" if is_color else f"id {value}"
                hint = " A colour has no commas: 128 64 128." if not is_color and places[value] == line else ""
                raise SettingError(
                    f"{path}: {shown} stands twice, in line {places[value]} and line {line}. Keep one.{hint}"
                )
            names[value], places[value] = name, line
    if set(names.values()) <= {VOID}:
        raise SettingError(f"{path} gives no value a class. Expected: {_EXAMPLE}. (# starts a comment: quote it.)")
    if True not in kinds:
        return ClassMap(path, names, lines, None, channel)
    if channel is not None:
        raise SettingError(f"{path}: 'channel' says where ids are, but the map has colours. Take one of them out.")
    colors = np.array(sorted(names), np.uint32)
    return ClassMap(path, {place: names[int(color)] for place, color in enumerate(colors)}, lines, colors, None)


def _entries(path: Path) -> Iterator[tuple[str, str, int]]:
    """Key, value and line of each entry, as text: YAML would lose one of two equal keys."""
    try:
        node = compose_yaml(read_text(path))
    except OSError as error:
        raise SettingError(f"Class map {path} cannot be read: {error.strerror}. Expected: {_EXAMPLE}.") from None
    except ValueError as error:
        tab = " YAML takes no tabs there: use spaces." if r"'\t'" in str(error) else ""
        raise SettingError(f"{path} is not valid YAML: {error}.{tab}") from None
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise SettingError(f"{path} is no class map. Expected: {_EXAMPLE}.")
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode) or not value.value:
            raise SettingError(f"{path}, line {line}: a value must have the name of a class. Expected: {_EXAMPLE}.")
        yield key.value, value.value, line


def _values(key: str, where: str) -> Iterator[tuple[int, bool]]:
    """The values of ``0, 4-6`` or ``#804080, 128 64 128``, and whether each is a colour."""
    for item in re.split(r"\s*,\s*", key.strip()):
        if ids := re.fullmatch(r"(\d+)(?:-(\d+))?", item):
            ends = (ids[1], ids[2] or ids[1])
            first, last = (int(text) if len(text) <= _DIGITS else _LARGEST_ID + 1 for text in ends)
            if not first <= last <= _LARGEST_ID:
                raise SettingError(f"{where}: '{shortened(item)}' are no ids, which go from 0 to {_LARGEST_ID}.")
            yield from ((value, False) for value in range(first, last + 1))
        elif color := re.fullmatch(r"#([0-9a-fA-F]{6})", item):
            yield int(color[1], 16), True
        elif (color := re.fullmatch(r"(\d{1,9}) +(\d{1,9}) +(\d{1,9})", item)) and max(map(int, color.groups())) <= 255:
            yield int.from_bytes(bytes(map(int, color.groups()))), True
        else:
            raise SettingError(f"{where}: '{shortened(item)}' is neither an id nor a colour. Expected: {_EXAMPLE}.")
