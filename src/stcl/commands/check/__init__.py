"""``stcl data check``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_config, add_verb, path, processes, refuse_swapped

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl data check`` understands."""
    text = "Look at a configuration's data: what there is, all that is wrong, what to do. Status 0: training can start."
    parser = add_verb(verbs, "data check", "is the data right, before training", text)
    add_config(parser, "data check", "[--out PAGE] [--full] [--workers N]")
    parser.add_argument("--out", type=path, metavar="PAGE", help="also write a page with pictures, e.g. check.html")
    parser.add_argument("--full", action="store_true", help="read everything, not about 100 frames of each data set")
    parser.add_argument("--workers", type=processes, metavar="N", help="processes (default: one a core)")


def main(arguments: argparse.Namespace) -> int:
    """Do what ``stcl data check`` was asked."""
    import stcl
    from stcl.commands.check.page import rich_check
    from stcl.terminal import plain_console

    refuse_swapped(arguments, arguments.config)
    settings = stcl.load_settings(arguments.config, arguments.overrides, arguments.preset)
    record = stcl.check_data(settings, arguments.out, arguments.full, arguments.workers, arguments.quiet)
    plain_console().print(*rich_check(record), sep="")
    if arguments.out is not None:
        print(f"Page: {arguments.out}")
    return 0 if record["ready"] else 2
