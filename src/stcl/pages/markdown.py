"""Words that users chose, as Markdown that shows them as they are: in the text, in tables, as code."""

import re

_SIGNS = re.compile(
    r"[\\`*\[\]<>#|~&$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside a word it means nothing
    r"|:(?=//|\w+:)|(?<=www)\."  # what becomes a link or a picture by itself
)


def plain(text: object) -> str:
    """A text on one line, in which no sign means anything."""
    return _SIGNS.sub(r"\\\g<0>", " ".join(str(text).split()))


def code(text: object, in_table: bool = False) -> str:
    """A text on one line as code; in a table a bar would end the cell."""
    line = " ".join(str(text).split())
    line = line.replace("|", r"\|") if in_table else line
    if not line:
        return "–"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    room = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{room}{line}{room}{fence}"
