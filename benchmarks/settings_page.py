"""Writes the reference tables of docs/configuration.md from the declarations of the settings; ``make docs`` calls it.

python benchmarks/settings_page.py
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from stcl.fields import Group, choices, fields_of, group_of, plain, sentence_of, wanted
from stcl.methods import METHODS
from stcl.methods.settings import MethodSettings, SelfTrainingSettings
from stcl.methods.stcl import StclSettings
from stcl.training.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TABLE = re.compile(r"(<!-- settings: ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADER = "\n| key | type | default | meaning |\n|---|---|---|---|\n"
Row = tuple[str, str, str, str]

NAME = ("method.name", "text", "required", f"{', '.join(f'`{name}`' for name in METHODS)}; see docs/methods.md.")


def rows(kind: type[Group], prefix: str = "", default: Any = None) -> Iterator[Row]:
    """Key, type, default and meaning of all that can be set in a group, and in the groups in it."""
    for name, field in fields_of(kind).items():
        value = field.default if default is None else getattr(default, name)
        if (inner := group_of(field)) is not None:
            yield from rows(inner, f"{prefix}{name}.", value if isinstance(value, Group) else None)
        else:
            required = default is None and field.is_required()
            yield f"{prefix}{name}", kind_of(field), "required" if required else as_cell(value), sentence_of(field)


def kind_of(field: FieldInfo) -> str:
    """Type and range in words."""
    words = wanted(field.annotation).replace("a list in which each item is", "list of")
    words = re.sub(r"\b(a|one of) ", "", words)
    limits = {type(limit): limit for limit in field.metadata}
    ends = [
        f"{limits[Ge].ge} or more" if Ge in limits and not {Le, Lt} & limits.keys() else "",
        f"above {limits[Gt].gt}" if Gt in limits else "",
        f"{limits[Ge].ge} to {limits[Le].le}" if {Ge, Le} <= limits.keys() else "",
        f"{limits[Ge].ge} to below {limits[Lt].lt}" if {Ge, Lt} <= limits.keys() else "",
    ]
    end = "".join(ends)
    if not end:
        return words
    return re.sub(" or null$", "", words) + f", {end}" + (", or null" if NoneType in choices(field.annotation) else "")


def as_cell(value: Any) -> str:
    """A default as YAML has it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(plain(value))


def tables() -> dict[str, list[Row]]:
    """The rows of each table of the page, by the group's name."""
    run = [*rows(Settings)]
    made = {"run": [row for row in run if "." not in row[0] and row[0] != "method"]}
    for name in ("source", "target", "evaluation", "flow", "network", "training"):
        made[name] = [row for row in run if row[0].startswith(f"{name}.")]
    every, taught, stcl = ([*rows(kind, "method.")] for kind in (MethodSettings, SelfTrainingSettings, StclSettings))
    strong = [row for row in every if row[0].startswith("method.preparation.strong.")]
    shared, known = ({row[0] for row in table} for table in (every, taught))
    made |= {"method": [NAME, *(row for row in every if row not in strong)], "method.preparation.strong": strong}
    made["method.teacher"] = []
    for key, kind, default, meaning in taught:
        if key not in shared:
            own = next(row[2] for row in stcl if row[0] == key)
            note = f" With `tps` and `dacs` `{default}` unless set." if own != default else ""
            made["method.teacher"].append((key, kind, own, meaning + note))
    made["method.stcl"] = [row for row in stcl if row[0] not in known]
    return made


def write(text: str) -> str:
    """The page with its tables made anew."""
    made = tables()

    def table(match: re.Match[str]) -> str:
        lines = (f"| `{key}` | {kind} | `{value}` | {linked(text)} |\n" for key, kind, value, text in made[match[2]])
        return f"{match[1]}{HEADER}{''.join(lines).replace('`required`', 'required')}\n{match[3]}"

    return TABLE.sub(table, text)


def linked(meaning: str) -> str:
    """``docs/flow.md`` as a link."""
    return re.sub(r"docs/(\w+\.md)(#[\w-]+)?", r"[\1](\1\2)", meaning)


if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text("utf-8")), "utf-8")
