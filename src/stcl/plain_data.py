"""Plain data from text, YAML and JSON: whatever is wrong with it is one kind of error."""

import json
from pathlib import Path
from typing import Any

import yaml

LARGEST_VALUES = 100_000
"""Values that a YAML text may stand for: a few aliases of aliases would unfold to more than any memory holds."""

_TOO_DEEP = "it is nested too deeply"


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is not JSON, or no text at all.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def load_yaml(text: str) -> Any:
    """What a YAML text stands for.

    Raises:
        ValueError: says where it is wrong.
    """
    try:
        return yaml.load(text, _Loader)
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

    A key that stands twice, of which YAML loses the first; aliases that unfold without end; values that do not fit
    their tag, such as a 99th day.
    """

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
