"""``stcl report``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, path

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl report`` understands."""
    text = "Compare evaluated runs: OUT/report.html, OUT/results.md and OUT/results.csv. Reads result files only."
    parser = add_verb(verbs, "report", "tables and a page from evaluated runs", text)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="folder with a results.json")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for the report")


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl report`` was asked."""
    from stcl.commands.report.page import write_report
    from stcl.pages.tables import compare, rich_table
    from stcl.terminal import plain_console

    write_report(arguments.runs, arguments.out)
    plain_console().print(rich_table(compare(arguments.runs)))
    print(f"Page: {arguments.out / 'report.html'}")
