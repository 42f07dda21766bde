"""What every page shares: its template, its style sheet, and the right to replace an earlier page."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jinja2

from stcl.errors import SettingError
from stcl.pages.markdown import code, plain
from stcl.pages.tables import percent_text

_GENERATOR = b'<meta name="generator" content="stcl">'
_HEAD_BYTES = 1000


def refuse_other_page(path: Path) -> None:
    """Only a page that this package has written is replaced."""
    if not os.path.lexists(path):
        return
    if path.is_file():
        with path.open("rb") as file:
            if _GENERATOR in file.read(_HEAD_BYTES):
                return
    raise SettingError(f"{path} is there and is no page of stcl: it stays as it is. Choose another --out, or move it.")


def duration_text(seconds: float) -> str:
    """``3.2 s``, ``4 min 5 s`` or ``2 h 13 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


@cache
def template(path: Path, **filters: Callable[..., object]) -> jinja2.Template:
    """The template of a page, which knows ``percent``, ``plain`` and ``code`` of Markdown, and ``filters``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=not path.name.endswith(".md.j2"),  # where ``plain`` and ``code`` do it
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent_text, plain=plain, code=code, **filters)
    return environment.get_template(path.name)
