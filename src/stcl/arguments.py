"""How the command line is read: its parser, and what single words stand for (``type=`` of argparse)."""

import argparse
import math
from typing import TYPE_CHECKING, NoReturn

from stcl.errors import SettingError

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction["Parser"]


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line, like every other part of the command."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with status 2."""
        self.exit(2, f"stcl: error: {message}. See '{self.prog} --help'.\n")


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


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels: ``640x480`` -> (640, 480)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 640x480, found '{text}'")
    return int(width), int(height)


def shard(text: str) -> tuple[int, int]:
    """``2/4`` -> (2, 4)."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected I/N, such as 2/4, found '{text}'")
    return int(number), int(total)


def count(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, found '{text}'")
    return int(text)


def at_least_one(text: str) -> int:
    """A whole number from 1 up."""
    number = count(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, found '{text}'")
    return number


def positive(text: str) -> float:
    """A number above 0; infinity and "not a number" are none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found '{text}'")
    return value


def refuse_swapped(arguments: argparse.Namespace, config: str) -> None:
    """An override before CONFIG loses its value to it."""
    before = arguments.words[arguments.words.index(config) - 1]
    if before in arguments.overrides and before.startswith("--") and "=" not in before:
        raise SettingError(
            f"CONFIG stands before the overrides: stcl {arguments.verb} CONFIG {before} {config} ... "
            f"('{config}' was read as the configuration.)"
        )
