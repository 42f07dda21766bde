"""Plain data from text, YAML and JSON: whatever is wrong with it is one kind of error; and as CSV for spreadsheets."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stcl.files.writing import read_file

LARGEST_BYTES = 2**24
"""Of a text that is read unless its reader says otherwise: the largest are lists of frames and records of runs."""

LARGEST_VALUES = 100_000
"""Values that a YAML text may stand for: a few aliases of aliases would unfold to more than any memory holds."""

LARGEST_NODES = 2**18
"""Values that stand in a YAML text: a class map may have a line for each of 65,536 ids."""

_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
"""What a formula begins with, the signs of wide alphabets among them."""

_TOO_DEEP = "it is nested too deeply"


def read_text(path: Path, largest_bytes: int = LARGEST_BYTES) -> str:
    """The text of a file.

    Raises:
        UnicodeDecodeError: it is not text.
        OSError: it cannot be read, see :func:`stcl.files.writing.read_file`.
    """
    return read_file(path, largest_bytes).decode()


def read_json(path: Path, largest_bytes: int = LARGEST_BYTES) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is not JSON, or no text at all.
        OSError: it cannot be read, see :func:`stcl.files.writing.read_file`.
    """
    try:
        return json.loads(read_text(path, largest_bytes))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def json_number(value: float, digits: int = 3) -> float | None:
    """A rounded number for JSON, which knows no nan: None."""
    return None if math.isnan(value) else round(float(value), digits)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV in which spreadsheets take no word for a formula: one that could be gets an apostrophe in front."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    line = re.sub(r"\r\n?", "\n", value)  # a bare \r would end the row, as the writer does not quote it
    if not line.startswith(_FORMULA):
        return line
    try:
        float(line)
    except ValueError:
        return f"'{line}"
    return line


def load_yaml(text: str) -> Any:
    """What a YAML text stands for.

    Raises:
        ValueError: says where it is wrong.
    """
    with _plain_errors():
        return yaml.load(text, _Loader)


def compose_yaml(text: str) -> yaml.Node | None:
    """What stands in a YAML text, each value with its line; None where nothing does.

    Raises:
        ValueError: says where it is wrong.
    """
    with _plain_errors():
        return yaml.compose(text, _Loader)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(f"{place}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


class _Loader(yaml.SafeLoader):
    """Refuses what YAML would take without a word or answer with another kind of error.

    A key that stands twice, of which YAML loses the first; more values than anybody writes by hand, each of which takes
    a kilobyte; aliases that unfold without end; values that do not fit their tag, such as a 99th day.
    """

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        if self.nodes > LARGEST_NODES:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"it holds more than {LARGEST_NODES} values", problem_mark=mark)
        return super().compose_node(parent, index)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _count(node, {}) > LARGEST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"aliases unfold to more than {LARGEST_VALUES} values", problem_mark=node.start_mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"key '{key.value}' stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # of the constructors of single values
            value = str(node.value)[:40]
            raise yaml.MarkedYAMLError(
                problem=f"'{value}' cannot be read as {node.tag.rpartition(':')[2]} ({error})",
                problem_mark=node.start_mark,
            ) from None


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node stands for; one that holds itself, more than any number."""
    if id(node) not in counts:
        counts[id(node)] = LARGEST_VALUES + 1  # until it is known
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        counts[id(node)] = 1 + sum(_count(part, counts) for part in inner)
    return counts[id(node)]
