"""``stcl arena``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
import sys
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, path, processes
from stcl.resources import list_arenas

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl arena`` understands."""
    text = (
        "Run methods x seeds x pairs and compare them: OUT/arena.html, OUT/arena.md and OUT/arena.json.\n\n"
        "CONFIG is a YAML file (docs/arena.md) or a shipped one by name. What is done is never done again: call it\n"
        "again after an interruption, or in several places at once with one OUT.\n\nshipped arenas:\n"
    )
    parser = add_verb(
        verbs, "arena", "compare methods over seeds and data", text + "\n".join(map("  {}".format, list_arenas()))
    )
    parser.add_argument("plan", metavar="CONFIG", help="YAML file, or the name of a shipped one")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder of data, runs and table")
    parser.add_argument("--jobs", type=processes, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PAIR", help="these pairs only")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def main(arguments: argparse.Namespace) -> int:
    """Do what ``stcl arena`` was asked."""
    from stcl.commands.arena.run import run_arena
    from stcl.commands.arena.table import rich_tables
    from stcl.terminal import plain_console

    options = (arguments.jobs, arguments.quiet, arguments.only, arguments.table)
    table = run_arena(arguments.plan, arguments.out, *options)
    plain_console().print(*rich_tables(table))
    for name, reason in table.failed.items():
        print(f"stcl: {name} failed: {reason}", file=sys.stderr)
    print(f"Page: {arguments.out / 'arena.html'}")
    return int(bool(table.failed))
