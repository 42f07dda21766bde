"""``stcl demo``: its arguments and what it prints."""

import argparse
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, count, path

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl demo`` understands."""
    text = (
        "Render two looks of a street world, train without and with adaptation, and write a page about it:\n"
        "OUT/report.html, OUT/demo.mp4 and OUT/summary.json. A few minutes on two cores; needs no data set."
    )
    parser = add_verb(verbs, "demo", "the whole job on the built-in benchmark, in minutes", text)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for everything the demo makes")
    parser.add_argument("--seed", type=count, default=0, help="determines the random draws of training (default 0)")


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl demo`` was asked."""
    from stcl.commands.demo.run import run_demo

    run_demo(arguments.out, arguments.seed)
