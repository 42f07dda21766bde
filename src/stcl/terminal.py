"""The terminal by means of Rich, whose markup is off: ``[red]`` and ``:cat:`` in a name are part of the name."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def plain_console(stderr: bool = False) -> Console:
    """A console that prints words as they are; what shall look otherwise is a :class:`rich.text.Text` with a style."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def progress_bar(
    quiet: bool, *columns: ProgressColumn, title: str = "{task.description}", transient: bool = False
) -> Progress:
    """A bar on stderr that counts steps.

    Args:
        quiet: show none.
        columns: stand between the count and the time that is left.
        title: stands before the bar.
        transient: it vanishes at the end.
    """
    words, ends = TextColumn(title, markup=False), (MofNCompleteColumn(), *columns, TimeRemainingColumn())
    return Progress(words, BarColumn(), *ends, disable=quiet, transient=transient, console=plain_console(stderr=True))


def counted(items: Iterable[Item], title: str, total: int, quiet: bool) -> Iterator[Item]:
    """The items one by one, while a bar that vanishes at the end counts them."""
    with progress_bar(quiet, transient=True) as bar:
        yield from bar.track(items, total=total, description=title)
