"""``stcl evaluate``: its arguments and what it prints."""

import argparse
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, count, path, processes
from stcl.errors import SettingError

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl evaluate`` understands."""
    text = "Measure trained networks on labelled target frames; writes RUN/results.json and prints a table."
    parser = add_verb(verbs, "evaluate", "measure trained networks on labelled frames", text)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="folder that 'stcl train' wrote")
    parser.add_argument("--split", help="split of the target data set (default: the configuration's)")
    parser.add_argument("--root", type=path, help="folder of the target data set (default: the configuration's)")
    parser.add_argument("--out", type=path, help="where the result goes, for a single RUN (default: RUN)")
    parser.add_argument("--samples", type=count, help="how many frames to keep as pictures")
    parser.add_argument("--devices", type=processes, default=1, help="devices that share the frames (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl evaluate`` was asked."""
    from stcl.pages.tables import compare, rich_table
    from stcl.terminal import plain_console
    from stcl.training.devices import is_first_process
    from stcl.training.evaluate import evaluate

    if arguments.out is not None and len(arguments.runs) > 1:
        raise SettingError("--out takes one RUN; without it every result goes into its own run folder.")
    if arguments.devices < 1:
        raise SettingError("--devices counts the devices that share the frames: at least 1.")
    for run in arguments.runs:
        options = (arguments.split, arguments.root, arguments.out, arguments.samples, arguments.quiet)
        evaluate(run, *options, devices=arguments.devices)
    if is_first_process():
        plain_console().print(rich_table(compare([arguments.out] if arguments.out else arguments.runs)))
