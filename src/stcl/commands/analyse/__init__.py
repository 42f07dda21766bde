"""``stcl analyse``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, count, path

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl analyse`` understands."""
    text = (
        "How good the pseudo labels of runs are, compared with the target's labels, which are read for this alone:\n"
        "OUT/analysis.html, OUT/analysis.json and pictures of the worst frames. Runs that were trained with\n"
        "--training.snapshot_every N are shown over time."
    )
    parser = add_verb(verbs, "analyse", "how good pseudo labels are, over training", text)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="run folders on one target data set")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for the analysis")
    parser.add_argument("--split", help="split of the target data set (default: the one that is adapted to)")
    parser.add_argument("--frames", type=count, default=100, help="labelled frames at most (default 100)")
    parser.add_argument("--against", type=path, metavar="RUN", help="evaluated run to compare the mistakes with")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl analyse`` was asked."""
    import stcl

    options = (arguments.split, arguments.frames, arguments.against, arguments.quiet)
    for run in stcl.analyse(arguments.runs, arguments.out, *options)["runs"]:
        if run["note"]:
            print(f"{run['folder']}: {run['note']}")
    print(f"Page: {arguments.out / 'analysis.html'}")
