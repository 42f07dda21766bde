"""Errors that say what was found, where, and what to do next.

Every error a user can cause derives from :class:`StclError`; the command line prints its message without a traceback
and exits with status 2. A traceback therefore always means a defect in this package.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

Value = TypeVar("Value")


class StclError(Exception):
    """Something the user can mend: the message names the file or key, what was found and what to do."""


class SettingError(StclError, ValueError):
    """A setting has a value that cannot work."""


class BusyError(SettingError):
    """Another process writes into the folder at the moment."""


class DataError(StclError):
    """Files of a data set, a flow cache or a video are missing, damaged or do not fit together."""


class CheckpointError(StclError):
    """A checkpoint is damaged or belongs to another network."""


class TrainingError(StclError):
    """Training cannot go on: losses that are no numbers, a full disk; the last good checkpoint stays."""


class TrainingStopped(StclError):  # noqa: N818  not a mistake
    """Training was asked to stop and has saved all that it needs to go on; ``status`` is the process's exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class MissingExtraError(StclError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs the package '{package}'. Install it with: pip install 'stcl[{extra}]'")


def lookup(table: dict[str, Value], name: str, kind: str) -> Value:
    """Return ``table[name]``; an unknown name gets an error that lists the right ones."""
    if name in table:
        return table[name]
    raise SettingError(unknown_name(kind, name, table))


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """One sentence about an unknown name, with the nearest right one first."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"Unknown {kind} '{shortened(name)}'.{hint} Known: {', '.join(names)}."


def shortened(value: object, most: int = 100) -> str:
    """A value for a message, without the middle where it is very long."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 20]}...{text[-10:]} ({len(text)} characters)"


def one_line(text: str) -> str:
    """A message in which names of files, whatever characters they have, neither break lines nor steer a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of any library says that there is too little memory."""
    words = ("can't allocate memory", "Storage size calculation overflowed", "Insufficient memory")
    kinds = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # the last is torch's
    return kinds or any(each in str(error) for each in words)
