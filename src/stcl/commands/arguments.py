"""How the command line is read: its parser, and what single words stand for (``type=`` of argparse)."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stcl.errors import SettingError, one_line, shortened
from stcl.files.paths import from_home
from stcl.files.places import shown_text

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction["Parser"]

LARGEST = 2**31 - 1
"""Of whole numbers on the command line."""

MOST_PROCESSES = 2**10
"""With more of them a machine hangs without a word."""

_DIGITS = 20  # of a number that is read at all


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line, like every other part of the command."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own, which makes an empty list of the value in ``--out=--``."""
        for word in args or ():
            if re.fullmatch("--[^=]+=--", word):
                self.error(f"argument {word[:-3]}: expected a value, found '--'")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with status 2."""
        self.exit(2, f"stcl: error: {one_line(shown_text(message, sys.argv))}. See '{self.prog} --help'.\n")


def add_verb(verbs: "Verbs", verb: str, summary: str, text: str) -> argparse.ArgumentParser:
    """A sub-command: its words, a line about it and its whole description."""
    parser = verbs.add_parser(
        verb.rpartition(" ")[2],
        help=summary,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(verb=verb)
    return parser


def add_config(parser: argparse.ArgumentParser, words: str, options: str) -> None:
    """What every command understands that looks at the data of a configuration; ``options`` are its own."""
    parser.usage = f"stcl {words} CONFIG {options} [--preset NAME] [--group.key VALUE ...] [--quiet]"
    parser.add_argument("config", metavar="CONFIG", help="as for 'stcl train'")
    parser.add_argument("--preset", metavar="NAME", help="as for 'stcl train'")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(takes_overrides=True)


def place(text: str) -> str:
    """A path, a URL or a name; an empty one, as of a variable that is not set, would be the working folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a path, found '{text}'")
    return text


def path(text: str) -> Path:
    """A path, in which ``~`` is the home folder."""
    try:
        return from_home(place(text))
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels: ``640x480`` -> (640, 480)."""
    width, height = _two(text, "x", "WIDTHxHEIGHT in pixels, such as 640x480")
    return width, height


def shard(text: str) -> tuple[int, int]:
    """``2/4`` -> (2, 4)."""
    number, total = _two(text, "/", "I/N with I from 1 to N, such as 2/4")
    if not 1 <= number <= total:
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 2/4, found '{shortened(text)}'")
    return number, total


def launched_shard() -> tuple[int, int]:
    """This process's part where torchrun started several, else all."""
    return int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1))


def whole(least: int = 0, most: int = LARGEST) -> Callable[[str], int]:
    """The type of whole numbers from ``least`` to ``most``."""

    def read(text: str) -> int:
        number = int(text) if text.isdecimal() and len(text) <= _DIGITS else LARGEST + 1
        if not least <= number <= most:
            end = f"to {most}" if text.isdecimal() and number > most else "up"
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} {end}, found '{shortened(text)}'")
        return number

    return read


count, at_least_one, processes = whole(), whole(1), whole(0, MOST_PROCESSES)


def positive(text: str) -> float:
    """A number above 0; infinity and "not a number" are none."""
    return _number(text, 0, math.inf, "a number above 0")


def rate(text: str) -> float:
    """Frames a second, from one in eleven days to a million."""
    return _number(text, 0.9e-6, 1.1e6, "frames a second from 0.000001 to 1000000")


def _number(text: str, above: float, below: float, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not above < value < below:
        raise argparse.ArgumentTypeError(f"expected {wanted}, found '{shortened(text)}'")
    return value


def _two(text: str, sign: str, wanted: str) -> list[int]:
    parts = text.split(sign)
    if len(parts) != 2 or not all(part.isdecimal() and len(part) <= _DIGITS for part in parts):
        raise argparse.ArgumentTypeError(f"expected {wanted}, found '{shortened(text)}'")
    return [int(part) for part in parts]


def refuse_swapped(arguments: argparse.Namespace, config: str) -> None:
    """An override before CONFIG loses its value to it."""
    before = arguments.words[arguments.words.index(config) - 1]
    if before in arguments.overrides and before.startswith("--") and "=" not in before:
        raise SettingError(
            f"CONFIG stands before the overrides: stcl {arguments.verb} CONFIG {before} {config} ... "
            f"('{config}' was read as the configuration.)"
        )
