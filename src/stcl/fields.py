"""What can be set: each field is declared once, with its type, default, range and a sentence; here they are read.

A group of settings is a frozen dataclass of pydantic, declared with :func:`group`. A validator of a group raises a
:class:`SettingError` in which ``{key}`` stands for the key that is wrong.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from stcl.errors import SettingError, one_line, unknown_name

STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, use_attribute_docstrings=True
)
"""``true`` is no number, ``"1"`` no whole number, and nothing is infinite; a field's sentence stands below it."""

Where = Callable[[str], str]
"""Where a key was written, e.g. in which file."""

LIMITS = {"greater_than_equal": "at least", "greater_than": "above", "less_than_equal": "at most", "less_than": "below"}
"""Kinds of pydantic's errors about ranges."""


@dataclass(frozen=True, config=STRICT)
class Group:
    """Settings that stand together."""

    @field_validator("*", mode="before")
    @classmethod
    def _read_yaml(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML has no tuples, reads 1e-3 as text, and writes texts that can be no name and no path."""
        if oddity := _oddity(value):
            raise SettingError(f"{{key}} holds a {oddity}: {as_yaml(value)}.")
        for kind in choices(cls.__pydantic_fields__[info.field_name].annotation):  # type: ignore[attr-defined]
            if kind is float:
                return _number(value)
            if get_origin(kind) is tuple and isinstance(value, list):
                return tuple(map(_number, value) if float in get_args(kind) else value)
        return value


Kind = TypeVar("Kind")
AnyGroup = TypeVar("AnyGroup", bound=Group)


@dataclass_transform(field_specifiers=(Field,), frozen_default=True)
def group(declared: type[Kind]) -> type[Kind]:
    """Class decorator: a subclass of :class:`Group` with its fields."""
    return dataclass(declared, frozen=True, config=STRICT)  # type: ignore[return-value]


def one_of(known: Collection[str]) -> AfterValidator:
    """For annotations: a text that is a name of a table."""

    def check(name: str) -> str:
        if name not in known:
            raise SettingError(one_line(unknown_name("{key}", name, known)))  # pydantic takes no half characters
        return name

    return AfterValidator(check)


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise SettingError(f"{{key}} is a range above 0, the smaller number first, not {list(pair)}.")
    return pair


Span = Annotated[tuple[float, float], AfterValidator(_ascending)]
"""A range of numbers above 0."""


def fields_of(kind: type[Group]) -> dict[str, FieldInfo]:
    """Names and declarations of what can be set in a group; those of a class stand before those of its parents."""
    declared: dict[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]
    names = dict.fromkeys(name for parent in kind.__mro__ for name in vars(parent).get("__annotations__", ()))
    return {name: declared[name] for name in names if name in declared and not declared[name].exclude}


def sentence_of(field: FieldInfo) -> str:
    """What a field means, in one line."""
    return " ".join(str(field.description).split())


def plain(value: Any) -> Any:
    """A group, or a value in it, as YAML has it."""
    if isinstance(value, Group):
        return {name: plain(getattr(value, name)) for name in fields_of(type(value))}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else getattr(value, "name", value)


def read(
    kind: type[AnyGroup], data: Any, where: Where, prefix: str = "", default: AnyGroup | None = None, **given: Any
) -> AnyGroup:
    """Plain data as a group of settings.

    Args:
        kind: of the group.
        data: keys and values.
        where: says in messages where a key comes from.
        prefix: of the group's keys in messages, with its dot; empty at the top.
        default: has the values of what is missing; None: each field's own default.
        given: values of fields that are groups already.

    Raises:
        SettingError: one sentence about the first key or value that is wrong.
    """
    name, known = prefix.rstrip("."), fields_of(kind)
    if not isinstance(data, dict):
        what = (
            f"{name} is a group of keys ({', '.join(sorted(known))})" if name else f"expected keys ({', '.join(known)})"
        )
        raise SettingError(f"{where(name)}: {what}, found {as_yaml(data)}.")
    values = dict(given)
    for key, value in data.items():
        path = f"{prefix}{key}"
        if "." in str(key):
            raise SettingError(
                f"{where(path)}: '{path}' has a dot, which only overrides on the command line have. Write groups: "
                f"{path.partition('.')[0]}: {{{path.partition('.')[2]}: ...}}."
            )
        if key not in known:
            raise SettingError(f"{where(path)}{name and f', group {name}'}: {unknown_name('key', key, sorted(known))}")
        if key not in given:
            inner = group_of(known[key])
            values[key] = value if inner is None else read(inner, value, where, f"{path}.", _default(known[key]))
    for key, field in known.items():
        if key not in values and field.is_required():
            if (inner := group_of(field)) is None:
                meaning = sentence_of(field).replace("`", "'")
                raise SettingError(f"{where('')}: the key {prefix}{key} is missing: {meaning}")
            values[key] = read(inner, {}, where, f"{prefix}{key}.")
    return _make(kind if default is None else partial(replace, default), known, values, where, prefix)


def changed(settings: AnyGroup, **values: Any) -> AnyGroup:
    """A copy of a group with values that a command was given.

    Raises:
        SettingError: one sentence about the first value that is wrong.
    """
    return _make(partial(replace, settings), fields_of(type(settings)), values, lambda _: "command line", "")


def _make(
    make: Callable[..., AnyGroup], known: Mapping[str, FieldInfo], values: dict[str, Any], where: Where, prefix: str
) -> AnyGroup:
    try:
        return make(**values)
    except ValidationError as error:
        raise SettingError(_sentence(error.errors()[0], known, values, where, prefix)) from None


def _default(field: FieldInfo) -> Any:
    return field.default if isinstance(field.default, Group) else None


def group_of(field: FieldInfo) -> type[Group] | None:
    """The group that a field is, if it is one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Group) else None


