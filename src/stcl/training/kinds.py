"""What a value of plain data is, against the type that a setting is declared with."""

import json
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def shown(value: Any) -> str:
    """A value as YAML has it."""
    return json.dumps(value, ensure_ascii=False, default=str)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has the type that a setting is declared with."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in inner)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if origin in (list, tuple):
        count = len(inner) if origin is tuple and inner[-1] is not ... else None
        long_enough = isinstance(value, list | tuple) and count in (None, len(value))
        return long_enough and all(fits(item, inner[0]) for item in value)
    if kind is float:
        try:  # YAML reads 1e-3 as text
            return not isinstance(value, bool) and math.isfinite(float(value))
        except (TypeError, ValueError, OverflowError):
            return False
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or isinstance(value, origin or kind)


def wanted(kind: Any) -> str:
    """A declared type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(wanted(choice) for choice in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner[-1] is not ...:
        return f"[{', '.join(wanted(item) for item in inner)}]"
    if origin in (list, tuple):
        return f"a list in which each item is {wanted(inner[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return words.get(kind, "a group of keys")


def odd_text(value: Any) -> str:
    """What is wrong with a text, or with one in a list or table, that could be no name and no path; mostly nothing."""
    if isinstance(value, list | dict):
        inner = value if isinstance(value, list) else [*value.values()]
        return next(filter(None, map(odd_text, inner)), "")
    if not isinstance(value, str):
        return ""
    return "is empty (null stands for none)" if not value.strip() else "has a zero byte" if "\0" in value else ""
