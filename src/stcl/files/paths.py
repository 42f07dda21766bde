"""Paths as users give them: homes, and links that lead in a circle."""

import os
from pathlib import Path

from stcl.errors import SettingError


def from_home(path: str | Path) -> Path:
    """A path in which ``~`` and ``~name`` are homes."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SettingError(f"The home folder that '{path}' begins with is not known. Write the path in full.") from None


def real_path(path: str | Path) -> Path:
    """Where a path leads, as far as its links do: one that links to itself stays, and is refused where it is opened."""
    return Path(os.path.realpath(from_home(path)))  # Path.resolve raises a RuntimeError for such a link