def _sentence(
    error: ErrorDetails, known: Mapping[str, FieldInfo], values: Mapping[str, Any], where: Where, prefix: str
) -> str:
    """Pydantic's error about a field, or about the whole group, in one sentence."""
    name = str(error["loc"][0]) if error["loc"] else ""
    key, context = f"{prefix}{name}".rstrip("."), error.get("ctx", {})
    if "error" in context:
        return f"{where(key)}: {str(context['error']).replace('{key}', key)}"
    value, kind = values[name], known[name].annotation
    if error["type"] in LIMITS:
        (limit,), number = context.values(), error["input"]
        hint = " Null stands for none." if NoneType in choices(kind) else ""
        if limit == 1 and 1 < number <= 100:
            hint = f" Is it a percentage? As a share it is {number / 100:g}."
        limit = int(limit) if limit == int(limit) else limit
        return f"{where(key)}: {key} must be {LIMITS[error['type']]} {limit}, found {as_yaml(value)}.{hint}"
    scalar = not isinstance(value, str | list | tuple | dict | None)
    quotes = f" Quotes make it text: \"'{as_yaml(value)}'\"." if scalar and str in choices(kind) else ""
    return f"{where(key)}: {key} must be {wanted(kind)}, found {as_yaml(value)}.{quotes}"


def choices(kind: Any) -> list[Any]:
    """The types that a declared type is a union of, or itself."""
    if get_origin(kind) is Annotated:
        return choices(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [choice for inner in get_args(kind) for choice in choices(inner)]
    return [kind]


def wanted(kind: Any) -> str:
    """A declared type in words."""
    if len(choices(kind)) > 1:
        return " or ".join(map(wanted, choices(kind)))
    (kind,) = choices(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and inner[-1] is not ...:
        return f"[{', '.join(wanted(item) for item in inner)}]"
    if origin in (list, tuple):
        return f"a list in which each item is {wanted(inner[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", dict: "a group of keys", NoneType: "null"}
    return words.get(origin or kind, "text")


def as_yaml(value: Any) -> str:
    """A value as YAML has it."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # Python writes no number of so many digits
        return "thousands of digits"


def _number(value: Any) -> Any:
    """Text that is a number as that number; everything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _oddity(value: Any) -> str:
    """What no setting may hold: a text that can be no name and no path, a number beyond all uses; mostly nothing."""
    if isinstance(value, list | tuple | dict):
        inner = [*value.values()] if isinstance(value, dict) else value
        if any(isinstance(item, int) and item.bit_length() > 1000 for item in inner):
            return "number of more than a thousand bits"  # alone, a number is held against the field's own range
        return next(filter(None, map(_oddity, inner)), "")
    if not isinstance(value, str):
        return ""
    empty, zero = not value.strip(), "\0" in value
    return "text that is empty (null stands for none)" if empty else "text that has a zero byte" if zero else ""
